"""What holds of our parsers whatever they are fed: one function, `check`, that both kinds of fuzzing call.

An input is a byte that chooses the parser, one that says how the bytes arrive (whole or in pieces, copied or read
in place, with descriptors or without), one that chooses the request a client waits for, and the bytes themselves.
Checked is that nothing but `RemoteProtocolError` comes out, and again and again once it has; that messages are the
same however the bytes arrive; that what was read can be written, and read again as the same; that no descriptor is
lost; and that memory is bounded by the bytes that came.
"""

import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import attrs

from plasmastream import RemoteProtocolError
from plasmastream.wire import plasma, stream
from plasmastream.wire.plasma import Message, encode
from plasmastream.wire.stream import v2 as stream_v2
from tests.fuzz import corpus
from tests.fuzz.mutate import Mutator
from tests.wire.plasma import samples
from tests.wire.stream.v2 import helpers as v2_helpers

HEAD: Final = 3
"""Bytes of an input before those that a parser is fed."""

BASE_MEMORY: Final = 4 << 20
MEMORY_PER_BYTE: Final = 256
"""A parser takes at most so many bytes of memory: a base, and more for each byte that arrived."""

_MEASURED_ONE_IN = 32  # tracing memory makes everything many times slower
_BODY_LIMIT = 1 << 20
_PAYLOAD_LIMIT = 128 << 10
_LONG = 4096  # longer ones do not come byte by byte, which would take the time of hundreds of others
_WRITTEN_LIMIT = 4 << 20  # many fields may be views of the same bytes, and are written once each

_PIECES: Final = ([1 << 20], [1], [2, 24, 1], [8], [23, 1], [24], [7, 300], [4096, 1])
_IN_PLACE, _AT_END, _DESCRIPTORS = 8, 16, 32

_REPLIES: Final = {request.type: reply for request, reply in samples.CONVERSATIONS}
_SUBSCRIBE: Final = encode(plasma.SubscribeRequest())
_LATER: Final = {stream.NEED_BUFFER, stream.PAUSED}

C = TypeVar("C", plasma.ServerConnection[int], plasma.ClientConnection[int])
PeerConnection = stream.ServerConnection | stream.ClientConnection


class Fault(Exception):
    """A parser broke a promise."""


def check(data: bytes) -> None:
    """Feed one input to the parser that it chooses.

    Raises:
        Exception: a promise was broken; `Fault` where the parser did not raise it itself.
    """
    if len(data) < HEAD:
        return
    target = TARGETS[data[0] % len(TARGETS)]
    if zlib.crc32(data) % _MEASURED_ONE_IN:
        target(data[1], data[2], data[HEAD:])
        return
    tracemalloc.start()
    try:
        target(data[1], data[2], data[HEAD:])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if peak > BASE_MEMORY + MEMORY_PER_BYTE * len(data):
        raise Fault(f"{len(data)} bytes took {peak} bytes of memory")


def make(mutator: Mutator) -> bytes:
    """An input made from real messages."""
    number = mutator.below(len(TARGETS))
    others = SEEDS[number]
    parts = [mutator.one_of(others) for _ in range(mutator.one_of((1, 1, 2, 4)))]
    spoilt = mutator.below(len(parts) + 1)  # now and then none of them, since healthy streams must be read, too
    if spoilt < len(parts):
        parts[spoilt] = mutator.spoil(parts[spoilt], others)
    return bytes((number, mutator.below(64), mutator.below(256))) + b"".join(parts)


def seeds() -> Iterator[bytes]:
    """Inputs to begin with."""
    for number, payloads in enumerate(SEEDS):
        for i, payload in enumerate(payloads):
            yield bytes((number, i * 11 % 64, i)) + payload


# Each parser


def _decode(how: int, choice: int, data: bytes) -> None:
    try:
        message = plasma.decode(int.from_bytes(data[:2], "little"), data[2:])
    except RemoteProtocolError:
        return
    _check_writing(message)


def _check_writing(message: Message) -> None:
    if _size(message) > _WRITTEN_LIMIT:
        return
    body = plasma.encode_body(message)
    again = plasma.decode(message.type, body)
    if again != message or plasma.encode_body(again) != body:
        raise Fault(f"{message} was written and read again as {again}")


def _size(message: Message) -> int:
    match message:
        case plasma.CreateAndSealBatchRequest():
            return sum(map(len, (*message.data, *message.metadata)))
        case _:
            return 0


def _store_server(how: int, choice: int, data: bytes) -> None:
    def read(how: int) -> list[object]:
        connection: plasma.ServerConnection[int] = plasma.ServerConnection(_BODY_LIMIT)

        def act(event: object) -> object:
            match event:
                case plasma.Subscription(descriptor):
                    claimed.append(descriptor)
                    return plasma.SubscribeRequest()
                case Message() if event.type in _REPLIES:
                    reply = _REPLIES[event.type]
                    connection.send(reply, {4: 0})
                    connection.data_to_send()
            return event

        claimed: list[int] = []
        return _read_store(connection, data, how, choice, act, claimed)

    _check_same(read, how)


def _store_client(how: int, choice: int, data: bytes) -> None:
    def read(how: int) -> list[object]:
        connection: plasma.ClientConnection[int] = plasma.ClientConnection(_BODY_LIMIT)
        connection._extensions = sum(plasma.Extension)  # until a reply says otherwise
        position = choice

        def ask() -> None:
            nonlocal position
            request = samples.CONVERSATIONS[position % len(samples.CONVERSATIONS)][0]
            position += 1
            if connection.is_understood(request):
                connection.send(request)
                connection.data_to_send()
            else:
                ask()

        def act(event: object) -> object:
            assert isinstance(event, plasma.Reply)
            claimed.extend(event.descriptors.values())
            ask()
            return event.message

        ask()
        claimed: list[int] = []
        return _read_store(connection, data, how, choice, act, claimed)

    _check_same(read, how)


def _read_store(
    connection: C, data: bytes, how: int, choice: int, act: Callable[[object], object], claimed: list[int]
) -> list[object]:
    notes: list[object] = []
    given: list[int] = []
    rest = memoryview(data)
    try:
        for size in _sizes(data, how):
            while rest and size:
                space = len(connection.get_buffer()) if how & _IN_PLACE else size
                piece = rest[: min(size, space)]
                size -= len(piece)
                rest = rest[len(piece) :]
                brought = [len(given)] if how & _DESCRIPTORS and not size and _brings(data, rest, choice) else []
                given += brought
                if how & _IN_PLACE:
                    connection.get_buffer()[: len(piece)] = piece
                    connection.advance(len(piece), brought)
                else:
                    connection.receive_data(piece, brought)
                notes += _events(connection, act)
                if notes[-1:] == [plasma.CONNECTION_CLOSED]:  # which a client may say in the midst of a stream
                    rest = rest[:0]
        if how & _AT_END and notes[-1:] != [plasma.CONNECTION_CLOSED]:
            connection.receive_eof()
            notes += _events(connection, act)
    except RemoteProtocolError as error:
        _check_broken(connection, error)
        notes.append("broken")
    if sorted([*claimed, *connection.take_unclaimed_descriptors()]) != given:
        raise Fault("a descriptor was lost, or came twice")
    return notes


def _brings(data: bytes, rest: memoryview, choice: int) -> bool:
    """Whether a descriptor comes with the piece before `rest`: where one is due, and at times elsewhere."""
    end = len(data) - len(rest)
    return data[: end - 1].endswith(_SUBSCRIBE) or (choice % 4 == 0 and end % 5 == 0)


def _events(connection: Any, act: Callable[[object], object]) -> Iterator[object]:
    while (event := connection.next_event()) is not plasma.NEED_DATA:
        if event is plasma.CONNECTION_CLOSED:
            yield event
            return
        yield act(event)


def _notifications(how: int, choice: int, data: bytes) -> None:
    def read(how: int) -> list[object]:
        parser = plasma.NotificationParser(_BODY_LIMIT)
        notes: list[object] = []
        rest = data
        try:
            for size in _sizes(data, how):
                parser.receive_data(rest[:size])
                rest = rest[size:]
                notes += _events(parser, lambda event: event)
            if how & _AT_END:
                parser.receive_eof()
                notes += _events(parser, lambda event: event)
        except RemoteProtocolError as error:
            _check_broken(parser, error)
            notes.append("broken")
        for objects in notes:
            if isinstance(objects, tuple):
                _check_writing(plasma.Notification(objects))
        return notes

    _check_same(read, how)


def _peer_server(how: int, choice: int, data: bytes) -> None:
    def read(how: int) -> list[object]:
        connection = stream.ServerConnection()
        notes: list[object] = []

        def act(event: object) -> None:
            match event:
                case stream.TransferRequested(kind, object_ids):
                    notes.append(event)
                    client.request_transfer(kind, object_ids)
                    connection.refuse(0x71)
                case stream.SyncRequested(peer_requests):
                    notes.append(event)
                    client.request_sync(peer_requests)
                    connection.answer_sync([0x41] * len(peer_requests))
                case stream.Version2Offered():
                    connection.take_rest()
                    written.append(stream_v2.MAGIC)
                case stream.ConnectionClosed():
                    notes.append(event)

        written: list[bytes | memoryview] = []
        client = stream.ClientConnection()
        _read_peer(connection, data, how, act, notes)
        written += client.data_to_send()
        if not data.startswith(b"".join(written)):
            raise Fault(f"{notes} was read, and is written as {b''.join(written).hex()}")
        return notes

    _check_same(read, how)


def _peer_client(how: int, choice: int, data: bytes) -> None:
    def read(how: int) -> list[object]:
        connection = stream.ClientConnection(stream.Limits(inline_size=100))
        for i in range(4):
            if choice >> i & 1:
                connection.request_transfer(stream.TransferKind.COPY, corpus.IDS[: 1 + (choice >> 4) % 4])
            else:
                connection.request_sync([corpus.peer_request(9, object_id) for object_id in corpus.IDS[:2]])
        notes: list[object] = []
        started = [stream.PayloadStarted(corpus.IDS[0], b"", 0)]
        payload: list[bytearray] = []

        def act(event: object) -> None:
            match event:
                case stream.NEED_BUFFER if started[0].data_size <= _PAYLOAD_LIMIT:
                    payload[:] = [bytearray(started[0].data_size)]
                    connection.supply_buffer(payload[0])
                case stream.NEED_BUFFER:
                    connection.discard_payload()
                case stream.PayloadFinished() if payload:
                    notes.extend((event, bytes(payload[0])))
                    payload.pop().append(0)  # a BufferError unless the connection has let go of it
                case stream.ObjectReceived():
                    notes.append(attrs.evolve(event, data=bytes(event.data)))  # which is shown until more is read
                case _:
                    notes.append(event)
                    if isinstance(event, stream.PayloadStarted):
                        started[0] = event

        _read_peer(connection, data, how, act, notes)
        return notes

    _check_same(read, how)


def _read_peer(
    connection: PeerConnection, data: bytes, how: int, act: Callable[[object], None], notes: list[object]
) -> None:
    def take() -> bool:
        while (event := connection.next_event()) is not stream.NEED_DATA:
            act(event)
            if isinstance(event, stream.ConnectionClosed):
                return False
        return True

    rest = memoryview(data)
    try:
        for size in _sizes(data, how):
            while rest and size:
                with connection.get_buffer() as buffer:
                    nbytes = min(size, len(rest), len(buffer)) if how & _IN_PLACE else min(size, len(rest))
                    if how & _IN_PLACE:
                        buffer[:nbytes] = rest[:nbytes]
                if how & _IN_PLACE:
                    connection.advance(nbytes)
                else:
                    connection.receive_data(rest[:nbytes])
                size -= nbytes
                rest = rest[nbytes:]
                if not take():
                    return
        if how & _AT_END:
            connection.receive_eof()
            take()
    except RemoteProtocolError as error:
        _check_broken(connection, error)
        notes.append("broken")


def _peer_v2(how: int, choice: int, data: bytes, to_client: bool) -> None:
    """A frame is damaged by almost every change: so its checks are put right, as a hostile end does."""
    data = corpus.with_checks(data) if choice & 1 else data

    def read(how: int) -> list[object]:
        reader = v2_helpers.listener(corpus.CONVERSATION, to_client, _PAYLOAD_LIMIT)
        sizes = _sizes(data, how)
        try:
            reader.feed(data, sizes)
            if how & _AT_END:
                reader.connection.receive_eof()
                reader.take()
        except RemoteProtocolError as error:
            _check_broken(reader.connection, error)
            reader.notes.append("broken")
        return reader.notes

    _check_same(read, how)


def _peer_v2_server(how: int, choice: int, data: bytes) -> None:
    _peer_v2(how, choice, data, to_client=False)


def _peer_v2_client(how: int, choice: int, data: bytes) -> None:
    _peer_v2(how, choice, data, to_client=True)


# What they have in common


def _sizes(data: bytes, how: int) -> Iterator[int]:
    """Sizes of the pieces that the bytes arrive in; where descriptors come, one piece ends at each that is due."""
    sizes = [size << 10 if len(data) > _LONG else size for size in _PIECES[how % len(_PIECES)]]
    position = i = 0
    while position < len(data):
        size = sizes[i % len(sizes)]
        i += 1
        due = data.find(_SUBSCRIBE, max(0, position - len(_SUBSCRIBE))) if how & _DESCRIPTORS else -1
        end = due + len(_SUBSCRIBE) + 1
        if due >= 0 and position < end < position + size:
            size = end - position
        position += size
        yield size


def _check_same(read: Callable[[int], list[object]], how: int) -> None:
    """Where descriptors come depends on the pieces, so with them there is nothing to compare."""
    notes = read(how)
    if not how & _DESCRIPTORS and how % 16:
        whole = read(how & _AT_END)
        if notes != whole:
            raise Fault(f"in pieces, there came {notes}; as a whole, {whole}")


def _check_broken(parser: Any, error: RemoteProtocolError) -> None:
    try:
        parser.next_event()
    except RemoteProtocolError as again:
        if str(again) == str(error):
            return
    raise Fault(f"a parser went on after {error}")


@attrs.frozen
class Target:
    """A parser to feed, and real messages for it."""

    name: str
    feed: Callable[[int, int, bytes], None]
    seeds: list[bytes]

    def __call__(self, how: int, choice: int, data: bytes) -> None:
        """Feed it."""
        self.feed(how, choice, data)


_SUBSCRIPTION: Final = _SUBSCRIBE + b"\x14"

TARGETS: Final = (
    Target("decode", _decode, corpus.CODES),
    Target("store server", _store_server, [*(encode(request) for request, _ in samples.CONVERSATIONS), _SUBSCRIPTION]),
    Target("store client", _store_client, [encode(reply) for _, reply in samples.CONVERSATIONS]),
    Target("notifications", _notifications, corpus.NOTIFICATIONS),
    Target("peer server", _peer_server, corpus.REQUESTS),
    Target("peer client", _peer_client, corpus.ANSWERS),
    Target("peer server, version 2", _peer_v2_server, corpus.ASKED_V2),
    Target("peer client, version 2", _peer_v2_client, corpus.ANSWERED_V2),
)
SEEDS: Final = [target.seeds for target in TARGETS]
