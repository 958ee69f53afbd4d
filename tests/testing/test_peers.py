"""Client and server of version 1 with a fault between them: a clear error, and nothing left behind in either store.

And version 2 where version 1 is helpless.
"""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from plasmastream import PeerError, PlasmastreamError, TransferError
from plasmastream.peer import PeerClient, PeerStalledError, PeerTimeouts, ServerTimeouts
from plasmastream.peer._version1 import Version1Client
from plasmastream.store import EmbeddedStore
from plasmastream.testing import (
    Cut,
    FaultProxy,
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
from tests.peer.helpers import CAPACITY, assert_nothing_claimed, contents, fill, objects_of, serving, version_1
from tests.store.helpers import assert_untouched

OBJECTS = objects_of([(10, 0), (0, 0), (500, 3), (70_000, 200), (0, 300), (150_000, 10), (1, 1)])
IDS = list(OBJECTS)
REQUEST_SIZE = 1 + 2 + 20 * len(IDS)


def boundaries() -> list[int]:
    """Where the parts of the answer begin: status, and of each object header, metadata and data."""
    found = [0, 1]
    for data, metadata in OBJECTS.values():
        for size in (8, len(metadata), len(data)):
            found.append(found[-1] + size)
    return sorted(set(found))


*BOUNDARIES, ANSWER_SIZE = boundaries()
CHANCE = random.Random(4)
CUTS = sorted({*BOUNDARIES, *(CHANCE.randrange(ANSWER_SIZE) for _ in range(20)), ANSWER_SIZE - 1})

BROKEN = r"ended the connection|broke|no connection to"


@pytest.fixture
def clock() -> MockClock:
    """Jumps where nothing has moved for a moment; not at once, since bytes in a socket are seen by nobody."""
    return MockClock(autojump_threshold=0.05)


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what other tasks of this loop are about to do, and tell nobody of."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


class Pair:
    """Two stores: objects go from `there`, through a server and a proxy, to `here`."""

    def __init__(self, here: EmbeddedStore, there: EmbeddedStore, proxy: FaultProxy) -> None:
        self.here, self.there, self.proxy = here, there, proxy

    def client(self, progress: float = 30) -> Version1Client:
        """A client of version 1 that connects through the proxy."""
        return version_1(*self.proxy.address, timeouts=PeerTimeouts(progress=progress))

    async def assert_nothing_happened(self) -> None:
        """All is where it was, and nobody holds any of it, as soon as the server has noticed."""
        assert contents(self.here) == {}
        assert_untouched(self.here)
        assert self.here.core.heap.used_bytes == 0
        await eventually(lambda: not any(entry.holders for entry in self.there.core.table))
        assert_untouched(self.there)
        assert contents(self.there) == OBJECTS


@asynccontextmanager
async def proxied(scripts: Scripts, progress: float = 30) -> AsyncIterator[Pair]:
    """A pair of stores, and how patient the server is."""
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, OBJECTS)
        async with (
            serving(there, timeouts=ServerTimeouts(progress=progress)) as server,
            open_fault_proxy(*server.address, scripts) as proxy,
        ):
            yield Pair(here, there, proxy)
            await eventually(lambda: not len(server._services.holds))
            assert_nothing_claimed(server)


@pytest.mark.parametrize("reset", [False, True])
async def test_a_copy_cut_anywhere_leaves_nothing(reset: bool) -> None:
    async with proxied([Script(to_client=[Cut(at, reset=reset)]) for at in CUTS]) as pair:
        client = pair.client()
        for number, at in enumerate(CUTS):
            with pytest.raises(PeerError, match=BROKEN):
                await client.copy(IDS, pair.here)
            assert pair.proxy.connections[number].to_client.passed == at
            await pair.assert_nothing_happened()
        await client.copy(IDS, pair.here)
        assert contents(pair.here) == OBJECTS


async def test_a_take_that_breaks_anywhere_leaves_all_where_it_was() -> None:
    cuts = [*CUTS[::3], ANSWER_SIZE - 1]
    async with proxied([Script(to_client=[Cut(at, reset=True)]) for at in cuts]) as pair:
        client = pair.client()
        for _ in cuts:
            with pytest.raises(PeerError, match=BROKEN):
                await client.take(IDS, pair.here)
            await pair.assert_nothing_happened()
        await client.take(IDS, pair.here)
        assert contents(pair.here) == OBJECTS
        await eventually(lambda: not contents(pair.there))


@pytest.mark.parametrize("make", [Cut, lambda at: Cut(at, reset=True), HalfClose])
async def test_a_request_that_arrives_in_part_leaves_nothing(make: Callable[[int], Cut | HalfClose]) -> None:
    cuts = [0, 1, 3, 23, 24, REQUEST_SIZE - 1]
    async with proxied([Script(to_server=[make(at)]) for at in cuts]) as pair:
        client = pair.client()
        for _ in cuts:
            with pytest.raises(PeerError, match=BROKEN):
                await client.copy(IDS, pair.here)
            await pair.assert_nothing_happened()


async def test_a_half_closed_answer_leaves_nothing() -> None:
    async with proxied([Script(to_client=[HalfClose(at)]) for at in BOUNDARIES]) as pair:
        client = pair.client()
        for _ in BOUNDARIES:
            with pytest.raises(PeerError, match="ended the connection"):
                await client.copy(IDS, pair.here)
            await pair.assert_nothing_happened()


async def test_a_client_that_half_closes_after_its_request_is_answered() -> None:
    async with proxied(Script(to_server=[HalfClose(REQUEST_SIZE)])) as pair:
        await pair.client().copy(IDS, pair.here)
        assert contents(pair.here) == OBJECTS


@pytest.mark.parametrize("bit", range(8))
async def test_a_flipped_status_is_a_refusal(bit: int) -> None:
    async with proxied(Script(to_client=[Flip(0, bit)])) as pair:
        with pytest.raises(TransferError) as caught:
            await pair.client().copy(IDS, pair.here)
        assert caught.value.status == 1 << bit
        await pair.assert_nothing_happened()


@pytest.mark.parametrize(("at", "count"), [(1, 8), (ANSWER_SIZE - 10, 8)])
async def test_flips_in_headers_are_errors_or_wrong_bytes(at: int, count: int, clock: MockClock) -> None:
    """Version 1 has no checksums: a size that is too small for what follows may go unnoticed."""
    flips = [Flip(at + byte, bit) for byte in range(count) for bit in (0, 5)]
    errors = 0
    async with proxied([Script(to_client=[flip]) for flip in flips]) as pair:
        for flip in flips:
            try:
                await pair.client().copy(IDS, pair.here)
            except PlasmastreamError:
                errors += 1
                await pair.assert_nothing_happened()
            else:
                assert contents(pair.here) != OBJECTS, flip
                assert_untouched(pair.here)
                await pair.here.delete(IDS)
    assert errors >= len(flips) // 2


async def test_flips_in_data_arrive_unnoticed() -> None:
    """Version 1 has no checksums; this says so."""
    async with proxied(Script(to_client=[Flip(ANSWER_SIZE - 1, 0)])) as pair:
        await pair.client().copy(IDS, pair.here)
        last = IDS[-1]
        (data, metadata), found = OBJECTS[last], contents(pair.here)
        assert found == {**OBJECTS, last: (bytes([data[0] ^ 1]), metadata)}


@pytest.mark.parametrize("at", [100, 1000, 50_000, 70_500, 110_000, 150_000])
async def test_flips_in_data_are_noticed_by_version_2(at: int) -> None:
    scripts = [Script(to_client=[Flip(at, 3)])] * 2
    async with proxied(lambda number: scripts[number] if number < 2 else Script()) as pair:
        client = PeerClient(*pair.proxy.address)
        await client.copy(IDS, pair.here)
        await client.aclose()
        assert contents(pair.here) == OBJECTS
        assert any(connection.triggered for connection in pair.proxy.connections)


async def test_noise_never_leaves_anything_behind(clock: MockClock) -> None:
    async with proxied(lambda number: Script(to_client=[Noise(0.001, seed=number)])) as pair:
        for _ in range(15):
            try:
                await pair.client().copy(IDS, pair.here)
            except PlasmastreamError:
                await pair.assert_nothing_happened()
            else:
                assert_untouched(pair.here)
                await pair.here.delete(IDS)


@pytest.mark.parametrize("at", [0, 1, 100, ANSWER_SIZE - 1])
async def test_an_answer_that_stalls_is_given_up(at: int, clock: MockClock) -> None:
    async with proxied(Script(to_client=[Stall(at)])) as pair:
        start = trio.current_time()
        with pytest.raises(PeerStalledError, match=r"sent nothing for 30 s"):
            await pair.client().copy(IDS, pair.here)
        assert trio.current_time() - start >= 30
        await pair.assert_nothing_happened()


async def test_a_request_that_stalls_is_given_up_by_the_server(clock: MockClock) -> None:
    stall = Stall(10)
    async with proxied(Script(to_server=[stall]), progress=20) as pair:
        with pytest.raises(PeerError, match="broke: Connection reset"):
            await pair.client(progress=100).copy(IDS, pair.here)
        (connection,) = pair.proxy.connections
        await connection.wait_over()
        assert trio.current_time() - connection.triggered[0].time >= 20
        await pair.assert_nothing_happened()


async def test_a_request_that_trickles_is_given_up_by_the_server(clock: MockClock) -> None:
    async with proxied(Script(to_server=[Trickle(5)]), progress=20) as pair:
        with pytest.raises(PeerError, match="broke: Connection reset"):
            await pair.client(progress=100).copy(IDS, pair.here)
        await pair.assert_nothing_happened()


async def test_a_stall_that_ends_in_time_does_no_harm() -> None:
    stall = Stall(80_000)
    async with proxied(Script(to_client=[stall])) as pair:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.client().copy, IDS, pair.here)
            await (await pair.proxy.wait_connection()).wait_triggered(stall)
            pair.proxy.release()
        assert contents(pair.here) == OBJECTS


async def test_a_slow_connection_is_slow_and_nothing_else() -> None:
    async with proxied(Script(to_client=[Throttle(1_000_000)])) as pair:
        start = trio.current_time()
        await pair.client(progress=5).copy(IDS, pair.here)
        assert contents(pair.here) == OBJECTS
        assert trio.current_time() - start >= (ANSWER_SIZE - 50_000) / 1_000_000 - 0.001


async def test_a_copy_that_is_cancelled_in_a_stall_leaves_nothing() -> None:
    stall = Stall(100)
    async with proxied(Script(to_client=[stall])) as pair:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.client().copy, IDS, pair.here)
            await (await pair.proxy.wait_connection()).wait_triggered(stall)
            nursery.cancel_scope.cancel()
        await pair.assert_nothing_happened()
