"""Our client on Trio, at whatever store is named: `python -m benchmarks.workers.on_trio SOCKET`."""

import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import trio

from benchmarks.workers.loop import new_ids, serve
from plasmastream import ObjectID
from plasmastream.store import Lease, NewObject, StoreClient, open_store


async def _timed(do: Callable[[int], Awaitable[object]], items: Iterable[int]) -> float:
    start = time.perf_counter()
    for item in items:
        await do(item)
    return time.perf_counter() - start


def _ids(count: int) -> list[ObjectID]:
    return [ObjectID(name) for name in new_ids(count)]


async def _put(store: StoreClient, count: int, size: int) -> list[ObjectID]:
    ids = _ids(count)
    _release(await store.put_many([NewObject(object_id, bytes(size)) for object_id in ids]))
    return ids


def _release(leases: "list[Lease] | list[Lease | None]") -> None:
    for lease in leases:
        assert lease is not None
        lease.release()


async def create(store: StoreClient, count: int, size: int) -> float:
    """Create, write, seal and release objects, one after the other."""
    ids, data = _ids(count), bytes(size)

    async def one(i: int) -> None:
        async with store.create(ids[i], size) as unsealed:
            unsealed.data[:] = data
            await unsealed.seal()

    taken = await _timed(one, range(count))
    await store.delete(ids)
    return taken


async def get(store: StoreClient, count: int, size: int) -> float:
    """Get and release objects, one after the other."""
    ids = await _put(store, min(count, 100), size)

    async def one(i: int) -> None:
        _release(await store.get([ids[i % len(ids)]]))

    taken = await _timed(one, range(count))
    await store.delete(ids)
    return taken


async def contains(store: StoreClient, count: int, size: int) -> float:
    """Ask for objects, one after the other."""
    ids = await _put(store, min(count, 100), size)
    taken = await _timed(lambda i: store.contains([ids[i % len(ids)]]), range(count))
    await store.delete(ids)
    return taken


def _on_trio(work: Callable[[StoreClient, int, int], Awaitable[float]], count: int, size: int) -> float:
    async def main() -> float:
        async with open_store(sys.argv[1]) as store:
            return await work(store, count, size)

    return trio.run(main)


serve({work.__name__: partial(_on_trio, work) for work in (create, get, contains)})
