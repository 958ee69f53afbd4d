"""Version 2 when something stands still, at any call of any connection: the right deadline and words, nothing left."""

import math
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from unittest.mock import patch

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from plasmastream import ObjectID
from plasmastream.peer import Outcome, PeerTimeouts, ServerTimeouts, TransferKind
from plasmastream.store import Buffer, EmbeddedStore, Lease, Leases, NewObject, UnsealedObject
from plasmastream.testing import CallFault
from tests.peer.helpers import objects_of
from tests.peer.world import (
    COPY,
    LARGE,
    NEAR,
    OBJECTS,
    OPERATIONS,
    PUT,
    SYNC,
    TAKE,
    TRANSFERS,
    Operation,
    Point,
    Slow,
    assert_nothing_lost,
    open_world,
    points_of,
)
from tests.store.helpers import open_descriptors

ONCE = PeerTimeouts(retry=0)
LAST_WORD = 5.0
"""Seconds at most that are spent on the last word: CLOSE, or what became of a SYNC that ran out of time."""


def due(point: Point) -> float:
    """After how many seconds a stall at a call is given up by who waits for it."""
    is_greeting = (point.end, point.call) in [("client", 2), ("server", 1), ("server", 2)]
    return 5.0 if is_greeting else 30.0


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
async def test_a_stall_at_any_call_is_given_up_in_time(operation: Operation, autojump_clock: MockClock) -> None:
    descriptors = open_descriptors()
    for point in await points_of(operation):
        async with open_world(operation, timeouts=ServerTimeouts(fetching=ONCE)) as world:
            world.let_happen(point.connection, point.end, CallFault.stall(point.call))
            began = trio.current_time()
            failures = await operation.ask(world, world.client(timeouts=ONCE), None)
            took = trio.current_time() - began
            if not failures:  # it was done by then
                operation.check(world)
                assert took in (0.0, LAST_WORD, pytest.approx(30))
            else:
                assert took == pytest.approx(due(point)), point
            for object_id, reason in failures.items():
                assert re.search(rf"10\.0\.0\.[12]:2021 (sent|took) .* for {took:g} s", reason)
                assert object_id is None or f"object {object_id}" in reason
    assert open_descriptors() == descriptors


@pytest.mark.parametrize("operation", TRANSFERS, ids=str)
async def test_a_stall_of_one_connection_heals(operation: Operation, autojump_clock: MockClock) -> None:
    for point in await points_of(operation):
        async with open_world(operation) as world:
            world.let_happen(point.connection, point.end, CallFault.stall(point.call))
            began = trio.current_time()
            assert await operation.ask(world, world.client(), 300.0) == {}, point
            operation.check(world)
            assert trio.current_time() - began < 2 * 30


@pytest.mark.parametrize("operation", [TAKE, PUT, SYNC], ids=str)
async def test_the_callers_time_is_kept_whatever_stalls(operation: Operation, autojump_clock: MockClock) -> None:
    """All connections stall at the same call, and all attempts with them."""
    calls = {(point.end, point.call) for point in await points_of(operation)}
    for end, call in sorted(calls):
        async with open_world(operation) as world:
            world.let_happen(0, end, CallFault.stall(call))
            began = trio.current_time()
            failures = await operation.ask(world, world.client(), 47.0)
            assert trio.current_time() - began <= 47.0 + LAST_WORD + 0.001, (end, call)
            assert_nothing_lost(world, operation)
            if not failures:
                operation.check(world)


@pytest.mark.parametrize("operation", [TAKE, PUT, SYNC], ids=str)
async def test_without_a_time_attempts_end_when_nothing_moves(operation: Operation, autojump_clock: MockClock) -> None:
    calls = {(point.end, point.call) for point in await points_of(operation)}
    for end, call in sorted(calls):
        async with open_world(operation) as world:
            world.let_happen(0, end, CallFault.stall(call))
            with trio.fail_after(600):
                failures = await operation.ask(world, world.client(), None)
            assert_nothing_lost(world, operation)
            if not failures:
                operation.check(world)


# One deadline at a time


async def test_what_is_given_up_says_how_far_it_came(autojump_clock: MockClock) -> None:
    object_id = LARGE[0]
    said: dict[str, list[str]] = {"COPY": [], "PUT": []}
    for operation, end in ((COPY, "server"), (PUT, "client")):
        for point in await points_of(operation):
            if point.end == end:
                async with open_world(operation) as world:
                    world.let_happen(point.connection, point.end, CallFault.stall(point.call, "send"))
                    failures = await operation.ask(world, world.client(timeouts=ONCE), None)
                    if object_id in failures:
                        said[operation.name].append(failures[object_id].split("; ", 1)[1])
    ago = "the last progress was 30 s ago; ask again"
    assert {f"{nbytes} of 2,500 bytes had arrived; {ago}" for nbytes in ("0", "1,000", "2,000")} <= {*said["COPY"]}
    assert {f"{nbytes} of 2,500 bytes had left; {ago}" for nbytes in ("0", "1,000", "2,000")} <= {*said["PUT"]}


async def test_a_connection_on_which_nothing_is_asked_is_ended_in_order(autojump_clock: MockClock) -> None:
    async with open_world(COPY) as world:
        client = world.client()
        assert len(await client.list_objects()) == len(OBJECTS)
        await trio.sleep(299)
        assert len(await client.list_objects()) == len(OBJECTS)
        assert len(world.connections) == 1
        await trio.sleep(301)
        assert not world.servers[NEAR]._connections
        assert len(await client.list_objects()) == len(OBJECTS)
        assert len(world.connections) == 2


@pytest.mark.parametrize(
    "slow",
    [
        Slow("server", "send", 600),  # of a COPY
        Slow("client", "receive_into", 600),
        Slow("client", "send", 600),  # of a PUT
        Slow("server", "receive_into", 600),
    ],
    ids=str,
)
async def test_who_trickles_is_given_up_by_the_rate(slow: Slow, autojump_clock: MockClock) -> None:
    """A byte a second from the midst of a large frame on: the slow sender, the slow reader, each by the other end."""
    objects = objects_of([(2500, 1000)])
    ((object_id, (data, metadata)),) = objects.items()
    is_copy = (slow.end, slow.method) in [("server", "send"), ("client", "receive_into")]
    async with open_world(near=objects if is_copy else {}, timeouts=ServerTimeouts(token=0)) as world:
        world.slow, world.room = slow, 100
        client = world.client(timeouts=ONCE)
        began = trio.current_time()

        async def ask() -> None:
            if is_copy:
                (result,) = await client.fetch(TransferKind.COPY, [object_id], world.here)
            else:
                (result,) = await client.put([NewObject(object_id, data, metadata)])
            if slow.end == "server":
                assert re.search(r"10\.0\.0\.1:2021 (sent too little|took nothing) for 30 s", result.reason)
                assert 30 <= trio.current_time() - began <= 30 + LAST_WORD

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            if slow.end == "client":
                await trio.testing.wait_all_tasks_blocked()
                await world.ended[0].wait()
                assert trio.current_time() - began == pytest.approx(30)
                nursery.cancel_scope.cancel()


# A store that is slow


class SlowStore(EmbeddedStore):
    """A store that takes minutes for the room of new objects, as where others must go to a slow disk first."""

    seconds = 200.0

    @asynccontextmanager
    async def create(
        self, object_id: ObjectID, data_size: int, metadata: Buffer = b"", *, timeout: float = 0.0
    ) -> AsyncIterator[UnsealedObject]:
        """See `ObjectStore`."""
        await trio.sleep(self.seconds)
        async with super().create(object_id, data_size, metadata, timeout=timeout) as unsealed:
            yield unsealed

    async def put_many(self, objects: Sequence[NewObject], *, timeout: float = 0.0) -> Leases[Lease]:
        """See `ObjectStore`."""
        await trio.sleep(self.seconds)
        self.seconds = 0.0
        return await super().put_many(objects, timeout=timeout)


MANY = [NewObject(object_id, *content) for object_id, content in objects_of([(100, 0)] * 20).items()]
"""Runs, for all of which there is no room on the way while their server waits for its store, and reads nothing."""
ONE = [NewObject(LARGE[0], b"x" * 2500)]


@pytest.mark.parametrize("new", [MANY, ONE], ids=["small", "large"])
async def test_a_put_waits_for_a_slow_store_that_lives(new: list[NewObject], autojump_clock: MockClock) -> None:
    async with open_world(store=SlowStore) as world:
        world.room = 500
        results = await world.client().put(new)
        assert {result.outcome for result in results} == {Outcome.DONE}
        assert len(world.connections) == 1
        assert trio.current_time() == pytest.approx(SlowStore.seconds)


async def test_a_put_that_comes_back_waits_for_the_one_before(autojump_clock: MockClock) -> None:
    """Whose server is still waiting for its store, though its connection is gone."""
    async with open_world(store=SlowStore) as world:
        world.let_happen(1, "client", CallFault.cut(3, "receive_into"))
        results = await world.client().put(ONE)
        assert [result.outcome for result in results] == [Outcome.DONE]
        assert len(world.connections) == 2
        assert trio.current_time() == pytest.approx(SlowStore.seconds)


@pytest.mark.parametrize("new", [MANY, ONE], ids=["small", "large"])
async def test_a_put_is_given_up_when_its_server_waits_for_long(
    new: list[NewObject], autojump_clock: MockClock
) -> None:
    """Signs of life buy ten times the patience, and no more."""
    with patch.object(SlowStore, "seconds", math.inf):
        async with open_world(store=SlowStore) as world:
            world.room = 500
            result = (await world.client(timeouts=PeerTimeouts(retry=6)).put(new))[-1]
            assert result.outcome == Outcome.STALLED
            assert "signs of life, and nothing else" in result.reason
            assert trio.current_time() == pytest.approx(60, abs=30)
            world.kill(NEAR)
