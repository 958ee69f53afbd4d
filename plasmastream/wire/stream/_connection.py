"""The two ends of a connection, without I/O: bytes in, events out; calls in, bytes out.

Reading is two steps, so that the caller decides where bytes go and when work happens: fill `get_buffer()` and
say so with `advance()` (or hand bytes to `receive_data()`), then take events from `next_event()` until it
answers a `Signal`.

Sending only queues: `data_to_send()` hands out the pieces, unjoined, for a gathering write.

Promises: nothing is allocated for bytes that were announced but have not arrived; at most a scratch of bytes
is read ahead (what `receive_data` cannot place is kept until it can be); nothing escapes but
`RemoteProtocolError`, after which the connection is of no use, and `LocalProtocolError`, after which it is as
it was before the call.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Sequence
from itertools import chain

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream._object_id import ObjectID
from plasmastream.wire._scratch import Scratch, flat_view
from plasmastream.wire.stream._answers import Arriving, parse_sync_answer, parse_transfer_answer
from plasmastream.wire.stream._events import (
    NEED_DATA,
    PAUSED,
    ConnectionClosed,
    Event,
    Signal,
    SyncRequested,
    TransferRequested,
    Version2Offered,
)
from plasmastream.wire.stream._frames import pack_object_header, pack_sync, pack_transfer
from plasmastream.wire.stream._limits import (
    CLIENT_SCRATCH_SIZE,
    SERVER_SCRATCH_SIZE,
    Limits,
    check_distinct,
    check_id_sizes,
    check_port,
)
from plasmastream.wire.stream._messages import PeerRequest, TransferKind, describe_status
from plasmastream.wire.stream._requests import offers_version_2, parse_magic, parse_request
from plasmastream.wire.stream._state import NEXT, Owed

Parser = Generator[Event | Signal, None, Event]
Piece = bytes | memoryview


class _Connection(ABC):
    """What both ends share: the way of bytes to the parser, the end of the connection, the queue of pieces."""

    def __init__(self, limits: Limits, scratch_size: int) -> None:
        self.limits = limits
        self._scratch = Scratch(scratch_size)
        self._backlog = memoryview(b"")
        self._parser: Parser | None = None
        self._outgoing: list[Piece] = []
        self._eof = False
        self._closed = False
        # Not the exception itself: its traceback would keep frames alive, and with them the caller's memory.
        self._failure: tuple[str, int | None] | None = None

    # Bytes in

    def get_buffer(self) -> memoryview:
        """The place for the next bytes from the transport, writable; let go of it after `advance`.

        A query: asking changes nothing, so a read into the view may be cancelled. After NEED_DATA it is never
        empty. It is empty when enough has been read ahead: then take events, and answer what they ask, before
        reading on.
        """
        if self._backlog:
            return self._scratch.tail()[:0]
        return self._offer()

    def advance(self, nbytes: int) -> None:
        """Say that the first `nbytes` of the last `get_buffer()` are filled. Call it right after the read.

        Raises:
            LocalProtocolError: `nbytes` is 0 (an empty read is `receive_eof`), or more than was offered, or
                the end was announced before.
        """
        self._check_reading(nbytes)
        self._commit(nbytes)

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take any number of bytes from the transport: the same path as `get_buffer` and `advance`, by copying.

        Raises:
            LocalProtocolError: `data` is empty (an empty read is `receive_eof`), or the end was announced
                before, or earlier data has not been digested: take events until `get_buffer()` is not empty.
        """
        with flat_view(data) as octets:
            self._check_reading(len(octets))
            placed = self._place(octets)
            self._backlog = memoryview(bytes(octets[placed:]))

    def receive_eof(self) -> None:
        """Say that the transport has ended: nothing follows what was received. Saying it twice is harmless."""
        self._eof = True

    def next_event(self) -> Event | Signal:
        """The next event, or a `Signal` if there is none: NEED_DATA, NEED_BUFFER (client) or PAUSED (server).

        Raises:
            RemoteProtocolError: the other side broke the protocol, or ended the connection where it may not.
                Every later call raises it again.
        """
        if self._failure is not None:
            raise RemoteProtocolError(*self._failure)
        try:
            event = self._step()
            while event is NEED_DATA and self._backlog:
                self._backlog = self._backlog[self._place(self._backlog) :]
                event = self._step()
            if event is NEED_DATA and self._eof:
                self._check_end()
                self._closed = True
                return ConnectionClosed()
        except RemoteProtocolError as error:
            self._failure = (str(error), error.status)
            self._parser = None
            self._abandon()
            raise
        return event

    # Bytes out

    def data_to_send(self) -> list[Piece]:
        """Take what is queued: pieces to be sent in order, not joined, some of them the caller's own memory."""
        pieces, self._outgoing = self._outgoing, []
        return pieces

    # What differs between the ends

    @abstractmethod
    def _next_parser(self) -> Parser | Signal:
        """Start to parse what comes next, or say why that is not possible now."""

    @abstractmethod
    def _check_end(self) -> None:
        """Raise RemoteProtocolError if the other side may not end the connection here."""

    def _finish(self, event: Event) -> None:  # noqa: B027  (a client has nothing to do)
        """Note the event that ended a request or an answer."""

    def _abandon(self) -> None:  # noqa: B027  (a server has nothing to drop)
        """Let go of what belongs to the caller, after a failure."""

    def _offer(self) -> memoryview:
        return self._scratch.tail()

    def _commit(self, nbytes: int) -> None:
        self._scratch.advance(nbytes)

    # Helpers

    def _check_reading(self, nbytes: int) -> None:
        if self._eof:
            raise LocalProtocolError("data cannot follow the end")
        if nbytes <= 0:
            raise LocalProtocolError("nothing was read; the end of the stream is receive_eof()")
        if self._backlog:
            raise LocalProtocolError("earlier data waits to be parsed: take the events first")

    def _place(self, data: memoryview) -> int:
        """Copy the beginning of `data` to where reads go; the answer is how many bytes found room."""
        placed = 0
        while placed < len(data):
            with self._offer() as buffer:
                nbytes = min(len(buffer), len(data) - placed)
                buffer[:nbytes] = data[placed : placed + nbytes]
            if not nbytes:
                break
            self._commit(nbytes)
            placed += nbytes
        return placed

    def _step(self) -> Event | Signal:
        parser = self._parser
        if parser is None:
            found = self._next_parser()
            if isinstance(found, Signal):
                return found
            parser = self._parser = found
        try:
            return next(parser)
        except StopIteration as stop:
            self._parser = None
            event: Event = stop.value
            self._finish(event)
            return event


class ServerConnection(_Connection):
    """The end that is asked: parses requests, writes answers.

    After `TransferRequested` or `SyncRequested` the answer is owed, and `next_event` says PAUSED until it has
    been queued whole. Meanwhile bytes may be read ahead, as far as `get_buffer` offers space for them.

    A connection may begin with `Version2Offered`; then `take_rest` is all that is left to do with it.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(limits or Limits(), SERVER_SCRATCH_SIZE)
        self._owed = Owed.NOTHING
        self._left = 0
        self._payload_due = 0
        self._is_new = True
        self.is_offered_version_2 = False
        """Whether it begins as one of version 2 does, as far as `next_event` has seen."""

    @property
    def owes_answer(self) -> bool:
        """Whether a request waits for its answer, or for the rest of it."""
        return self._owed is not Owed.NOTHING

    @property
    def objects_left(self) -> int:
        """How many objects the answer under way still lacks, or how many statuses (after `SyncRequested`)."""
        return self._left

    @property
    def has_read_ahead(self) -> bool:
        """Whether anything, or the end, has arrived behind the request that is being answered."""
        return bool(len(self._scratch) or self._backlog or self._eof)

    def refuse(self, status: int) -> None:
        """Answer a COPY or TAKE with an error; the answer ends with it.

        Raises:
            LocalProtocolError: no transfer waits for its first byte, or `status` is no byte, or 0 (which is
                BEGIN).
        """
        self._check("refuse")
        if not 1 <= status <= 255:
            raise LocalProtocolError(f"a transfer cannot be refused with {status} ({describe_status(status)})")
        self._outgoing.append(bytes((status,)))
        self._left = 0
        self._become("refuse")

    def begin(self) -> None:
        """Promise all objects of a COPY or TAKE: BEGIN. From now on failure can be told only by closing.

        Raises:
            LocalProtocolError: no transfer waits for its first byte.
        """
        self._check("begin")
        self._outgoing.append(b"\x00")
        self._become("begin")

    def send_object(self, metadata: Piece, data: Piece) -> None:
        """Queue the next object whole. Neither piece may change before it has been sent.

        Raises:
            LocalProtocolError: no object is due, or one of the two is larger than the limits allow.
        """
        data_size = _nbytes(data)
        self._announce("send_object", metadata, data_size)
        if data_size:
            self._outgoing.append(data)

    def send_header(self, metadata: Piece, data_size: int) -> None:
        """Queue all of the next object but its data.

        The caller then sends what `data_to_send` hands out, and right after it exactly `data_size` bytes of
        data, past this connection (with sendfile, say).

        Raises:
            LocalProtocolError: no object is due, or a size is larger than the limits allow.
        """
        self._announce("send_header", metadata, data_size)
        self._payload_due = data_size

    def answer_sync(self, statuses: Sequence[int]) -> None:
        """Answer a SYNC, after all its peer requests are done.

        Args:
            statuses: one for each peer request, in order; those that peers answered go through unchanged.

        Raises:
            LocalProtocolError: no SYNC waits for its answer, or the number of statuses is wrong, or one is no
                byte.
        """
        self._check("answer_sync")
        if len(statuses) != self._left:
            raise LocalProtocolError(f"the SYNC has {self._left} peer requests, not {len(statuses)}")
        try:
            answer = bytes(statuses)
        except (TypeError, ValueError):
            raise LocalProtocolError(f"a status is one byte: {list(statuses)!r}") from None
        self._outgoing.append(answer)
        self._left = 0
        self._become("answer_sync")

    def take_rest(self) -> bytes:
        """Take what was received beyond the offer of version 2: at most what `get_buffer` offered.

        For this connection it is the end: nothing more can be received, and `ConnectionClosed` is its last event.

        Raises:
            LocalProtocolError: version 2 was not offered, or this was called before.
        """
        self._check("take_rest")
        rest = self._scratch.take(len(self._scratch)) + self._backlog
        self._backlog = self._backlog[:0]
        self._eof = True
        self._become("take_rest")
        return rest

    def data_to_send(self) -> list[Piece]:
        """Take what is queued: pieces to be sent in order, not joined, some of them the caller's own memory."""
        self._payload_due = 0
        return super().data_to_send()

    def _next_parser(self) -> Parser | Signal:
        if self._owed is not Owed.NOTHING:
            return PAUSED
        if not len(self._scratch):
            return NEED_DATA
        is_new, self._is_new = self._is_new, False
        if is_new and offers_version_2(self._scratch):
            self.is_offered_version_2 = True
            return parse_magic(self._scratch)
        return parse_request(self._scratch, self.limits)

    def _check_end(self) -> None:
        if self._parser is not None:
            raise RemoteProtocolError("the client ended the connection in the middle of a request")

    def _finish(self, event: Event) -> None:
        match event:
            case TransferRequested(object_ids=object_ids):
                self._left = len(object_ids)
                self._become("transfer requested")
            case SyncRequested(peer_requests=peer_requests):
                self._left = len(peer_requests)
                self._become("sync requested")
            case Version2Offered():
                self._become("version 2 offered")

    def _become(self, cause: str) -> None:
        self._owed = NEXT[self._owed][cause]

    def _check(self, call: str) -> None:
        if call not in NEXT[self._owed]:
            raise LocalProtocolError(f"{call}() is out of place: {self._owed.value}")
        if self._payload_due:
            raise LocalProtocolError(
                f"{call}() would overtake {self._payload_due} bytes of data: take data_to_send() and send them first"
            )

    def _announce(self, call: str, metadata: Piece, data_size: int) -> None:
        self._check(call)
        metadata_size = _nbytes(metadata)
        if data_size < 0 or self.limits.check_sizes(metadata_size, data_size) is not None:
            raise LocalProtocolError(
                f"an object of {metadata_size} bytes of metadata and {data_size} of data cannot be sent; "
                f"{self.limits.max_metadata_size} and {self.limits.max_data_size} are allowed"
            )
        self._outgoing.append(pack_object_header(metadata_size, data_size))
        if metadata_size:
            self._outgoing.append(metadata)
        self._left -= 1
        self._become(call if self._left else "last object")


class ClientConnection(_Connection):
    """The end that asks: writes requests, parses answers.

    Requests may be queued before earlier ones are answered; the answers come in order.

    A small object arrives as one `ObjectReceived`. A larger one arrives as `PayloadStarted`, whereupon
    `next_event` says NEED_BUFFER until `supply_buffer` or `discard_payload`, and reading ahead is bounded by
    the scratch: so whoever waits for room in a store slows the peer down and buffers nothing.
    `PayloadFinished` follows when the data is in place.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        super().__init__(limits or Limits(), CLIENT_SCRATCH_SIZE)
        self._arriving = Arriving()
        self._awaited: deque[Parser] = deque()

    @property
    def awaits_answer(self) -> bool:
        """Whether a request has not been answered to its end."""
        return self._parser is not None or bool(self._awaited)

    @property
    def current_object(self) -> ObjectID | None:
        """The object that is arriving, or None outside of a transfer's answer."""
        return self._arriving.object_id

    @property
    def bytes_received(self) -> int:
        """How many bytes of the data of `current_object` have arrived, as of the last call."""
        return self._arriving.received

    @property
    def bytes_expected(self) -> int | None:
        """How many bytes of data `current_object` has; None before its header has arrived."""
        return self._arriving.size if self._arriving.is_announced else None

    @property
    def payload_expected(self) -> int:
        """How many bytes of a payload are still to come into the place that `get_buffer` offers; 1 between payloads."""
        return self._arriving.missing if self._arriving.direct else 1

    def describe_progress(self) -> str:
        """Say in words how far the answer has come, to follow "the connection broke" or "nothing arrived"."""
        arriving = self._arriving
        if arriving.object_id is not None:
            if not arriving.is_announced:
                return f"before the header of object {arriving.object_id}"
            return f"after {arriving.received} of {arriving.size} bytes of object {arriving.object_id}"
        return "before the answer" if self.awaits_answer else "between requests"

    def request_transfer(self, kind: TransferKind, object_ids: Sequence[ObjectID]) -> None:
        """Ask for objects. There follow `AnswerRefused`, or `AnswerBegun`, each object, and `AnswerComplete`.

        Raises:
            LocalProtocolError: there are none or too many, one is named twice, or the connection has ended.
        """
        self._check_open()
        self._check_ids(object_ids)
        check_distinct(len(set(object_ids)), len(object_ids), LocalProtocolError)
        self._outgoing.append(pack_transfer(kind, object_ids))
        self._awaited.append(parse_transfer_answer(self._scratch, self.limits, tuple(object_ids), self._arriving))

    def request_sync(self, peer_requests: Sequence[PeerRequest]) -> None:
        """Ask the server to fetch objects from peers: `SyncAnswered` follows when all of it is done.

        Raises:
            LocalProtocolError: there are none or too many peer requests or objects, an object is named twice,
                a port is 0, or the connection has ended.
        """
        self._check_open()
        self.limits.check_peer_requests(len(peer_requests), LocalProtocolError)
        count = 0
        for request in peer_requests:
            self._check_ids(request.object_ids)
            check_port(request.port, LocalProtocolError)
            count += len(request.object_ids)
        self.limits.check_sync_objects(count, LocalProtocolError)
        distinct = len(set(chain.from_iterable(request.object_ids for request in peer_requests)))
        check_distinct(distinct, count, LocalProtocolError)
        self._outgoing.append(pack_sync(peer_requests))
        self._awaited.append(parse_sync_answer(self._scratch, len(peer_requests)))

    def supply_buffer(self, buffer: memoryview | bytearray) -> None:
        """Say where the data of the payload goes.

        The buffer is borrowed until `PayloadFinished`, `discard_payload` or a `RemoteProtocolError`; then the
        connection lets go of it.

        Raises:
            LocalProtocolError: no payload waits for a buffer, or this one is not writable, not in one piece,
                or does not have exactly `data_size` bytes.
        """
        if not self._arriving.wants_buffer:
            raise LocalProtocolError("no payload waits for a buffer")
        self._arriving.supply(buffer, self._scratch)

    def discard_payload(self) -> None:
        """Have the payload, or the rest of it, read and dropped; `PayloadFinished` follows all the same.

        A buffer that had been supplied is let go of at once.

        Raises:
            LocalProtocolError: no payload is under way.
        """
        if not self._arriving.is_payload:
            raise LocalProtocolError("no payload is under way")
        self._arriving.discard()

    def _next_parser(self) -> Parser | Signal:
        if self._awaited:
            return self._awaited.popleft()
        if len(self._scratch):
            raise RemoteProtocolError(f"the server sent {len(self._scratch)} bytes that nobody asked for")
        return NEED_DATA

    def _check_end(self) -> None:
        if self.awaits_answer:
            raise RemoteProtocolError(f"the server ended the connection {self.describe_progress()}")

    def _abandon(self) -> None:
        self._awaited.clear()
        self._arriving.discard()

    def _offer(self) -> memoryview:
        return self._arriving.rest() if self._arriving.direct else super()._offer()

    def _commit(self, nbytes: int) -> None:
        if self._arriving.direct:
            self._arriving.fill(nbytes)
        else:
            super()._commit(nbytes)

    def _check_open(self) -> None:
        if self._closed or self._failure is not None:
            raise LocalProtocolError("the connection has ended")

    def _check_ids(self, object_ids: Sequence[ObjectID]) -> None:
        self.limits.check_count(len(object_ids), LocalProtocolError)
        check_id_sizes(object_ids, LocalProtocolError)


def _nbytes(piece: Piece) -> int:
    return piece.nbytes if isinstance(piece, memoryview) else len(piece)
