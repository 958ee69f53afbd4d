"""Frames out of place, duplicates, and each limit, for who receives and for who sends."""

from collections.abc import Callable
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from plasmastream import LocalProtocolError, RemoteProtocolError
from plasmastream.wire.stream.v2 import (
    NEED_DATA,
    Cancel,
    ClientConnection,
    Encoding,
    End,
    Fetch,
    FrameType,
    Hello,
    Limits,
    ListObjects,
    Message,
    Open,
    Put,
    Sizes,
    Stat,
    Sync,
)
from plasmastream.wire.stream.v2._frames import _CHECKS, _START, CHUNK, OBJECT, RUN, RUN_ENTRY, check_of, pack_frame
from plasmastream.wire.stream.v2._messages import encode_message
from plasmastream.wire.stream.v2._state import CLIENT_MAY, GREETING, IDLE, SERVER_MAY
from tests.wire.stream.helpers import object_id
from tests.wire.stream.v2.helpers import CLIENT, Connection, Reader, feed, greeted, new_client, new_server, sent
from tests.wire.stream.v2.samples import ONE_OF_EACH, REQUESTS, TOKEN, A, B

MOST_OF_A_CHUNK = Limits().chunk_size
FRAMES: dict[FrameType, bytes] = {
    **{message.type: encode_message(message) for message in ONE_OF_EACH},
    FrameType.OBJECT: OBJECT.pack(0, 0, 5, 1),
    FrameType.CHUNK: CHUNK.pack(0, 255, 0, 5, 0, 1),
    FrameType.RUN: RUN.pack(1, 0, 12, 12, 1),
}
MESSAGES = {message.type: message for message in ONE_OF_EACH}
SMALL = Limits(max_objects=2, max_peer_requests=2, max_sync_objects=3, max_data_size=100, max_metadata_size=10)


def in_state(state: FrameType) -> tuple[ClientConnection, Any]:
    if state is GREETING:
        return new_client(), new_server()
    client, server = greeted()
    if state is not IDLE:
        client.send(MESSAGES[state])
        feed(server, sent(client))
        assert server.next_event() == MESSAGES[state]
    return client, server


def refuse(connection: Connection, data: bytes, match: str = "") -> None:
    feed(connection, data)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match=match):
            connection.next_event()


@pytest.mark.parametrize("frame", FrameType)
@pytest.mark.parametrize("state", CLIENT_MAY)
def test_what_may_come_and_be_sent(state: FrameType, frame: FrameType) -> None:
    for side, may, other in ((0, SERVER_MAY, CLIENT_MAY), (1, CLIENT_MAY, SERVER_MAY)):
        connection = in_state(state)[side]
        data = pack_frame(frame, 0 if state is GREETING else 1, FRAMES[frame])
        if frame in may[state]:
            feed(connection, data)
            assert connection.next_event() is not None
        else:
            refuse(connection, data, f"{frame.name} came out of place, in the state {state.name}")
        connection = in_state(state)[side]
        if frame in MESSAGES and frame not in other[state]:
            connection.data_to_send()
            with pytest.raises(LocalProtocolError, match="out of place"):
                connection.send(MESSAGES[frame])
            assert not connection.data_to_send()
            assert connection.state is state


def test_no_unknown_frames() -> None:
    for number in (0, 11, 15, 24, 255):
        refuse(greeted()[1], pack_frame(number, 1, b""), f"unknown type {number}")  # type: ignore[arg-type]


def test_tags() -> None:
    client, server = greeted()
    client.send(ListObjects())
    client.data_to_send()
    refuse(client, pack_frame(FrameType.END, 2, FRAMES[FrameType.END]), "tag 2 instead of 1")
    server = in_state(FrameType.PUT)[1]
    refuse(server, pack_frame(FrameType.OBJECT, 2, FRAMES[FrameType.OBJECT]), "tag 2 instead of 1")
    client, server = greeted()
    for _ in range(65_537):
        client.send(ListObjects())
        client._changed_by(FrameType.END)
    assert client.data_to_send()[-1][2:4] == b"\2\0"


def test_a_late_cancel_is_passed_over() -> None:
    client, server = in_state(FrameType.LIST)
    server.send(End())
    client.send(Cancel())
    feed(client, sent(server))
    assert client.next_event() == MESSAGES[FrameType.END] or client.state is IDLE
    client.send(Stat((A,)))
    feed(server, sent(client))
    assert server.next_event() == Stat((A,))
    feed(server, pack_frame(FrameType.CANCEL, 1, FRAMES[FrameType.CANCEL]))
    assert server.next_event() is NEED_DATA
    feed(server, pack_frame(FrameType.CANCEL, 2, FRAMES[FrameType.CANCEL]))
    assert server.next_event() == Cancel()


def test_one_hello_only() -> None:
    server = new_server()
    hello = pack_frame(FrameType.HELLO, 0, encode_message(CLIENT))
    feed(server, hello)
    assert server.next_event() == CLIENT
    refuse(server, hello, "second HELLO")
    refuse(new_server(), pack_frame(FrameType.HELLO, 0, encode_message(Hello(b"x" * 16, 0))), "chunks of 0 bytes")
    client, _ = greeted()
    with pytest.raises(LocalProtocolError):
        client.greet()
    assert not client.data_to_send()


def fetch(*ids: int, port: int = 1) -> Fetch:
    return Fetch(False, "h", port, tuple(map(object_id, ids)))


TOO_MUCH: list[tuple[Message, str]] = [
    (Open(TOKEN, False, 0, ()), "names 0 objects"),
    (Open(TOKEN, False, 0, (A, B, object_id(3))), "names 3 objects"),
    (Stat((A, B, object_id(3))), "names 3 objects"),
    (Put(TOKEN, (A,), ()), "sizes of 0 objects"),
    (Put(TOKEN, (A,), (Sizes(101, 0),)), "larger than allowed"),
    (Put(TOKEN, (A,), (Sizes(0, 11),)), "larger than allowed"),
    (Sync(()), "0 peer requests"),
    (Sync((fetch(1), fetch(2), fetch(3))), "3 peer requests"),
    (Sync((fetch(),)), "names 0 objects"),
    (Sync((fetch(1, 2, 3),)), "names 3 objects"),
    (Sync((fetch(1, 2), fetch(3, 4))), "names 4 objects"),
    (Sync((fetch(1), fetch(2, 1))), "twice"),
    (Sync((fetch(1, port=0),)), "port 0"),
]


@pytest.mark.parametrize(("message", "fault"), TOO_MUCH)
def test_too_much_is_neither_sent_nor_accepted(message: Message, fault: str) -> None:
    client, server = greeted(SMALL, SMALL)
    with pytest.raises(LocalProtocolError, match=fault):
        client.send(message)
    assert not client.data_to_send()
    assert client.state is IDLE
    refuse(server, pack_frame(message.type, 1, encode_message(message)), fault)


@pytest.mark.parametrize("frame", [t for t in FrameType if t in FRAMES])
def test_bodies_have_a_limit_before_they_come(frame: FrameType) -> None:
    most = {FrameType.HELLO: 4096, FrameType.SYNC: 24 << 20}.get(frame, 4 << 20)
    for side, may in ((0, SERVER_MAY), (1, CLIENT_MAY)):
        for state in [state for state in may if frame in may[state]][:1]:
            for length, is_allowed in ((most, True), (most + 1, False), (2**32 - 1, False)):
                connection = in_state(state)[side]
                head = announce(frame, 0 if state is GREETING else 1, length)
                if is_allowed:
                    feed(connection, head)
                    assert connection.next_event() is NEED_DATA
                else:
                    refuse(connection, head, "too many")


def announce(frame: FrameType, tag: int, length: int) -> bytes:
    """The head alone of a frame, with a right check."""
    start = _START.pack(frame, 0, tag, length)
    return start + _CHECKS.pack(check_of(start), 0)


CHUNK_FAULTS = [
    (CHUNK.pack(0, 0, 0, 0, 0, 0), "payload of 0 bytes"),
    (CHUNK.pack(0, 0, 0, MOST_OF_A_CHUNK + 1, MOST_OF_A_CHUNK + 1, 0), "not allowed"),
    (CHUNK.pack(0, 0, 0, 5, 6, 0), "two sizes"),
    (CHUNK.pack(0, 255, 0, 5, 6, 0), "absent"),
    (CHUNK.pack(0, 1, 0, 5, 5, 0), "encoded payload has 5"),
    (CHUNK.pack(0, 1, 0, 5, 0, 0), "encoded payload has 0"),
    (CHUNK.pack(0, 3, 0, 5, 4, 0), "unknown encoding 3"),
    (CHUNK.pack(0, 0, 0, 5, 5, 0)[1:], "has a body of"),
]
RUN_FAULTS = [
    (RUN.pack(0, 0, 12, 12, 0), "0 objects"),
    (RUN.pack(65_537, 0, 12, 12, 0), "65537 objects"),
    (RUN.pack(1, 0, 0, 0, 0), "payload of 0"),
    (RUN.pack(1, 0, (1 << 20) + 13, (1 << 20) + 13, 0), "larger than allowed"),
    (RUN.pack(1, 255, 12, 0, 0), "absent"),
    (RUN.pack(1, 0, 12, 12, 0) + b"x", "has a body of"),
]
OBJECT_FAULTS = [
    (OBJECT.pack(0, 0, 2**44 + 1, 0), "larger than allowed"),
    (OBJECT.pack(0, 1, 1, 0), "says that its metadata has 1"),
    (OBJECT.pack(0, (1 << 20) + 1, 1, 0) + bytes((1 << 20) + 1), "larger than allowed"),
    (bytes(23), "has a body of"),
]


@pytest.mark.parametrize(
    ("frame", "body", "fault"),
    [
        *((FrameType.CHUNK, *fault) for fault in CHUNK_FAULTS),
        *((FrameType.RUN, *fault) for fault in RUN_FAULTS),
        *((FrameType.OBJECT, *fault) for fault in OBJECT_FAULTS),
    ],
)
def test_hot_frames_are_checked(frame: FrameType, body: bytes, fault: str) -> None:
    _, server = in_state(FrameType.PUT)
    with pytest.raises(RemoteProtocolError, match=fault):
        Reader(server).feed(pack_frame(frame, 1, body))


@pytest.mark.parametrize(
    "send",
    [
        lambda c: c.send_object(-1, 1, b""),
        lambda c: c.send_object(0, 2**44 + 1, b""),
        lambda c: c.send_object(0, 1, bytes((1 << 20) + 1)),
        lambda c: c.send_chunk(0, 0, memoryview(b"")),
        lambda c: c.send_chunk(0, -1, memoryview(b"x")),
        lambda c: c.send_chunk(0, 0, memoryview(bytes(MOST_OF_A_CHUNK + 1))),
        lambda c: c.send_run([]),
        lambda c: c.send_run([(2**32, b"", b"")]),
        lambda c: c.send_run([(0, bytes(1 << 20), b"x")]),
        lambda c: c.send_run([(0, b"", b"")] * 65_537),
    ],
)
def test_what_is_too_much_is_not_sent(send: Callable[[ClientConnection], None]) -> None:
    client, _ = in_state(FrameType.PUT)
    with pytest.raises(LocalProtocolError):
        send(client)
    assert not client.data_to_send()


def test_the_most_of_all_passes() -> None:
    client, server = in_state(FrameType.PUT)
    client.send_run([(i, b"", b"") for i in range(65_536)])
    reader = Reader(server)
    reader.feed(sent(client))
    assert reader.notes == [[(i, b"", b"") for i in range(65_536)]]


@pytest.mark.parametrize(
    ("count", "content", "fault"),
    [
        (2, RUN_ENTRY.pack(0, 0, 0), "cannot have 2 objects"),
        (1, RUN_ENTRY.pack(0, 1, 0), "reaches out"),
        (1, RUN_ENTRY.pack(0, 0, 2**32 - 1), "reaches out"),
        (1, RUN_ENTRY.pack(0, 0, 0) + b"x", "1 bytes too many"),
    ],
)
def test_runs_whose_table_is_wrong(count: int, content: bytes, fault: str) -> None:
    _, server = in_state(FrameType.PUT)
    body = RUN.pack(count, 0, len(content), len(content), xxh3_64_intdigest(content))
    refuse(server, pack_frame(FrameType.RUN, 1, body) + content, fault)


def test_encodings_that_nobody_named() -> None:
    plain = Hello(b"p" * 16, 1 << 20)
    client, server = greeted(server_hello=plain)
    client.send(REQUESTS[4])
    feed(server, sent(client))
    assert server.next_event() == REQUESTS[4]
    client.send_chunk(0, 0, memoryview(bytes(1_000)), Encoding.ZSTD)  # falls back to none
    assert len(sent(client)) > 1_000
    refuse(server, pack_frame(FrameType.CHUNK, 1, CHUNK.pack(0, 1, 0, 9, 5, 0)), "which nobody named")
