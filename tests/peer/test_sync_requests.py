"""SYNC in version 2: a client that leaves, two that want the same, bounds of bytes and time, news every second."""

from collections.abc import Container, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from plasmastream import LocalProtocolError, ObjectID
from plasmastream.peer import Outcome, PeerRequest, PeerTimeouts, TransferKind
from plasmastream.peer._channel import ClientChannel
from plasmastream.peer._client import make_hello
from plasmastream.store import Lease, Leases
from plasmastream.testing import CallFault, MemoryTransport
from plasmastream.wire.stream.v2 import Cancel, End, Fetch, Limits, Patience, Progress, Sync
from tests.peer.helpers import Objects, contents, objects_of
from tests.peer.world import FAR, NEAR, OBJECTS, PORT, SYNC, World, open_world

A_MOMENT = 0.001
"""Seconds of the mock clock, in which everything happens that needs no time."""


def request_of(objects: Objects) -> PeerRequest:
    return PeerRequest(TransferKind.COPY, FAR, PORT, tuple(objects))


async def test_an_object_that_is_named_twice_is_named(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        first, second, *_ = OBJECTS
        for named in ([[first, second], [second]], [[first, second, second]]):
            requests = [PeerRequest(TransferKind.COPY, FAR, PORT, tuple(object_ids)) for object_ids in named]
            with pytest.raises(LocalProtocolError, match=f"names object {second} twice"):
                await world.client().sync_each(requests)


class SlowFar:
    """Lets each request for objects at the far server take some time, or each for some of these objects."""

    def __init__(self, world: World, seconds: float, objects: Container[ObjectID] = OBJECTS) -> None:
        self.asked: list[ObjectID] = []
        store = world.stores[FAR]
        real = store.get

        async def get(object_ids: Sequence[ObjectID], *, timeout: float | None = 0.0) -> Leases[Lease | None]:
            if any(object_id in objects for object_id in object_ids):
                await trio.sleep(seconds)
            self.asked += object_ids  # a get that was broken off and begun anew counts once
            return await real(object_ids, timeout=timeout)

        store.get = get  # type: ignore[method-assign]


@pytest.mark.parametrize("detach", [False, True])
async def test_what_happens_when_a_client_leaves_is_its_choice(detach: bool, autojump_clock: MockClock) -> None:
    async with open_world(SYNC) as world:
        SlowFar(world, 20)
        client = world.client()
        with trio.move_on_after(10) as scope:
            await client.sync_each([request_of(OBJECTS)], detach=detach)
        assert scope.cancelled_caught
        await client.aclose()
        await trio.sleep(A_MOMENT)
        assert world.servers[NEAR]._services.syncs.is_empty != detach
        assert world.servers[NEAR]._dispatcher._receiving.is_empty != detach
        await trio.sleep(30)
        assert contents(world.stores[NEAR]) == (OBJECTS if detach else {})


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("peers", [1, 2])
async def test_who_cancels_is_answered_at_once_and_may_ask_again(
    peers: int, detach: bool, autojump_clock: MockClock
) -> None:
    async with open_world(SYNC) as world:
        SlowFar(world, 20)
        first, *others = OBJECTS
        parts = [tuple(OBJECTS)] if peers == 1 else [(first,), tuple(others)]
        request = Sync(tuple(Fetch(False, FAR, PORT, part) for part in parts), detach=detach)
        transport = await world.connect(NEAR, PORT, timeout=1)
        channel = await ClientChannel.greet(transport, make_hello(Limits()), Limits(), Patience())
        for _ in range(2):
            await channel.send(request)
            await trio.sleep(5)
            began = trio.current_time()
            await channel.send(Cancel())
            while not isinstance(event := await channel.next_event(), End):
                assert isinstance(event, Progress)
            assert event.outcome == Outcome.CANCELLED
            assert trio.current_time() - began < 0.1
            assert world.servers[NEAR]._services.syncs.is_empty
            assert not contents(world.stores[NEAR])
        await channel.send(request)
        while await channel.answer() is not None:
            pass
        assert contents(world.stores[NEAR]) == OBJECTS
        channel.close()


async def test_who_left_comes_back_to_what_was_fetched_without_him(autojump_clock: MockClock) -> None:
    async with open_world(SYNC) as world:
        far = SlowFar(world, 20)
        world.let_happen(1, "client", CallFault.cut(6, reset=True))
        (results,) = await world.client().sync_each([request_of(OBJECTS)], detach=True, timeout=100)
        assert {result.outcome for result in results} <= {Outcome.DONE, Outcome.PRESENT}
        assert len(world.connections) > 3
        assert len(far.asked) == len(OBJECTS)


async def test_what_two_want_is_fetched_once_and_both_are_told(autojump_clock: MockClock) -> None:
    both = dict(list(OBJECTS.items())[1:])
    async with open_world(SYNC) as world, trio.open_nursery() as nursery:
        far = SlowFar(world, 20)
        outcomes: list[list[int]] = []

        async def ask(objects: Objects) -> None:
            (results,) = await world.client().sync_each([request_of(objects)])
            assert [result.object_id for result in results] == list(objects)
            outcomes.append([result.outcome for result in results])

        nursery.start_soon(ask, both)
        await trio.sleep(10)
        nursery.start_soon(ask, OBJECTS)
        await trio.sleep(100)
        assert outcomes[0] == [Outcome.DONE] * len(both)
        assert outcomes[1] == [Outcome.DONE] + [Outcome.PRESENT] * len(both)
        assert sorted(far.asked) == sorted(OBJECTS)


async def test_who_waits_for_another_fetches_himself_when_that_one_leaves(autojump_clock: MockClock) -> None:
    async with open_world(SYNC) as world, trio.open_nursery() as nursery:
        SlowFar(world, 20)

        async def leave() -> None:
            with trio.move_on_after(10):
                await world.client().sync_each([request_of(OBJECTS)])

        nursery.start_soon(leave)
        await trio.sleep(5)
        (results,) = await world.client().sync_each([request_of(OBJECTS)])
        assert {result.outcome for result in results} == {Outcome.DONE}
        SYNC.check(world)


async def test_no_more_bytes_are_under_way_than_the_client_said(autojump_clock: MockClock) -> None:
    """Each object is on a peer of its own, and as large as the bound; they come one after the other."""
    objects = objects_of([(2500, 0)] * 6)
    most = 0
    async with open_world(far=objects) as world, trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal most
            while True:
                unsealed = [entry.size for entry in world.stores[NEAR].core.table if not entry.is_sealed]
                most = max(most, sum(unsealed))
                await trio.lowlevel.checkpoint()

        nursery.start_soon(watch)
        requests = [request_of({object_id: content}) for object_id, content in objects.items()]
        for bound in (2500, 5000):
            most = 0
            for results in await world.client().sync_each(requests, max_bytes=bound):
                assert results[0].is_success
            assert 2500 <= most <= bound
            await world.stores[NEAR].delete(list(objects))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("timeout", [3.0, 12.5])
async def test_a_time_is_kept_and_each_object_says_so(timeout: float, autojump_clock: MockClock) -> None:
    async with open_world(SYNC) as world:
        SlowFar(world, 60)
        began = trio.current_time()
        (results,) = await world.client().sync_each([request_of(OBJECTS)], timeout=timeout)
        assert trio.current_time() - began == pytest.approx(timeout, abs=0.1)
        assert {result.outcome for result in results} == {Outcome.OUT_OF_TIME}
        assert all("10.0.0.2:2021" in result.reason for result in results)


async def test_news_come_every_second(autojump_clock: MockClock) -> None:
    async with open_world(SYNC) as world:
        SlowFar(world, 20)
        news: list[tuple[float, int]] = []

        def note(amounts: Sequence[tuple[int, int]]) -> None:
            news.append((trio.current_time(), amounts[0][0]))

        await world.client().sync_each([request_of(OBJECTS)], on_progress=note)
        times = [time for time, _ in news]
        assert all(0 <= later - earlier <= 1.001 for earlier, later in pairwise(times))
        assert len(news) >= 20
        assert news[-1][1] == len(OBJECTS)


async def told_when(world: World, objects: Sequence[ObjectID]) -> list[float]:
    """Fetch objects, in peer requests that share no connection; returns when the client is told that each is done."""
    told: dict[int, float] = {}

    def note(amounts: Sequence[tuple[int, int]]) -> None:
        for number, (done, _) in enumerate(amounts):
            if done:
                told.setdefault(number, trio.current_time())

    requests = [PeerRequest(TransferKind.COPY, FAR, PORT + n, (object_id,)) for n, object_id in enumerate(objects)]
    await world.client().sync_each(requests, on_progress=note)
    return [told[number] for number in range(len(objects))]


async def test_what_is_done_at_once_is_told_at_once(autojump_clock: MockClock) -> None:
    """Though it is done before there is anybody to tell it."""
    quick, slow, *_ = OBJECTS
    async with open_world(SYNC) as world:
        SlowFar(world, 20, (slow,))
        began = trio.current_time()
        at = await told_when(world, (quick, slow))
        assert at[0] - began < 0.1
        assert at[1] - began >= 20


async def test_what_is_done_while_other_news_leave_is_told_next(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, middling, slow, *_ = OBJECTS
    real = MemoryTransport.send

    async with open_world(SYNC) as world:
        SlowFar(world, 0.1, (quick,))
        SlowFar(world, 0.3, (middling,))
        SlowFar(world, 20, (slow,))

        async def send(end: MemoryTransport, pieces: Sequence[bytes | memoryview], **options: Any) -> None:
            if end is world.connections[0][1]:  # where the news come from
                await trio.sleep(0.5)
            await real(end, pieces, **options)

        monkeypatch.setattr(MemoryTransport, "send", send)
        at = await told_when(world, (quick, middling, slow))
        assert at[1] - at[0] < 0.6


@pytest.mark.parametrize("detach", [False, True])
async def test_a_client_that_reads_no_more_is_given_up(detach: bool, autojump_clock: MockClock) -> None:
    """He gets news every second until there is no more room for them, and 30 s to make some."""
    async with open_world(SYNC) as world, trio.open_nursery() as nursery:
        SlowFar(world, 100)
        world.room = 200
        world.let_happen(1, "client", CallFault.stall(6))
        client = world.client(timeouts=PeerTimeouts(progress=10_000))
        nursery.start_soon(partial(client.sync_each, [request_of(OBJECTS)], detach=detach))
        await trio.sleep(25)
        syncs, connections = world.servers[NEAR]._services.syncs, world.servers[NEAR]._connections
        assert connections["client"] == 1
        await trio.sleep(25)
        assert connections["client"] == int(detach)
        assert syncs.is_empty != detach
        await trio.sleep(60)
        assert not connections
        assert contents(world.stores[NEAR]) == (OBJECTS if detach else {})
        nursery.cancel_scope.cancel()
