"""Processes of a pool add up parts of the same numbers, without an event loop and without copying them.

    plasmastream store --plasma-socket /tmp/plasma --memory 256MiB &
    python examples/blocking_numbers.py /tmp/plasma

The numbers are written once, straight into the store's memory. A client pickles to its address, so it goes to the
workers as an argument; each connects by itself, and looks at the numbers where they are. With numpy,
`numpy.frombuffer(lease.data)` is an array of them, and holds the object for as long as the array lives.
"""

import array
import multiprocessing
import sys

from plasmastream import ObjectID
from plasmastream.blocking import StoreClient, open_store

COUNT = 1_000_000
WORKERS = 4


def write(store: StoreClient) -> ObjectID:
    """Put the numbers into the store."""
    object_id = ObjectID.random()
    with store.create(object_id, 8 * COUNT, b"float64") as unsealed:
        with unsealed.data.cast("d") as numbers:
            numbers[:] = array.array("d", range(COUNT))
        unsealed.seal()  # now others can see them, and nobody can change them
    return object_id


def add_up(store: StoreClient, object_id: ObjectID, part: int) -> float:
    """Add up one part of the numbers, in another process."""
    with store:  # connects, and disconnects at the end
        (lease,) = store.get([object_id], timeout=10)
        if lease is None:
            raise SystemExit(f"object {object_id} did not come within 10 s")
        with lease, lease.data.cast("d") as numbers, numbers[part::WORKERS] as own:
            return sum(own)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("usage: python examples/blocking_numbers.py SOCKET", file=sys.stderr)
        sys.exit(2)
    with open_store(sys.argv[1]) as store, multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        object_id = write(store)
        sums = pool.starmap(add_up, [(store, object_id, part) for part in range(WORKERS)])
        print(f"the sum of {COUNT:,} numbers is {sum(sums):,.0f}, in {WORKERS} parts")
        store.delete([object_id])
