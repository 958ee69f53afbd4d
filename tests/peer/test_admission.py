"""What a server of version 2 lets one peer have at once; the rest waits, or is told to come back."""

from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import MockClock

from plasmastream import ObjectID
from plasmastream.peer import Outcome, PeerClient, RefusedError, TransferKind
from plasmastream.peer._lanes import Lane
from plasmastream.peer._opened import Opened
from plasmastream.store import EmbeddedStore, Lease, Leases, NewObject
from plasmastream.testing import CallFault
from plasmastream.wire.plasma import ErrorCode, ObjectInfo
from tests.peer.helpers import contents, objects_of
from tests.peer.world import COPY, LARGE, NEAR, OPERATIONS, Operation, World, open_world

AT_WORK, WAITING, PATIENCE = 16, 64, 20.0
A_MOMENT = 0.001
"""Seconds of the mock clock, in which everything happens that needs no time."""


class GatedStore(EmbeddedStore):
    """A store that lists its objects as often as it is let, in the order in which it was asked."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._gate = trio.Semaphore(0)

    @property
    def busy(self) -> int:
        """How many wait for it."""
        return self._gate.statistics().tasks_waiting

    def let(self, times: int) -> None:
        """Let it answer so many times."""
        for _ in range(times):
            self._gate.release()

    async def list_objects(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectInfo]:
        """See `ObjectStore`."""
        await self._gate.acquire()
        return await super().list_objects(object_ids)


class Crowd:
    """Clients that list the objects of a server, each on a connection of its own."""

    def __init__(self, world: World, nursery: trio.Nursery) -> None:
        self.answered: list[int] = []
        self.refused: dict[int, float] = {}
        self._world = world
        self._nursery = nursery

    async def come(self, numbers: Sequence[int]) -> None:
        """Ask, in this order."""
        for number in numbers:
            self._nursery.start_soon(self._ask, number, self._world.client())
            await trio.sleep(A_MOMENT)

    async def _ask(self, number: int, client: PeerClient) -> None:
        try:
            await client.list_objects()
            self.answered.append(number)
        except RefusedError as error:
            if error.outcome == Outcome.BUSY and error.retry_after > 0:
                self.refused[number] = trio.current_time()


def gate_of(world: World) -> GatedStore:
    store = world.stores[NEAR]
    assert isinstance(store, GatedStore)
    return store


async def test_requests_over_the_limit_wait_in_order_and_beyond_that_are_refused(autojump_clock: MockClock) -> None:
    async with open_world(COPY, store=GatedStore) as world, trio.open_nursery() as nursery:
        crowd = Crowd(world, nursery)
        await crowd.come(range(AT_WORK + WAITING))
        store = gate_of(world)
        assert store.busy == AT_WORK
        assert not crowd.refused
        await crowd.come(range(1000, 1010))
        assert set(crowd.refused) == set(range(1000, 1010))
        assert max(crowd.refused.values()) < 1  # at once
        # Another peer has places of its own.
        world.client_host = "another"
        await crowd.come([2000])
        assert store.busy == AT_WORK + 1
        for _ in range(AT_WORK + 1 + WAITING):
            store.let(1)
            await trio.sleep(A_MOMENT)
        assert crowd.answered == [*range(AT_WORK), 2000, *range(AT_WORK, AT_WORK + WAITING)]


async def test_who_has_waited_for_long_is_refused(autojump_clock: MockClock) -> None:
    async with open_world(COPY, store=GatedStore) as world, trio.open_nursery() as nursery:
        crowd = Crowd(world, nursery)
        began = trio.current_time()
        await crowd.come(range(AT_WORK + 3))
        await trio.sleep(PATIENCE + 1)
        assert set(crowd.refused) == {AT_WORK, AT_WORK + 1, AT_WORK + 2}
        assert min(crowd.refused.values()) - began == pytest.approx(PATIENCE, abs=0.1)
        # Who works stays: the server lives, and says so.
        await trio.sleep(100)
        assert gate_of(world).busy == AT_WORK
        gate_of(world).let(1000)


async def test_a_transfer_that_finds_a_server_busy_comes_back(autojump_clock: MockClock) -> None:
    async with open_world(COPY, store=GatedStore) as world, trio.open_nursery() as nursery:
        crowd = Crowd(world, nursery)
        await crowd.come(range(AT_WORK + WAITING))

        async def open_gate() -> None:
            await trio.sleep(PATIENCE - 5)
            gate_of(world).let(1000)

        nursery.start_soon(open_gate)
        assert await COPY.ask(world, world.client(), None) == {}
        COPY.check(world)


async def test_who_waits_hears_that_the_server_lives_and_may_leave(autojump_clock: MockClock) -> None:
    async with open_world(COPY, store=GatedStore) as world, trio.open_nursery() as nursery:
        crowd = Crowd(world, nursery)
        await crowd.come(range(AT_WORK))
        with trio.move_on_after(16):
            await world.client().list_objects()
        (client, _), ended = world.connections[-1], world.ended[-1]
        assert client.calls["receive_into"] >= 1 + 3  # the greeting, and a sign of life every five seconds
        with trio.fail_after(6):
            await ended.wait()
        gate_of(world).let(1000)


async def test_connections_of_one_peer_are_three_quarters_of_all(autojump_clock: MockClock) -> None:
    async with open_world(COPY, store=GatedStore, max_connections=8) as world, trio.open_nursery() as nursery:
        crowd = Crowd(world, nursery)
        await crowd.come(range(6))
        with pytest.raises(RefusedError, match=r"10\.0\.0\.1:2021: client has 6 connections already; try again in 1 s"):
            await world.client().list_objects()
        world.client_host = "another"
        await crowd.come([6])
        assert gate_of(world).busy == 7
        world.client_host = "client"

        async def open_gate() -> None:
            await trio.sleep(7)
            gate_of(world).let(1000)
            await trio.sleep(1)
            for client in world.clients:
                await client.aclose()

        nursery.start_soon(open_gate)
        assert await COPY.ask(world, world.client(), None) == {}  # it comes back until there is a place
        COPY.check(world)
        assert trio.current_time() > 7


@pytest.mark.parametrize("kind", [TransferKind.COPY, TransferKind.TAKE])
async def test_what_is_more_than_may_be_held_for_a_peer_comes_in_turns(
    kind: TransferKind, autojump_clock: MockClock
) -> None:
    """A quarter of the store; here three times as much is asked for at once."""
    objects = objects_of([(1000, 0)] * 60 + [(50, 0)] * 60 + [(30_000, 0)])
    held = 0
    async with open_world(near=objects, far={}) as world:
        holds = world.servers[NEAR]._services.holds

        def watch(objects: int, nbytes: int) -> None:
            nonlocal held
            held = max(held, *holds._bytes.values(), 0)

        results = await world.client().fetch(kind, list(objects), world.here, on_progress=watch)
        assert all(result.is_success for result in results)
        assert contents(world.here) == objects
        assert contents(world.stores[NEAR]) == (objects if kind is TransferKind.COPY else {})
        assert 0 < held <= max(world.stores[NEAR].capacity // 4, 30_000)


async def test_what_is_put_is_held_within_the_same_bounds(autojump_clock: MockClock) -> None:
    objects = objects_of([(1000, 0)] * 60 + [(50, 0)] * 60 + [(30_000, 0)])
    async with open_world() as world:
        new = [NewObject(object_id, data, metadata) for object_id, (data, metadata) in objects.items()]
        assert all(result.is_success for result in await world.client().put(new))
        assert contents(world.stores[NEAR]) == objects


async def test_the_oldest_of_more_than_64_forgotten_tokens_goes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(opened: Opened) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Opened, "abandon", die)  # which would let go at once
    async with open_world(COPY, capacity=1_000_000) as world:
        holds = world.servers[NEAR]._services.holds
        for number in range(1, 71):
            with trio.CancelScope() as scope:
                world.faults = {2 * number: ((CallFault.cancel(4, scope),), ())}
                await world.client().fetch(TransferKind.COPY, LARGE[:1], world.here)
            assert scope.cancelled_caught
            await world.clients[-1].aclose()
            await trio.sleep(A_MOMENT)
            assert len(holds) == min(number, 64)
        await trio.sleep(29)
        assert len(holds) == 64
        await trio.sleep(2)
        assert not len(holds)


@pytest.mark.parametrize("in_use", [1, 2])
async def test_a_fetch_that_breaks_off_lets_go_also_where_others_use_the_connections(
    in_use: int, autojump_clock: MockClock
) -> None:
    """The lane for what is small has two; while both are in use, nothing can be said, so none of them is kept."""
    objects = objects_of([(200_000, 0)])
    async with open_world(near=objects, capacity=1_000_000) as world, trio.open_nursery() as nursery:
        client, began = world.client(), trio.Event()

        def is_held() -> bool:
            return any(entry.holders for entry in world.stores[NEAR].core.table)

        def note(objects: int, nbytes: int) -> None:
            began.set()

        async def use_and_cancel() -> None:
            await began.wait()
            async with AsyncExitStack() as stack:
                for _ in range(in_use):
                    await stack.enter_async_context(client._lanes.channel(Lane.SMALL))
                scope.cancel()
                await trio.sleep(2)

        nursery.start_soon(use_and_cancel)
        with trio.CancelScope() as scope:
            await client.fetch(TransferKind.COPY, list(objects), world.here, on_progress=note)
        assert scope.cancelled_caught
        assert is_held() is (in_use == 2)
        for _ in range(34):
            await client.list_objects()
            await trio.sleep(1)
        assert not is_held()


# Signs of life


class SlowStore(EmbeddedStore):
    """A store of which each answer takes a minute."""

    async def get(self, object_ids: Sequence[ObjectID], *, timeout: float | None = 0.0) -> Leases[Lease | None]:
        """See `ObjectStore`."""
        await trio.sleep(60)
        return await super().get(object_ids, timeout=timeout)

    async def contains(self, object_ids: Sequence[ObjectID]) -> list[bool]:
        """See `ObjectStore`."""
        await trio.sleep(60)
        return await super().contains(object_ids)

    async def delete(self, object_ids: Sequence[ObjectID]) -> list[ErrorCode]:
        """See `ObjectStore`."""
        await trio.sleep(60)
        return await super().delete(object_ids)

    async def put_many(self, objects: Sequence[NewObject], *, timeout: float = 0.0) -> Leases[Lease]:
        """See `ObjectStore`."""
        await trio.sleep(60)
        return await super().put_many(objects, timeout=timeout)

    async def list_objects(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectInfo]:
        """See `ObjectStore`."""
        await trio.sleep(60)
        return await super().list_objects(object_ids)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
async def test_a_server_whose_store_is_slow_says_that_it_lives(
    operation: Operation, autojump_clock: MockClock
) -> None:
    async with open_world(operation, store=SlowStore) as world:
        began = trio.current_time()
        assert await operation.ask(world, world.client(), None) == {}
        operation.check(world)
        assert trio.current_time() - began >= 60
        assert len(world.connections) <= 3  # none was given up
