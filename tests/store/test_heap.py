"""The heap against a model: data stays, memory is accounted to the page, growth is the last resort."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from plasmastream import StoreFullError
from plasmastream.store import _segment
from plasmastream.store._allocator import ALIGNMENT, block_size
from plasmastream.store._heap import Heap
from plasmastream.store._segment import PAGE_SIZE

CAPACITY = 60_000  # not a multiple of the page size
MAX_OBJECTS = 64

SIZES = st.one_of(st.integers(0, 200), st.integers(0, 5000), st.integers(0, CAPACITY))


def pages_taken(heap: Heap) -> int:
    return os.fstat(heap.segment.fd).st_blocks * 512


class HeapMachine(RuleBasedStateMachine):
    """Blocks of at most `CAPACITY` bytes in all, each filled with a byte of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.heap = Heap(CAPACITY, MAX_OBJECTS)
        self.blocks: list[tuple[int, int, int]] = []
        self.fill = 0

    @rule(nbytes=SIZES)
    def allocate(self, nbytes: int) -> None:
        charged = sum(size for _, size, _ in self.blocks)
        if charged + nbytes > CAPACITY or len(self.blocks) == MAX_OBJECTS:
            return
        top, largest = self.heap.allocator.top, self.heap.allocator.largest_free
        offset = self.heap.allocate(nbytes)  # what is charged fits, so it must succeed
        if block_size(nbytes) <= largest:
            assert self.heap.allocator.top == top, "it grew although there was a hole"
        assert offset % ALIGNMENT == 0
        self.fill = self.fill % 250 + 1
        self.heap.view(offset, nbytes)[:] = bytes([self.fill]) * nbytes
        self.blocks.append((offset, nbytes, self.fill))

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        offset, nbytes, _ = self.blocks.pop(data.draw(st.integers(0, len(self.blocks) - 1)))
        self.heap.view(offset, nbytes)[:] = b"\xdd" * nbytes
        self.heap.free(offset, nbytes)

    @invariant()
    def blocks_keep_their_bytes(self) -> None:
        for offset, nbytes, fill in self.blocks:
            assert self.heap.view(offset, nbytes) == bytes([fill]) * nbytes

    @invariant()
    def memory_is_accounted(self) -> None:
        heap = self.heap
        assert heap.segment.reserved == heap.allocator.top == pages_taken(heap)
        assert heap.allocator.top >= heap.home
        assert heap.allocator.top % PAGE_SIZE == 0
        used = sum(block_size(nbytes) for _, nbytes, _ in self.blocks)
        assert heap.allocator.top - heap.allocator.free_bytes == used
        # Beyond home, only whole pages of which some byte is in use are kept at the end.
        assert heap.allocator.top == heap.home or heap.allocator.tail < PAGE_SIZE

    def teardown(self) -> None:
        for offset, nbytes, _ in self.blocks:
            self.heap.free(offset, nbytes)
        assert pages_taken(self.heap) == self.heap.home
        assert self.heap.allocator.free_bytes == self.heap.allocator.largest_free == self.heap.home
        self.heap.close()


TestHeap = HeapMachine.TestCase
TestHeap.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def test_an_empty_block_takes_nothing() -> None:
    heap = Heap(PAGE_SIZE, 1)
    assert heap.allocate(0) == 0
    heap.free(0, 0)
    assert heap.allocator.free_bytes == PAGE_SIZE
    heap.close()


def test_rounding_does_not_eat_the_capacity() -> None:
    """As many one-byte objects as the capacity has bytes: each takes a block, and all of them fit."""
    heap = Heap(1000, 1000)
    offsets = [heap.allocate(1) for _ in range(1000)]
    assert len(set(offsets)) == 1000
    assert heap.segment.reserved > heap.home
    for offset in offsets:
        heap.free(offset, 1)
    assert heap.segment.reserved == heap.home == PAGE_SIZE
    heap.close()


def test_a_hole_is_used_before_the_heap_grows() -> None:
    heap = Heap(8 * PAGE_SIZE, 100)
    blocks = [heap.allocate(PAGE_SIZE) for _ in range(8)]
    for offset in blocks[::2]:
        heap.free(offset, PAGE_SIZE)
    assert heap.allocate(PAGE_SIZE) in blocks[::2]
    assert heap.segment.reserved == heap.home
    beyond = heap.allocate(2 * PAGE_SIZE)  # three holes of a page each, none of two
    assert beyond == heap.home
    assert heap.segment.reserved == heap.home + 2 * PAGE_SIZE
    heap.free(beyond, 2 * PAGE_SIZE)
    assert heap.segment.reserved == heap.home
    heap.close()


def test_growing_uses_what_is_free_at_the_end() -> None:
    heap = Heap(4 * PAGE_SIZE, 100)
    heap.allocate(3 * PAGE_SIZE)
    assert heap.allocate(2 * PAGE_SIZE) == 3 * PAGE_SIZE
    assert heap.segment.reserved == 5 * PAGE_SIZE
    heap.close()


def test_addresses_are_not_endless_either() -> None:
    heap = Heap(PAGE_SIZE, 1)
    with pytest.raises(StoreFullError, match="fragmented"):
        heap.allocate(heap.segment.length + 1)
    assert heap.allocator.top == heap.home
    heap.close()


@pytest.mark.parametrize("capacity", [1 << 42, 1 << 60])
def test_a_machine_without_memory_is_told_at_the_start(capacity: int) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreFullError, match=r"asked for|address space"):
        Heap(capacity, 1)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_machine_without_memory_for_growth_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    heap = Heap(2 * PAGE_SIZE, 10)
    heap.allocate(2 * PAGE_SIZE)
    monkeypatch.setattr(_segment, "available_memory", lambda: 0)
    with pytest.raises(StoreFullError, match="has 0 left"):
        heap.allocate(1)
    assert heap.allocator.top == heap.segment.reserved == heap.home
    heap.close()


def test_a_directory_without_room_for_growth_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heap = Heap(2 * PAGE_SIZE, 10, directory=str(tmp_path))
    offset = heap.allocate(2 * PAGE_SIZE)
    with monkeypatch.context() as patch:
        state = SimpleNamespace(f_blocks=10, f_bavail=0, f_frsize=4096)
        patch.setattr(os, "fstatvfs", lambda fd: state)
        with pytest.raises(StoreFullError, match=f"{tmp_path} has 0 left"):
            heap.allocate(1)
    assert heap.allocator.top == heap.segment.reserved == heap.home
    second = heap.allocate(1)
    assert heap.segment.reserved == heap.home + PAGE_SIZE
    heap.free(second, 1)
    heap.free(offset, 2 * PAGE_SIZE)
    assert heap.segment.reserved == heap.home
    heap.close()
