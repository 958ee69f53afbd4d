"""The contract of `ObjectStore`, asked of both implementations, on both event loops.

Each check is an async function that gets a `Door`: the store as programs see it, and the core behind it.
"""

import gc
import math
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from pickle import PickleBuffer
from typing import Any, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import pytest

from plasmastream import ObjectExistsError, ObjectID, StoreFullError
from plasmastream.store import EmbeddedStore, Lease, NewObject, ObjectStore, open_store
from plasmastream.store._segment import PAGE_SIZE
from plasmastream.wire.plasma import NO_DIGEST, ErrorCode, object_digest
from tests.store.helpers import CAPACITY, assert_untouched, names, open_descriptors, served_in_thread

A, B, C, D = names(4)
LARGE = 400_001  # bytes of an object that clients write in place


@attrs.frozen
class Door:
    store: ObjectStore
    core: EmbeddedStore
    """The store's own side. Over a socket it belongs to another thread: ask it when nothing is under way."""

    async def settle(self) -> None:
        """Return when the store has heard everything that was said to it before."""
        await self.store.contains([A])

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when something has become true in the store, whose thread has a pace of its own."""
        while not condition():
            await self.settle()

    async def put(self, object_id: ObjectID, data: bytes, metadata: bytes = b"") -> None:
        for lease in await self.store.put_many([NewObject(object_id, data, metadata)]):
            lease.release()

    async def read(self, object_id: ObjectID) -> tuple[bytes, bytes] | None:
        (lease,) = await self.store.get([object_id])
        if lease is None:
            return None
        with lease:
            return bytes(lease.data), bytes(lease.metadata)


Check = Callable[[Door], Awaitable[None]]

CHECKS: list[Check] = []
"""All of them, for further implementations."""


def contract(check: Check) -> Callable[[str, str, Path], None]:
    """Make a test of a check: for both implementations, on both loops."""
    CHECKS.append(check)

    @pytest.mark.parametrize("loop", ["trio", "asyncio"])
    @pytest.mark.parametrize("implementation", ["embedded", "client"])
    def test(implementation: str, loop: str, socket_directory: Path) -> None:
        async def over_a_socket(core: EmbeddedStore) -> None:
            async with open_store(socket_directory / "plasma") as client:
                with anyio.fail_after(20):
                    await check(Door(cast("ObjectStore", client), core))
                await client.contains([A])  # still of use, and everything has been said
                assert_untouched(core)

        async def embedded(core: EmbeddedStore) -> None:
            with anyio.fail_after(20):
                await check(Door(cast("ObjectStore", core), core))
            assert_untouched(core)

        gc.collect()
        before = open_descriptors()
        with ExitStack() as stack:
            if implementation == "client":
                core = stack.enter_context(served_in_thread(socket_directory / "plasma"))
                anyio.run(over_a_socket, core, backend=loop)
            else:
                core = stack.enter_context(EmbeddedStore(CAPACITY))
                anyio.run(embedded, core, backend=loop)
        assert open_descriptors() == before

    test.__name__ = check.__name__
    test.__doc__ = check.__doc__
    return test


# create


@contract
async def test_a_created_object_is_seen_once_it_is_sealed(door: Door) -> None:
    async with door.store.create(A, 5, b"meta") as unsealed:
        sealed_before = unsealed.is_sealed
        unsealed.data[:] = b"hello"
        assert await door.store.contains([A]) == [False]
        assert await door.store.get([A]) == [None]
        await unsealed.seal()
        assert (sealed_before, unsealed.is_sealed) == (False, True)
        assert await door.read(A) == (b"hello", b"meta")
    assert await door.read(A) == (b"hello", b"meta")


@contract
async def test_a_sealed_object_is_held_until_the_block_is_left(door: Door) -> None:
    async with door.store.create(A, 1) as unsealed:
        await unsealed.seal()
        assert await door.store.evict(1) == 0
    assert await door.store.evict(1) == 1


@contract
async def test_the_view_is_void_after_the_seal(door: Door) -> None:
    async with door.store.create(A, 5) as unsealed:
        await unsealed.seal()
        with pytest.raises(ValueError, match="released"):
            unsealed.data[0] = 1


@contract
async def test_the_digest_is_computed_or_given(door: Door) -> None:
    big = bytes(200_000)
    for object_id, digest, expected in (
        (A, None, object_digest(b"x" * 10, b"m")),
        (B, NO_DIGEST, NO_DIGEST),
        (C, b"12345678", b"12345678"),
    ):
        async with door.store.create(object_id, 10, b"m") as unsealed:
            unsealed.data[:] = b"x" * 10
            await unsealed.seal(digest)
        infos = {info.object_id: info for info in await door.store.list_objects()}
        assert infos[object_id].digest == expected
    async with door.store.create(D, len(big)) as unsealed:
        unsealed.data[:] = big
        await unsealed.seal()


@contract
async def test_leaving_the_block_unsealed_aborts(door: Door) -> None:
    async with door.store.create(A, 100):
        pass
    assert await door.store.list_objects() == []
    with pytest.raises(ZeroDivisionError):
        async with door.store.create(A, 100):
            raise ZeroDivisionError
    assert await door.store.list_objects() == []
    with anyio.CancelScope() as scope:
        async with door.store.create(A, 100):
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert await door.store.list_objects() == []
    assert door.core.core.table.allocated == 0


@contract
async def test_an_object_that_was_sealed_stays_though_the_block_fails(door: Door) -> None:
    async def fail() -> None:
        async with door.store.create(A, 1) as unsealed:
            await unsealed.seal()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await door.store.contains([A]) == [True]


@contract
async def test_a_writer_that_keeps_its_view_is_aborted_all_the_same(door: Door) -> None:
    async with door.store.create(A, 100) as unsealed:
        kept = memoryview(unsealed.data)
    assert await door.store.list_objects() == []
    kept.release()


@contract
async def test_an_id_that_is_taken_is_refused(door: Door) -> None:
    async with door.store.create(A, 1) as unsealed:
        with pytest.raises(ObjectExistsError, match=str(A)):
            async with door.store.create(A, 1):
                pytest.fail("created")
        await unsealed.seal()
        with pytest.raises(ObjectExistsError, match=str(A)):
            await unsealed.seal()
    with pytest.raises(ObjectExistsError, match=str(A)):
        async with door.store.create(A, 1):
            pytest.fail("created")


@contract
async def test_empty_objects_are_objects(door: Door) -> None:
    for object_id, metadata in ((A, b""), (B, b"m")):
        async with door.store.create(object_id, 0, metadata) as unsealed:
            assert len(unsealed.data) == 0
            await unsealed.seal()
        assert await door.read(object_id) == (b"", metadata)
    assert await door.store.contains([A, B]) == [True, True]


@contract
async def test_the_whole_capacity_is_of_use(door: Door) -> None:
    assert door.store.capacity == CAPACITY
    async with door.store.create(A, CAPACITY - 3, b"abc") as unsealed:
        unsealed.data[-1] = 7
        await unsealed.seal(NO_DIGEST)
    (lease,) = await door.store.get([A])
    assert lease is not None
    with lease:
        assert (lease.size, lease.data[-1], bytes(lease.metadata)) == (CAPACITY, 7, b"abc")
        async with door.store.create(B, 0) as unsealed:
            await unsealed.seal()


@contract
async def test_what_is_larger_than_the_store_fails_at_once_and_evicts_nothing(door: Door) -> None:
    await door.put(A, b"x")
    with pytest.raises(StoreFullError, match="1,000,001"):
        async with door.store.create(B, CAPACITY, b"m", timeout=1000):
            pytest.fail("created")
    assert await door.store.contains([A]) == [True]


@contract
async def test_metadata_of_another_shape_leaves_nothing_behind(door: Door) -> None:
    wrong = memoryview(bytes(8)).cast("i")
    with pytest.raises(ValueError, match="structure"):
        async with door.store.create(A, 10, wrong):
            pytest.fail("created")
    assert await door.store.list_objects() == []


# waiting for room


@contract
async def test_a_full_store_refuses_after_the_timeout(door: Door) -> None:
    async with door.store.create(A, CAPACITY):
        for timeout in (0.0, 0.02):
            with pytest.raises(StoreFullError):
                async with door.store.create(B, 1, timeout=timeout):
                    pytest.fail("created")
    assert await door.store.list_objects() == []


@contract
async def test_a_time_that_is_no_number_is_not_waited_for(door: Door) -> None:
    async with door.store.create(A, CAPACITY):
        with pytest.raises(StoreFullError):
            await door.store.put_many([NewObject(B, b"b")], timeout=math.nan)
        with pytest.raises(StoreFullError):
            async with door.store.create(B, 1, timeout=math.nan):
                raise AssertionError


@contract
async def test_room_that_comes_in_time_is_taken(door: Door) -> None:
    async def wait_for_room() -> None:
        async with door.store.create(B, 10, timeout=1000) as unsealed:
            await unsealed.seal()

    async with anyio.create_task_group() as tasks, door.store.create(A, CAPACITY):
        tasks.start_soon(wait_for_room)
        await anyio.wait_all_tasks_blocked()
        assert await door.store.contains([B]) == [False]
    assert await door.store.contains([B]) == [True]


@contract
async def test_waiting_for_room_can_be_cancelled(door: Door) -> None:
    async with door.store.create(A, CAPACITY):
        with anyio.move_on_after(0.02) as scope:
            async with door.store.create(B, 1, timeout=1000):
                pytest.fail("created")
        assert scope.cancelled_caught
    assert await door.store.list_objects() == []


# put_many


@contract
async def test_put_many_gives_a_lease_for_each_in_order(door: Door) -> None:
    new = [NewObject(object_id, bytes([number]) * number, b"m") for number, object_id in enumerate(names(100))]
    leases = await door.store.put_many(new)
    assert [lease.object_id for lease in leases] == [each.object_id for each in new]
    assert [bytes(lease.data) for lease in leases] == [each.data for each in new]
    assert await door.store.evict(CAPACITY) == 0
    for lease in leases:
        lease.release()
    await door.settle()
    assert await door.store.evict(CAPACITY) == sum(range(100)) + 100


@contract
async def test_put_many_of_nothing_is_nothing(door: Door) -> None:
    assert await door.store.put_many([]) == []


@contract
async def test_put_many_takes_any_buffer(door: Door) -> None:
    for lease in await door.store.put_many([NewObject(A, bytearray(b"ab"), memoryview(b"m")), NewObject(B, b"")]):
        lease.release()
    assert await door.read(A) == (b"ab", b"m")
    assert await door.read(B) == (b"", b"")


@contract
async def test_put_many_is_all_or_none(door: Door) -> None:
    await door.put(C, b"c")
    for batch in ([A, B, C], [A, B, A]):
        with pytest.raises(ObjectExistsError):
            await door.store.put_many([NewObject(object_id, b"x") for object_id in batch])
        assert await door.store.contains([A, B, C]) == [False, False, True]
    with pytest.raises(StoreFullError):
        await door.store.put_many([NewObject(object_id, bytes(CAPACITY // 2)) for object_id in (A, B, D)])
    assert await door.store.contains([A, B, D]) == [False] * 3


@contract
async def test_put_many_keeps_the_order_of_small_and_large(door: Door) -> None:
    sizes = (3, LARGE, 0, 4, LARGE - 1, 5)
    new = [
        NewObject(object_id, bytes([65 + size % 7]) * size, b"m" * (number % 3), object_id[:8])
        for number, (object_id, size) in enumerate(zip(names(6, "mixed"), sizes, strict=True))
    ]
    leases = await door.store.put_many(new)
    assert [(lease.object_id, lease.data, lease.metadata) for lease in leases] == [
        (each.object_id, each.data, each.metadata) for each in new
    ]
    listed = await door.store.list_objects([each.object_id for each in new])
    assert [(info.digest, info.ref_count) for info in listed] == [(each.digest, 1) for each in new]
    assert await door.store.evict(CAPACITY) == 0
    leases.release()
    await door.settle()
    assert await door.store.evict(CAPACITY) == sum(sizes) + sum(len(each.metadata) for each in new)


@contract
async def test_put_many_of_large_ones_is_all_or_none(door: Door) -> None:
    await door.put(C, b"c")
    large, metadata = NewObject(A, bytes(LARGE)), NewObject(B, b"", bytes(LARGE))
    for batch in (
        [large, NewObject(C, b"x")],
        [large, NewObject(C, bytes(LARGE))],
        [NewObject(B, b"x"), large, metadata],
        [large, metadata, large],
    ):
        with pytest.raises(ObjectExistsError):
            await door.store.put_many(batch)
        assert await door.store.contains([A, B, C]) == [False, False, True]
    for too_much in (NewObject(D, bytes(LARGE)), NewObject(D, bytes(CAPACITY + 1))):
        with pytest.raises(StoreFullError):
            await door.store.put_many([large, metadata, too_much])
        assert await door.store.contains([A, B, D]) == [False] * 3
    assert {info.object_id for info in await door.store.list_objects()} <= {C}
    (await door.store.put_many([large, metadata])).release()


@contract
async def test_put_many_waits_for_room_for_a_large_one(door: Door) -> None:
    held = await door.store.put_many([NewObject(A, bytes(LARGE)), NewObject(B, bytes(LARGE))])
    new = [NewObject(C, b"c"), NewObject(D, b"d" * LARGE)]
    with pytest.raises(StoreFullError):
        await door.store.put_many(new, timeout=0.01)
    assert await door.store.contains([C, D]) == [False, False]
    async with anyio.create_task_group() as tasks:

        async def put() -> None:
            (await door.store.put_many(new, timeout=20)).release()

        tasks.start_soon(put)
        await door.settle()
        held.release()
    assert await door.read(D) == (b"d" * LARGE, b"")


# get


@contract
async def test_a_get_gives_what_is_there_in_the_order_asked(door: Door) -> None:
    await door.put(A, b"a")
    await door.put(B, b"b")
    leases = await door.store.get([B, C, A, B])
    assert [None if lease is None else bytes(lease.data) for lease in leases] == [b"b", None, b"a", b"b"]
    for lease in leases:
        if lease is not None:
            lease.release()
    assert await door.store.get([]) == []


@contract
async def test_leases_of_one_object_count(door: Door) -> None:
    await door.put(A, b"a")
    first, second = await door.store.get([A, A])
    (third,) = await door.store.get([A])
    assert first is not None
    assert second is not None
    assert third is not None
    for lease in (first, second, third):
        await door.settle()
        assert await door.store.evict(1) == 0
        lease.release()
        lease.release()
    await door.settle()
    assert await door.store.evict(1) == 1


@contract
async def test_a_lease_shows_the_object_and_not_more(door: Door) -> None:
    await door.put(A, b"data", b"meta")
    (lease,) = await door.store.get([A])
    assert lease is not None
    with lease:
        assert (bytes(lease.data), bytes(lease.metadata), lease.size) == (b"data", b"meta", 8)
        assert lease.data.readonly
        assert lease.metadata.readonly
        assert repr(lease) == f"<Lease of {A}, 8 bytes>"
    assert repr(lease) == f"<Lease of {A}, released>"
    with pytest.raises(ValueError, match="released"):
        lease.data[0]


@contract
async def test_a_lease_gives_copies_as_long_as_it_lasts(door: Door) -> None:
    for object_id, data, metadata in ((A, b"data", b"metadata"), (B, b"", b"m"), (C, b"d", b""), (D, b"", b"")):
        await door.put(object_id, data, metadata)
        (lease,) = await door.store.get([object_id])
        assert lease is not None
        assert (lease.data_size, lease.metadata_size) == (len(data), len(metadata))
        assert lease.copied() == (data, metadata)
        assert (bytes(lease.data), bytes(lease.metadata)) == lease.copied()
        lease.release()
        with pytest.raises(ValueError, match=f"{object_id} was released"):
            lease.copied()


@contract
async def test_a_lease_says_where_in_a_file_the_data_is(door: Door) -> None:
    data = os.urandom(3 * PAGE_SIZE)
    await door.put(A, b"first")
    await door.put(B, data)
    (lease,) = await door.store.get([B])
    assert lease is not None
    with lease:
        assert os.pread(lease.file.fd, len(data), lease.file.offset) == data


LOOKS: list[Callable[[Lease], "memoryview[Any]"]] = [
    lambda lease: lease.data,
    lambda lease: lease.data[2:],
    lambda lease: lease.data.cast("d"),
    lambda lease: memoryview(lease.data),
    lambda lease: lease.metadata[1:2],
    lambda lease: memoryview(PickleBuffer(lease.metadata)).cast("d"),
]


@contract
async def test_an_object_is_held_as_long_as_anything_looks_into_it(door: Door) -> None:
    for look in LOOKS:
        await door.put(A, bytes(8), bytes(8))
        (lease,) = await door.store.get([A])
        assert lease is not None
        view = look(lease)
        kept = view[:]
        view.release()
        lease.release()
        del lease, view
        await door.settle()
        assert await door.store.evict(1) == 0
        assert kept.tobytes() == bytes(len(kept.tobytes()))
        del kept
        assert await door.store.evict(1) == 16


@contract
async def test_a_lease_that_is_forgotten_ends(door: Door) -> None:
    await door.put(A, b"a")
    await door.store.get([A])
    assert await door.store.evict(1) == 1


@contract
async def test_views_in_reference_cycles_are_collected(door: Door) -> None:
    """What crashed the interpreter once: a cycle of leases, views, slices, and the frames of an exception."""

    class Node:
        def __init__(self, lease: Lease) -> None:
            self.itself = self
            self.lease = lease
            self.views = [lease.data, lease.data[1:], memoryview(lease.metadata), lease.metadata.cast("B")]

    await door.put(A, b"data", b"metadata")
    for _ in range(10):
        for lease in await door.store.get([A, A]):
            assert lease is not None
            Node(lease)
            try:
                view = memoryview(lease.data)[2:]
                raise RuntimeError(len(view))
            except RuntimeError as error:
                kept = error
                kept.args = (kept,)
        del lease, view, kept
        gc.collect()
    assert await door.store.evict(1) == 12


@contract
async def test_the_last_view_may_go_in_another_thread(door: Door) -> None:
    await door.put(A, b"a")
    views = [lease.data for lease in await door.store.get([A]) if lease is not None]
    assert await door.store.evict(1) == 0
    await anyio.to_thread.run_sync(views.clear)
    assert await door.store.evict(1) == 1


@contract
async def test_a_get_without_timeout_does_not_wait(door: Door) -> None:
    assert await door.store.get([A], timeout=0) == [None]


@contract
async def test_a_get_comes_back_at_its_timeout_with_what_is_there(door: Door) -> None:
    await door.put(A, b"a")
    leases = await door.store.get([A, B], timeout=0.02)
    assert leases[0] is not None
    assert leases[1] is None
    leases[0].release()


@contract
async def test_a_get_waits_until_all_are_there(door: Door) -> None:
    await door.put(A, b"a")
    for timeout in (None, 1000.0):
        async with anyio.create_task_group() as tasks:
            got: list[bytes] = []

            async def wait(timeout: float | None = timeout, got: list[bytes] = got) -> None:
                for lease in await door.store.get([C, A, B, C], timeout=timeout):
                    assert lease is not None
                    with lease:
                        got.append(bytes(lease.data))

            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await door.put(B, b"b")
            await anyio.wait_all_tasks_blocked()
            assert got == []
            await door.put(C, b"c")
        assert got == [b"c", b"a", b"b", b"c"]
        await door.settle()
        assert await door.store.delete([B, C]) == [ErrorCode.OK] * 2


@contract
async def test_a_waiting_get_keeps_what_came_already(door: Door) -> None:
    async with anyio.create_task_group() as tasks:

        async def wait() -> None:
            for lease in await door.store.get([A, B], timeout=None):
                assert lease is not None
                lease.release()

        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await door.until(lambda: set(door.core.core._pending) == {A, B})
        await door.put(A, bytes(10))
        assert await door.store.evict(10) == 0
        assert await door.store.delete([A]) == [ErrorCode.OBJECT_IN_USE]
        await door.put(B, b"")
    await door.settle()
    assert await door.store.contains([A, B]) == [False, True]


@contract
async def test_two_tasks_wait_for_the_same_object(door: Door) -> None:
    got: list[bytes] = []

    async def wait() -> None:
        (lease,) = await door.store.get([A], timeout=None)
        assert lease is not None
        with lease:
            await anyio.lowlevel.checkpoint()
            got.append(bytes(lease.data))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await door.put(A, b"a")
    assert got == [b"a", b"a"]


@contract
async def test_a_waiting_get_that_is_cancelled_leaves_nothing(door: Door) -> None:
    await door.put(A, b"a")
    with anyio.move_on_after(0.02) as scope:
        await door.store.get([A, B], timeout=None)
    assert scope.cancelled_caught
    await door.until(lambda: not door.core.core._pending)
    assert await door.store.delete([A]) == [ErrorCode.OK]


# The others


@contract
async def test_contains_tells_few_and_many(door: Door) -> None:
    many = names(40, "many")
    for object_id in many[::2]:
        await door.put(object_id, b"x")
    async with door.store.create(many[1], 1):
        assert await door.store.contains(many) == [True, False] * 20
        assert await door.store.contains(many[:5]) == [True, False, True, False, True]
        assert await door.store.contains([*many[:2], *many[:2], *many[:2], *many[:4]]) == [True, False] * 5
    assert await door.store.contains([]) == []


@contract
async def test_delete_answers_for_each(door: Door) -> None:
    await door.put(A, b"a")
    await door.put(B, b"b")
    (lease,) = await door.store.get([B])
    assert lease is not None
    async with door.store.create(C, 1):
        assert await door.store.delete([A, B, C, D, A]) == [
            ErrorCode.OK,
            ErrorCode.OBJECT_IN_USE,
            ErrorCode.OBJECT_NOT_SEALED,
            ErrorCode.OBJECT_NOT_FOUND,
            ErrorCode.OBJECT_NOT_FOUND,
        ]
        assert bytes(lease.data) == b"b"
        lease.release()
    assert await door.store.list_objects() == []
    assert await door.store.delete([]) == []


@contract
async def test_evict_takes_the_longest_unused(door: Door) -> None:
    for object_id in (A, B, C):
        await door.put(object_id, bytes(100))
    await door.read(A)
    assert await door.store.evict(0) == 0
    assert await door.store.evict(101) == 200
    assert await door.store.contains([A, B, C]) == [True, False, False]


@contract
async def test_a_list_shows_every_object(door: Door) -> None:
    await door.put(A, b"data", b"m")
    async with door.store.create(B, 7):
        infos = {info.object_id: info for info in await door.store.list_objects()}
    assert set(infos) == {A, B}
    assert (infos[A].data_size, infos[A].metadata_size, infos[A].ref_count) == (4, 1, 0)
    assert infos[A].construct_duration >= 0
    assert (infos[B].ref_count, infos[B].digest, infos[B].construct_duration) == (1, b"", -1)


@contract
async def test_a_list_of_some_objects_shows_those_in_the_order_asked(door: Door) -> None:
    for object_id in (A, B, C):
        await door.put(object_id, b"data")
    infos = await door.store.list_objects([C, ObjectID.from_name("nothing"), A])
    assert [info.object_id for info in infos] == [C, A]
    everything = await door.store.list_objects()
    assert all(info in everything for info in infos)
    assert await door.store.list_objects([]) == []


@contract
async def test_a_full_store_makes_room_by_itself(door: Door) -> None:
    for object_id in names(10, "old"):
        await door.put(object_id, bytes(CAPACITY // 10))
    await door.put(A, b"x")
    assert await door.store.contains(names(10, "old")) == [False] * 2 + [True] * 8


@contract
async def test_calls_pass_a_checkpoint(door: Door) -> None:
    """Each method of a store gives way to a cancel: before it has done anything."""
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: door.store.get([A]),
        lambda: door.store.get([]),
        lambda: door.store.contains([A]),
        lambda: door.store.delete([A]),
        lambda: door.store.delete([]),
        lambda: door.store.list_objects(),
        lambda: door.store.evict(1),
        lambda: door.store.put_many([NewObject(B, b"b")]),
    ]
    await door.put(A, b"a")
    for call in calls:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught
    assert await door.store.contains([A, B]) == [True, False]


async def test_leases_outlive_an_embedded_store_also_where_nobody_has_looked() -> None:
    with EmbeddedStore(1 << 20) as store:
        looked, other, dropped = await store.put_many([NewObject(i, b"data", b"meta") for i in names(3)])
        assert bytes(looked.data) == b"data"
    del store, dropped
    for lease in (looked, other):
        with lease:
            assert (bytes(lease.data), bytes(lease.metadata)) == (b"data", b"meta")
