"""The client's parsers: the two kinds of answer, read from top to bottom as A3 writes them down.

Generators: they yield events, and `NEED_DATA` or `NEED_BUFFER` where they cannot go on; they return the event
that ends the answer. What they and the connection both have to know, the object under way and the place for
its data, is an `Arriving`.
"""

from collections.abc import Generator

import attrs

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream._object_id import ObjectID
from plasmastream.wire._scratch import Scratch, flat_view
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
from plasmastream.wire.stream._limits import DIRECT_SIZE, Limits
from plasmastream.wire.stream._messages import Status


@attrs.define(eq=False)
class Arriving:
    """The object that is arriving, and the place for its data while it is a payload."""

    object_id: ObjectID | None = None
    """Which object is under way, or None between answers."""
    data_size: int | None = None
    """Size of its data, in bytes; None until its header has been read."""
    received: int = 0
    """Bytes of its data that have arrived."""
    is_payload: bool = False
    """Whether it is between PayloadStarted and PayloadFinished."""
    wants_buffer: bool = False
    """Whether it is undecided where the payload goes."""
    direct: bool = False
    """Whether the rest of the data is read straight into the destination, past the scratch."""
    _destination: memoryview | None = None

    @property
    def missing(self) -> int:
        """Bytes of data that have not arrived; 0 before the header was read."""
        return (self.data_size or 0) - self.received

    def supply(self, buffer: memoryview | bytearray, scratch: Scratch) -> None:
        """Say where the data goes; what has arrived of it in the scratch goes there now.

        Raises:
            LocalProtocolError: the buffer is not writable, not in one piece, or not of the size of the data.
        """
        destination = flat_view(buffer)
        if destination.readonly or destination.nbytes != self.data_size:
            found = f"{'read-only' if destination.readonly else 'writable'} one of {destination.nbytes}"
            destination.release()
            raise LocalProtocolError(f"a writable buffer of {self.data_size} bytes is needed, not a {found}")
        self.wants_buffer = False
        self._destination = destination
        self.absorb(scratch)
        # Decided once: the last part of a large payload goes direct too, though it may be small.
        self.direct = self.missing >= DIRECT_SIZE

    def discard(self) -> None:
        """Say that the data goes nowhere, or no longer to where it went."""
        self.wants_buffer = False
        self.let_go()

    def rest(self) -> memoryview:
        """The part of the destination that is still to be filled."""
        assert self._destination is not None
        return self._destination[self.received :]

    def fill(self, nbytes: int) -> None:
        """Say that the first `nbytes` of `rest` are filled now."""
        if nbytes > self.missing:
            raise LocalProtocolError(f"{nbytes} bytes cannot have been read into {self.missing} bytes of space")
        self.received += nbytes
        if not self.missing:
            self.direct = False  # what follows the payload belongs in the scratch

    def absorb(self, scratch: Scratch) -> None:
        """Move data that has arrived in the scratch to its place, or drop it."""
        nbytes = min(self.missing, len(scratch))
        if nbytes:
            if self._destination is not None:
                self._destination[self.received : self.received + nbytes] = scratch.peek(nbytes)
            scratch.consume(nbytes)
            self.fill(nbytes)

    def let_go(self) -> None:
        """Drop the destination: afterwards nothing here keeps its memory alive."""
        self.direct = False
        if self._destination is not None:
            self._destination.release()
            self._destination = None


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
    unpack, consume, take = scratch.unpack, scratch.consume, scratch.take
    for object_id in object_ids:
        arriving.object_id = object_id
        arriving.data_size = None
        arriving.received = 0
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
            arriving.data_size, arriving.received = data_size, max(0, waiting - head_size)
            yield NEED_DATA
        consume(header_size)
        metadata = take(metadata_size) if metadata_size else b""
        if whole_size <= inline_size:
            yield ObjectReceived(object_id, metadata, take(data_size))
            continue

        arriving.data_size = data_size
        arriving.is_payload = arriving.wants_buffer = True
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
    arriving.object_id = arriving.data_size = None
    arriving.received = 0
    return AnswerComplete()


def parse_sync_answer(scratch: Scratch, peer_count: int) -> Generator[Event | Signal, None, Event]:
    """Parse the answer to a SYNC with `peer_count` peer requests."""
    while len(scratch) < peer_count:
        yield NEED_DATA
    return SyncAnswered(tuple(scratch.take(peer_count)))
