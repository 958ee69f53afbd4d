"""The two ends of a connection of version 2, without I/O and without a clock.

Reading: fill `get_buffer()` and say so with `advance()`, then take events from `next_event()` until it answers a
`Signal`. Sending only queues: `data_to_send()` hands out the pieces, unjoined. Time is told with `now`, in seconds from
anywhere; `deadline` is when the other side is late, and `late` says with what.

What a frame may be and when it may come is one table for both ends, in `_state.py`. Promises: of what was announced but
has not arrived, memory is taken for one payload at most, in pages that it fills; nothing escapes but
`RemoteProtocolError` (`DamagedError` where a frame was damaged on its way), after which the connection is of no use,
and `LocalProtocolError`, after which it is as it was before the call.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from struct import Struct
from struct import error as struct_error
from typing import TypeAlias

from xxhash import xxh3_64_intdigest

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream.wire._payload import DIRECT_SIZE, Payload
from plasmastream.wire._scratch import Scratch
from plasmastream.wire.stream._events import NEED_BUFFER, NEED_DATA, ConnectionClosed, Event, Signal
from plasmastream.wire.stream._messages import DamagedError
from plasmastream.wire.stream.v2._codec import decode_message, encode_message
from plasmastream.wire.stream.v2._encodings import Encoding, decode, encode
from plasmastream.wire.stream.v2._events import (
    ChunkEnded,
    ChunkStarted,
    ChunkSummed,
    ObjectDescribed,
    RunArrived,
    RunDamaged,
)
from plasmastream.wire.stream.v2._frames import (
    CHUNK,
    HEAD,
    MAGIC,
    OBJECT,
    RUN,
    RUN_ENTRY,
    FrameType,
    check_of,
    pack_frame,
    resembles_answer,
    unpack_head,
    unpack_run,
)
from plasmastream.wire.stream.v2._limits import (
    MAX_HELLO_SIZE,
    MAX_SYNC_SIZE,
    SCRATCH_SIZE,
    Limits,
    Patience,
)
from plasmastream.wire.stream.v2._liveness import Lateness, Liveness
from plasmastream.wire.stream.v2._messages import Hello, Message
from plasmastream.wire.stream.v2._rules import check, check_message, check_payload, check_run, check_sizes
from plasmastream.wire.stream.v2._state import CHANGING, CLIENT_MAY, GREETING, IDLE, REQUESTS, SERVER_MAY

Piece: TypeAlias = bytes | memoryview
AnyEvent: TypeAlias = Event | Message

_ENCODINGS = {int(encoding): encoding for encoding in Encoding}
_HEAD_OF_CHUNK = HEAD.size + CHUNK.size
_ALWAYS_ALLOWED = MAX_HELLO_SIZE
"""Bytes of a body that no frame is too small for."""


class _Connection(ABC):
    """What both ends share.

    Args:
        hello: what to say of ourselves.
        now: the time.
        limits: what is accepted and sent.
        patience: how late the other side may be.
    """

    may_send = CLIENT_MAY
    may_come = SERVER_MAY

    def __init__(
        self, hello: Hello, now: float, *, limits: Limits | None = None, patience: Patience | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.hello = hello
        self.peer: Hello | None = None
        """What the other side said of itself; None before."""
        self.state = GREETING
        self.chunk_size = self.limits.chunk_size
        """Bytes of the largest chunk that both sides allow."""
        self._tag = 0
        self._scratch = Scratch(SCRATCH_SIZE)
        self._outgoing: list[Piece] = []
        self._payload: Payload | None = None  # what is being read
        self._chunk: Payload | None = None  # the same, unless that is encoded: then what it is decoded into
        self._in_frame = False
        self._expects_chunks = False
        self._eof = False
        self._failure: tuple[type[RemoteProtocolError], str] | None = None
        self._liveness = Liveness(patience or Patience(), now)
        self._parser: Iterator[AnyEvent | Signal] = self._parse()

    # Bytes in

    def get_buffer(self) -> memoryview:
        """The place for the next bytes, writable; let go of it after `advance`. After NEED_DATA it is not empty.

        A query: asking changes nothing, so a read into the view may be cancelled.
        """
        if self._payload is not None and self._payload.direct:
            return self._payload.rest()
        tail = self._scratch.tail()
        if self._expects_chunks and not self._in_frame and len(self._scratch) < _HEAD_OF_CHUNK:
            # The head of the next chunk alone, so that what follows it can be read to its place directly.
            return tail[: _HEAD_OF_CHUNK - len(self._scratch)]
        return tail

    @property
    def payload_expected(self) -> int:
        """How many bytes of a payload are still to come into the place that `get_buffer` offers; 1 between payloads."""
        return self._payload.missing if self._payload is not None and self._payload.direct else 1

    def advance(self, nbytes: int, now: float) -> None:
        """Say that the first `nbytes` of the last `get_buffer()` are filled. Call it right after the read.

        Raises:
            LocalProtocolError: `nbytes` is 0 (an empty read is `receive_eof`), or more than was offered.
        """
        if nbytes <= 0 or self._eof:
            raise LocalProtocolError("nothing was read; the end of the stream is receive_eof()")
        if not self._is_in_frame:
            self._liveness.begin_frame(now)
        if self._payload is not None and self._payload.direct:
            self._payload.fill(nbytes)
        else:
            self._scratch.advance(nbytes)
        self._liveness.progress(nbytes, now)

    def receive_eof(self) -> None:
        """Say that nothing follows what was received. Saying it twice is harmless."""
        self._eof = True

    def next_event(self) -> AnyEvent | Signal:
        """The next event, or a `Signal` if there is none: NEED_DATA, NEED_BUFFER.

        Raises:
            DamagedError: a frame was damaged on its way.
            RemoteProtocolError: the other side broke the protocol, or ended the connection within a frame, or (to a
                client) within a request. Every later call raises it again.
        """
        if self._failure is not None:
            error, reason = self._failure
            raise error(reason)
        try:
            event = next(self._parser)
            if event is NEED_DATA and self._eof:
                self._check_end()
                return ConnectionClosed()
        except RemoteProtocolError as error:
            # Not the exception itself: its traceback would keep frames alive, and with them the caller's memory.
            self._failure = type(error), str(error)
            self._stop()
            raise
        return event

    def supply_buffer(self, buffer: memoryview | bytearray) -> None:
        """Say where the bytes of the chunk go: borrowed until `ChunkEnded`, `discard_chunk` or a failure.

        Raises:
            LocalProtocolError: no chunk waits for a buffer, or this one does not fit it.
        """
        if self._chunk is None or not self._chunk.wants_buffer:
            raise LocalProtocolError("no chunk waits for a buffer")
        self._chunk.supply(buffer, self._scratch if self._chunk is self._payload else None)

    def discard_chunk(self) -> None:
        """Have the chunk, or the rest of it, read and dropped, if there is one; `ChunkEnded` follows all the same."""
        if self._chunk is not None:
            self._chunk.discard()

    def close(self) -> None:
        """Let go of everything; the connection is of no use afterwards."""
        self._stop()
        self._outgoing.clear()
        if self._failure is None:
            self._failure = RemoteProtocolError, "the connection was closed"

    # Time

    @property
    def deadline(self) -> float:
        """When the other side is late if nothing comes before; infinite if nothing is due."""
        return self._liveness.deadline(self._is_in_frame)

    @property
    def last_progress(self) -> float:
        """When something came last, or was asked for."""
        return self._liveness.last_progress

    def late(self, now: float) -> Lateness | None:
        """What the other side is late with, if with anything."""
        return self._liveness.late(self._is_in_frame, now)

    def sent(self, now: float) -> None:
        """Say that what was queued has left: the other side has its time from now on."""
        self._liveness.expect(self._due(), now)

    # Bytes out

    def data_to_send(self) -> list[Piece]:
        """Take what is queued: pieces to be sent in order, not joined, some of them the caller's own memory."""
        pieces, self._outgoing = self._outgoing, []
        return pieces

    def send(self, message: Message) -> None:
        """Queue a control message.

        Raises:
            LocalProtocolError: it is out of place, or larger than allowed.
        """
        self._check_sending(message.type)
        check_message(message, self.limits, LocalProtocolError)
        body = encode_message(message)
        if len(body) > _ALWAYS_ALLOWED and len(body) > self._most_bytes_of(message.type):
            raise LocalProtocolError(f"a {message.type.name} of {len(body)} bytes is larger than allowed")
        if message.type in REQUESTS:
            self._tag = self._tag % 0xFFFF + 1
        self._outgoing.append(pack_frame(message.type, self._tag if self.state is not GREETING else 0, body))
        self._changed_by(message.type)

    def send_object(self, index: int, data_size: int, metadata: Piece, handle: int = 0) -> None:
        """Queue the description of an object.

        Raises:
            LocalProtocolError: it is out of place, or the object larger than allowed.
        """
        self._check_sending(FrameType.OBJECT)
        check_sizes(data_size, len(metadata), self.limits, LocalProtocolError)
        body = b"".join((_pack(OBJECT, index, len(metadata), data_size, handle), metadata))
        self._outgoing.append(pack_frame(FrameType.OBJECT, self._tag, body))

    def send_chunk(self, index: int, offset: int, content: memoryview, encoding: Encoding = Encoding.NONE) -> None:
        """Queue a piece of an object, which may not change before it has left.

        Raises:
            LocalProtocolError: it is out of place, empty, or larger than both sides allow.
        """
        self._check_sending(FrameType.CHUNK)
        if not 0 < len(content) <= self.chunk_size:
            raise LocalProtocolError(f"a chunk has 1 to {self.chunk_size} bytes, not {len(content)}")
        checksum = xxh3_64_intdigest(content)
        encoded: Piece = b""
        if encoding is not Encoding.ABSENT:
            encoding, encoded = self._encode(encoding, content)
        body = _pack(CHUNK, index, encoding, offset, len(content), len(encoded), checksum)
        self._outgoing.append(pack_frame(FrameType.CHUNK, self._tag, body))
        if len(encoded):
            self._outgoing.append(encoded)

    def send_run(self, objects: Sequence[tuple[int, Piece, Piece]], encoding: Encoding = Encoding.NONE) -> None:
        """Queue small objects: index, data, metadata of each. All is copied.

        Raises:
            LocalProtocolError: it is out of place, or there are no objects, too many, or too large ones.
        """
        self._check_sending(FrameType.RUN)
        parts: list[Piece] = [_pack(RUN_ENTRY, index, len(data), len(meta)) for index, data, meta in objects]
        for _, data, metadata in objects:
            parts += (metadata, data)
        content = b"".join(parts)
        check_run(len(objects), len(content), self.limits, LocalProtocolError)
        encoding, encoded = self._encode(encoding, content)
        body = RUN.pack(len(objects), encoding, len(content), len(encoded), xxh3_64_intdigest(content))
        self._outgoing += (pack_frame(FrameType.RUN, self._tag, body), encoded)

    def _encode(self, encoding: Encoding, content: Piece) -> tuple[Encoding, Piece]:
        """Encode a payload, unless that would not help, or the other side did not name the encoding."""
        if encoding is Encoding.NONE:
            return encoding, content
        features = self.peer.features if self.peer is not None else ()
        encoded = encode(encoding, content) if encoding.name.lower() in features else None
        return (Encoding.NONE, content) if encoded is None else (encoding, encoded)

    # What differs between the ends

    @abstractmethod
    def _due(self) -> Lateness | None:
        """What the other side owes in this state."""

    def _met(self, hello: Hello) -> None:
        self.peer = hello
        self.chunk_size = min(self.chunk_size, hello.max_chunk)

    @property
    def _is_in_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._in_frame or bool(len(self._scratch))

    def _check_end(self) -> None:
        if self._is_in_frame:
            raise RemoteProtocolError("the connection ended in the middle of a frame")

    def _accept(self, frame_type: FrameType, tag: int, length: int) -> bool:
        """Whether a frame of which this is the head is to be read; False where it is passed over."""
        if frame_type not in self.may_come[self.state]:
            raise RemoteProtocolError(f"a frame {frame_type.name} came out of place, in the state {self.state.name}")
        if length > _ALWAYS_ALLOWED and length > self._most_bytes_of(frame_type):
            raise RemoteProtocolError(f"a {frame_type.name} announces a body of {length} bytes, too many")
        return True

    def _most_bytes_of(self, frame_type: FrameType) -> int:
        if frame_type is FrameType.HELLO:
            return MAX_HELLO_SIZE
        return MAX_SYNC_SIZE if frame_type is FrameType.SYNC else self.limits.max_body_size

    def _changed_by(self, frame_type: FrameType) -> None:
        """Note a frame that was sent, or has come, if it leads to another state."""
        if frame_type in REQUESTS:
            self.state = frame_type
        elif frame_type is FrameType.END:
            self.state = IDLE
            self._expects_chunks = False

    # Parsing

    def _parse(self) -> Generator[AnyEvent | Signal, None, None]:
        scratch = self._scratch
        while True:
            while (octets := scratch.take_whole(HEAD.size)) is None:
                yield NEED_DATA
            self._in_frame = True
            self._liveness.begin_frame(self._liveness.last_progress)
            frame_type, tag, length, body_check = unpack_head(octets)
            wanted = self._accept(frame_type, tag, length)
            body: bytes | bytearray | None = scratch.take_whole(length)
            if body is None:
                body = yield from self._read_body(length)
            if check_of(body) != body_check:
                raise DamagedError(f"the body of a {frame_type.name} was damaged on its way")
            match frame_type:
                case FrameType.CHUNK:
                    yield from self._parse_chunk(body)
                case FrameType.RUN:
                    yield from self._parse_run(body)
                case FrameType.OBJECT:
                    self._in_frame = False
                    yield self._described(body)
                case _:
                    self._in_frame = False
                    message = decode_message(frame_type, body)
                    check_message(message, self.limits, RemoteProtocolError)
                    if isinstance(message, Hello):
                        check(self.peer is None, "a second HELLO came, with %d features", len(message.features))
                        self._met(message)
                    if frame_type in CHANGING:
                        self._changed_by(frame_type)
                        self._liveness.expect(self._due(), self._liveness.last_progress)
                    if wanted:
                        yield message

    def _read_body(self, length: int) -> Generator[Signal, None, bytearray]:
        # It grows as it comes: an announcement alone takes no memory.
        body = bytearray()
        while missing := length - len(body):
            if arrived := min(missing, len(self._scratch)):
                body += self._scratch.take(arrived)
            else:
                yield NEED_DATA
        return body

    def _parse_chunk(self, body: bytes | bytearray) -> Generator[AnyEvent | Signal, None, None]:
        if len(body) != CHUNK.size:
            raise RemoteProtocolError(f"a CHUNK has a body of {len(body)} bytes")
        index, number, offset, length, wire_length, checksum = CHUNK.unpack(body)
        encoding = _encoding(number)
        check_payload(length, wire_length, self.chunk_size, encoding, self.hello)
        if encoding is Encoding.ABSENT:
            self._in_frame = False
            yield ChunkSummed(index, offset, length, checksum)
            return
        chunk = self._chunk = Payload(length, wants_buffer=True)
        if encoding is Encoding.NONE:
            self._payload = chunk
        self._expects_chunks = length >= DIRECT_SIZE
        yield ChunkStarted(index, offset, length)
        while chunk.wants_buffer:
            yield NEED_BUFFER
        is_intact = False
        if encoding is Encoding.NONE:
            yield from self._fill(chunk)
            if chunk.destination is not None:
                is_intact = xxh3_64_intdigest(chunk.destination) == checksum
        else:
            content = yield from self._read_encoded(encoding, wire_length, length)
            if content is not None and chunk.destination is not None:
                is_intact = xxh3_64_intdigest(content) == checksum
                chunk.destination[:] = content
        self._let_go()
        self._in_frame = False
        yield ChunkEnded(index, offset, length, is_intact)

    def _parse_run(self, body: bytes | bytearray) -> Generator[AnyEvent | Signal, None, None]:
        if len(body) != RUN.size:
            raise RemoteProtocolError(f"a RUN has a body of {len(body)} bytes")
        count, number, length, wire_length, checksum = RUN.unpack(body)
        encoding = _encoding(number)
        check_run(count, length, self.limits, RemoteProtocolError)
        check(encoding is not Encoding.ABSENT, "a run of %d objects is absent", count)
        check_payload(length, wire_length, length, encoding, self.hello)
        content = yield from self._read_encoded(encoding, wire_length, length)
        self._in_frame = False
        if content is None or xxh3_64_intdigest(content) != checksum:
            yield RunDamaged()
            return
        yield RunArrived(unpack_run(content, count))

    def _read_encoded(
        self, encoding: Encoding, wire_length: int, length: int
    ) -> Generator[Signal, None, bytes | bytearray | None]:
        encoded: bytes | bytearray | None = self._scratch.take_whole(wire_length)
        if encoded is None:
            payload = self._payload = Payload(wire_length)
            encoded = bytearray(wire_length)
            payload.supply(encoded, self._scratch)
            yield from self._fill(payload)
            payload.let_go()
            self._payload = None
        return encoded if encoding is Encoding.NONE else decode(encoding, encoded, length)

    def _fill(self, payload: Payload) -> Generator[Signal, None, None]:
        while True:
            payload.absorb(self._scratch)
            if not payload.missing:
                return
            yield NEED_DATA

    def _stop(self) -> None:
        self._let_go()
        # It knows this connection: they would keep each other alive. To close it is not enough: where it has not begun,
        # CPython 3.12 leaves it what it knows.
        self._parser = iter(())

    def _let_go(self) -> None:
        for payload in (self._payload, self._chunk):
            if payload is not None:
                payload.let_go()
        self._payload = self._chunk = None

    def _described(self, body: bytes | bytearray) -> ObjectDescribed:
        if len(body) < OBJECT.size:
            raise RemoteProtocolError(f"an OBJECT has a body of {len(body)} bytes")
        index, metadata_size, data_size, handle = OBJECT.unpack_from(body)
        if metadata_size != len(body) - OBJECT.size:
            raise RemoteProtocolError(f"an OBJECT of {len(body)} bytes says that its metadata has {metadata_size}")
        check_sizes(data_size, metadata_size, self.limits, RemoteProtocolError)
        return ObjectDescribed(index, data_size, handle, bytes(body[OBJECT.size :]))

    # Checks

    def _check_sending(self, frame_type: FrameType) -> None:
        if frame_type not in self.may_send[self.state]:
            raise LocalProtocolError(f"a {frame_type.name} is out of place in the state {self.state.name}")


class ClientConnection(_Connection):
    """The end that asks. `greet` comes first, then requests, each after the `End` of the one before."""

    def greet(self) -> None:
        """Queue the beginning of the connection."""
        self.send(self.hello)
        self._outgoing.insert(0, MAGIC)

    @property
    def is_with_stranger(self) -> bool:
        """Whether what has come in answer to the greeting is nothing of this protocol, not even if it was damaged."""
        arrived = self._scratch.peek(min(len(self._scratch), HEAD.size))
        return self.state is GREETING and bool(arrived) and not resembles_answer(arrived)

    def _met(self, hello: Hello) -> None:
        super()._met(hello)
        self.state = IDLE

    def _due(self) -> Lateness | None:
        if self.state is GREETING:
            return Lateness.HELLO
        return None if self.state is IDLE else Lateness.SILENT

    def _check_end(self) -> None:
        super()._check_end()
        if self.state is not IDLE:
            raise RemoteProtocolError("the server ended the connection before the answer")

    def _accept(self, frame_type: FrameType, tag: int, length: int) -> bool:
        super()._accept(frame_type, tag, length)
        if tag != self._tag and self.state not in (GREETING, IDLE):
            raise RemoteProtocolError(f"an answer has the tag {tag} instead of {self._tag}")
        return True


class ServerConnection(_Connection):
    """The end that is asked. `greet` answers a `Hello`; each request is answered with frames up to `End`.

    What the client began the connection with has been read up to the end of `MAGIC`; `head_start` is what came with it.
    """

    may_send = SERVER_MAY
    may_come = CLIENT_MAY

    def __init__(
        self,
        hello: Hello,
        now: float,
        *,
        limits: Limits | None = None,
        patience: Patience | None = None,
        head_start: bytes = b"",
    ) -> None:
        super().__init__(hello, now, limits=limits, patience=patience)
        with self._scratch.tail() as tail:
            tail[: len(head_start)] = head_start
        self._scratch.advance(len(head_start))

    def greet(self) -> None:
        """Queue the answer to the client's `Hello`."""
        self.send(self.hello)
        self.state = IDLE

    def _due(self) -> Lateness | None:
        match self.state:
            case FrameType.HELLO:
                return Lateness.HELLO if self.peer is None else None
            case FrameType.END:
                return Lateness.IDLE
            case FrameType.PUT:
                return Lateness.SILENT
            case _:
                return None

    def _accept(self, frame_type: FrameType, tag: int, length: int) -> bool:
        super()._accept(frame_type, tag, length)
        if frame_type in REQUESTS:
            self._tag = tag
        elif frame_type is FrameType.CANCEL:
            # One that came too late means a request that is over.
            return self.state is not IDLE and tag == self._tag
        elif tag != self._tag:
            raise RemoteProtocolError(f"a frame {frame_type.name} has the tag {tag} instead of {self._tag}")
        return True


def _pack(layout: Struct, *values: int) -> bytes:
    try:
        return layout.pack(*values)
    except struct_error as error:
        raise LocalProtocolError(f"{values} cannot be sent: {error}") from None


def _encoding(number: int) -> Encoding:
    encoding = _ENCODINGS.get(number)
    if encoding is None:
        raise RemoteProtocolError(f"a payload has the unknown encoding {number}")
    return encoding
