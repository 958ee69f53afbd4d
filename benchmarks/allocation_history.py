"""Hours of creating and deleting, run as fast as they go: is memory found where accounting says there is some?

    python benchmarks/allocation_history.py --operations 1000000 --capacity 256MiB

Each pattern is a history of creates and deletes in a `StoreCore`, filled to 95 % of its capacity:

- `held`: every object is held, so nothing can be evicted or moved; a random one goes where there is no room.
- `evicted`: nobody holds anything; the store evicts what was used least recently, and now and then an object of the
  full capacity, which must fit, makes it evict everything.
- `alternating`: waves of objects of one size, every other of which is deleted before the next wave of larger ones: no
  hole is ever large enough for what comes.

A create that is within the capacity and fails is an error, and so is more shared memory in use than `Heap` allows.
Objects are not written, but their pages are reserved, which is what this is about.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import attrs

from plasmastream._object_id import ObjectID
from plasmastream.cli._types import read_size
from plasmastream.store._core import StoreCore
from plasmastream.store._heap import Heap
from plasmastream.store._segment import PAGE_SIZE
from plasmastream.store._table import Client

P = ParamSpec("P")
T = TypeVar("T")

FILL = 0.95
SMALLEST = 1024
LARGEST_SHARE = 16
PROBES = 100
"""How often, over a history, memory is measured."""
COUNTS = (100, 1000, 10_000, 100_000)
"""Numbers of blocks for which the cost is measured."""


@attrs.define
class Report:
    """What one history has shown. Sizes are in bytes, costs in microseconds."""

    pattern: str
    seed: int
    capacity: int
    operations: int
    moved: float = 0.0
    """Bytes for which pages were reserved, as a share of the bytes that were allocated."""
    failed_creates: int = 0
    full_capacity_objects: int = 0
    """Objects of the full capacity that were created, everything else having been evicted."""
    most_objects: int = 0
    peak_memory: int = 0
    """Shared memory that the kernel had given at most, when measured."""
    beyond_bound: int = 0
    """By how much that was ever more than the capacity, the slack, and the pages that objects were in."""
    peak_addresses: int = 0
    """The end of the last object, at most."""
    least_largest_free: float = 1.0
    """The largest hole below the end of the last object, as a share of all holes there; the least that was seen."""
    costs: list[float] = attrs.Factory(list)
    """Of a call to the heap, in the first tenth of the history, the second, and so on: the processor's time, with what
    the kernel did to move pages."""

    @property
    def is_good(self) -> bool:
        """Whether everything fitted that had to, into what it had to."""
        return not self.failed_creates and not self.beyond_bound


class History:
    """A store, what is in it, and what was found out about it."""

    def __init__(self, pattern: str, capacity: int, operations: int, seed: int) -> None:
        self.report = Report(pattern, seed, capacity, operations)
        self.random = random.Random(seed)
        self.core = StoreCore(capacity)
        self.client = Client("history")
        self.ids: list[ObjectID] = []
        self.done = 0
        self._next_id = 0
        self._calls = 0
        self._time = 0
        self._allocated = self._reserved = 0
        heap = self.core.heap
        reserve = heap.segment.reserve

        def count(offset: int, nbytes: int, *, replacing: int = 0) -> None:
            self._reserved += nbytes
            reserve(offset, nbytes, replacing=replacing)

        heap.segment.reserve = count  # type: ignore[method-assign]
        heap.allocate = self._timed(heap.allocate)  # type: ignore[method-assign]
        heap.free = self._timed(heap.free)  # type: ignore[method-assign]

    def _timed(self, call: Callable[P, T]) -> Callable[P, T]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            before = time.thread_time_ns()
            try:
                return call(*args, **kwargs)
            finally:
                self._time += time.thread_time_ns() - before
                self._calls += 1

        return timed

    def size(self) -> int:
        """A size between 1 KiB and a sixteenth of the capacity, its logarithm evenly spread."""
        largest = self.report.capacity // LARGEST_SHARE
        return int(SMALLEST * math.exp(self.random.random() * math.log(largest / SMALLEST)))

    def fits(self, size: int) -> bool:
        """Whether another object would leave the store filled to 95 % at most."""
        return self.core.table.allocated + size <= self.report.capacity * FILL

    def create(self, size: int, *, hold: bool) -> None:
        """Create and seal an object that must fit."""
        self.done += 1
        object_id = ObjectID(self._next_id.to_bytes(20, "little"))
        self._next_id += 1
        try:
            self.core.create(self.client, object_id, size, 0)
        except Exception as error:
            self.report.failed_creates += 1
            print(f"{self.report.pattern}: {size:,} bytes did not fit: {error}", file=sys.stderr)
            return
        self.core.seal(object_id, bytes(8))
        self._allocated += size
        if hold:
            self.ids.append(object_id)
        else:
            self.core.release(self.client, object_id)

    def delete(self, index: int) -> None:
        """Delete one of the objects that are held."""
        self.done += 1
        self.ids[index], self.ids[-1] = self.ids[-1], self.ids[index]
        object_id = self.ids.pop()
        self.core.delete(object_id)
        self.core.release(self.client, object_id)

    def offset(self, object_id: ObjectID) -> int:
        """Where an object is."""
        entry = self.core.table.find(object_id)
        assert entry is not None
        return entry.offset

    def probe(self) -> None:
        """Measure memory."""
        heap, report = self.core.heap, self.report
        blocks = sorted((entry.offset, entry.size) for entry in self.core.table if entry.size)
        memory = os.fstat(heap.segment.fd).st_blocks * 512
        report.most_objects = max(report.most_objects, len(blocks))
        report.peak_memory = max(report.peak_memory, memory)
        in_use, page, end, holes = 0, 0, 0, [0]
        for offset, size in blocks:
            first, last = max(page, offset // PAGE_SIZE), -(-(offset + size) // PAGE_SIZE)
            in_use += (last - first) * PAGE_SIZE
            holes.append(offset - end)
            page, end = last, offset + size
        report.beyond_bound = max(report.beyond_bound, memory - max(heap.home + heap.slack, in_use))
        report.peak_addresses = max(report.peak_addresses, end)
        if sum(holes):
            report.least_largest_free = min(report.least_largest_free, max(holes) / sum(holes))

    def end_tenth(self) -> None:
        """Note what a call to the heap has cost since this was called last."""
        self.report.costs.append(self._time / 1000 / max(1, self._calls))
        self._time = self._calls = 0
        self.report.moved = self._reserved / max(1, self._allocated)

    def close(self) -> None:
        """Let the memory go."""
        self.core.close()


def held(history: History) -> Iterator[None]:
    """Everything is held, and lives for a random time."""
    while True:
        size = history.size()
        while not history.fits(size):
            history.delete(history.random.randrange(len(history.ids)))
            yield
        history.create(size, hold=True)
        yield


def evicted(history: History) -> Iterator[None]:
    """The store makes room itself; now and then, for an object of the full capacity."""
    step = max(2, history.report.operations // PROBES * 2 // 3)
    while True:
        for _ in range(step - 1):
            history.create(history.size(), hold=False)
            yield
        failed = history.report.failed_creates
        history.create(history.report.capacity, hold=False)
        history.report.full_capacity_objects += failed == history.report.failed_creates
        yield


def alternating(history: History) -> Iterator[None]:
    """Waves of objects of one size; every other one goes, and the next wave is of objects that fit into no hole."""
    capacity = history.report.capacity
    smallest = max(SMALLEST, capacity * 50 // history.report.operations)
    while True:
        size = smallest + history.random.randrange(smallest)
        while size <= capacity // LARGEST_SHARE:
            while history.fits(size):
                history.create(size, hold=True)
                yield
            history.ids.sort(key=history.offset)
            for index in range(len(history.ids) - 1, -1, -2):
                history.delete(index)
                yield
            size = size * 2 + history.random.randrange(smallest)
        while history.ids:
            history.delete(len(history.ids) - 1)
            yield


PATTERNS = {"held": held, "evicted": evicted, "alternating": alternating}


def run(pattern: str, capacity: int, operations: int, seed: int) -> Report:
    """Run one history."""
    history = History(pattern, capacity, operations, seed)
    try:
        steps = PATTERNS[pattern](history)
        marks = [operations * (count + 1) // PROBES for count in range(PROBES)]
        for count, mark in enumerate(marks):
            while history.done < mark:
                next(steps)
            history.probe()
            if (count + 1) % (PROBES // 10) == 0:
                history.end_tenth()
        return history.report
    finally:
        history.close()


def cost_against_number(count: int, operations: int = 50_000) -> float:
    """Microseconds of processor time to free one block and allocate another, among so many of up to 8 KiB."""
    random_ = random.Random(count)
    sizes = [random_.randrange(1, 8192) for _ in range(count)]
    heap = Heap(int(sum(sizes) / FILL), count)
    blocks = [(heap.allocate(size), size) for size in sizes]
    before = time.thread_time_ns()
    for _ in range(operations):
        index = random_.randrange(count)
        offset, size = blocks[index]
        heap.free(offset, size)
        size = random_.choice(sizes)
        blocks[index] = heap.allocate(size), size
    cost = (time.thread_time_ns() - before) / 1000 / operations
    heap.close()
    return cost


def show(report: Report) -> str:
    """One line of the table."""
    size = report.capacity
    return (
        f"{report.pattern:12} {report.seed:4} {report.failed_creates:6} {report.full_capacity_objects:6} "
        f"{report.most_objects:8,} {report.peak_memory / size:7.4f} {max(0, report.beyond_bound):6} "
        f"{report.peak_addresses / size:9.2f} {report.least_largest_free:8.3f} {report.moved:6.3f}  "
        + " ".join(f"{cost:.1f}" for cost in report.costs)
    )


HEADER = (
    f"{'pattern':12} {'seed':>4} {'failed':>6} {'full':>6} {'objects':>8} {'memory':>7} {'beyond':>6} {'addresses':>9} "
    f"{'largest':>8} {'moved':>6}  cost"
)


def main(arguments: list[str] | None = None) -> int:
    """Run the histories; 0 if everything fitted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=1_000_000, help="creates and deletes in each history")
    parser.add_argument("--capacity", type=read_size, default=256 << 20, help="of the store, as in 1GiB")
    parser.add_argument("--seed", type=int, action="append", help="may be given more than once")
    parser.add_argument("--pattern", choices=sorted(PATTERNS), action="append", help="may be given more than once")
    parser.add_argument("--json", action="store_true", help="print JSON rather than a table")
    options = parser.parse_args(arguments)
    reports = []
    if not options.json:
        print(HEADER)
    for pattern in options.pattern or PATTERNS:
        for seed in options.seed or [1]:
            reports.append(run(pattern, options.capacity, options.operations, seed))
            if not options.json:
                print(show(reports[-1]), flush=True)
    costs = {count: cost_against_number(count) for count in COUNTS}
    if options.json:
        print(json.dumps({"histories": [attrs.asdict(report) for report in reports], "costs": costs}, indent=2))
    else:
        for count, cost in costs.items():
            print(f"{count:8,} blocks: {cost:6.1f} us to free one and allocate another")
    return 0 if all(report.is_good for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
