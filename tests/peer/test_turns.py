"""Requests that name very many objects: others have their turn in between. Counted in turns, not in time."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import MockClock

from plasmastream import ObjectID
from plasmastream.peer import Limits2, Outcome
from plasmastream.store import EmbeddedStore, NewObject, _embedded
from plasmastream.store._table import Entry
from plasmastream.wire.plasma import NO_DIGEST, ObjectInfo
from plasmastream.wire.stream.v2 import Drop, Message, Progress, Put, Range, Read, Sizes, Want
from tests.peer.helpers import objects_of
from tests.peer.test_attacks import TOKEN, attackers
from tests.peer.world import NEAR, open_world

MANY = 5000
IDS = tuple(ObjectID.from_name(f"many {number}") for number in range(MANY))
CAPACITY = 1 << 20
ROOM = 64 << 20
MEDIUM = 100_000
MOST_AT_ONCE = 2 * 128
"""Small objects that come into a store between two turns of everybody else, who may be the first of one round of the
scheduler and the last of the next."""
MOST_BYTES_AT_ONCE = 2 * (256 << 10)
"""Likewise, of objects that are not so small."""


class Watch:
    """A task that has its turn whenever others may."""

    def __init__(self, store: EmbeddedStore) -> None:
        self.turns = 0
        self.reported = 0
        self.largest_step = 0
        """Most objects that came into the store between two turns."""
        self.largest_report = 0
        """Most objects that were reported between two turns."""
        self._store = store

    async def run(self) -> None:
        """Have one turn after the other, for ever."""
        present = reported = 0
        while True:
            await trio.lowlevel.checkpoint()
            self.turns += 1
            before, present = present, len(self._store.core.table)
            self.largest_step = max(self.largest_step, present - before)
            before, reported = reported, self.reported
            self.largest_report = max(self.largest_report, reported - before)

    def report(self, objects: int, nbytes: int) -> None:
        """See `PeerClient.put`."""
        self.reported += objects


@contextmanager
def watching(nursery: trio.Nursery, store: EmbeddedStore) -> Iterator[Watch]:
    """Watch a store, and whoever else has turns, within the block."""
    watch = Watch(store)
    nursery.start_soon(watch.run)
    yield watch
    nursery.cancel_scope.cancel()


async def test_a_put_of_very_many_objects_lets_others_have_their_turns(autojump_clock: MockClock) -> None:
    """As our client puts them, in several requests."""
    async with open_world(capacity=CAPACITY, limits2=Limits2()) as world, trio.open_nursery() as nursery:
        with watching(nursery, world.stores[NEAR]) as watch:
            client = world.client(limits=Limits2())
            objects = [NewObject(object_id, b"x", b"") for object_id in IDS]
            results = await client.put(objects, on_progress=watch.report)
        assert all(result.outcome == Outcome.DONE for result in results)
        assert watch.reported == MANY
        assert 0 < watch.largest_step <= MOST_AT_ONCE
        assert 0 < watch.largest_report <= 4096


async def test_a_run_of_very_many_objects_lets_others_have_their_turns(autojump_clock: MockClock) -> None:
    """As one request may have them, and one frame."""
    async with open_world(capacity=CAPACITY) as world, attackers(world, 1) as (attacker,):
        want = await attacker.ask(Put(TOKEN, IDS, (Sizes(0, 0),) * MANY))
        assert want == Want(tuple(Range(index, 0, 0) for index in range(MANY)))
        attacker.channel.connection.send_run([(index, b"", b"") for index in range(MANY)])
        async with trio.open_nursery() as nursery:
            with watching(nursery, world.stores[NEAR]) as watch:
                await attacker.channel.send(Progress())
                assert await attacker.rest() == dict.fromkeys(range(MANY), Outcome.DONE)
        assert 0 < watch.largest_step <= MOST_AT_ONCE


async def put_together(store: EmbeddedStore, object_id: ObjectID) -> None:
    (await store.put_many([NewObject(object_id, bytes(MEDIUM))])).release()


async def put_alone(store: EmbeddedStore, object_id: ObjectID) -> None:
    async with store.create(object_id, MEDIUM) as unsealed:
        unsealed.data[:] = bytes(MEDIUM)
        await unsealed.seal(NO_DIGEST)


@pytest.mark.parametrize("put", [put_together, put_alone])
async def test_objects_that_are_not_so_small_let_others_have_their_turns_sooner(
    put: Callable[[EmbeddedStore, ObjectID], Awaitable[None]], autojump_clock: MockClock
) -> None:
    with EmbeddedStore(ROOM) as store:
        async with trio.open_nursery() as nursery:
            with watching(nursery, store) as watch:
                while not watch.turns:  # or the beginning would count as a turn more
                    await trio.lowlevel.checkpoint()
                for object_id in IDS[:200]:
                    await put(store, object_id)
    assert 0 < watch.largest_step * MEDIUM <= MOST_BYTES_AT_ONCE


@pytest.mark.parametrize(
    ("request_", "outcome"),
    [
        (Read(TOKEN, False, 0, tuple(Range(1 + index, 0, 1) for index in range(MANY))), Outcome.EXPIRED),
        (Drop(TOKEN, IDS), Outcome.EXPIRED),
        # Each has a reason of its own, and so a frame.
        (Put(TOKEN, IDS, tuple(Sizes(CAPACITY + 1 + index, 0) for index in range(MANY))), Outcome.TOO_LARGE),
    ],
    ids=["READ of unknown handles", "DROP of unknown ids", "PUT of what is too large"],
)
async def test_a_refusal_of_very_many_objects_lets_others_have_their_turns(
    request_: Message, outcome: Outcome, autojump_clock: MockClock
) -> None:
    async with open_world(capacity=CAPACITY) as world, attackers(world, 1) as (attacker,):
        async with trio.open_nursery() as nursery:
            with watching(nursery, world.stores[NEAR]) as watch:
                await attacker.channel.send(request_)
                assert await attacker.rest() == dict.fromkeys(range(MANY), outcome)
        assert watch.turns >= MANY // 1024


async def test_stat_looks_at_no_more_than_it_is_asked_for(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[ObjectID] = []
    real = _embedded.describe

    def describe(entry: Entry) -> ObjectInfo:
        described.append(entry.object_id)
        return real(entry)

    objects = objects_of([(10, 0)] * 100)
    async with open_world(near=objects) as world:
        asked = [*list(objects)[5:7], IDS[0]]
        with monkeypatch.context() as patch:
            patch.setattr(_embedded, "describe", describe)
            infos = await world.client().stat(asked)
        assert [info.object_id for info in infos] == described == asked[:2]
