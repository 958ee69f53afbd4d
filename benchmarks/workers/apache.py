"""Apache's client, `pyarrow.plasma` of pyarrow 11, at whatever store: `python -m benchmarks.workers.apache SOCKET`."""

import sys

from pyarrow import plasma, py_buffer

from benchmarks.workers.loop import new_ids, seconds, serve, timed

client = plasma.connect(sys.argv[1])


def _ids(count: int) -> list[plasma.ObjectID]:
    return [plasma.ObjectID(name) for name in new_ids(count)]


def _put(count: int, size: int) -> list[plasma.ObjectID]:
    ids = _ids(count)
    for object_id in ids:
        client.create_and_seal(object_id, bytes(size))
    return ids


def create(count: int, size: int) -> float:
    """Create, write, seal and release objects, one after the other."""
    ids, data = _ids(count), bytes(size)

    def one(object_id: plasma.ObjectID) -> None:
        buffer = client.create(object_id, size)
        memoryview(buffer).cast("B")[:] = data
        client.seal(object_id)  # `buffer` goes at the end of this call, which releases the object

    taken = timed(one, ids)
    client.delete(ids)
    return taken


def get(count: int, size: int) -> float:
    """Get and release objects, one after the other."""
    ids = _put(min(count, 100), size)
    taken = timed(lambda i: client.get_buffers([ids[i % len(ids)]], timeout_ms=0), range(count))
    client.delete(ids)
    return taken


def contains(count: int, size: int) -> float:
    """Ask for objects, one after the other."""
    ids = _put(min(count, 100), size)
    taken = timed(lambda i: client.contains(ids[i % len(ids)]), range(count))
    client.delete(ids)
    return taken


def get_many(count: int, size: int) -> float:
    """Get objects in one call, and release all of them."""
    ids = _put(count, size)
    taken = seconds(lambda: client.get_buffers(ids, timeout_ms=0))
    client.delete(ids)
    return taken


def look_at_many(count: int, size: int) -> float:
    """Get objects in one call, read a byte of each, and release all of them."""
    ids = _put(count, size)
    taken = seconds(lambda: [memoryview(buffer)[0] for buffer in client.get_buffers(ids, timeout_ms=0)])
    client.delete(ids)
    return taken


def put_many(count: int, size: int) -> float:
    """Put small objects, which this client can only do one after the other."""
    ids, data = _ids(count), bytes(size)
    taken = timed(lambda object_id: client.create_and_seal(object_id, data), ids)
    client.delete(ids)
    return taken


_large: dict[int, bytes] = {}


def put(count: int, size: int) -> float:
    """Put large objects, each of which is deleted before the next."""
    data = py_buffer(_large.setdefault(size, b"\1" * size))
    taken = 0.0
    for object_id in _ids(count):
        taken += seconds(lambda: client.put_raw_buffer(data, object_id))  # noqa: B023
        client.delete([object_id])
    return taken


serve({work.__name__: work for work in (create, get, contains, get_many, look_at_many, put_many, put)})
