"""The allocator against a plain model: a dictionary of blocks in use, and the gaps between them."""

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from plasmastream.store._allocator import ALIGNMENT, Allocator, block_size

UNITS = st.one_of(st.integers(1, 40), st.integers(1, 2000), st.sampled_from([31, 32, 33, 511, 512, 513, 1024]))


def gaps(top: int, blocks: dict[int, int]) -> list[tuple[int, int]]:
    """The free ranges between blocks in use, as (start, size): what coalescing must have made of them."""
    found = []
    end = 0
    for start in sorted(blocks):
        if start > end:
            found.append((end, start - end))
        end = start + blocks[start]
    if top > end:
        found.append((end, top - end))
    return found


class AllocatorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator()
        self.blocks: dict[int, int] = {}
        self.top = 0
        self.seen: set[tuple[int, int]] = set()

    @rule(units=UNITS)
    def grow(self, units: int) -> None:
        self.allocator.grow(units * ALIGNMENT)
        self.top += units * ALIGNMENT

    @rule(units=UNITS)
    def allocate(self, units: int) -> None:
        size = units * ALIGNMENT
        largest = max((gap for _, gap in gaps(self.top, self.blocks)), default=0)
        start = self.allocator.allocate(size)
        if size > largest:
            assert start is None
            return
        assert start is not None, "a free block is large enough"
        assert start % ALIGNMENT == 0
        assert any(low <= start and start + size <= low + gap for low, gap in gaps(self.top, self.blocks))
        self.blocks[start] = size

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        start = data.draw(st.sampled_from(sorted(self.blocks)))
        self.allocator.free(start, self.blocks.pop(start))

    @rule(units=UNITS)
    def take(self, units: int) -> None:
        self.allocator.take(units * ALIGNMENT)
        self.blocks[self.top] = units * ALIGNMENT
        self.top += units * ALIGNMENT

    @rule()
    def take_changed(self) -> None:
        free = gaps(self.top, self.blocks)
        found = self.allocator.take_changed()
        assert (found in free) if found is not None else (self.seen == set(free))
        if found is not None:
            self.seen.add(found)

    @invariant()
    def what_is_free_is_what_is_not_in_use(self) -> None:
        free = gaps(self.top, self.blocks)
        self.seen &= set(free)  # what is not as it was is to be seen again
        assert self.allocator.changed >= {start for start, size in set(free) - self.seen}
        assert self.allocator.changed <= {start for start, size in free}
        assert self.allocator.top == self.top
        assert self.allocator.free_bytes == sum(size for _, size in free)
        assert self.allocator.largest_free == max((size for _, size in free), default=0)
        assert self.allocator.tail == (free[-1][1] if free and sum(free[-1]) == self.top else 0)

    def teardown(self) -> None:
        for start, size in self.blocks.items():
            self.allocator.free(start, size)
        assert self.allocator.free_bytes == self.allocator.largest_free == self.allocator.tail == self.top


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


@given(st.integers(0, 1 << 50))
def test_a_block_is_the_next_multiple_of_the_alignment(nbytes: int) -> None:
    size = block_size(nbytes)
    assert size % ALIGNMENT == 0
    assert nbytes <= size < nbytes + ALIGNMENT


def test_nothing_fits_into_nothing() -> None:
    allocator = Allocator()
    assert allocator.allocate(ALIGNMENT) is None
    assert (allocator.largest_free, allocator.tail, allocator.free_bytes) == (0, 0, 0)


def test_the_block_freed_last_is_handed_out_first() -> None:
    allocator = Allocator()
    allocator.grow(100 * ALIGNMENT)
    starts = [allocator.allocate(ALIGNMENT) for _ in range(10)]
    for index in (2, 6, 4):
        start = starts[index]
        assert start is not None
        allocator.free(start, ALIGNMENT)
    assert [allocator.allocate(ALIGNMENT) for _ in range(3)] == [starts[4], starts[6], starts[2]]


def test_a_bin_full_of_blocks_that_are_too_small_hides_no_larger_one() -> None:
    """Bins above 32 units hold a range of sizes; the only block that fits is the one freed first, past the scan."""
    allocator = Allocator()
    small, large = 64 * ALIGNMENT, 67 * ALIGNMENT
    sizes = [large] + 50 * [small]
    blocks = []
    for size in sizes:
        allocator.grow(size + ALIGNMENT)
        blocks.append((allocator.allocate(size), size))
        assert allocator.allocate(ALIGNMENT) is not None  # keeps neighbours apart
    for start, size in blocks:
        assert start is not None
        allocator.free(start, size)
    assert allocator.allocate(large) == blocks[0][0]


def lines_run(call: Callable[[], object]) -> int:
    """How many lines of Python a call runs."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    gc.disable()  # other tests' finalizers have lines, too
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


def fragmented(holes: int, units: int) -> tuple[Allocator, int]:
    """An allocator with so many holes of `units` units, blocks in use between them, and the start of one of these."""
    allocator = Allocator()
    starts = []
    for _ in range(holes):
        allocator.grow((units + 1) * ALIGNMENT)
        starts.append(allocator.allocate(units * ALIGNMENT))
        last = allocator.allocate(ALIGNMENT)
    allocator.grow(10_000 * ALIGNMENT)
    for start in starts:
        assert start is not None
        allocator.free(start, units * ALIGNMENT)
    assert last is not None
    return allocator, last


@pytest.mark.parametrize("asked", [1, 3, 64, 66, 67, 5000])
def test_the_cost_of_a_call_does_not_depend_on_the_number_of_holes(asked: int) -> None:
    costs = []
    for holes in (40, 4000):
        allocator, used = fragmented(holes, 65)
        costs.append(
            (
                lines_run(lambda allocator=allocator: allocator.allocate(asked * ALIGNMENT)),  # type: ignore[misc]
                lines_run(lambda allocator=allocator, used=used: allocator.free(used, ALIGNMENT)),  # type: ignore[misc]
            )
        )
    assert costs[0] == costs[1]
    assert max(costs[0]) < 150
