"""Both ends of a connection, back to back and against hostile streams. Descriptors are plain strings here."""

import struct
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plasmastream import LocalProtocolError, ObjectID, RemoteProtocolError
from plasmastream.wire.plasma import (
    CONNECTION_CLOSED,
    EMPTY_SPEC,
    MISSING_SPEC,
    NEED_DATA,
    AbortReply,
    AbortRequest,
    ClientConnection,
    ConnectReply,
    ConnectRequest,
    ContainsReply,
    ContainsRequest,
    CreateAndSealReply,
    CreateAndSealRequest,
    CreateReply,
    CreateRequest,
    DeleteReply,
    DeleteRequest,
    DisconnectClient,
    ErrorCode,
    Extension,
    GetReply,
    GetRequest,
    InspectReply,
    InspectRequest,
    ListReply,
    ListRequest,
    Message,
    MessageType,
    ObjectInfo,
    ObjectSpec,
    ReleaseRequest,
    Reply,
    SealReply,
    SealRequest,
    ServerConnection,
    Signal,
    SubscribeRequest,
    Subscription,
    encode,
)
from plasmastream.wire.plasma import _large as large_module
from plasmastream.wire.plasma._rules import REPLY_TO

from .samples import CONVERSATIONS, DIGEST, MMAP_SIZE, ONE_OF_EACH, SPEC, A, B, M, status_of

Server: TypeAlias = ServerConnection[str]
Client: TypeAlias = ClientConnection[str]
Read: TypeAlias = tuple[bytes, tuple[str, ...]]  # what one recvmsg gives

BYTE = b"\x14"
BIG = CreateAndSealRequest(A, True, bytes(range(250)) * 1000, b"metadata", DIGEST)
SECOND_SPEC = ObjectSpec(5, 0, 1, 1, 0)


def feed(connection: Server | Client, data: bytes, descriptors: Iterable[str] = ()) -> None:
    """Give bytes as a reader of sockets would, by as many reads as there are buffers."""
    while data:
        with connection.get_buffer() as view:
            size = min(len(view), len(data))
            view[:size] = data[:size]
        data = data[size:]
        connection.advance(size, () if data else tuple(descriptors))
        if data:
            assert connection.next_event() is NEED_DATA


def events_of(connection: Server | Client) -> list[Any]:
    events: list[Any] = []
    while not isinstance(event := connection.next_event(), Signal):
        events.append(event)
    return events


def flatten(connection: Server | Client) -> list[Read]:
    return [(piece.data, (piece.descriptor,) if piece.descriptor else ()) for piece in connection.data_to_send()]


def reads_of(pieces: list[Read], sizes: Iterable[int]) -> list[Read]:
    """Cut sent pieces as the kernel may: anywhere, and joining plain bytes with a descriptor behind them."""
    limit = iter(sizes)
    reads: list[Read] = []
    waiting = b""
    for data, descriptors in pieces:
        waiting += data
        if descriptors:
            while len(waiting) > 1 and (size := next(limit, len(waiting))) < len(waiting):
                reads.append((waiting[:size], ()))
                waiting = waiting[size:]
            reads.append((waiting, descriptors))
            waiting = b""
    while waiting:
        size = next(limit, len(waiting))
        reads.append((waiting[:size], ()))
        waiting = waiting[size:]
    return reads


def connected() -> Client:
    """A client whose store has announced all that there is."""
    client = Client()
    client.send(ConnectRequest())
    flatten(client)
    client.receive_data(encode(ConnectReply(1, Extension.INSPECT | Extension.RELEASE_MANY)))
    assert len(events_of(client)) == 1
    return client


def ask(client: Client, server: Server, request: Message) -> None:
    client.send(request)
    for data, descriptors in flatten(client):
        server.receive_data(data, descriptors)
    assert server.next_event() == request


def answer(client: Client, server: Server, reply: Message, descriptors: dict[int, str] | None = None) -> Any:
    server.send(reply, descriptors)
    for data, arrived in flatten(server):
        client.receive_data(data, arrived)
    return client.next_event()


def descriptors_for(reply: Message) -> dict[int, str]:
    match reply:
        case CreateReply(store_fd=int(store_fd)):
            return {store_fd: f"memory {store_fd}"}
        case GetReply():
            return {store_fd: f"memory {store_fd}" for store_fd in reply.store_fds}
        case _:
            return {}


# Conversations


@pytest.mark.parametrize(("request_", "reply"), CONVERSATIONS)
def test_one_question_one_answer(request_: Message, reply: Message) -> None:
    client, server = connected(), Server()
    ask(client, server, request_)
    assert answer(client, server, reply, descriptors_for(reply)) == Reply(reply, descriptors_for(reply))
    assert client.next_event() is NEED_DATA
    assert server.next_event() is NEED_DATA


def test_there_is_a_conversation_for_each_reply() -> None:
    assert {reply.type for _, reply in CONVERSATIONS} == {reply for reply in REPLY_TO.values() if reply}


def test_a_segment_is_transferred_once() -> None:
    client, server = Client(), Server()
    for given_descriptors, arrived in [({4: "four"}, {4: "four"}), ({}, {})]:
        ask(client, server, CreateRequest(A, True, 100, 4))
        reply = CreateReply(A, SPEC, ErrorCode.OK, 4, MMAP_SIZE)
        assert answer(client, server, reply, given_descriptors) == Reply(reply, arrived)
    ask(client, server, GetRequest((A, B, M), 0))
    get_reply = GetReply((A, B, M), (SPEC, SECOND_SPEC, MISSING_SPEC), (4, 5, 5), (MMAP_SIZE, 4104, 4104))
    assert answer(client, server, get_reply, {4: "four", 5: "five"}) == Reply(get_reply, {5: "five"})


def test_a_segment_of_number_0() -> None:
    """The original leaves numbers that are 0 out of its replies."""
    client = Client()
    client.send(CreateRequest(A, True, 1, 0))
    spec = ObjectSpec(0, 0, 1, 1, 0)
    client.receive_data(encode(CreateReply(A, spec, mmap_size=4104)))
    assert client.next_event() is NEED_DATA
    client.receive_data(BYTE, ["zero"])
    assert events_of(client) == [Reply(CreateReply(A, spec, mmap_size=4104), {0: "zero"})]


@pytest.mark.parametrize(
    "reply",
    [
        CreateReply(A, EMPTY_SPEC, ErrorCode.OUT_OF_MEMORY),
        CreateReply(A, ObjectSpec(-1, 0, 100, 100, 4, 1), ErrorCode.OK, -1, 0, bytes(8)),
    ],
)
def test_creates_without_a_segment(reply: Message) -> None:
    client, server = Client(), Server()
    ask(client, server, CreateRequest(A, True, 100, 4))
    assert answer(client, server, reply) == Reply(reply, {})


def test_subscribe() -> None:
    client, server = Client(), Server()
    client.send(ConnectRequest())
    client.send(SubscribeRequest(), "socket")
    client.send(ReleaseRequest(A))
    client.send(ReleaseRequest(B))
    pieces = flatten(client)
    assert [len(data) == 1 for data, _ in pieces] == [False, True, False]
    assert [descriptors for _, descriptors in pieces] == [(), ("socket",), ()]
    server.receive_data(pieces[0][0])
    assert events_of(server) == [ConnectRequest()]
    for data, descriptors in pieces[1:]:
        server.receive_data(data, descriptors)
    assert events_of(server) == [Subscription("socket"), ReleaseRequest(A), ReleaseRequest(B)]
    assert client.data_to_send() == []


def test_pipelined_requests_are_answered_in_order() -> None:
    server = Server()
    server.receive_data(encode(ContainsRequest(A)) + encode(ReleaseRequest(A)) + encode(ConnectRequest()))
    assert events_of(server) == [ContainsRequest(A), ReleaseRequest(A), ConnectRequest()]
    with pytest.raises(LocalProtocolError, match="CONNECT_REPLY cannot be sent while CONTAINS_REPLY is due"):
        server.send(ConnectReply(1))
    server.send(ContainsReply(A, False))
    server.send(ConnectReply(1))
    assert flatten(server) == [(encode(ContainsReply(A, False)) + encode(ConnectReply(1)), ())]
    with pytest.raises(LocalProtocolError, match="nothing is due"):
        server.send(ConnectReply(1))


def test_large_frames_are_sent_as_they_are() -> None:
    client = Client()
    client.send(ReleaseRequest(A))
    client.send(BIG)
    client.send(ReleaseRequest(B))
    assert [data for data, _ in flatten(client)] == list(map(encode, (ReleaseRequest(A), BIG, ReleaseRequest(B))))


# Cutting the stream

STREAM: list[Message | str] = [
    ConnectRequest(),
    CreateRequest(A, True, 100, 4),
    "first",
    BIG,
    ContainsRequest(A),
    attrs.evolve(BIG, data=bytes((64 << 10) - 24)),
    "second",
    ReleaseRequest(A),
    attrs.evolve(BIG, data=b""),
]


def sent(stream: list[Message | str]) -> list[Read]:
    pieces: list[Read] = []
    for item in stream:
        if isinstance(item, str):
            pieces += [(encode(SubscribeRequest()), ()), (BYTE, (item,))]
        else:
            pieces.append((encode(item), ()))
    return pieces


SEEN = [Subscription(item) if isinstance(item, str) else item for item in STREAM]


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.one_of(st.integers(1, 100), st.integers(1, 200_000)), max_size=30))
def test_any_chunking_gives_the_same_events(sizes: list[int]) -> None:
    reads = reads_of(sent(STREAM), sizes)
    copying, filling, lazy = Server(), Server(), Server()
    by_copying, by_filling = [], []
    for data, descriptors in reads:
        copying.receive_data(data, descriptors)
        by_copying += events_of(copying)
        lazy.receive_data(bytearray(data), descriptors)
        while data:
            with filling.get_buffer() as view:
                assert len(view) > 0
                size = min(len(view), len(data))
                view[:size] = data[:size]
            data = data[size:]
            filling.advance(size, () if data else descriptors)
            by_filling += events_of(filling)
    assert by_copying == by_filling == events_of(lazy) == SEEN
    for server in (copying, filling, lazy):
        server.receive_eof()
        assert server.next_event() is CONNECTION_CLOSED
        assert server.take_unclaimed_descriptors() == []


@pytest.mark.parametrize("request_", [message for message in ONE_OF_EACH if message.type in REPLY_TO])
def test_requests_whole_and_byte_by_byte(request_: Message) -> None:
    pieces = sent(["socket"]) if isinstance(request_, SubscribeRequest) else sent([request_])
    expected = {
        SubscribeRequest(): [Subscription("socket")],
        DisconnectClient(): [],
    }.get(request_, [request_])
    for sizes in ([], [1] * 1000):
        server = Server()
        for data, descriptors in reads_of(pieces, sizes):
            assert server.next_event() is NEED_DATA
            server.receive_data(data, descriptors)
        assert events_of(server) == expected
        server.receive_data(b"trailing")
        assert events_of(server) == []


@pytest.mark.parametrize(("request_", "reply"), CONVERSATIONS)
def test_replies_whole_and_byte_by_byte(request_: Message, reply: Message) -> None:
    for sizes in ([], [1] * 1000):
        client, server = connected(), Server()
        ask(client, server, request_)
        server.send(reply, descriptors_for(reply))
        for data, descriptors in reads_of(flatten(server), sizes):
            assert client.next_event() is NEED_DATA
            client.receive_data(data, descriptors)
        assert events_of(client) == [Reply(reply, descriptors_for(reply))]


def test_a_reply_joined_with_its_descriptor_in_one_read() -> None:
    client = Client()
    client.send(CreateRequest(A, True, 100, 4))
    reply = CreateReply(A, SPEC, ErrorCode.OK, 4, MMAP_SIZE)
    feed(client, encode(reply) + BYTE, ["memory"])
    assert events_of(client) == [Reply(reply, {4: "memory"})]
    assert client.take_unclaimed_descriptors() == []


def test_a_large_body_is_read_into_place() -> None:
    server = Server()
    frame = encode(BIG)
    feed(server, frame[:1000])
    assert server.next_event() is NEED_DATA
    with server.get_buffer() as view:
        assert len(view) == len(frame) - 1000
    feed(server, frame[1000:])
    message = server.next_event()
    assert message == BIG
    assert isinstance(message, CreateAndSealRequest)
    assert isinstance(message.data, memoryview)
    assert isinstance(message.data.obj, bytearray)


def test_a_frame_that_names_very_many_objects_is_announced() -> None:
    for message, is_long in ((BIG, False), (GetRequest((A,) * 10_000, 0), True), (GetRequest((A,), 0), False)):
        server = Server()
        frame = encode(message)
        feed(server, frame[:-1])
        assert server.next_event() is NEED_DATA
        assert not server.has_long_frame
        feed(server, frame[-1:])
        assert server.has_long_frame is is_long
        assert server.next_event() == message
        assert not server.has_long_frame


# The end


def test_a_client_may_hang_up_anywhere() -> None:
    frames = encode(ConnectRequest()) + encode(SubscribeRequest())
    for size in range(len(frames) + 1):
        server = Server()
        server.receive_data(frames[:size])
        server.receive_eof()
        assert events_of(server) == ([ConnectRequest()] if size >= 36 else [])
        assert server.next_event() is CONNECTION_CLOSED


def test_a_client_may_say_goodbye() -> None:
    server = Server()
    server.receive_data(encode(ConnectRequest()) + encode(DisconnectClient()) + encode(ConnectRequest()))
    assert events_of(server) == [ConnectRequest()]
    assert server.next_event() is CONNECTION_CLOSED
    assert server.next_event() is CONNECTION_CLOSED


def test_a_store_may_hang_up_between_replies_only() -> None:
    stream = encode(CreateReply(A, SPEC, ErrorCode.OK, 4, MMAP_SIZE))
    for size in range(len(stream) + 1):
        client = Client()
        client.send(CreateRequest(A, True, 100, 4))
        client.receive_data(stream[:size])
        client.receive_eof()
        if size == 0:
            assert client.next_event() is CONNECTION_CLOSED
        else:
            with pytest.raises(RemoteProtocolError, match="hung up inside of a reply"):
                client.next_event()


@pytest.mark.parametrize("make", [Server, Client])
def test_nothing_comes_after_the_end(make: Callable[[], Server | Client]) -> None:
    connection = make()
    connection.receive_eof()
    with pytest.raises(LocalProtocolError):
        connection.receive_data(b"late", ["one"])
    with pytest.raises(LocalProtocolError):
        connection.advance(1, ["two"])
    assert connection.take_unclaimed_descriptors() == ["one", "two"]


# Descriptors out of place


def assert_poisoned(connection: Server | Client, complaint: str, unclaimed: Iterable[str] = ()) -> None:
    for _ in range(3):
        with pytest.raises(RemoteProtocolError, match=complaint):
            connection.next_event()
    assert connection.take_unclaimed_descriptors() == list(unclaimed)
    assert connection.take_unclaimed_descriptors() == []


@pytest.mark.parametrize("size", [1, 24, 30, 36])
def test_a_descriptor_on_a_plain_frame(size: int) -> None:
    server = Server()
    server.receive_data(encode(ConnectRequest())[:size], ["stray"])
    assert_poisoned(server, "where none belongs", ["stray"])


def test_a_descriptor_on_a_large_frame() -> None:
    server = Server()
    server.receive_data(encode(BIG)[:100_000])
    assert server.next_event() is NEED_DATA
    server.receive_data(b"x", ["stray"])
    assert_poisoned(server, "where none belongs", ["stray"])


def test_a_descriptor_on_the_frame_before_its_byte() -> None:
    server = Server()
    server.receive_data(encode(SubscribeRequest()), ["early"])
    assert_poisoned(server, "where none belongs", ["early"])


def test_a_descriptor_without_a_byte() -> None:
    server = Server()
    server.receive_data(encode(SubscribeRequest()))
    assert server.next_event() is NEED_DATA
    server.advance(0, ["ghost"])
    assert_poisoned(server, "where none belongs", ["ghost"])


def test_a_descriptor_behind_its_byte() -> None:
    server = Server()
    server.receive_data(encode(SubscribeRequest()) + BYTE + b"more", ["late"])
    assert_poisoned(server, "came without", ["late"])


def test_a_byte_without_its_descriptor() -> None:
    """As when the kernel had to drop it: MSG_CTRUNC."""
    server = Server()
    server.receive_data(encode(SubscribeRequest()) + BYTE)
    assert_poisoned(server, "came without")


def test_two_descriptors_at_once() -> None:
    server = Server()
    server.receive_data(encode(SubscribeRequest()) + BYTE, ["one", "two"])
    assert_poisoned(server, "more than one", ["one", "two"])


def test_a_store_that_sends_one_descriptor_too_few() -> None:
    client = Client()
    client.send(GetRequest((A, B), 0))
    reply = GetReply((A, B), (SPEC, SECOND_SPEC), (4, 5), (MMAP_SIZE, 4104))
    client.receive_data(encode(reply) + BYTE, ["four"])
    assert client.next_event() is NEED_DATA
    client.receive_eof()
    assert_poisoned(client, "hung up inside of a reply", ["four"])


def test_a_store_that_sends_one_descriptor_too_many() -> None:
    client = Client()
    client.send(ContainsRequest(A))
    client.receive_data(encode(ContainsReply(A, True)))
    client.receive_data(BYTE, ["stray"])
    assert client.next_event() == Reply(ContainsReply(A, True), {})
    assert_poisoned(client, "where none belongs", ["stray"])


def test_descriptors_do_not_pile_up_behind_a_frame_that_never_ends() -> None:
    server = Server()
    server.receive_data(encode(BIG)[:100])
    assert server.next_event() is NEED_DATA
    server.receive_data(b"x", ["stray"])
    assert_poisoned(server, "where none belongs", ["stray"])


# Hostile streams


def header(message_type: int, size: int, version: int = 0) -> bytes:
    return struct.pack("<qqq", version, message_type, size)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (header(19, 12, version=1), "version 1"),
        (header(19, -1), "announces -1 bytes"),
        (header(19, 2**62), "bytes"),
        (header(19, 1001), "1001 bytes, 1000 are allowed"),
        (header(36, 0), "36 is not the type"),
        (header(-1, 0), "-1 is not the type"),
        (header(19, 0), "no CONNECT_REQUEST"),
        (header(1, 8) + bytes(8), "no CREATE_REQUEST"),
    ],
)
def test_hostile_requests(data: bytes, complaint: str) -> None:
    server = Server(max_body_size=1000)
    server.receive_data(data)
    assert_poisoned(server, complaint)


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(st.one_of(st.binary(max_size=60), st.sampled_from(ONE_OF_EACH).map(encode)), max_size=6),
    position=st.integers(0, 300),
    value=st.integers(0, 255),
    descriptors=st.booleans(),
)
def test_garbage_gives_events_or_errors(data: list[bytes], position: int, value: int, descriptors: bool) -> None:
    stream = bytearray(b"".join(data))
    if position < len(stream):
        stream[position] = value
    client, server = Client(), Server()
    client.send(ListRequest())
    for connection in (client, server):
        connection.receive_data(stream, ["stray"] if descriptors else [])
        connection.receive_eof()
        taken: list[Any] = []
        try:
            taken = events_of(connection)
        except RemoteProtocolError:
            pass
        else:
            assert connection.next_event() is CONNECTION_CLOSED
        given_out = [event.descriptor for event in taken if isinstance(event, Subscription)]
        assert len(given_out) + len(connection.take_unclaimed_descriptors()) <= 1


@pytest.mark.parametrize("message", ONE_OF_EACH)
def test_every_message_to_a_store(message: Message) -> None:
    server = Server()
    server.receive_data(encode(message))
    if message.type not in REPLY_TO:
        assert_poisoned(server, "is not the type of a request")
    elif message.type is MessageType.DISCONNECT_CLIENT:
        assert server.next_event() is CONNECTION_CLOSED
    elif message.type is MessageType.SUBSCRIBE_REQUEST:
        assert server.next_event() is NEED_DATA
    else:
        assert events_of(server) == [message]


@pytest.mark.parametrize("message", ONE_OF_EACH)
@pytest.mark.parametrize("request_", [None, *[request for request, _ in CONVERSATIONS]])
def test_every_message_to_a_client(message: Message, request_: Message | None) -> None:
    client = connected()
    if request_ is not None:
        client.send(request_)
    client.receive_data(encode(message))
    if request_ is None or message.type != REPLY_TO[request_.type]:
        assert_poisoned(client, "was due")
    elif descriptors_for(message):
        assert client.next_event() is NEED_DATA
    else:
        assert events_of(client) == [Reply(message, {})]


@pytest.mark.parametrize("message", ONE_OF_EACH)
def test_every_message_from_a_client(message: Message) -> None:
    client = connected()
    if isinstance(message, SubscribeRequest):
        with pytest.raises(LocalProtocolError, match="a descriptor goes with"):
            client.send(message)
        client.send(message, "socket")
        assert len(flatten(client)) == 2
    elif message.type in REPLY_TO:
        with pytest.raises(LocalProtocolError, match="a descriptor goes with"):
            client.send(message, "socket")
        client.send(message)
        client.send(message)
        assert flatten(client) == [(encode(message) * 2, ())]
    else:
        with pytest.raises(LocalProtocolError, match="is not a request"):
            client.send(message)
    assert flatten(client) == []


@pytest.mark.parametrize("message", ONE_OF_EACH)
def test_every_message_from_a_store(message: Message) -> None:
    server = Server()
    with pytest.raises(LocalProtocolError, match="nothing is due"):
        server.send(message)
    assert flatten(server) == []


def changed(spec: ObjectSpec, **changes: int) -> CreateReply:
    return CreateReply(A, attrs.evolve(spec, **changes), ErrorCode.OK, 4, MMAP_SIZE)


WRONG_ANSWERS: list[tuple[Message, Message, str]] = [
    (CreateRequest(A, True, 100, 4), CreateReply(B, SPEC, ErrorCode.OK, 4, MMAP_SIZE), "asked about"),
    (CreateRequest(A, True, 100, 4), changed(SPEC, data_size=99, metadata_offset=163), "asked about"),
    (CreateRequest(A, True, 100, 4), changed(SPEC, metadata_size=5), "asked about"),
    (CreateRequest(A, True, 100, 4), changed(SPEC, metadata_offset=165), "not adjacent"),
    (CreateRequest(A, True, 100, 4), changed(SPEC, segment_index=5), "never came"),
    (CreateRequest(A, True, 100, 4), CreateReply(A, SPEC, ErrorCode.OK, 4, 175), "out of its segment"),
    (CreateRequest(A, True, 100, 4), CreateReply(A, SPEC), "never came"),
    (GetRequest((A, B), 0), GetReply((B, A), (MISSING_SPEC,) * 2, (), ()), "asked about"),
    (GetRequest((A, B), 0), GetReply((A,), (MISSING_SPEC,), (), ()), "asked about"),
    (GetRequest((A,), 0), GetReply((A,), (SPEC,), (), ()), "never came"),
    (GetRequest((A,), 0), GetReply((A,), (SPEC,), (4, 4), (MMAP_SIZE, 4104)), "changed its size"),
    (DeleteRequest((A,)), DeleteReply((B,), (ErrorCode.OK,)), "asked about"),
    (AbortRequest(A), AbortReply(B), "asked about"),
    (SealRequest(A, DIGEST), SealReply(B), "asked about"),
    (ContainsRequest(A), ContainsReply(B, True), "asked about"),
    (InspectRequest((A,)), InspectReply((status_of(B),)), "not asked about"),
    (InspectRequest((A, B)), InspectReply((status_of(B), status_of(A))), "not asked about"),
    (InspectRequest((A,)), InspectReply((status_of(A), status_of(A))), "not asked about"),
    (InspectRequest((A,)), InspectReply((), 1), "goes on"),
    (InspectRequest(), InspectReply((), 1), "no end"),
    (InspectRequest(cursor=7), InspectReply((status_of(A),), 7), "no end"),
]


@pytest.mark.parametrize(("request_", "reply", "complaint"), WRONG_ANSWERS)
def test_answers_that_do_not_fit(request_: Message, reply: Message, complaint: str) -> None:
    client = connected()
    client.send(request_)
    client.receive_data(encode(reply))
    assert_poisoned(client, complaint)
    with pytest.raises(LocalProtocolError, match="broken"):
        client.send(ConnectRequest())


@pytest.mark.parametrize("reply", [(), (A,), (B,), (A, B)])
def test_what_is_not_there_is_left_out(reply: tuple[ObjectID, ...]) -> None:
    client = connected()
    client.send(InspectRequest((A, M, B)))
    client.receive_data(encode(InspectReply(tuple(map(status_of, reply)))))
    assert len(events_of(client)) == 1


# Misuse


def test_only_what_was_announced_is_asked_for() -> None:
    """Apache's store dies of a message that it does not know."""
    client = Client()
    for announced in (0, Extension.INSPECT | 1 << 31, 1 << 31):
        client.send(ConnectRequest())
        client.receive_data(encode(ConnectReply(1, announced)))
        assert len(events_of(client)) == 1
        flatten(client)
        if announced & Extension.INSPECT:
            assert client.is_understood(InspectRequest())
            continue
        assert not client.is_understood(InspectRequest())
        with pytest.raises(LocalProtocolError, match="has not announced"):
            client.send(InspectRequest())
        assert flatten(client) == []


@pytest.mark.parametrize("size", [0, -1, 2**31])
def test_limits_that_cannot_be(size: int) -> None:
    with pytest.raises(ValueError, match="limit"):
        Server(max_body_size=size)


def test_a_reply_needs_its_descriptors() -> None:
    server = Server()
    server.receive_data(encode(CreateRequest(A, True, 100, 4)))
    events_of(server)
    reply = CreateReply(A, SPEC, ErrorCode.OK, 4, MMAP_SIZE)
    for descriptors in (None, {5: "another"}):
        with pytest.raises(LocalProtocolError, match="no descriptor given for segment 4"):
            server.send(reply, descriptors)
    with pytest.raises(LocalProtocolError, match="must name"):
        server.send(CreateReply(A, SPEC), {0: "zero"})
    assert flatten(server) == []
    server.send(reply, {4: "four"})
    assert flatten(server) == [(encode(reply), ()), (BYTE, ("four",))]


def test_reading_ahead() -> None:
    """A store that waits for objects still reads, to see a client hang up, until there is no room."""
    server, frame = Server(), encode(ConnectRequest())
    stream = frame * 2000
    fed = 0
    while len(view := server.get_buffer()):
        size = min(len(view), 1000)
        view[:size] = stream[fed : fed + size]
        server.advance(size)
        fed += size
    assert len(events_of(server)) == fed // len(frame)
    assert len(server.get_buffer())


def test_no_room_behind_data_that_was_copied_in() -> None:
    server = Server()
    server.receive_data(encode(ConnectRequest()))
    assert len(server.get_buffer()) == 0
    with pytest.raises(LocalProtocolError, match="no room"):
        server.advance(1)
    assert events_of(server) == [ConnectRequest()]


def test_descriptors_do_not_pile_up_while_nobody_takes_events() -> None:
    server = Server()
    taken: list[str] = []
    while len(server.get_buffer()):
        server.advance(1, [f"stray {len(taken)}"])
        taken.append(f"stray {len(taken)}")
    assert len(taken) == 65
    server.advance(0, ["one more"])
    assert_poisoned(server, "too many descriptors", [*taken, "one more"])


@pytest.mark.parametrize("prefix", [b"", encode(BIG)[:1000]])
def test_advancing_too_far(prefix: bytes) -> None:
    server = Server()
    if prefix:
        server.receive_data(prefix)
        assert server.next_event() is NEED_DATA
    with server.get_buffer() as view:
        size = len(view)
    for nbytes in (size + 1, -1):
        with pytest.raises(LocalProtocolError, match="cannot have been read"):
            server.advance(nbytes)


def test_a_large_body_takes_memory_as_it_arrives() -> None:
    server = Server()
    tracemalloc.start()
    try:
        server.receive_data(header(MessageType.LIST_REQUEST, 50 << 20))
        assert server.next_event() is NEED_DATA
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
        for arrived in range(1, 9):
            server.receive_data(bytes(1 << 20))
            assert server.next_event() is NEED_DATA
            assert tracemalloc.get_traced_memory()[0] < (2 * arrived + 2) << 20
    finally:
        tracemalloc.stop()


def test_no_memory_for_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(size: int) -> bytearray:
        raise MemoryError

    monkeypatch.setattr(large_module, "bytearray", exhausted, raising=False)
    server = Server()
    server.receive_data(header(MessageType.LIST_REQUEST, 1 << 20))
    assert_poisoned(server, "no memory for a body of 1048576 bytes")


def test_a_list_of_many_objects() -> None:
    client, server = Client(), Server()
    ids = [ObjectID(i.to_bytes(20, "little")) for i in range(3000)]
    ask(client, server, ListRequest())
    reply = ListReply(tuple(ObjectInfo(object_id, digest=DIGEST) for object_id in ids))
    assert answer(client, server, reply) == Reply(reply, {})


def test_inline_contents() -> None:
    client, server = Client(), Server()
    ask(client, server, BIG)
    assert answer(client, server, CreateAndSealReply()) == Reply(CreateAndSealReply(), {})
