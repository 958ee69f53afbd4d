"""Everything that `next_event` can answer: events, and the three signals that say why there is none."""

from enum import Enum
from typing import Final

import attrs

from plasmastream._object_id import ObjectID
from plasmastream.wire.stream._messages import PeerRequest, TransferKind


class Signal(Enum):
    """Why there is no event now, and what to do about it."""

    NEED_DATA = "read from the transport"
    NEED_BUFFER = "call supply_buffer() or discard_payload()"
    PAUSED = "answer the request first"


NEED_DATA: Final = Signal.NEED_DATA
NEED_BUFFER: Final = Signal.NEED_BUFFER
PAUSED: Final = Signal.PAUSED


@attrs.frozen
class Event:
    """Base of all events."""


@attrs.frozen
class ConnectionClosed(Event):
    """The other side ended the connection where it may: between requests."""


@attrs.frozen
class TransferRequested(Event):
    """A client asks for objects. Answer with `begin` and the objects, or with `refuse`."""

    kind: TransferKind
    """Whether the objects stay."""
    object_ids: tuple[ObjectID, ...]
    """Which objects, in the order in which they are to be sent; all distinct."""


@attrs.frozen
class SyncRequested(Event):
    """A client asks this server to fetch objects from peers. Answer with `answer_sync` when all are done."""

    peer_requests: tuple[PeerRequest, ...]
    """What to fetch from whom; no object is named twice. Whether one names this server is for others to
    check.
    """


@attrs.frozen
class Version2Offered(Event):
    """A client begins the connection in version 2. `take_rest` hands over what it has sent since, and ends this one."""


@attrs.frozen
class AnswerRefused(Event):
    """The server will not send the objects; the answer ends here."""

    status: int
    """Why: any byte but 0. See `describe_status`."""


@attrs.frozen
class AnswerBegun(Event):
    """The server will send the objects; they follow in the order of the request."""


@attrs.frozen
class ObjectReceived(Event):
    """A small object arrived whole."""

    object_id: ObjectID
    """Which object."""
    metadata: bytes
    """Its metadata, a copy."""
    data: bytes | memoryview
    """Its data: a view of the scratch, for use before more is read. `bytes` of it are yours.

    What `get_buffer` was filled with stays until the next `get_buffer`; what `receive_data` was given, until the next
    event.
    """


@attrs.frozen
class PayloadStarted(Event):
    """A larger object arrives. Nothing goes on before `supply_buffer` or `discard_payload`."""

    object_id: ObjectID
    """Which object."""
    metadata: bytes
    """Its metadata, a copy."""
    data_size: int
    """Size of its data, in bytes; within the limits, may be 0."""


@attrs.frozen
class PayloadFinished(Event):
    """All data of a larger object is in place, or was discarded. The connection holds no view of it now."""

    object_id: ObjectID
    """Which object."""


@attrs.frozen
class AnswerComplete(Event):
    """All objects of a COPY or TAKE have arrived."""


@attrs.frozen
class SyncAnswered(Event):
    """The answer to a SYNC."""

    statuses: tuple[int, ...]
    """One status for each peer request, in order. See `describe_status`."""
