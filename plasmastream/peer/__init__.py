"""Between machines: the server beside each store, and its clients."""

from plasmastream.peer._client import PeerClient, PeerTimeouts, open_peer
from plasmastream.peer._receiver import Progress
from plasmastream.peer._server import DEFAULT_MAX_CONNECTIONS, PeerServer, ServerTimeouts
from plasmastream.peer._transport import DEFAULT_PORT, Connect, PeerStalledError, Transport, parse_address
from plasmastream.wire.stream import Limits, PeerRequest, Status, TransferKind, describe_status

__all__ = [
    "DEFAULT_MAX_CONNECTIONS",
    "DEFAULT_PORT",
    "Connect",
    "Limits",
    "PeerClient",
    "PeerRequest",
    "PeerServer",
    "PeerStalledError",
    "PeerTimeouts",
    "Progress",
    "ServerTimeouts",
    "Status",
    "TransferKind",
    "Transport",
    "describe_status",
    "open_peer",
    "parse_address",
]
