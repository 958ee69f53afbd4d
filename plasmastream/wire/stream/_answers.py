"""The client's parsers: the two kinds of answer, read from top to bottom as A3 writes them down.

Generators: they yield events, and `NEED_DATA` or `NEED_BUFFER` where they cannot go on; they return the event
that ends the answer. What they and the connection both have to know, the object under way and the place for
its data, is an `Arriving`.
"""

from collections.abc import Generator

import attrs

from plasmastream._errors import RemoteProtocolError
from plasmastream._object_id import ObjectID
from plasmastream.wire._payload import Payload
from plasmastream.wire._scratch import Scratch
from plasmastream.wire.stream._events import (
    NEED_BUFFER,
    NEED_DATA,
    AnswerBegun,
    AnswerComplete,
    AnswerRefused,
    Event,
    ObjectReceived,
    PayloadFinished,
    PayloadStarted,
    Signal,
    SyncAnswered,
)
from plasmastream.wire.stream._frames import OBJECT_HEADER
from plasmastream.wire.stream._limits import Limits
from plasmastream.wire.stream._messages import Status


@attrs.define(eq=False)
class Arriving(Payload):
    """The object that is arriving, and the place for its data while it is a payload."""

    object_id: ObjectID | None = None
    """Which object is under way, or None between answers."""
    is_announced: bool = False
    """Whether its header has been read, so that its `size` is known."""
    is_payload: bool = False
    """Whether it is between PayloadStarted and PayloadFinished."""

    def begin(self, object_id: ObjectID | None) -> None:
        """Turn to the next object, or to none."""
        self.object_id = object_id
        self.is_announced = False
        self.size = self.received = 0


def parse_transfer_answer(
    scratch: Scratch, limits: Limits, object_ids: tuple[ObjectID, ...], arriving: Arriving
) -> Generator[Event | Signal, None, Event]:
    """Parse the answer to a COPY or TAKE of `object_ids`.

    Raises:
        RemoteProtocolError: an object is larger than the limits allow.
    """
    while not len(scratch):
        yield NEED_DATA
    (status,) = scratch.take(1)
    if status == Status.SUCCESS:
        raise RemoteProtocolError(f"status 0x{status:02x}, which means success, cannot answer a COPY or TAKE")
    if status != Status.BEGIN:
        return AnswerRefused(status)
    yield AnswerBegun()

    # This loop is what a small object costs: names are local, and nothing is done twice.
    header_size = OBJECT_HEADER.size
    max_metadata_size, max_data_size = limits.max_metadata_size, limits.max_data_size
    inline_size = limits.inline_size
    unpack, consume, take, peek = scratch.unpack, scratch.consume, scratch.take, scratch.peek
    for object_id in object_ids:
        arriving.begin(object_id)
        while len(scratch) < header_size:
            yield NEED_DATA
        (header,) = unpack(OBJECT_HEADER)
        metadata_size, data_size = header & 0xFFFF, header >> 16
        if metadata_size > max_metadata_size or data_size > max_data_size:
            raise RemoteProtocolError(
                f"object {object_id} has {metadata_size} bytes of metadata and {data_size} of data; "
                f"{max_metadata_size} and {max_data_size} are allowed",
                limits.check_sizes(metadata_size, data_size),
            )
        head_size = header_size + metadata_size
        whole_size = head_size + data_size
        wanted_size = whole_size if whole_size <= inline_size else head_size
        while (waiting := len(scratch)) < wanted_size:
            arriving.is_announced, arriving.size, arriving.received = True, data_size, max(0, waiting - head_size)
            yield NEED_DATA
        consume(header_size)
        metadata = take(metadata_size) if metadata_size else b""
        if whole_size <= inline_size:
            yield ObjectReceived(object_id, metadata, peek(data_size))
            consume(data_size)
            continue

        arriving.size, arriving.received = data_size, 0
        arriving.is_announced = arriving.is_payload = arriving.wants_buffer = True
        yield PayloadStarted(object_id, metadata, data_size)
        while arriving.wants_buffer:
            yield NEED_BUFFER
        while True:
            arriving.absorb(scratch)
            if not arriving.missing:
                break
            yield NEED_DATA
        arriving.let_go()
        arriving.is_payload = False
        yield PayloadFinished(object_id)
    arriving.begin(None)
    return AnswerComplete()


def parse_sync_answer(scratch: Scratch, peer_count: int) -> Generator[Event | Signal, None, Event]:
    """Parse the answer to a SYNC with `peer_count` peer requests."""
    while len(scratch) < peer_count:
        yield NEED_DATA
    return SyncAnswered(tuple(scratch.take(peer_count)))
