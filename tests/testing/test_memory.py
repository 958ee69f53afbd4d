"""Connections in memory: they behave as sockets do, and fail at the call that a test names."""

import errno
import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from plasmastream import PeerError
from plasmastream.peer import PeerClient, PeerServer, PeerStalledError, Transport
from plasmastream.store import EmbeddedStore
from plasmastream.testing import (
    CallFault,
    Cut,
    Delay,
    Fault,
    Flip,
    HalfClose,
    MemoryTransport,
    Noise,
    Script,
    Stall,
    Throttle,
    Trickle,
    memory_transports,
)
from tests.peer.helpers import CAPACITY, MIXED, contents, fill, objects_of
from tests.store.helpers import assert_untouched

DATA = os.urandom(300_000)


async def read(end: MemoryTransport, size: int = 1000) -> bytes:
    """What one call brings."""
    buffer = memoryview(bytearray(size))
    return bytes(buffer[: await end.receive_into(buffer, timeout=5)])


async def read_all(end: MemoryTransport) -> bytes:
    """What comes until the end."""
    heard = bytearray()
    while data := await read(end, 100_000):
        heard += data
    return bytes(heard)


@pytest.mark.parametrize("room", [1, 1000, 1 << 20])
async def test_bytes_arrive_in_order_and_no_more_are_under_way_than_there_is_room_for(room: int) -> None:
    client, server = memory_transports(room=room)
    data = DATA[: 2000 * room]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: client.send([data[:500], memoryview(data)[500:]], timeout=5))
        await wait_all_tasks_blocked()
        assert client._outgoing.nbytes == min(room, len(data))
        heard = b""
        while len(heard) < len(data):
            heard += await read(server)
    assert heard == data
    with pytest.raises(ValueError, match="room"):
        memory_transports(room=0)


async def test_ends() -> None:
    client, server = memory_transports()
    assert (client.peer, server.peer) == ("server", "client")
    assert server.is_quiet()
    await client.send([b"question"], timeout=5)
    client.half_close()
    assert await read_all(server) == b"question"
    assert not server.is_quiet()
    with pytest.raises(PeerError, match="the connection to server broke: Broken pipe"):
        await client.send([b"more"], timeout=5)
    await server.send([b"answer"], timeout=5)
    server.close()
    server.close()
    assert await read_all(client) == b"answer"
    with pytest.raises(PeerError, match="the connection to client was closed"):
        await read(server)
    with pytest.raises(PeerError, match="the connection to client was closed"):
        await server.send([b"more"], timeout=5)
    assert not server.is_quiet()


async def test_breaks() -> None:
    client, server = memory_transports()
    await client.send([b"last words"], timeout=5)
    client.abort()
    assert await read(server) == b"last words"
    for _ in range(2):
        with pytest.raises(PeerError, match="the connection to client broke: Connection reset by peer"):
            await read(server)
    with pytest.raises(PeerError, match="broke: Connection reset"):
        await server.send([b"x"], timeout=5)


async def test_a_clean_end_stays_one() -> None:
    client, server = memory_transports()
    client.half_close()
    client.abort()
    assert await read_all(server) == b""
    with pytest.raises(PeerError, match="broke: Broken pipe"):
        await server.send([b"x"], timeout=5)


async def test_closing_with_bytes_unread_is_a_reset() -> None:
    client, server = memory_transports()
    await client.send([b"nobody reads this"], timeout=5)
    server.close()
    with pytest.raises(PeerError, match="reset"):
        await read(client)


async def test_who_waits_is_told() -> None:
    async with trio.open_nursery() as nursery:

        async def fails(end: MemoryTransport, data: bytes, match: str) -> None:
            with pytest.raises(PeerError, match=match):
                await (end.send([data], timeout=5) if data else read(end))

        for data in (b"", bytes(20)):
            for leaver, match in ((0, "to server was closed"), (1, "to server broke: Connection reset")):
                ends = memory_transports(room=10)
                nursery.start_soon(fails, ends[0], data, match)
                await wait_all_tasks_blocked()
                ends[leaver].abort()


@pytest.mark.parametrize("on", [True, False])
async def test_what_a_death_looks_like_can_be_chosen(on: bool) -> None:
    client, server = memory_transports()
    client.break_on_death(on)
    client.die()
    if on:
        with pytest.raises(PeerError, match="reset"):
            await read(server)
    else:
        assert await read(server) == b""


async def test_time_is_bounded(autojump_clock: MockClock) -> None:
    client, _ = memory_transports([CallFault.stall(3)], room=10)
    start = trio.current_time()
    with pytest.raises(PeerStalledError, match="server sent nothing for 30 s"):
        await client.receive_into(memoryview(bytearray(1)), timeout=30)
    with pytest.raises(PeerStalledError, match="server took nothing for 20 s"):
        await client.send([bytes(11)], timeout=20)
    with pytest.raises(PeerStalledError, match="server took nothing for 10 s"):
        await client.send([], timeout=10)
    assert trio.current_time() - start == pytest.approx(60)
    with pytest.raises(PeerStalledError):
        await client.receive_into(memoryview(bytearray(1)), timeout=-1)
    client, server = memory_transports([CallFault.stall(1, "receive_into")])
    await server.send([b"x"], timeout=5)
    with pytest.raises(PeerStalledError):
        await read(client)
    assert await read(client) == b"x"
    assert repr(client) == "<MemoryTransport from client to server>"


async def test_faults_come_at_the_call_they_name() -> None:
    scope = trio.CancelScope()
    client, server = memory_transports(
        [CallFault.cut(2, "receive_into")],
        [CallFault.fail(2, OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))), CallFault.cancel(1, scope)],
    )
    with scope:
        await server.send([b"never sent"], timeout=5)
    assert scope.cancelled_caught
    assert client.is_quiet()
    await client.send([b"x"], timeout=5)
    with pytest.raises(PeerError, match="the connection to client broke: No buffer space available"):
        await read(server)
    assert server.calls == {"send": 1, "receive_into": 1}
    with pytest.raises(PeerError, match="reset"):
        await read(client)

    client, server = memory_transports([CallFault.cut(2, "receive_into"), CallFault.stall(9)])
    await server.send([b"some", b"thing"], timeout=5)
    assert await read(client, 4) == b"some"
    assert await read_all(client) == b"thing"
    assert await read(server) == b""


# Faults by position


@pytest.mark.parametrize("at", [0, 1, 7, 9])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_cut_ends_it_for_both_after_the_bytes_before(at: int, reset: bool) -> None:
    client, server = memory_transports(script=Script(to_client=[Cut(at, reset)]))
    if at:
        await server.send([b"something"], timeout=5)
        assert await read(client) == b"something"[:at]
    for end in (client, server):
        if reset:
            with pytest.raises(PeerError, match="broke: Connection reset"):
                await read(end)
        else:
            assert await read(end) == b""
        with pytest.raises(PeerError, match="broke: Connection reset" if reset else "broke: Broken pipe"):
            await end.send([b"more"], timeout=5)
    assert [(seen.fault, seen.at) for seen in client.triggered] == [(Cut(at, reset), at)]


async def test_a_half_close_ends_one_direction() -> None:
    client, server = memory_transports(script=Script(to_server=[HalfClose(3), Stall(5)]))
    await client.send([b"hello"], timeout=5)
    assert await read_all(server) == b"hel"
    await server.send([b"hi"], timeout=5)
    assert await read(client) == b"hi"
    await client.send([bytes(1 << 20)], timeout=5)  # goes nowhere, and so needs no room
    client.close()
    with pytest.raises(PeerError, match="Broken pipe"):
        await server.send([b"more"], timeout=5)


async def test_a_stall_holds_back_what_follows_and_the_end(autojump_clock: MockClock) -> None:
    client, server = memory_transports(script=Script(to_server=[Stall(2, 40), Stall(4)]), room=4)
    start = trio.current_time()
    await client.send([b"abcd"], timeout=5)
    assert await read(server) == b"ab"
    with pytest.raises(PeerStalledError):
        await read(server)
    buffer = memoryview(bytearray(9))
    assert await server.receive_into(buffer, timeout=50) == 2
    assert trio.current_time() - start == pytest.approx(40)
    await client.send([b"efgh"], timeout=5)
    with pytest.raises(PeerStalledError, match="took nothing for 5 s"):
        await client.send([b"i"], timeout=5)
    client.close()
    with pytest.raises(PeerStalledError):
        await read(server)
    await server.send([b"x"], timeout=5)  # nobody has told it
    assert len(client.triggered) == 2


async def test_a_flip_changes_a_bit_and_noise_the_same_ones_as_in_the_proxy() -> None:
    noise = Noise(0.01, seed=3)
    client, server = memory_transports(script=Script(to_server=[Flip(1, 5)], to_client=[noise]))
    for octet in b"hello":
        await client.send([bytes([octet])], timeout=5)
    assert await read(server) == b"hEllo"
    await server.send([bytes(1000)], timeout=5)
    heard = await read(client)
    expected = bytearray(1000)
    for at, bit in noise.flips():
        if at >= 1000:
            break
        expected[at] ^= 1 << bit
    assert heard == expected
    assert any(heard)
    assert [seen.fault for seen in server.triggered] == [Flip(1, 5), noise]
    assert server.triggered[0].at == 1


@pytest.mark.parametrize(
    ("faults", "due"),
    [
        ([Delay(2.0), Delay(1.0)], [(3.0, 10)]),
        ([Throttle(80.0)], [(0.0, 4), (0.05, 4), (0.1, 2)]),
        ([Trickle(2.0)], [(2.0 * n, 1) for n in range(10)]),
        ([Throttle(80.0), Delay(1.0), Stall(3, 5.0)], [(1.0, 3), (6.0375, 4), (6.0875, 3)]),
    ],
)
async def test_bytes_take_their_time(
    faults: list[Fault], due: list[tuple[float, int]], autojump_clock: MockClock
) -> None:
    client, server = memory_transports(script=Script(to_server=faults))
    start = trio.current_time()
    await client.send([b"0123456789"], timeout=5)
    client.half_close()
    heard = b""
    for time, nbytes in due:
        assert server.is_quiet() == (trio.current_time() - start < time)
        buffer = memoryview(bytearray(100))
        assert await server.receive_into(buffer, timeout=100) == nbytes
        heard += buffer[:nbytes]
        assert trio.current_time() - start == pytest.approx(time)
    assert await read(server) == b""
    assert heard == b"0123456789"


async def test_a_cut_loses_what_is_still_on_its_way(autojump_clock: MockClock) -> None:
    client, server = memory_transports(script=Script(to_server=[Delay(1.0)], to_client=[Delay(3.0), Cut(2)]))
    await server.send([b"abc"], timeout=5)
    await trio.sleep(2.5)
    assert [seen.at for seen in client.triggered] == [0]
    await client.send([b"too late"], timeout=5)
    assert await read(client) == b"ab"
    assert await read(server) == await read(client) == b""
    assert [type(seen.fault) for seen in client.triggered] == [Delay, Delay, Cut]


async def test_a_cable_can_be_unplugged_for_a_while(autojump_clock: MockClock) -> None:
    client, server = memory_transports()
    await client.send([b"before"], timeout=5)
    server.hold(20)
    await client.send([b"after"], timeout=5)
    client.abort()
    assert await read(server) == b"before"
    await server.send([b"not told yet"], timeout=5)
    buffer = memoryview(bytearray(9))
    assert await server.receive_into(buffer, timeout=30) == 5
    assert trio.current_time() == pytest.approx(20)
    with pytest.raises(PeerError, match="reset"):
        await read(server)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_can_be_cut_at_once(reset: bool) -> None:
    client, server = memory_transports(script=Script(to_client=[Stall(2)]))
    await server.send([b"abcd"], timeout=5)
    server.cut(reset=reset)
    assert await read(client) == b"ab"
    for end in (client, server):
        if reset:
            with pytest.raises(PeerError, match="reset"):
                await read(end)
        else:
            assert await read(end) == b""


# The peer room over it


def joined(
    server: PeerServer, nursery: trio.Nursery, *faults: list[CallFault], version: int | None = None
) -> PeerClient:
    """A client whose every connection goes to the server without a network."""

    async def connect(host: str, port: int, *, timeout: float) -> Transport:
        await trio.lowlevel.checkpoint()
        ours, theirs = memory_transports(*faults, room=1000)
        nursery.start_soon(server.serve_connection, theirs)
        return ours

    return PeerClient("nowhere", connect=connect, version=version)


@pytest.mark.parametrize("version", [1, 2, None])
async def test_peers_work_over_it(version: int | None, autojump_clock: MockClock) -> None:
    objects = objects_of(MIXED)
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, objects)
        async with trio.open_nursery() as nursery:
            client = joined(PeerServer(there), nursery, version=version)
            await client.take(list(objects), here)
            await client.aclose()
        assert contents(here) == objects
        assert contents(there) == {}


@pytest.mark.parametrize("failure", ["cut", "reset", "fail", "cancel"])
@pytest.mark.parametrize("side", [0, 1])
async def test_a_failure_at_any_call_of_version_1_leaves_nothing(side: int, failure: str) -> None:
    objects = objects_of([(10, 0), (0, 0), (500, 3), (5000, 2000)])
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, objects)
        for at in range(1, 1000):
            scope = trio.CancelScope()
            fault = {
                "cut": CallFault.cut(at),
                "reset": CallFault.cut(at, reset=True),
                "fail": CallFault.fail(at, OSError(errno.EIO, "Input/output error")),
                "cancel": CallFault.cancel(at, scope),
            }[failure]
            faults: list[list[CallFault]] = [[], []]
            faults[side].append(fault)
            arrived = False
            async with trio.open_nursery() as nursery:
                client = joined(PeerServer(there), nursery, *faults, version=1)
                with scope:
                    try:
                        await client.copy(list(objects), here)
                        arrived = True
                    except PeerError as error:
                        assert "server" in str(error)  # noqa: PT017
                await client.aclose()
            assert_untouched(here)
            assert_untouched(there)
            assert contents(there) == objects
            assert contents(here) == (objects if arrived else {})
            if arrived:
                break
        assert at > 2
