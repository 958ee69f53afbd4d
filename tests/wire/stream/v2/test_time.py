"""When the other side is late, and with what: time is told, and nobody looks at a clock."""

from math import inf

import pytest

from plasmastream.wire.stream.v2 import (
    NEED_DATA,
    End,
    FrameType,
    Lateness,
    Limits,
    Progress,
    ServerConnection,
)
from tests.wire.stream.v2.helpers import CLIENT, SERVER, feed, greeted, new_client, new_server, sent
from tests.wire.stream.v2.samples import REQUESTS


def test_the_greeting() -> None:
    client = new_client()
    client.sent(100)
    assert client.deadline == 105
    assert (client.late(104.9), client.late(105)) == (None, Lateness.HELLO)
    server = new_server()
    assert (server.deadline, server.late(5)) == (5, Lateness.HELLO)


def test_a_client_waits_for_nothing_between_requests() -> None:
    client, server = greeted()
    assert (client.deadline, client.late(1e9)) == (inf, None)
    client.send(REQUESTS[0])
    client.sent(1_000)
    assert client.deadline == 1_030
    feed(server, sent(client), 1_001)
    server.next_event()
    server.send(Progress())
    feed(client, sent(server), 1_029)
    assert client.next_event() == Progress()
    assert (client.deadline, client.late(1_058), client.late(1_059)) == (1_059, None, Lateness.SILENT)
    assert client.last_progress == 1_029
    server.send(End())
    feed(client, sent(server), 1_058)
    assert client.next_event() == End()
    assert client.deadline == inf


@pytest.mark.parametrize("request_type", [message.type for message in REQUESTS])
def test_a_server_waits_for_the_next_request_and_for_what_is_put(request_type: FrameType) -> None:
    client, server = greeted()
    server.sent(10)
    assert (server.deadline, server.late(310)) == (310, Lateness.IDLE)
    [request] = [message for message in REQUESTS if message.type is request_type]
    client.send(request)
    feed(server, sent(client), 100)
    assert server.next_event() == request
    assert server.deadline == (130 if request_type is FrameType.PUT else inf)
    server.send(End())
    server.sent(500)
    assert (server.deadline, server.late(800)) == (800, Lateness.IDLE)


def large_chunk() -> tuple[ServerConnection, bytes]:
    client, server = greeted()
    client.send(REQUESTS[4])
    feed(server, sent(client))
    server.next_event()
    client.send_chunk(0, 0, memoryview(bytes(Limits().chunk_size)))
    return server, sent(client)


def begin_chunk(server: ServerConnection, wire: bytes) -> memoryview:
    feed(server, wire[:48], 100)
    server.next_event()
    server.supply_buffer(bytearray(Limits().chunk_size))
    assert server.next_event() is NEED_DATA
    return memoryview(wire)[48:]


def test_a_byte_a_second_is_too_little() -> None:
    server, wire = large_chunk()
    rest = begin_chunk(server, wire)
    for second in range(1, 30):
        feed(server, rest[second : second + 1], 100 + second)
        assert (server.deadline, server.late(100 + second)) == (130, None)
    assert server.late(130) is Lateness.SLOW


@pytest.mark.parametrize("place", [1, 5, 16, 20])
def test_the_head_of_a_frame_may_not_trickle_either(place: int) -> None:
    """Not even where its beginning came with something else, at the time of another frame."""
    client, server = greeted()
    client.send(REQUESTS[0])
    request = sent(client)
    now = 0.0
    for octet in request[:place]:
        feed(server, bytes([octet]), now)
        assert server.next_event() is NEED_DATA
        now += 29
        if server.late(now) is Lateness.SLOW:
            break
    assert place == 1 or server.late(now) is Lateness.SLOW


@pytest.mark.parametrize("pause", [0.1, 1.0, 4.0])
def test_a_greeting_has_a_time_as_a_whole(pause: float) -> None:
    """However much of it has come, and however it trickles, at either end."""
    client, other = new_client(), new_server()
    wire = sent(client)[8:]
    client.sent(0.0)
    server = ServerConnection(SERVER, 0.0, head_start=wire[:3])
    feed(other, wire)
    other.next_event()
    other.greet()
    for end, rest in ((server, wire[3:]), (client, sent(other))):
        now = pause
        for octet in rest:
            if now >= 5:
                break
            feed(end, bytes([octet]), now)
            assert end.next_event() is NEED_DATA
            assert (end.deadline, end.late(now)) == (5, None)
            now += pause
        assert end.late(5) is Lateness.HELLO
    whole = ServerConnection(SERVER, 0.0, head_start=wire)
    assert whole.next_event() == CLIENT
    assert whole.deadline == inf


def test_enough_is_enough_and_silence_is_not() -> None:
    server, wire = large_chunk()
    rest = begin_chunk(server, wire)
    for i in range(4):
        feed(server, rest[:122_880], 100 + 29 * (i + 1))
        rest = rest[122_880:]
        assert server.late(100 + 29 * (i + 1)) is None
    assert server.deadline == 100 + 29 * 4 + 30
    assert server.late(server.deadline) is Lateness.SILENT


def test_many_short_frames_are_never_slow() -> None:
    """Each read ends within a frame: the next one has a time of its own."""
    client, server = greeted()
    client.send(REQUESTS[0])
    client.sent(0)
    feed(server, sent(client))
    server.next_event()
    for _ in range(100):
        server.send(Progress())
    wire = memoryview(sent(server))
    size = len(wire) // 100
    for i in range(99):
        start = i * size + (i > 0) * 20
        feed(client, wire[start : (i + 1) * size + 20], 5.0 * i)
        assert client.next_event() == Progress()
        assert client.next_event() is NEED_DATA
        assert client.late(5.0 * i + 4.9) is None
