"""What the parsers report beside messages."""

import enum
from typing import Final, Generic, NamedTuple, TypeVar

import attrs

from plasmastream.wire.plasma._messages import Message

D = TypeVar("D")
"""A descriptor, of whatever type the I/O layer uses: parsers only pass it through."""


class Signal(enum.Enum):
    """Answers of a parser that has no event."""

    NEED_DATA = enum.auto()
    CONNECTION_CLOSED = enum.auto()


NEED_DATA: Final = Signal.NEED_DATA
"""Nothing more can be said before more bytes arrive."""
CONNECTION_CLOSED: Final = Signal.CONNECTION_CLOSED
"""The other side has hung up."""


@attrs.frozen
class Subscription(Generic[D]):
    """A client asked for notifications."""

    descriptor: D
    """The socket to send them to. The receiver of this event owns it."""


class Reply(NamedTuple, Generic[D]):
    """The store answered the outstanding request."""

    message: Message
    descriptors: dict[int, D]
    """The segments that are new to this connection, by `store_fd`. The receiver of this event owns them."""


class Outgoing(NamedTuple, Generic[D]):
    """Bytes to be sent, by a `sendmsg` of their own if there is a descriptor to go with them."""

    data: bytes
    descriptor: D | None = None
