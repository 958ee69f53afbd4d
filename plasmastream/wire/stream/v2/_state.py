"""Who may send what, and when: the table of docs/protocol.md, once, for both ends and both directions."""

from typing import Final

from plasmastream.wire.stream.v2._frames import FrameType as F

GREETING: Final = F.HELLO
"""The state before both have said HELLO."""
IDLE: Final = F.END
"""The state between two requests. While one runs, its type is the state."""

REQUESTS: Final = frozenset({F.OPEN, F.READ, F.DROP, F.CLOSE, F.PUT, F.SYNC, F.STAT, F.LIST})

CHANGING: Final = REQUESTS | {F.HELLO, F.END}
"""What leads to another state, or to another side's turn."""

CLIENT_MAY: Final[dict[F, frozenset[F]]] = {
    GREETING: frozenset({F.HELLO}),
    IDLE: REQUESTS | {F.CANCEL},
    **{request: frozenset({F.CANCEL}) for request in REQUESTS},
    F.PUT: frozenset({F.OBJECT, F.CHUNK, F.RUN, F.PROGRESS, F.CANCEL}),
}
"""State → what the client may send."""

SERVER_MAY: Final[dict[F, frozenset[F]]] = {
    GREETING: frozenset({F.HELLO, F.END}),
    IDLE: frozenset({F.END}),
    F.OPEN: frozenset({F.OBJECT, F.RUN, F.OUTCOMES, F.PROGRESS, F.END}),
    F.READ: frozenset({F.CHUNK, F.OUTCOMES, F.PROGRESS, F.END}),
    F.DROP: frozenset({F.OUTCOMES, F.PROGRESS, F.END}),
    F.CLOSE: frozenset({F.PROGRESS, F.END}),
    F.PUT: frozenset({F.WANT, F.OUTCOMES, F.PROGRESS, F.END}),
    F.SYNC: frozenset({F.PROGRESS, F.OUTCOMES, F.END}),
    F.STAT: frozenset({F.LISTED, F.PROGRESS, F.END}),
    F.LIST: frozenset({F.LISTED, F.PROGRESS, F.END}),
}
"""State → what the server may send."""
