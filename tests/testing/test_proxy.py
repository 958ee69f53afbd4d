"""Every fault, for real: between a client and a server that do nothing but send and listen."""

import math
import random
import socket
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from plasmastream.testing import (
    Cut,
    Delay,
    Direction,
    Fault,
    Flip,
    HalfClose,
    Noise,
    Script,
    Scripts,
    Stall,
    Throttle,
    Trickle,
    open_fault_proxy,
)
from tests.testing.helpers import Side, byte_server, client_of

REQUEST = random.Random(1).randbytes(300_000)
ANSWER = random.Random(2).randbytes(500_000)


@pytest.fixture
def clock() -> MockClock:
    """Jumps where nothing has moved for a moment; not at once, since bytes in a socket are seen by nobody."""
    return MockClock(autojump_threshold=0.03)


async def test_without_faults_everything_passes_both_ways() -> None:
    async with byte_server(ANSWER) as server, open_fault_proxy(*server.address) as proxy:
        for number in range(3):
            async with client_of(proxy.address) as client:
                await client.talk(REQUEST)
                await client.over.wait()
                await server.sides[number].over.wait()
                assert (client.heard, client.ending) == (ANSWER, "end")
                assert (server.sides[number].heard, server.sides[number].ending) == (REQUEST, "end")
            connection = proxy.connections[number]
            await connection.wait_over()
            assert connection.triggered == []
            assert connection.to_server.received == connection.to_server.passed == len(REQUEST)
            assert connection.to_client.received == connection.to_client.passed == len(ANSWER)
            assert connection.to_client.log == b""


@pytest.mark.parametrize("at", [0, 1, 70_001, len(ANSWER)])
@pytest.mark.parametrize(("reset", "ending"), [(False, "end"), (True, "reset")])
async def test_a_cut_to_the_client(at: int, reset: bool, ending: str) -> None:
    cut = Cut(at, reset=reset)
    async with (
        byte_server(ANSWER, then_end=False) as server,
        open_fault_proxy(*server.address, Script(to_client=[cut])) as proxy,
        client_of(proxy.address) as client,
    ):
        await client.over.wait()
        assert (client.heard, client.ending) == (ANSWER[:at], ending)
        (connection,) = proxy.connections
        await connection.wait_over()
        assert connection.to_client.passed == at
        (seen,) = connection.triggered
        assert (seen.fault, seen.direction, seen.at) == (cut, Direction.TO_CLIENT, at)


@pytest.mark.parametrize("at", [0, 1, 70_001, len(REQUEST)])
@pytest.mark.parametrize(("reset", "ending"), [(False, "end"), (True, "reset")])
async def test_a_cut_to_the_server(at: int, reset: bool, ending: str) -> None:
    async with (
        byte_server(b"", then_end=False) as server,
        open_fault_proxy(*server.address, Script(to_server=[Cut(at, reset=reset)])) as proxy,
        client_of(proxy.address) as client,
    ):
        await client.talk(REQUEST, then_end=False)
        await client.over.wait()
        (connection,) = proxy.connections
        await connection.wait_over()
        (side,) = server.sides
        await side.over.wait()
        assert (side.heard, side.ending) == (REQUEST[:at], ending)
        assert connection.to_server.passed == at


@pytest.mark.parametrize("at", [0, 1, 70_001])
async def test_a_half_closed_direction_ends_alone(at: int) -> None:
    script = Script(to_server=[HalfClose(at), Cut(at + 1)])
    async with (
        byte_server(ANSWER) as server,
        open_fault_proxy(*server.address, script) as proxy,
        client_of(proxy.address) as client,
    ):
        await client.talk(REQUEST)
        await client.over.wait()
        (side,) = server.sides
        await side.over.wait()
        assert (side.heard, side.ending) == (REQUEST[:at], "end")
        assert (client.heard, client.ending) == (ANSWER, "end")
        (connection,) = proxy.connections
        await connection.wait_over()
        assert connection.to_server.received == len(REQUEST)  # read, and thrown away
        assert [seen.fault for seen in connection.triggered] == [HalfClose(at)]


@pytest.mark.parametrize("at", [0, 1, 70_001])
async def test_what_stalls_goes_on_when_it_is_released(at: int) -> None:
    stall = Stall(at)
    async with (
        byte_server(ANSWER) as server,
        open_fault_proxy(*server.address, Script(to_client=[stall])) as proxy,
        client_of(proxy.address) as client,
    ):
        connection = await proxy.wait_connection()
        await connection.wait_triggered(stall)
        while len(client.heard) < at:
            await wait_all_tasks_blocked(0.01)
        assert (client.heard, client.ending) == (ANSWER[:at], "")
        # The other direction is none the worse.
        await client.talk(b"hello", then_end=False)
        await connection.wait_passed(to_server=5)
        proxy.release()
        await client.over.wait()
        assert (client.heard, client.ending) == (ANSWER, "end")


async def test_a_stall_can_end_by_itself_and_be_followed_by_a_cut(clock: MockClock) -> None:
    script = Script(to_client=[Stall(100, seconds=40), Cut(100)])
    async with (
        byte_server(ANSWER) as server,
        open_fault_proxy(*server.address, script) as proxy,
        client_of(proxy.address) as client,
    ):
        await client.over.wait()
        assert (client.heard, client.ending) == (ANSWER[:100], "end")
        stalled, cut = proxy.connections[0].triggered
        assert cut.time - stalled.time == pytest.approx(40)


async def test_a_reset_is_passed_on_while_the_other_direction_stalls() -> None:
    async with (
        byte_server(ANSWER[:100], then_end=False) as server,
        open_fault_proxy(*server.address, Script(to_client=[Stall(10)])) as proxy,
    ):
        async with client_of(proxy.address) as client:
            connection = await proxy.wait_connection()
            await connection.wait_triggered(Stall(10))
            client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await connection.wait_over()
        await server.sides[0].over.wait()
        assert server.sides[0].ending == "reset"


def changed(before: bytes, after: bytes) -> dict[int, int]:
    """Which bits of which bytes differ."""
    assert len(before) == len(after)
    return {at: old ^ new for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}


async def test_flips_change_the_bits_they_name() -> None:
    flips = [Flip(200_000, 3), Flip(0), Flip(65_536, 7), Flip(65_536, 6), Flip(len(ANSWER))]
    async with (
        byte_server(ANSWER) as server,
        open_fault_proxy(*server.address, Script(to_client=flips)) as proxy,
        client_of(proxy.address) as client,
    ):
        await client.over.wait()
        assert changed(ANSWER, client.heard) == {0: 1, 65_536: 0b1100_0000, 200_000: 8}
        assert sorted(seen.at for seen in proxy.connections[0].triggered) == [0, 65_536, 65_536, 200_000]


async def test_noise_is_the_same_for_the_same_seed_however_the_bytes_come() -> None:
    heard: list[dict[int, int]] = []
    scripts = [
        Script(to_client=[Noise(0.001, seed=5)]),
        Script(to_client=[Noise(0.001, seed=5), Throttle(50_000_000), Stall(12_345, seconds=0)]),
        Script(to_client=[Noise(0.001, seed=6)]),
    ]
    async with byte_server(ANSWER) as server, open_fault_proxy(*server.address, scripts) as proxy:
        for _ in scripts:
            async with client_of(proxy.address) as client:
                await client.over.wait()
                heard.append(changed(ANSWER, client.heard))
    assert heard[0] == heard[1] != heard[2]
    assert 400 < len(heard[0]) < 600
    assert {bits.bit_count() for bits in heard[0].values()} == {1}
    assert {bits.bit_length() for bits in heard[0].values()} == set(range(1, 9))


async def test_a_delay_is_for_each_byte_and_for_the_end(clock: MockClock) -> None:
    script = Script(to_server=[Delay(3), Delay(1)], to_client=[Delay(10)])
    async with (
        byte_server() as server,
        open_fault_proxy(*server.address, script) as proxy,
        client_of(proxy.address) as client,
    ):
        start = trio.current_time()
        for _ in range(3):
            await client.talk(b"x", then_end=False)
            await trio.sleep(1)
        connection = proxy.connections[0]
        await connection.wait_passed(to_client=1)
        assert 14 <= trio.current_time() - start + 0.001 < 20
        await connection.wait_passed(to_client=3)
        assert 16 <= trio.current_time() - start + 0.001 < 22  # and not 42: each byte is on its way by itself
        await client.stream.send_eof()
        await client.over.wait()
        assert 30 <= trio.current_time() - start + 0.001 < 40
        assert client.heard == b"xxx"


@pytest.mark.parametrize(
    ("faults", "seconds"),
    [
        ([Throttle(40)], (30 - 2) / 40),
        ([Throttle(2)], (30 - 1) / 2),
        ([Trickle(5)], 29 * 5),
        ([Throttle(40), Trickle(0)], 29 / 40),
    ],
)
async def test_a_slow_connection(faults: list[Fault], seconds: float, clock: MockClock) -> None:
    async with (
        byte_server(ANSWER[:30]) as server,
        open_fault_proxy(*server.address, Script(to_client=faults)) as proxy,
        client_of(proxy.address) as client,
    ):
        start = trio.current_time()
        await client.over.wait()
        assert client.heard == ANSWER[:30]
        # A jump of the clock may come in between, on a machine with other work.
        assert seconds * 0.999 <= trio.current_time() - start <= 2 * seconds


async def test_no_more_is_read_than_is_taken() -> None:
    async with (
        byte_server(bytes(64 << 20)) as server,
        open_fault_proxy(*server.address, Script(to_client=[Stall(1)])) as proxy,
        client_of(proxy.address),
    ):
        connection = await proxy.wait_connection()
        await connection.wait_triggered(Stall(1))
        await wait_all_tasks_blocked(0.05)
        assert connection.to_client.received <= 256 << 10


async def test_scripts_are_chosen_by_number() -> None:
    async with byte_server(ANSWER) as server:
        cases: list[tuple[Scripts, list[int]]] = [
            (Script(to_client=[Cut(1)]), [1, 500_000, 500_000]),
            ([Script(to_client=[Cut(1)]), Script(to_client=[Cut(2)])], [1, 2, 500_000]),
            (lambda number: Script(to_client=[Cut(10 + number)]), [10, 11, 12]),
        ]
        for scripts, expected in cases:
            async with open_fault_proxy(*server.address, scripts) as proxy:
                for _ in range(3):
                    async with client_of(proxy.address) as client:
                        await client.over.wait()
                assert [connection.to_client.passed for connection in proxy.connections] == expected
                assert [connection.number for connection in proxy.connections] == [0, 1, 2]


async def test_the_log_has_the_first_bytes_as_they_were_passed_on() -> None:
    script = Script(to_client=[Flip(2), Cut(90_000)])
    async with (
        byte_server(ANSWER) as server,
        open_fault_proxy(*server.address, script, log_limit=70_000) as proxy,
        client_of(proxy.address) as client,
    ):
        await client.talk(b"hello")
        await client.over.wait()
        log = bytes(proxy.connections[0].to_client.log)
        assert log == client.heard[:70_000]
        assert changed(ANSWER[:70_000], log) == {2: 1}


async def test_a_server_that_is_not_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with open_fault_proxy(*unused.getsockname()) as proxy, client_of(proxy.address) as client:
            await client.over.wait()
            assert client.ending == "reset"
            connection = await proxy.wait_connection()
            await connection.wait_over()
            assert connection.error is not None
            assert str(connection.to_server) in repr(connection)


async def test_everything_ends_with_the_block() -> None:
    async with byte_server(ANSWER[:100], then_end=False) as server:
        async with open_fault_proxy(*server.address) as proxy:
            stream = await trio.open_tcp_stream(*proxy.address)
            await (await proxy.wait_connection()).wait_passed(to_client=1)
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(*proxy.address)
        await server.sides[0].over.wait()
        assert server.sides[0].ending == "reset"
        assert proxy.connections[0].is_over
        client = Side(stream)
        await client.listen()
        assert client.ending == "reset"
        await stream.aclose()


async def test_a_failure_in_the_block_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_fault_proxy("127.0.0.1", 1):
            raise ZeroDivisionError
    with trio.move_on_after(0) as scope:
        async with open_fault_proxy("127.0.0.1", 1):
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_it_listens_at_ipv6_too() -> None:
    async with (
        byte_server(b"hello") as server,
        open_fault_proxy(*server.address, listen_at="::1") as proxy,
        client_of(proxy.address) as client,
    ):
        await client.over.wait()
        assert client.heard == b"hello"


def test_what_makes_no_sense_is_refused() -> None:
    nonsense: list[Callable[[], Fault]] = [
        lambda: Cut(-1),
        lambda: HalfClose(-1),
        lambda: Stall(0, seconds=-1),
        lambda: Flip(0, bit=8),
        lambda: Noise(0),
        lambda: Noise(1),
        lambda: Delay(-1),
        lambda: Throttle(0),
        lambda: Trickle(-1),
    ]
    for make in nonsense:
        with pytest.raises(ValueError, match="must be"):
            make()
    assert Stall().seconds == math.inf
