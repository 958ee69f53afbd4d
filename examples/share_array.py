"""Two processes work on the same numbers, which are in memory once: neither copies them.

    plasmastream store --plasma-socket /tmp/plasma --memory 256MiB &
    python examples/share_array.py /tmp/plasma

One writes the numbers straight into the store's memory; the other, started by it, waits until they are sealed and
adds them up where they are.
"""

import array
import subprocess
import sys
from functools import partial

import trio

from plasmastream import ObjectID
from plasmastream.store import open_store

COUNT = 1_000_000
SCRIPT = __file__


async def write(path: str) -> None:
    """Start a reader, then make and fill the object that it waits for."""
    object_id = ObjectID.random()
    async with open_store(path) as store, trio.open_nursery() as nursery:
        command = [sys.executable, SCRIPT, path, str(object_id)]
        nursery.start_soon(partial(trio.run_process, command, stdin=subprocess.DEVNULL))
        async with store.create(object_id, 8 * COUNT, b"float64") as unsealed:
            with unsealed.data.cast("d") as numbers:
                numbers[:] = array.array("d", range(COUNT))
            await unsealed.seal()  # now others can see it, and nobody can change it


async def read(path: str, object_id: ObjectID) -> None:
    """Wait for the object, and add up what is in it."""
    async with open_store(path) as store:
        (lease,) = await store.get([object_id], timeout=10)
        if lease is None:
            sys.exit(f"object {object_id} did not come within 10 s")
        with lease, lease.data.cast("d") as numbers:
            print(f"the sum of {len(numbers):,} numbers is {sum(numbers):,.0f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("usage: python examples/share_array.py SOCKET", file=sys.stderr)
        sys.exit(2)
    if len(sys.argv) > 2:
        trio.run(read, sys.argv[1], ObjectID.from_hex(sys.argv[2]))
    else:
        trio.run(write, sys.argv[1])
