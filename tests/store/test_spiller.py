"""A store that spills: more objects than memory, on both event loops, through both doors, with disks that fail."""

import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from plasmastream import ObjectExistsError, ObjectID, StoreError, StoreFullError
from plasmastream.store import EmbeddedStore, NewObject, ObjectStore, StoreClient, open_store, serve_store
from plasmastream.store._core import NotYetError
from plasmastream.store._spill import SpillDirectory
from plasmastream.store._spiller import Spiller
from plasmastream.store._table import Client
from plasmastream.wire.plasma import NO_DIGEST, ErrorCode, object_digest
from tests.store.helpers import name, names

A, B, C = names(3)
CAPACITY = 1 << 20
SIZE = CAPACITY // 10
MANY = names(30, "many ")


def content(object_id: ObjectID, size: int = SIZE) -> bytes:
    return (object_id * (size // len(object_id) + 1))[:size]


@asynccontextmanager
async def running(directory: Path, capacity: int = CAPACITY, limit: int | None = None) -> AsyncIterator[EmbeddedStore]:
    """An embedded store that spills, at work."""
    with EmbeddedStore(capacity, spill=str(directory), spill_limit=limit) as store:
        async with anyio.create_task_group() as tasks:
            await tasks.start(store.run)
            with anyio.fail_after(30):
                yield store
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def served(directory: Path, path: Path, **options: Any) -> AsyncIterator[tuple[EmbeddedStore, StoreClient]]:
    """The same behind a socket, and a client."""
    async with running(directory, **options) as store, trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            await serve_store(store.core, str(path), spiller=store.spiller, task_status=task_status)

        await nursery.start(serve)
        async with open_store(path) as client:
            yield store, client
        nursery.cancel_scope.cancel()


async def put(store: ObjectStore | StoreClient, object_id: ObjectID, size: int = SIZE, metadata: bytes = b"") -> None:
    async with store.create(object_id, size, metadata) as unsealed:
        unsealed.data[:] = content(object_id, size)
        await unsealed.seal()


async def read(
    store: ObjectStore | StoreClient, object_id: ObjectID, timeout: float = 0.0
) -> tuple[bytes, bytes] | None:
    (lease,) = await store.get([object_id], timeout=timeout)
    if lease is None:
        return None
    with lease:
        return bytes(lease.data), bytes(lease.metadata)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (the store has no event for it)
        await anyio.sleep(0.001)


def in_memory(store: EmbeddedStore) -> set[ObjectID]:
    return {entry.object_id for entry in store.core.table if entry.is_resident}


def assert_sound(store: EmbeddedStore) -> None:
    """Memory and disk hold what the table says, and nothing is under way."""
    table = store.core.table
    entries = list(table)
    assert table.allocated == sum(entry.size for entry in entries if entry.is_resident) <= CAPACITY
    assert not [entry for entry in entries if entry.in_transit]
    assert store.core._pending == {}
    assert not store.core.wanted
    assert set(table.unsaved) == {i for i in table.idle if (e := table.find(i)) is not None and e.record is None}
    spill = store.core.spill
    assert spill is not None
    records = [entry.record for entry in entries if entry.record is not None]
    assert spill.used == sum(-(-record.size // 4096) * 4096 for record in records)


Check = Callable[[Path], Awaitable[None]]


def on_both_loops(check: Check) -> Callable[[str, Path], None]:
    @pytest.mark.parametrize("loop", ["trio", "asyncio"])
    def test(loop: str, tmp_path: Path) -> None:
        anyio.run(check, tmp_path, backend=loop)

    return test


async def three_times_as_much_as_memory(store: EmbeddedStore, door: ObjectStore | StoreClient) -> None:
    for object_id in MANY:
        await put(door, object_id, metadata=b"about " + object_id)
    assert await door.contains(MANY) == [True] * len(MANY)
    listed = {info.object_id: info for info in await door.list_objects()}
    assert set(listed) == set(MANY)
    for object_id in (*MANY, *reversed(MANY)):
        assert await read(door, object_id) == (content(object_id), b"about " + object_id)
    again = {info.object_id: info for info in await door.list_objects()}
    assert {i: (info.digest, info.create_time) for i, info in again.items()} == {
        i: (object_digest(content(i), b"about " + i), info.create_time) for i, info in listed.items()
    }
    with pytest.raises(ObjectExistsError):
        await put(door, MANY[0])
    assert await door.get([name("unknown")], timeout=0.01) == [None]


@on_both_loops
async def test_what_is_evicted_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        await three_times_as_much_as_memory(store, store)
        assert_sound(store)
        assert sorted(os.listdir(tmp_path)) == ["journal", "objects"]


async def test_what_is_evicted_comes_back_over_a_socket(tmp_path: Path, socket_directory: Path) -> None:
    async with served(tmp_path, socket_directory / "plasma") as (store, client):
        await three_times_as_much_as_memory(store, client)
        assert_sound(store)


@on_both_loops
async def test_small_objects_in_batches(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        small = names(5000, "small ")
        for first in range(0, len(small), 500):
            leases = await store.put_many([NewObject(i, content(i, 500)) for i in small[first : first + 500]])
            for lease in leases:
                lease.release()
        for first in range(0, len(small), 1000):
            some = small[first : first + 1000]
            found = [lease for lease in await store.get(some) if lease is not None]
            assert [bytes(lease.data) for lease in found] == [content(object_id, 500) for object_id in some]
            for lease in found:
                lease.release()
        assert_sound(store)


@on_both_loops
async def test_objects_are_saved_ahead_so_that_creates_need_not_wait(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        for object_id in MANY[:10]:
            await put(store, object_id)
        await until(lambda: not store.core.table.lacking_saved())
        writer = Client("writer")
        store.core.create(writer, A, SIZE, 0)  # or it would raise NotYetError
        assert MANY[0] not in in_memory(store)
        store.core.abort(writer, A)


@on_both_loops
async def test_an_object_of_the_full_capacity(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        for object_id in MANY:
            await put(store, object_id)
        await put(store, A, CAPACITY)
        await put(store, B, CAPACITY)
        assert in_memory(store) == {B}
        assert await read(store, A) == (content(A, CAPACITY), b"")
        assert await read(store, MANY[3]) == (content(MANY[3]), b"")
        assert_sound(store)


@on_both_loops
async def test_a_spilled_object_can_be_deleted(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        for object_id in MANY:
            await put(store, object_id)
        assert await store.delete(MANY) == [ErrorCode.OK] * len(MANY)
        assert await store.contains(MANY) == [False] * len(MANY)
        assert_sound(store)
        await put(store, MANY[0], 10)
    with EmbeddedStore(CAPACITY, spill=str(tmp_path)) as later:
        assert list(later.core.table) == []


@on_both_loops
async def test_evict_moves_to_disk(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        for object_id in MANY[:5]:
            await put(store, object_id)
        assert await store.evict(CAPACITY * 2) == 5 * SIZE
        assert in_memory(store) == set()
        assert await read(store, MANY[0]) == (content(MANY[0]), b"")
        assert_sound(store)


@on_both_loops
async def test_a_later_store_has_what_was_spilled(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        for object_id in MANY:
            await put(store, object_id, metadata=b"m")
        spilled = [object_id for object_id in MANY if object_id not in in_memory(store)]
    assert len(spilled) >= 20
    async with running(tmp_path) as later:
        for object_id in spilled:
            assert await read(later, object_id) == (content(object_id), b"m")
        for lease in await later.get(spilled[:5]):
            assert lease is not None
        assert_sound(later)


@on_both_loops
async def test_a_store_that_persists_keeps_all(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        for object_id in MANY:
            await put(store, object_id)
        (held,) = await store.get([MANY[0]])
        assert store.spiller is not None
        await store.spiller.persist()
        assert held is not None
        held.release()
    async with running(tmp_path) as later:
        for object_id in MANY:
            assert await read(later, object_id) == (content(object_id), b"")


@on_both_loops
async def test_a_get_waits_until_there_is_room_to_come_back(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        await put(store, A)
        await store.evict(CAPACITY)
        await put(store, B, CAPACITY)
        (lease,) = await store.get([B])
        assert lease is not None
        assert await read(store, A) is None  # all memory is in use
        assert await read(store, A, timeout=0.01) is None
        found: list[tuple[bytes, bytes] | None] = []

        async def wait() -> None:
            found.append(await read(store, A, timeout=20))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await until(lambda: bool(store.core._pending))
            lease.release()
        assert found == [(content(A), b"")]
        assert_sound(store)


@on_both_loops
async def test_many_wait_for_the_same_object(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        await put(store, A)
        await store.evict(CAPACITY)
        found: list[tuple[bytes, bytes] | None] = []

        async def wait() -> None:
            found.append(await read(store, A))

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(wait)
        assert found == [(content(A), b"")] * 20
        assert_sound(store)


def failing(monkeypatch: pytest.MonkeyPatch, method: str, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(SpillDirectory, method, fail)


FULL = OSError(errno.ENOSPC, "No space left on device")


async def test_a_disk_that_is_full_takes_nothing(
    tmp_path: Path, socket_directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, socket_directory / "plasma") as (store, client):
        with monkeypatch.context() as patch:
            failing(patch, "write", FULL)
            for object_id in MANY[:10]:
                await put(client, object_id)
            for door in (client, store):
                with pytest.raises(StoreFullError):
                    await put(door, A)
            with pytest.raises(StoreFullError, match=r"must stay there: nothing can .*No space left"):
                await put(store, A)
            assert await client.evict(CAPACITY) == 0
            for object_id in MANY[:10]:
                assert await read(client, object_id) == (content(object_id), b"")
        await until(lambda: store.core.spill_error is None and not store.core.table.lacking_saved())
        await put(client, A)
        assert await client.contains(MANY[:10]) == [True] * 10
        assert_sound(store)
    assert caplog.text.count("No space left") == 1
    assert "can be spilled into" in caplog.text


@on_both_loops
async def test_a_limit_on_disk_use(tmp_path: Path) -> None:
    async with running(tmp_path, limit=5 * CAPACITY // 10) as store:
        put_in: list[ObjectID] = []

        async def put_all() -> None:
            for object_id in MANY:
                await put(store, object_id)
                put_in.append(object_id)

        with pytest.raises(StoreFullError, match="has reached its limit"):
            await put_all()
        assert len(put_in) >= 12
        for object_id in put_in:
            assert await store.contains([object_id]) == [True]
        assert store.core.spill is not None
        assert store.core.spill.used <= 5 * CAPACITY // 10
        for _ in range(2):  # a fifth of the memory is kept for what comes back
            for object_id in put_in:
                assert await read(store, object_id) == (content(object_id), b"")
        await store.delete(put_in[:3])
        await until(lambda: store.core.spill_error is None)
        await put(store, A)


@on_both_loops
async def test_what_is_damaged_is_never_returned(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        await put(store, A)
        await put(store, B)
        await store.evict(CAPACITY)
        entry = store.core.table.find(A)
        assert entry is not None
        assert entry.record is not None
        with (tmp_path / "objects").open("r+b") as file:
            file.seek(entry.record.offset)
            file.write(b"\xff")
        assert await read(store, A) is None
        assert await store.contains([A, B]) == [False, True]
        assert await read(store, B) == (content(B), b"")
        await put(store, A)
        assert await read(store, A) == (content(A), b"")
        assert_sound(store)


async def test_a_read_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("plasmastream.store._spiller._RETRY", 0.001)
    async with running(tmp_path) as store:
        await put(store, A)
        await store.evict(CAPACITY)
        with monkeypatch.context() as patch:
            failing(patch, "read", OSError(errno.EIO, "Input/output error"))
            assert await read(store, A) is None
            assert await store.contains([A]) == [True]
            found: list[object] = []

            async def wait() -> None:
                found.append(await read(store, A, timeout=20))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await until(lambda: caplog.text.count("cannot be read") >= 5)
                assert found == []
                patch.undo()
        assert found == [(content(A), b"")]
        assert_sound(store)


async def test_an_object_may_go_while_it_is_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted while a thread writes or reads it: its memory and its place on disk are free when the thread is done."""
    for method in ("write", "read"):
        entered, proceed = threading.Event(), threading.Event()
        real = getattr(SpillDirectory, method)

        def slow(*arguments: object) -> object:
            entered.set()  # noqa: B023
            assert proceed.wait(10)  # noqa: B023
            return real(*arguments)  # noqa: B023

        async with running(tmp_path) as store:
            await put(store, A)
            if method == "read":
                await store.evict(CAPACITY)
            with monkeypatch.context() as patch:
                patch.setattr(SpillDirectory, method, slow)
                async with trio.open_nursery() as nursery:
                    if method == "write":
                        nursery.start_soon(store.evict, CAPACITY)
                    else:
                        nursery.start_soon(read, store, A)
                    assert await trio.to_thread.run_sync(entered.wait, 10)
                    assert await store.delete([A]) == [ErrorCode.OK]
                    await put(store, B)
                    await put(store, A, 10)
                    proceed.set()
            assert await read(store, A) == (content(A, 10), b"")
            assert await read(store, B) == (content(B), b"")
            await store.delete([A, B])
            await until(lambda: store.core.heap.used_bytes == 0)
            assert_sound(store)


async def test_a_client_that_goes_away_while_its_object_returns(tmp_path: Path, socket_directory: Path) -> None:
    async with served(tmp_path, socket_directory / "plasma") as (store, client):
        for object_id in MANY:
            await put(client, object_id)
        for object_id in MANY:
            async with open_store(socket_directory / "plasma") as other:
                with trio.move_on_after(0.0005):
                    await other.get([object_id])
        assert await client.contains(MANY) == [True] * len(MANY)
        await until(lambda: not any(entry.holders or entry.in_transit for entry in store.core.table))
        assert_sound(store)


async def test_a_get_without_the_work_is_told(tmp_path: Path) -> None:
    with EmbeddedStore(CAPACITY, spill=str(tmp_path)) as store:
        await put(store, A)
        await store.evict(CAPACITY)
        with pytest.raises(StoreError, match="does not `run`"):
            await store.get([A])
        assert await store.get([B]) == [None]


async def test_a_store_that_cannot_persist_says_what_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as store:
        await put(store, A)
        assert store.spiller is not None
        with monkeypatch.context() as patch:
            failing(patch, "write", FULL)
            with pytest.raises(StoreError, match=r"1 objects could not be kept: .*No space left"):
                await store.spiller.persist()
        with monkeypatch.context() as patch:
            failing(patch, "sync", FULL)
            with pytest.raises(StoreError, match=r"may be lost: .*No space left"):
                await store.spiller.persist()


async def test_quotas_spill_too(tmp_path: Path, socket_directory: Path) -> None:
    async with served(tmp_path, socket_directory / "plasma") as (store, client):
        owner = Client("owner")
        assert store.core.table.grant(owner, CAPACITY // 2)
        for object_id in MANY[:10]:
            while True:
                try:
                    store.core.put_many(owner, [(object_id, content(object_id), b"", NO_DIGEST)])
                    break
                except NotYetError as error:
                    assert store.spiller is not None
                    await store.spiller.save(error.entries)
            store.core.release(owner, object_id)
        assert store.core.table.quotas[owner].owned.nbytes <= CAPACITY // 2
        for object_id in MANY[:10]:
            assert await read(client, object_id) == (content(object_id), b"")
        store.core.disconnect(owner)
        assert_sound(store)


@on_both_loops
async def test_what_is_spilled_comes_back_also_where_there_may_be_no_more_objects(tmp_path: Path) -> None:
    with EmbeddedStore(CAPACITY, max_objects=8, spill=str(tmp_path)) as store:
        async with anyio.create_task_group() as tasks:
            await tasks.start(store.run)
            for object_id in MANY[:8]:
                await put(store, object_id)
            await store.evict(CAPACITY)
            with pytest.raises(StoreFullError, match="its limit"):
                await put(store, A)
            for object_id in MANY[:8]:
                assert await read(store, object_id) == (content(object_id), b"")
            tasks.cancel_scope.cancel()


@on_both_loops
async def test_gets_outlive_the_work_that_answers_them(tmp_path: Path) -> None:
    """One that waits for room is answered by the next `run`; one that need not wait is told that nobody works."""
    with EmbeddedStore(CAPACITY, spill=str(tmp_path)) as store:
        found: list[tuple[bytes, bytes] | None] = []

        async def wait() -> None:
            found.append(await read(store, A, timeout=20))

        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as first:
                await first.start(store.run)
                await put(store, A)
                await store.evict(CAPACITY)
                await put(store, B, CAPACITY)
                (lease,) = await store.get([B])
                assert lease is not None
                tasks.start_soon(wait)
                await until(lambda: bool(store.core._pending) and not store.core.wanted)
                first.cancel_scope.cancel()
            with pytest.raises(StoreError, match="does not `run`"):
                await store.get([A])
            await tasks.start(store.run)
            assert lease is not None
            lease.release()
            await until(lambda: bool(found))
            tasks.cancel_scope.cancel()
        assert found == [(content(A), b"")]


async def test_memory_stays_within_its_bound_where_objects_go_while_they_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, proceed = threading.Event(), threading.Event()
    real = SpillDirectory.write

    def slow(*arguments: Any) -> Any:
        entered.set()
        assert proceed.wait(10)
        return real(*arguments)

    async with running(tmp_path) as store:
        await put(store, A, CAPACITY - 10)
        monkeypatch.setattr(SpillDirectory, "write", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.evict, CAPACITY)
            assert await trio.to_thread.run_sync(entered.wait, 10)
            assert await store.delete([A]) == [ErrorCode.OK]
            nursery.start_soon(put, store, B, CAPACITY)  # which waits for the thread, rather than take more memory
            await trio.testing.wait_all_tasks_blocked()
            assert store.core.heap.segment.reserved <= store.core.heap.home + store.core.heap.slack
            assert await store.contains([B]) == [False]
            proceed.set()
        assert await read(store, B) == (content(B, CAPACITY), b"")
        assert_sound(store)


@on_both_loops
async def test_a_create_waits_for_what_comes_back_and_nobody_wants(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        await put(store, A, CAPACITY)
        await store.evict(CAPACITY)
        for _ in range(20):
            with anyio.move_on_after(0):
                await store.get([A])
            await put(store, B, CAPACITY)
            await store.delete([B])
        assert_sound(store)


async def test_one_who_waits_for_more_than_there_is_disturbs_nobody(
    tmp_path: Path, socket_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that room is made, one object of those that find none is tried again, and not all of them."""
    tried = 0
    real = Spiller._make_place

    async def count(*arguments: Any, **options: Any) -> Any:
        nonlocal tried
        tried += 1
        return await real(*arguments, **options)

    monkeypatch.setattr(Spiller, "_make_place", count)
    small = names(3000, "small ")
    async with served(tmp_path, socket_directory / "plasma") as (store, client):
        for first in range(0, len(small), 500):
            for lease in await client.put_many([NewObject(i, content(i, 1000)) for i in small[first : first + 500]]):
                lease.release()
        await put(client, A, 10)
        async with open_store(socket_directory / "plasma") as other, trio.open_nursery() as nursery:
            async def wait() -> None:
                await other.get(small, timeout=None)

            nursery.start_soon(wait)
            spiller = store.spiller
            assert spiller is not None
            await until(lambda: len(spiller._stuck) == len(store.core._pending) > 1500 and not store.core.wanted)
            before = -1000
            while tried - before > 300:  # the first time, others may still ask for the first time
                before = tried
                for _ in range(100):
                    assert await read(client, A) is not None
            nursery.cancel_scope.cancel()
        assert await read(client, small[0]) == (content(small[0], 1000), b"")
        await until(lambda: not any(entry.holders or entry.in_transit for entry in store.core.table))
        assert_sound(store)


async def test_very_many_objects_are_evicted_a_little_at_a_time(socket_directory: Path) -> None:
    """One create or one evict that takes thousands of others out lets everybody in between."""
    async with trio.open_nursery() as nursery:
        with EmbeddedStore(CAPACITY) as store:
            await nursery.start(serve_store, store.core, str(socket_directory / "plasma"))
            async with open_store(socket_directory / "plasma") as client:
                for work in ("create", "evict", "embedded create", "embedded evict"):
                    small = names(8000, work)
                    for first in range(0, len(small), 2000):
                        some = small[first : first + 2000]
                        for lease in await store.put_many([NewObject(i, content(i, 100)) for i in some]):
                            lease.release()
                    door: ObjectStore | StoreClient = store if work.startswith("embedded") else client
                    if work.endswith("create"):
                        await put(door, A, CAPACITY)
                        assert {entry.object_id for entry in store.core.table} == {A}
                        assert await door.delete([A]) == [ErrorCode.OK]
                    else:
                        assert await door.evict(700_000) == 700_000
                        assert await door.evict(CAPACITY) == 100_000
            nursery.cancel_scope.cancel()
