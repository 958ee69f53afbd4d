"""Where the bytes of large objects go that are put: none are wanted before there is a place for them."""

import logging

import pytest
import trio
from trio.testing import MockClock

from plasmastream import ObjectID
from plasmastream.peer import Limits2, Outcome, PeerTimeouts
from plasmastream.peer import _put_server as put_server_module
from plasmastream.store import Lease, NewObject
from plasmastream.testing import CallFault
from plasmastream.wire.stream.v2 import AnyEvent, End, Outcomes, Progress, Put, Range, Sizes, Want
from tests.peer.helpers import contents, objects_of
from tests.peer.test_attacks import TOKEN, A, Attacker, attackers
from tests.peer.world import NEAR, World, open_world

SIZE = 4000
HELD = ObjectID.from_name("held")


async def hold(world: World, nbytes: int = 90_000) -> Lease:
    """Have somebody read most of what the store has room for."""
    store = world.stores[NEAR]
    async with store.create(HELD, nbytes) as unsealed:
        await unsealed.seal()
    (lease,) = await store.get([HELD])
    assert lease is not None
    return lease


async def next_word(attacker: Attacker) -> AnyEvent:
    """The next event that is no sign of life."""
    while isinstance(event := await attacker.channel.next_event(), Progress):
        pass
    return event


@pytest.mark.parametrize("metadata", [b"", b"about it"])
async def test_bytes_without_a_place_are_not_wanted(
    metadata: bytes, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there is metadata, it alone is: the place is made with it. What comes all the same is no damage."""
    caplog.set_level(logging.INFO)
    async with open_world() as world, attackers(world, 1) as (attacker,):
        with await hold(world):
            await attacker.channel.send(Put(TOKEN, (A,), (Sizes(20_000, len(metadata)),)))
            if metadata:
                assert await next_word(attacker) == Want((Range(0, 0, 0),))
                attacker.channel.connection.send_object(0, 20_000, metadata)
                attacker.chunk(0, bytes(1000))
                await attacker.channel.send(Progress())
            event = await next_word(attacker)
            assert isinstance(event, Outcomes)
            assert (event.outcome, event.indexes) == (Outcome.NO_ROOM, (0,))
            assert trio.current_time() == pytest.approx(10, abs=1)
            assert await attacker.channel.next_event() == End()
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("metadata", [b"", b"about it"])
async def test_a_client_comes_back_until_there_is_room(metadata: bytes, autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        lease = await hold(world)
        moments: list[float] = []

        async def read_for_a_while() -> None:
            await trio.sleep(33)
            lease.release()

        nursery.start_soon(read_for_a_while)
        (result,) = await world.client().put(
            [NewObject(A, b"a" * 20_000, metadata)], on_progress=lambda *_: moments.append(trio.current_time())
        )
        assert result.outcome == Outcome.DONE
        assert min(moments) >= 33
        assert contents(world.stores[NEAR]) == {A: (b"a" * 20_000, metadata)}


@pytest.mark.parametrize("metadata", [b"", b"about it"])
async def test_those_wait_for_whom_there_is_no_room_yet(metadata: bytes, autojump_clock: MockClock) -> None:
    """The first ones give way when they are sealed."""
    objects = dict.fromkeys(objects_of([(0, 0)] * 6), (b"x" * SIZE, metadata))
    async with open_world() as world:
        with await hold(world):
            new = [NewObject(object_id, *content) for object_id, content in objects.items()]
            results = await world.client().put(new)
            assert {result.outcome for result in results} == {Outcome.DONE}
            left = contents(world.stores[NEAR])
            assert left.pop(HELD)
            assert 0 < len(left) < len(objects)


async def test_many_small_ones_wait_for_room_together(autojump_clock: MockClock) -> None:
    """They come in several runs, of which only the first waits, and no object of it by itself."""
    new = [NewObject(object_id, bytes(100)) for object_id in objects_of([(0, 0)] * 8)]
    async with open_world() as world:
        with await hold(world, 99_950):
            results = await world.client(timeouts=PeerTimeouts(retry=2)).put(new)
        assert {result.outcome for result in results} == {Outcome.NO_ROOM}
        assert trio.current_time() == pytest.approx(10, abs=1)


async def test_small_ones_that_have_no_room_together_do_not_wait_for_each_other(autojump_clock: MockClock) -> None:
    new = [NewObject(object_id, bytes(100)) for object_id in objects_of([(0, 0)] * 8)]
    async with open_world(capacity=150) as world:
        results = await world.client().put(new)
        assert {result.outcome for result in results} == {Outcome.DONE}
        assert trio.current_time() < 1


async def test_what_is_wanted_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    monkeypatch.setattr(put_server_module, "_PLACED_AT_ONCE", 3 * SIZE)
    ids = tuple(objects_of([(0, 0)] * 7))
    async with open_world() as world, attackers(world, 1) as (attacker,):
        event = await attacker.ask(Put(TOKEN, ids, tuple(Sizes(SIZE, 0) for _ in ids)))
        for indexes in ((0, 1, 2), (3, 4, 5), (6,)):
            assert event == Want(tuple(Range(index, 0, SIZE) for index in indexes))
            unsealed = [entry.object_id for entry in world.stores[NEAR].core.table if not entry.is_sealed]
            assert set(unsealed) == {ids[index] for index in indexes}
            for index in indexes:
                for at in range(0, SIZE, 1000):
                    attacker.chunk(at, bytes(1000), index)
            event = await attacker.ask(Progress())
        assert event == Outcomes(0, Outcome.DONE, "", tuple(range(7)))


async def test_what_is_put_in_other_sizes_has_another_place(autojump_clock: MockClock) -> None:
    async with open_world() as world, attackers(world, 2) as (first, second):
        assert await first.ask(Put(TOKEN, (A,), (Sizes(3000, 0),))) == Want((Range(0, 0, 3000),))
        first.chunk(0, bytes(1000))
        await first.channel.flush()
        assert await second.ask(Put(TOKEN, (A,), (Sizes(2000, 0),))) == Want((Range(0, 0, 2000),))
        for at in (0, 1000):
            second.chunk(at, b"b" * 1000)
        await second.channel.send(Progress())
        assert await second.rest() == {0: Outcome.DONE}
        assert contents(world.stores[NEAR]) == {A: (b"b" * 2000, b"")}


async def test_what_is_small_to_the_client_alone_is_put_all_the_same(autojump_clock: MockClock) -> None:
    async with open_world() as world, attackers(world, 1, Limits2(chunk_size=1000)) as (attacker,):
        assert await attacker.ask(Put(TOKEN, (A,), (Sizes(SIZE, 0),))) == Want((Range(0, 0, SIZE),))
        attacker.channel.connection.send_run([(0, b"a" * SIZE, b"")])
        await attacker.channel.send(Progress())
        assert await attacker.rest() == {0: Outcome.DONE}
        assert contents(world.stores[NEAR]) == {A: (b"a" * SIZE, b"")}


async def test_what_is_given_up_is_taken_back_at_once(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        with trio.CancelScope() as scope:
            await world.client().put([NewObject(A, b"a" * SIZE)], on_progress=lambda *_: scope.cancel())
        assert scope.cancelled_caught
        assert not len(world.stores[NEAR].core.table)
        assert trio.current_time() == 0


async def test_a_server_that_is_gone_is_not_told_for_long(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.let_happen(2, "client", CallFault.stall(1))
        with trio.CancelScope() as scope:
            await world.client().put([NewObject(A, b"a" * SIZE)], on_progress=lambda *_: scope.cancel())
        assert trio.current_time() == 1
        assert len(world.stores[NEAR].core.table) == 1
        await trio.sleep(31)
        assert not len(world.stores[NEAR].core.table)
