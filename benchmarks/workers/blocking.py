"""Our client that blocks, at whatever store is named: `python -m benchmarks.workers.blocking SOCKET`."""

import sys

from benchmarks.workers.loop import new_ids, seconds, serve, timed
from plasmastream import ObjectID
from plasmastream.blocking import Lease, Leases, NewObject, StoreClient, open_store

client = open_store(sys.argv[1])


def _ids(count: int) -> list[ObjectID]:
    return [ObjectID(name) for name in new_ids(count)]


def _put(count: int, size: int) -> list[ObjectID]:
    ids = _ids(count)
    _release(client.put_many([NewObject(object_id, bytes(size)) for object_id in ids]))
    return ids


def _release(leases: Leases[Lease] | Leases[Lease | None]) -> None:
    assert None not in leases
    leases.release()


def create(count: int, size: int) -> float:
    """Create, write, seal and release objects, one after the other."""
    ids, data = _ids(count), bytes(size)

    def one(object_id: ObjectID) -> None:
        with client.create(object_id, size) as unsealed:
            unsealed.data[:] = data
            unsealed.seal()

    taken = timed(one, ids)
    client.delete(ids)
    return taken


def get(count: int, size: int) -> float:
    """Get and release objects, one after the other."""
    ids = _put(min(count, 100), size)
    taken = timed(lambda i: _release(client.get([ids[i % len(ids)]])), range(count))
    client.delete(ids)
    return taken


def contains(count: int, size: int) -> float:
    """Ask for objects, one after the other."""
    ids = _put(min(count, 100), size)
    taken = timed(lambda i: client.contains([ids[i % len(ids)]]), range(count))
    client.delete(ids)
    return taken


def get_many(count: int, size: int) -> float:
    """Get objects in one call, and release all of them."""
    ids = _put(count, size)
    taken = seconds(lambda: _release(client.get(ids)))
    client.delete(ids)
    return taken


def look_at_many(count: int, size: int) -> float:
    """Get objects in one call, read a byte of each, and release all of them."""
    ids = _put(count, size)

    def look() -> None:
        leases = client.get(ids)
        for lease in leases:
            assert lease is not None
            lease.data[0]
        leases.release()

    taken = seconds(look)
    client.delete(ids)
    return taken


def put_many(count: int, size: int) -> float:
    """Put small objects in one call, and release them."""
    ids, data = _ids(count), bytes(size)
    taken = seconds(lambda: _release(client.put_many([NewObject(object_id, data) for object_id in ids])))
    client.delete(ids)
    return taken


_large = b""


def put(count: int, size: int) -> float:
    """Put large objects, each of which is deleted before the next."""
    global _large
    if len(_large) < size:
        _large = b"\1" * size
    data = memoryview(_large)[:size]
    taken = 0.0
    for object_id in _ids(count):
        taken += seconds(lambda: client.put(data, object_id=object_id))  # noqa: B023
        client.delete([object_id])
    return taken


def fill(count: int, size: int) -> float:
    """Put objects that stay."""
    return sum(seconds(lambda: _put(min(10_000, count - first), size)) for first in range(0, count, 10_000))  # noqa: B023


_idle: list[StoreClient] = []


def connect(count: int, size: int) -> float:
    """Connect as often, and stay."""
    return seconds(lambda: _idle.extend(open_store(sys.argv[1]) for _ in range(count)))


serve({work.__name__: work for work in (create, get, contains, get_many, look_at_many, put_many, put, fill, connect)})
