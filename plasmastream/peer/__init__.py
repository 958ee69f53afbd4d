"""Between machines: the server beside each store, and its clients."""

from plasmastream.peer._client import PeerClient, open_peer
from plasmastream.peer._contents import NewFile
from plasmastream.peer._fetch import Report as Progress
from plasmastream.peer._lanes import OldPeerError
from plasmastream.peer._results import IncompleteError, RefusedError, Result, check_results
from plasmastream.peer._server import DEFAULT_MAX_CONNECTIONS, PeerServer
from plasmastream.peer._sync_client import SyncProgress
from plasmastream.peer._timeouts import PeerTimeouts, ServerTimeouts
from plasmastream.peer._transport import (
    DEFAULT_PORT,
    Connect,
    Excuse,
    PeerStalledError,
    Transport,
    UnreachableError,
    parse_address,
)
from plasmastream.wire.stream import Limits, PeerRequest, Status, TransferKind, describe_status
from plasmastream.wire.stream.v2 import Limits as Limits2
from plasmastream.wire.stream.v2 import Outcome, describe_outcome

__all__ = [
    "DEFAULT_MAX_CONNECTIONS",
    "DEFAULT_PORT",
    "Connect",
    "Excuse",
    "IncompleteError",
    "Limits",
    "Limits2",
    "NewFile",
    "OldPeerError",
    "Outcome",
    "PeerClient",
    "PeerRequest",
    "PeerServer",
    "PeerStalledError",
    "PeerTimeouts",
    "Progress",
    "RefusedError",
    "Result",
    "ServerTimeouts",
    "Status",
    "SyncProgress",
    "TransferKind",
    "Transport",
    "UnreachableError",
    "check_results",
    "describe_outcome",
    "describe_status",
    "open_peer",
    "parse_address",
]
