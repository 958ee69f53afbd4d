"""What a server holds under tokens: handles, claims, what one peer may hold, and when it is let go."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from plasmastream import ObjectID
from plasmastream.peer import _holds as holds_module
from plasmastream.peer._holds import Hold, Holds
from plasmastream.peer._incoming import Incoming
from plasmastream.store import EmbeddedStore, Lease
from tests.peer.helpers import fill, objects_of
from tests.store.helpers import assert_untouched, name

OBJECTS = objects_of([(1000, 0), (1000, 0), (1000, 0)])
A, B, C = OBJECTS
HERE, THERE = b"h" * 16, b"t" * 16


@pytest.fixture
def store() -> Any:
    with EmbeddedStore(1 << 20) as store:
        fill(store, OBJECTS)
        yield store


def use(holds: Holds, token: bytes, used: set[Hold], node: bytes = HERE, peer: str = "a") -> Hold:
    hold = holds.use(token, node, peer, used)
    assert hold is not None
    return hold


async def lease_of(store: EmbeddedStore, object_id: ObjectID) -> Lease:
    (lease,) = await store.get([object_id])
    assert lease is not None
    return lease


def held(store: EmbeddedStore) -> Sequence[ObjectID]:
    return [entry.object_id for entry in store.core.table if entry.holders]


async def test_a_token_outlives_its_connections_for_a_while(store: EmbeddedStore, autojump_clock: MockClock) -> None:
    holds = Holds(store.capacity, 30)
    first: set[Hold] = set()
    hold = use(holds, b"1", first)
    handle = holds.keep(hold, await lease_of(store, A))
    assert holds.claim(hold, A)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(holds.leave, first)
        await trio.sleep(29)
        second: set[Hold] = set()
        assert use(holds, b"1", second) is hold  # it has come back, and finds what it had
        assert use(holds, b"1", second) is hold
        assert hold.users == 1
        await trio.sleep(100)
        assert hold.handles == {handle: A}
        assert holds.is_claimed(A)
        nursery.start_soon(holds.leave, second)
        await trio.sleep(29)
        assert held(store) == [A]
        await trio.sleep(2)
        assert held(store) == []
        assert not holds.is_claimed(A)
        assert len(holds) == 0
    assert_untouched(store)


async def test_what_holds_nothing_goes_with_its_connection(store: EmbeddedStore, autojump_clock: MockClock) -> None:
    holds = Holds(store.capacity, 30)
    used: set[Hold] = set()
    use(holds, b"1", used)
    use(holds, b"2", used)
    start = trio.current_time()
    await holds.leave(used)
    assert trio.current_time() == start
    assert len(holds) == 0


async def test_a_connection_may_go_while_another_one_stays(store: EmbeddedStore, autojump_clock: MockClock) -> None:
    holds = Holds(store.capacity, 30)
    first: set[Hold] = set()
    second: set[Hold] = set()
    hold = use(holds, b"1", first)
    use(holds, b"1", second)
    holds.keep(hold, await lease_of(store, A))
    start = trio.current_time()
    await holds.leave(first)
    assert trio.current_time() == start
    assert held(store) == [A]
    await holds.leave(second)
    assert trio.current_time() == start + 30
    assert held(store) == []


async def test_a_token_is_its_nodes_alone(store: EmbeddedStore) -> None:
    holds = Holds(store.capacity, 30)
    used: set[Hold] = set()
    use(holds, b"1", used)
    others: set[Hold] = set()
    assert holds.use(b"1", THERE, "a", others) is None
    assert not others


async def test_claims_keep_others_out(store: EmbeddedStore, autojump_clock: MockClock) -> None:
    holds = Holds(store.capacity, 30)
    first: set[Hold] = set()
    second: set[Hold] = set()
    ours, again, theirs = use(holds, b"1", first), use(holds, b"2", second), use(holds, b"3", second, THERE, peer="b")
    for object_id in (A, B):
        holds.keep(ours, await lease_of(store, object_id))
        assert holds.claim(ours, object_id)
        assert holds.claim(ours, object_id)
    assert not holds.claim(theirs, A)
    assert not holds.claim(again, A)  # of the same node, whose other connection stands
    async with trio.open_nursery() as nursery:
        nursery.start_soon(holds.leave, first)
        await wait_all_tasks_blocked()
        assert not holds.claim(theirs, A)
        assert holds.claim(again, A)  # the old one has no connection any more
        assert list(ours.leases) == [B]
        holds.let_go(ours, [B])
        assert holds.claim(theirs, B)
    assert holds.is_claimed(A)
    assert holds.is_claimed(B)
    assert len(holds) == 2


async def test_handles_are_of_one_lease(store: EmbeddedStore) -> None:
    holds = Holds(store.capacity, 30)
    hold = use(holds, b"1", set())
    handle = holds.keep(hold, await lease_of(store, A))
    holds.let_go(hold, [A, B])
    assert not hold.handles
    assert not hold.leases
    assert holds.keep(hold, await lease_of(store, A)) != handle
    await holds.release(hold)
    assert_untouched(store)


async def test_one_peer_may_hold_a_quarter_or_one_object(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds = Holds(8000, 30)  # of which a quarter are two of these objects
    hold, other = use(holds, b"1", set()), use(holds, b"2", set())
    elsewhere = use(holds, b"3", set(), peer="b")
    assert await holds.make_room(hold, 1 << 40)  # one object always may
    holds.keep(hold, await lease_of(store, A))
    assert await holds.make_room(other, 1000)
    assert not await holds.make_room(other, 1001)
    incoming = Incoming(name("new"), 1000, b"")
    holds.keep_incoming(other, incoming)
    assert not await holds.make_room(hold, 1)
    assert await holds.make_room(elsewhere, 1 << 40)
    holds.forget_incoming(other, incoming)
    holds.forget_incoming(other, incoming)
    assert await holds.make_room(hold, 1000)
    monkeypatch.setattr(holds_module, "_MOST_OBJECTS", 1)
    assert not await holds.make_room(hold, 0)
    holds.let_go(hold, [A])
    assert await holds.make_room(hold, 1 << 40)


async def test_what_is_being_put_is_taken_back_with_its_token(
    store: EmbeddedStore, autojump_clock: MockClock
) -> None:
    holds = Holds(store.capacity, 30)
    used: set[Hold] = set()
    hold = use(holds, b"1", used)
    incoming = Incoming(name("new"), 1000, b"")
    await incoming.begin(store, 0)
    holds.keep_incoming(hold, incoming)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(holds.leave, used)
        await trio.sleep(29)
        assert [entry.object_id for entry in store.core.table if not entry.is_sealed] == [name("new")]
    assert_untouched(store)
    assert len(store.core.table) == len(OBJECTS)
    assert len(holds) == 0


async def test_of_tokens_without_a_connection_the_oldest_goes(
    store: EmbeddedStore, autojump_clock: MockClock
) -> None:
    holds = Holds(1 << 40, 30)
    async with trio.open_nursery() as nursery:
        kept = []
        for number in range(65):
            used: set[Hold] = set()
            hold = use(holds, bytes([number]), used)
            holds.keep(hold, await lease_of(store, A))
            kept.append(hold)
            nursery.start_soon(holds.leave, used)
            await wait_all_tasks_blocked()
        assert len(holds) == 64
        assert not kept[0].leases
        assert all(hold.leases for hold in kept[1:])
    assert len(holds) == 0
    assert_untouched(store)


async def test_at_the_end_nobody_is_waited_for(store: EmbeddedStore, autojump_clock: MockClock) -> None:
    holds = Holds(store.capacity, 30)
    gone: set[Hold] = set()
    here: set[Hold] = set()
    holds.keep(use(holds, b"1", gone), await lease_of(store, A))
    holds.keep(use(holds, b"2", here), await lease_of(store, B))
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(holds.leave, gone)
        await wait_all_tasks_blocked()
        holds.close()
        await wait_all_tasks_blocked()
        assert held(store) == [B]  # its connection stands
        await holds.leave(here)
    assert held(store) == []
    assert trio.current_time() == start
