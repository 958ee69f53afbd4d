"""Version 2 of Plasma Stream, without I/O and without a clock: see docs/protocol.md.

`ClientConnection` asks, `ServerConnection` answers: see `_connection.py` for the contract. Events are the control
messages themselves, and a few more for the bytes of objects.
"""

from plasmastream.wire.stream._events import NEED_BUFFER, NEED_DATA, ConnectionClosed, Event, Signal
from plasmastream.wire.stream._messages import DamagedError
from plasmastream.wire.stream.v2._connection import AnyEvent, ClientConnection, Piece, ServerConnection
from plasmastream.wire.stream.v2._encodings import Encoding, encoding_of, known_encodings
from plasmastream.wire.stream.v2._events import (
    ChunkEnded,
    ChunkStarted,
    ChunkSummed,
    ObjectDescribed,
    RunArrived,
    RunDamaged,
)
from plasmastream.wire.stream.v2._frames import MAGIC, FrameType
from plasmastream.wire.stream.v2._limits import Limits, Patience
from plasmastream.wire.stream.v2._liveness import Lateness
from plasmastream.wire.stream.v2._messages import (
    TOKEN_SIZE,
    Amount,
    Cancel,
    Close,
    Described,
    Drop,
    End,
    Fetch,
    Hello,
    Listed,
    ListObjects,
    Message,
    Open,
    Outcomes,
    Progress,
    Put,
    Range,
    Read,
    Sizes,
    Stat,
    Sync,
    Want,
)
from plasmastream.wire.stream.v2._outcome import Outcome, describe_outcome
from plasmastream.wire.stream.v2._state import GREETING, IDLE

__all__ = [
    "GREETING",
    "IDLE",
    "MAGIC",
    "NEED_BUFFER",
    "NEED_DATA",
    "TOKEN_SIZE",
    "Amount",
    "AnyEvent",
    "Cancel",
    "ChunkEnded",
    "ChunkStarted",
    "ChunkSummed",
    "ClientConnection",
    "Close",
    "ConnectionClosed",
    "DamagedError",
    "Described",
    "Drop",
    "Encoding",
    "End",
    "Event",
    "Fetch",
    "FrameType",
    "Hello",
    "Lateness",
    "Limits",
    "ListObjects",
    "Listed",
    "Message",
    "ObjectDescribed",
    "Open",
    "Outcome",
    "Outcomes",
    "Patience",
    "Piece",
    "Progress",
    "Put",
    "Range",
    "Read",
    "RunArrived",
    "RunDamaged",
    "ServerConnection",
    "Signal",
    "Sizes",
    "Stat",
    "Sync",
    "Want",
    "describe_outcome",
    "encoding_of",
    "known_encodings",
]
