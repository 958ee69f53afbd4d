"""The store's rules by example, a test for each row of plasma-ipc 4, 5 and 8 that is about them."""

from collections.abc import Iterator

import pytest

from plasmastream import ObjectExistsError, ObjectID, ObjectNotFoundError, StoreFullError
from plasmastream.store import StoreCore
from plasmastream.store import _segment as segment_module
from plasmastream.store._embedded import describe
from plasmastream.store._table import Client
from plasmastream.wire.plasma import NO_DIGEST, ErrorCode
from tests.store.helpers import name, names

A, B, C, D = names(4)
CAPACITY = 1_000_000


@pytest.fixture
def core() -> Iterator[StoreCore]:
    core = StoreCore(CAPACITY, clock=lambda: 1700000000.9)
    yield core
    core.close()


@pytest.fixture
def alice() -> Client:
    return Client("alice")


@pytest.fixture
def bob() -> Client:
    return Client("bob")


def put(core: StoreCore, object_id: ObjectID, size: int) -> None:
    client = Client("put")
    core.put_many(client, [(object_id, bytes(size), b"", NO_DIGEST)])
    core.disconnect(client)


def present(core: StoreCore) -> set[ObjectID]:
    return {entry.object_id for entry in core.table}


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_store_has_room_for_something(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"not {capacity}"):
        StoreCore(capacity)


# Life cycle


def test_an_id_can_be_created_once_in_any_state(core: StoreCore, alice: Client, bob: Client) -> None:
    core.create(alice, A, 10, 0)
    with pytest.raises(ObjectExistsError, match="being written"):
        core.create(bob, A, 10, 0)
    core.seal(A, NO_DIGEST)
    with pytest.raises(ObjectExistsError, match="sealed"):
        core.create(bob, A, 10, 0)


def test_the_creator_holds_it_and_anybody_seals_it(core: StoreCore, alice: Client, bob: Client) -> None:
    entry = core.create(alice, A, 10, 0)
    assert entry.holders.keys() == {alice}
    core.release(alice, A)  # not while it is being written
    assert entry.holders.keys() == {alice}
    core.seal(A, b"12345678")
    assert (set(entry.holders), entry.digest) == ({alice}, b"12345678")
    assert core.get(bob, [A]) == [entry]
    assert entry.holders.keys() == {alice, bob}
    core.release(alice, A)
    core.release(alice, A)
    assert entry.holders.keys() == {bob}


def test_what_is_not_there_or_sealed_already_cannot_be_sealed(core: StoreCore, alice: Client) -> None:
    with pytest.raises(ObjectNotFoundError, match=str(A)):
        core.seal(A, NO_DIGEST)
    put(core, A, 1)
    with pytest.raises(ObjectExistsError, match=str(A)):
        core.seal(A, NO_DIGEST)


def test_only_the_creator_aborts_and_only_before_the_seal(core: StoreCore, alice: Client, bob: Client) -> None:
    assert not core.abort(alice, A)
    core.create(alice, A, 10, 0)
    assert not core.abort(bob, A)
    assert core.abort(alice, A)
    assert (present(core), alice.held, core.table.allocated) == (set(), {}, 0)
    core.create(alice, A, 10, 0)
    core.seal(A, NO_DIGEST)
    assert not core.abort(alice, A)


def test_a_delete_answers_by_state(core: StoreCore, alice: Client) -> None:
    assert core.delete(A) is ErrorCode.OBJECT_NOT_FOUND
    core.create(alice, A, 10, 0)
    assert core.delete(A) is ErrorCode.OBJECT_NOT_SEALED
    core.seal(A, NO_DIGEST)
    assert core.delete(A) is ErrorCode.OBJECT_IN_USE
    put(core, B, 10)
    assert core.delete(B) is ErrorCode.OK
    assert present(core) == {A}


def test_a_delete_that_comes_too_early_is_done_at_the_last_release(core: StoreCore, alice: Client, bob: Client) -> None:
    put(core, A, 10)
    core.get(alice, [A])
    core.delete(A)
    assert core.get(bob, [A]) != [None]  # until then it is fully usable
    core.release(alice, A)
    assert present(core) == {A}
    core.release(bob, A)
    assert present(core) == set()


def test_a_delete_before_the_seal_is_done_when_the_creator_lets_go(core: StoreCore, alice: Client) -> None:
    core.create(alice, A, 10, 0)
    core.delete(A)
    core.seal(A, NO_DIGEST)
    assert present(core) == {A}
    core.release(alice, A)
    assert present(core) == set()


@pytest.mark.parametrize("end", [lambda core, client: core.abort(client, A), StoreCore.disconnect])
def test_the_mark_of_an_early_delete_goes_with_the_object(end: object, core: StoreCore, alice: Client) -> None:
    assert callable(end)
    core.create(alice, A, 10, 0)
    core.delete(A)
    end(core, alice)
    put(core, A, 20)
    core.get(alice, [A])
    core.release(alice, A)
    assert present(core) == {A}


def test_a_disconnect_aborts_and_releases(core: StoreCore, alice: Client, bob: Client) -> None:
    core.create(alice, A, 10, 0)
    put(core, B, 20)
    put(core, C, 30)
    core.get(alice, [C, B])
    core.get(bob, [B])
    core.delete(C)
    core.disconnect(alice)
    assert present(core) == {B}
    assert (alice.held, list(bob.held)) == ({}, [B])
    core.create(bob, A, 10, 0)  # anew


def test_a_batch_is_all_or_none(core: StoreCore, alice: Client) -> None:
    put(core, C, 5)
    for batch in ([A, B, C], [A, B, A]):
        with pytest.raises(ObjectExistsError):
            core.put_many(alice, [(object_id, b"x", b"", NO_DIGEST) for object_id in batch])
        assert present(core) == {C}
        assert alice.held == {}
    with pytest.raises(StoreFullError):
        core.put_many(alice, [(object_id, bytes(400_000), b"", NO_DIGEST) for object_id in (A, B, D)])
    assert present(core) == {C}


def test_a_batch_never_evicts_its_own_objects(core: StoreCore, alice: Client) -> None:
    entries = core.put_many(alice, [(object_id, bytes(CAPACITY // 4), b"", NO_DIGEST) for object_id in names(4)])
    assert all(entry.holders.keys() == {alice} for entry in entries)
    assert core.table.allocated == CAPACITY


def test_a_batch_becomes_idle_in_its_order(core: StoreCore, alice: Client) -> None:
    batch = names(50, "batch")
    core.put_many(alice, [(object_id, b"x", b"", NO_DIGEST) for object_id in batch])
    core.disconnect(alice)
    assert list(core.table.idle) == batch


def test_contents_that_are_no_bytes_leave_nothing_behind(core: StoreCore, alice: Client) -> None:
    wrong = memoryview(bytes(8)).cast("i")
    with pytest.raises(ValueError, match="structure"):
        core.put_many(alice, [(A, b"x", b"", NO_DIGEST), (B, wrong, b"", NO_DIGEST)])
    assert present(core) == set()


@pytest.mark.parametrize(("data_size", "metadata_size"), [(-1, 0), (0, -1), (1 << 62, 0), (0, 1 << 62), (2**64 - 1, 0)])
def test_sizes_without_sense_do_not_fit(core: StoreCore, alice: Client, data_size: int, metadata_size: int) -> None:
    put(core, B, 10)
    with pytest.raises(StoreFullError, match=str(A)):
        core.create(alice, A, data_size, metadata_size)
    assert present(core) == {B}


def test_an_entry_is_described_in_whole_seconds(core: StoreCore, alice: Client) -> None:
    entry = core.create(alice, A, 3, 2)
    info = describe(entry)
    assert (info.data_size, info.metadata_size, info.ref_count) == (3, 2, 1)
    assert (info.create_time, info.construct_duration, info.digest) == (1700000000, -1, b"")
    core.seal(A, b"12345678")
    info = describe(entry)
    assert (info.construct_duration, info.digest) == (0, b"12345678")


# Get


def test_a_get_takes_what_is_sealed_and_marks_the_rest(core: StoreCore, alice: Client, bob: Client) -> None:
    put(core, A, 1)
    core.create(alice, B, 1, 0)
    entry = core.table.find(A)
    assert core.get(bob, [A, B, C, A]) == [entry, None, None, entry]
    assert core.get(alice, [B]) == [None]  # also the creator's own
    assert list(bob.held) == [A]
    assert core.get(bob, []) == []


def test_a_waiting_get_pins_each_object_from_the_moment_it_is_there(
    core: StoreCore, alice: Client, bob: Client
) -> None:
    put(core, A, 1)
    answers: list[str] = []
    pending = core.wait_for(bob, [A, B, C, B], lambda: answers.append("answer"))
    assert pending is not None
    assert core.delete(A) is ErrorCode.OBJECT_IN_USE
    core.create(alice, B, 1, 0)
    core.seal(B, NO_DIGEST)
    core.release(alice, B)
    assert core.delete(B) is ErrorCode.OBJECT_IN_USE
    assert answers == []
    put(core, C, 1)
    assert answers == ["answer"]
    assert list(bob.held) == [A, B, C]
    core.stop_waiting(pending)
    assert list(bob.held) == [A, B, C]


def test_a_get_of_what_is_there_does_not_wait(core: StoreCore, alice: Client) -> None:
    put(core, A, 1)
    assert core.wait_for(alice, [A, A], lambda: pytest.fail("called")) is None
    assert core.wait_for(alice, [], lambda: pytest.fail("called")) is None


def test_aborted_objects_go_on_being_waited_for(core: StoreCore, alice: Client, bob: Client) -> None:
    answers: list[str] = []
    core.wait_for(bob, [A], lambda: answers.append("answer"))
    core.create(alice, A, 1, 0)
    core.abort(alice, A)
    core.create(alice, A, 1, 0)
    core.disconnect(alice)
    assert answers == []
    put(core, A, 1)
    assert answers == ["answer"]


def test_several_wait_for_one_object(core: StoreCore, alice: Client, bob: Client) -> None:
    answers: list[str] = []
    core.wait_for(alice, [A], lambda: answers.append("alice"))
    stopped = core.wait_for(alice, [A], lambda: answers.append("stopped"))
    core.wait_for(bob, [A, B], lambda: answers.append("bob"))
    assert stopped is not None
    core.stop_waiting(stopped)
    put(core, A, 1)
    assert answers == ["alice"]
    put(core, B, 1)
    assert answers == ["alice", "bob"]


def test_what_is_waited_for_cannot_be_evicted_by_the_next_of_its_batch(core: StoreCore, bob: Client) -> None:
    answers: list[str] = []
    core.wait_for(bob, [A, B], lambda: answers.append("answer"))
    put(core, A, CAPACITY)
    with pytest.raises(StoreFullError):
        put(core, B, 1)
    assert answers == []


# Memory and eviction


def test_the_capacity_holds_to_the_byte(core: StoreCore, alice: Client) -> None:
    core.create(alice, A, CAPACITY - 1, 0)
    core.create(alice, B, 0, 1)
    assert core.table.allocated == CAPACITY == core.capacity
    with pytest.raises(StoreFullError, match=r"1 bytes do not fit: of 1,000,000 bytes 1,000,000 are taken"):
        core.create(alice, C, 1, 0)


def test_one_object_of_exactly_the_capacity_fits(core: StoreCore, alice: Client) -> None:
    put(core, B, CAPACITY)
    entry = core.create(alice, A, CAPACITY - 10, 10)
    assert present(core) == {A}
    data, metadata = core.memory_of(entry)
    data[:], metadata[:] = b"d" * (CAPACITY - 10), b"m" * 10


def test_empty_objects_fit_into_a_full_store(core: StoreCore, alice: Client) -> None:
    core.create(alice, A, CAPACITY, 0)
    for object_id in (B, C):
        entry = core.create(alice, object_id, 0, 0)
        assert [len(part) for part in core.memory_of(entry)] == [0, 0]
        core.seal(object_id, NO_DIGEST)
        core.release(alice, object_id)
    assert list(core.table.idle) == [B, C]
    core.disconnect(alice)
    assert core.table.allocated == 0


def test_pressure_frees_a_fifth(core: StoreCore, alice: Client) -> None:
    ten = names(10, "ten")
    for object_id in ten:
        put(core, object_id, 100_000)
    core.create(alice, A, 1, 0)
    assert present(core) == {*ten[2:], A}
    assert (core.evictions, core.evicted_bytes) == (2, 200_000)


def test_pressure_frees_what_is_needed_where_that_is_more(core: StoreCore, alice: Client) -> None:
    ten = names(10, "ten")
    for object_id in ten:
        put(core, object_id, 100_000)
    core.create(alice, A, 450_000, 0)
    assert present(core) == {*ten[5:], A}


def test_what_cannot_fit_evicts_nothing(core: StoreCore, alice: Client) -> None:
    put(core, A, 500_000)
    put(core, B, 400_000)
    core.get(alice, [B])
    for size in (CAPACITY + 1, 600_001):
        with pytest.raises(StoreFullError):
            core.create(alice, C, size, 0)
        assert present(core) == {A, B}
    with pytest.raises(StoreFullError, match="500,000"):
        core.create(alice, C, 500_000, 0, evict=False)
    assert present(core) == {A, B}
    core.create(alice, C, 600_000, 0)
    assert present(core) == {B, C}


def test_objects_that_nobody_used_for_longest_go_first(core: StoreCore, alice: Client) -> None:
    for object_id in (A, B, C):
        put(core, object_id, 10)
    core.get(alice, [A])
    core.release(alice, A)  # the most recent one now
    assert list(core.table.idle) == [B, C, A]
    core.table.refresh([C, D, B])
    assert list(core.table.idle) == [A, C, B]
    assert core.evict(1) == 10
    assert present(core) == {B, C}


def test_evict_frees_whole_objects_and_empty_ones_on_the_way(core: StoreCore, alice: Client) -> None:
    put(core, A, 0)
    put(core, B, 100)
    put(core, C, 0)
    put(core, D, 100)
    assert core.evict(0) == 0
    assert core.evict(1) == 100
    assert present(core) == {C, D}
    core.get(alice, [D])
    assert core.evict(1000) == 0
    assert present(core) == {D}


def test_there_is_a_limit_of_objects(alice: Client) -> None:
    core = StoreCore(4, max_objects=2)
    core.create(alice, A, 0, 0)
    core.create(alice, B, 0, 0)
    with pytest.raises(StoreFullError, match="2 objects"):
        core.create(alice, C, 0, 0)
    core.abort(alice, A)
    core.create(alice, C, 0, 0)
    core.close()


def test_at_the_limit_of_objects_idle_ones_go(alice: Client) -> None:
    core = StoreCore(100, max_objects=2)
    try:
        put(core, A, 10)
        put(core, B, 10)
        core.create(alice, C, 0, 0)
        assert A not in present(core)
    finally:
        core.close()


def test_a_fragmented_store_still_takes_what_the_capacity_allows(core: StoreCore, alice: Client) -> None:
    many = names(1111, "many")
    for object_id in many:
        put(core, object_id, 900)
    for object_id in many[::2]:
        core.delete(object_id)
    core.create(alice, A, 440_000, 0)
    assert present(core) == {A, *many[1::2]}


def test_where_the_machine_has_no_memory_to_grow_the_create_fails_whole(
    core: StoreCore, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for object_id in names(100):
        core.create(alice, object_id, 9_000, 0)
    for object_id in names(100)[::2]:
        core.abort(alice, object_id)
    monkeypatch.setattr(segment_module, "available_memory", lambda: 0)
    with pytest.raises(StoreFullError, match="has 0 left"):
        core.create(alice, name("large"), 500_000, 0)
    assert name("large") not in present(core)
    assert core.table.allocated == 50 * 9_000


def test_where_the_machine_has_no_memory_to_grow_pages_move(
    core: StoreCore, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its size it fits when two idle objects go; and so it does, although there is no hole."""
    many = names(100)
    for object_id in many:
        core.create(alice, object_id, 9_000, 0)
    for object_id in (*many[0:20:2], *many[40:60]):
        core.seal(object_id, NO_DIGEST)
        core.release(alice, object_id)
    monkeypatch.setattr(segment_module, "available_memory", lambda: 0)
    core.create(alice, name("large"), 170_000, 0)
    assert {*many[1:20:2], *many[20:40], *many[60:], name("large")} <= present(core)
    with pytest.raises(StoreFullError):
        core.create(alice, name("larger"), 280_000, 0)


def test_where_even_moving_pages_does_not_help_evicting_may(
    core: StoreCore, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for object_id in names(10):
        put(core, object_id, 9_000)
    allocate = core.heap.allocate

    def find_nothing(nbytes: int) -> int:
        if len(core.table) > 2:
            raise StoreFullError("the machine has nothing left")
        return allocate(nbytes)

    monkeypatch.setattr(core.heap, "allocate", find_nothing)
    core.create(alice, name("large"), 20_000, 0)
    assert name("large") in present(core)
    core.create(alice, A, 0, 0)
    core.create(alice, C, 0, 0)
    with pytest.raises(StoreFullError, match="nothing left"):
        core.create(alice, B, 20_000, 0)
    assert present(core) == {name("large"), A, C}


# Those who want to know


def test_room_is_told_of_whenever_some_is_made(core: StoreCore, alice: Client, bob: Client) -> None:
    told: list[str] = []

    def watch() -> None:
        told.append("room")

    def after(call: object) -> bool:
        told.clear()
        assert callable(call)
        call()
        return bool(told)

    core.watch_room(watch)
    put(core, A, 1)
    core.get(alice, [A])
    assert after(lambda: core.release(alice, A))
    assert after(lambda: core.delete(A))
    core.create(alice, A, 1, 0)
    assert after(lambda: core.abort(alice, A))
    put(core, A, 1)
    assert after(lambda: core.evict(1))
    core.create(alice, A, 1, 0)
    assert after(lambda: core.disconnect(alice))
    core.unwatch_room(watch)
    core.unwatch_room(watch)
    assert not after(lambda: core.disconnect(bob))


def test_who_listens_no_more_is_told_no_more(core: StoreCore) -> None:
    class Listener:
        def __init__(self) -> None:
            self.told = 0

        def sealed(self, entries: object) -> None:
            self.told += 1

        def removed(self, entry: object) -> None:
            self.told += 1

    listener = Listener()
    core.add_listener(listener)
    core.add_listener(listener)
    put(core, A, 1)
    core.delete(A)
    core.remove_listener(listener)
    core.remove_listener(listener)
    put(core, B, 1)
    assert listener.told == 2
