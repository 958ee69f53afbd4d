"""The heap against a model: data stays, memory is accounted to the page, and no page is used that is not reserved."""

import os
from collections.abc import Iterable
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
from plasmastream.store._segment import PAGE_SIZE, round_to_pages

CAPACITY = 60_000  # not a multiple of the page size
MAX_OBJECTS = 64

SIZES = st.one_of(st.integers(0, 200), st.integers(0, 5000), st.integers(0, CAPACITY))


def pages_taken(heap: Heap) -> int:
    return os.fstat(heap.segment.fd).st_blocks * 512


def pages_of(blocks: Iterable[tuple[int, int]]) -> set[int]:
    """The pages of which a block, given as (offset, bytes), uses any byte."""
    return {
        page
        for offset, nbytes in blocks
        for page in range(offset // PAGE_SIZE, -(-(offset + block_size(nbytes)) // PAGE_SIZE))
        if nbytes
    }


def is_reserved(heap: Heap, page: int) -> bool:
    """Whether a page is there already when it is touched; leaves it as it was."""
    before = pages_taken(heap)
    heap.view(page * PAGE_SIZE, 1)[0]
    if pages_taken(heap) == before:
        return True
    heap.segment.punch(page * PAGE_SIZE, PAGE_SIZE)
    return False


class HeapMachine(RuleBasedStateMachine):
    """Blocks of at most `CAPACITY` bytes in all, each filled with a byte of its own; now and then memory is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.heap = Heap(CAPACITY, MAX_OBJECTS)
        self.blocks: list[tuple[int, int, int]] = []
        self.fill = 0
        self.patch = pytest.MonkeyPatch()

    @rule(nbytes=SIZES)
    def allocate(self, nbytes: int) -> None:
        charged = sum(size for _, size, _ in self.blocks)
        if charged + nbytes > CAPACITY or len(self.blocks) == MAX_OBJECTS:
            return
        self.take(self.heap.allocate(nbytes), nbytes)  # what is charged fits, so it must succeed

    @rule(nbytes=SIZES)
    def allocate_on_a_machine_without_memory(self, nbytes: int) -> None:
        charged = sum(size for _, size, _ in self.blocks)
        if charged + nbytes > CAPACITY or len(self.blocks) == MAX_OBJECTS:
            return
        before = self.heap.segment.reserved
        self.patch.setattr(_segment, "available_memory", lambda: 0)
        try:
            offset = self.heap.allocate(nbytes)
        except StoreFullError:
            in_use = len(self.pages_in_use()) * PAGE_SIZE
            assert in_use + nbytes + 2 * PAGE_SIZE > before, "there were pages that could have moved"
        else:
            self.take(offset, nbytes)
        finally:
            self.patch.undo()
        assert self.heap.segment.reserved <= before

    @rule(nbytes=SIZES, share=st.integers(0, 3))
    def allocate_while_the_kernel_refuses(self, nbytes: int, share: int) -> None:
        before = self.heap.segment.reserved
        real, calls = os.posix_fallocate, []

        def refuse(fd: int, offset: int, size: int) -> None:
            calls.append(offset)
            if len(calls) > share:
                raise OSError(28, "No space left on device")
            real(fd, offset, size)

        self.patch.setattr(os, "posix_fallocate", refuse)
        try:
            offset = self.heap.allocate(nbytes)
        except StoreFullError:
            assert self.heap.segment.reserved <= before
        else:
            self.heap.free(offset, nbytes)
        finally:
            self.patch.undo()

    def take(self, offset: int, nbytes: int) -> None:
        assert offset % ALIGNMENT == 0
        before = pages_taken(self.heap)
        self.fill = self.fill % 250 + 1
        self.heap.view(offset, nbytes)[:] = bytes([self.fill]) * nbytes
        assert pages_taken(self.heap) == before, "a page was not reserved"
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
        assert heap.segment.reserved == pages_taken(heap)
        in_use = len(self.pages_in_use()) * PAGE_SIZE
        assert heap.segment.reserved <= max(heap.home + heap.slack, in_use)
        used = sum(block_size(nbytes) for _, nbytes, _ in self.blocks)
        assert heap.used_bytes == used
        assert in_use < used + 2 * PAGE_SIZE * (len(self.blocks) + 1)

    def pages_in_use(self) -> set[int]:
        return pages_of((offset, nbytes) for offset, nbytes, _ in self.blocks)

    def teardown(self) -> None:
        for offset, nbytes, _ in self.blocks:
            self.heap.free(offset, nbytes)
        assert pages_taken(self.heap) <= self.heap.home + self.heap.slack
        assert self.heap.used_bytes == 0
        whole = self.heap.allocate(CAPACITY)  # and with it, all that was promised is there again
        assert pages_taken(self.heap) >= self.heap.home
        self.heap.free(whole, CAPACITY)
        self.heap.close()


TestHeap = HeapMachine.TestCase
TestHeap.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def test_an_empty_block_takes_nothing() -> None:
    heap = Heap(PAGE_SIZE, 1)
    assert heap.allocate(0) == 0
    heap.free(0, 0)
    assert heap.used_bytes == 0
    heap.close()


def test_rounding_does_not_eat_the_capacity() -> None:
    """As many one-byte objects as the capacity has bytes: each takes a block, and all of them fit."""
    heap = Heap(1000, 1000)
    offsets = [heap.allocate(1) for _ in range(1000)]
    assert len(set(offsets)) == 1000
    assert heap.segment.reserved == round_to_pages(1000 * ALIGNMENT)
    for offset in offsets:
        heap.free(offset, 1)
    assert heap.segment.reserved == heap.home == PAGE_SIZE
    heap.close()


def every_other(heap: Heap) -> list[int]:
    """The free pages of a heap that was full of blocks of a page each, and in which every other was freed."""
    blocks = [heap.allocate(PAGE_SIZE) for _ in range(heap.home // PAGE_SIZE)]
    for offset in blocks[::2]:
        heap.free(offset, PAGE_SIZE)
    return blocks[::2]


def test_a_hole_is_used_before_pages_move() -> None:
    heap = Heap(8 * PAGE_SIZE, 100)
    holes = every_other(heap)
    assert heap.allocate(PAGE_SIZE) in holes
    assert all(is_reserved(heap, page) for page in range(8))
    heap.close()


def test_pages_move_to_where_a_block_fits() -> None:
    heap = Heap(8 * PAGE_SIZE, 100)
    holes = every_other(heap)
    beyond = heap.allocate(3 * PAGE_SIZE)  # four holes of a page each, none of three
    assert beyond == heap.home
    assert heap.segment.reserved == pages_taken(heap) == heap.home
    assert sum(is_reserved(heap, offset // PAGE_SIZE) for offset in holes) == 1

    refilled = [heap.allocate(PAGE_SIZE // 2) for _ in range(2)]  # one hole that has its page; all is in use then
    heap.free(beyond, 3 * PAGE_SIZE)
    refilled += [heap.allocate(PAGE_SIZE) for _ in range(3)]  # what moved out moves back
    assert {offset // PAGE_SIZE * PAGE_SIZE for offset in refilled} == set(holes)
    assert all(is_reserved(heap, page) for page in range(8))
    assert heap.segment.reserved == pages_taken(heap) == heap.home
    heap.close()


def test_the_slack_is_used_before_pages_move() -> None:
    heap = Heap(128 * PAGE_SIZE, 1000)
    holes = every_other(heap)
    assert heap.slack == 2 * PAGE_SIZE
    heap.allocate(2 * PAGE_SIZE)
    assert all(is_reserved(heap, offset // PAGE_SIZE) for offset in holes)
    assert heap.segment.reserved == heap.home + heap.slack
    heap.allocate(2 * PAGE_SIZE)
    assert sum(is_reserved(heap, offset // PAGE_SIZE) for offset in holes) == len(holes) - 2
    assert heap.segment.reserved == pages_taken(heap) == heap.home + heap.slack
    heap.close()


def test_pages_move_where_the_machine_has_none_for_the_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    heap = Heap(128 * PAGE_SIZE, 1000)
    holes = every_other(heap)
    monkeypatch.setattr(_segment, "available_memory", lambda: 0)
    heap.allocate(2 * PAGE_SIZE)
    assert heap.segment.reserved == pages_taken(heap) == heap.home
    assert sum(is_reserved(heap, offset // PAGE_SIZE) for offset in holes) == len(holes) - 2
    heap.close()


def test_pages_with_a_byte_in_use_stay() -> None:
    """The price of blocks that cannot move: whole pages, for as long as they are needed."""
    heap = Heap(8 * PAGE_SIZE, 1000)
    blocks = [heap.allocate(ALIGNMENT) for _ in range(heap.home // ALIGNMENT)]
    kept = blocks[:: PAGE_SIZE // ALIGNMENT]
    for offset in set(blocks) - set(kept):
        heap.free(offset, ALIGNMENT)
    large = heap.allocate(7 * PAGE_SIZE)
    assert heap.segment.reserved == pages_taken(heap) == heap.home + 7 * PAGE_SIZE
    heap.free(large, 7 * PAGE_SIZE)
    assert heap.segment.reserved == pages_taken(heap) == heap.home
    heap.close()


def test_looking_for_pages_to_move_is_paid_for_by_what_was_freed() -> None:
    """Free blocks that have no pages left are not looked at again."""
    heap = Heap(512 * PAGE_SIZE, 10_000)
    every_other(heap)
    holes = len(heap.allocator.changed)
    heap.allocate(100 * PAGE_SIZE)
    heap.allocate(100 * PAGE_SIZE)
    assert heap.segment.reserved == heap.home + heap.slack
    assert len(heap.allocator.changed) < holes - 180
    heap.close()


def test_pages_that_are_refused_half_way_leave_the_heap_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    heap = Heap(8 * PAGE_SIZE, 100)
    holes = every_other(heap)
    kept = set(range(0, heap.home, PAGE_SIZE)) - set(holes)
    beyond = heap.allocate(4 * PAGE_SIZE)  # takes the pages of all holes
    assert not any(is_reserved(heap, offset // PAGE_SIZE) for offset in holes)
    for offset in kept:
        heap.free(offset, PAGE_SIZE)
    used, real = heap.used_bytes, os.posix_fallocate
    for allowed in range(3):
        calls: list[int] = []

        def refuse(fd: int, offset: int, nbytes: int, calls: list[int] = calls, allowed: int = allowed) -> None:
            calls.append(offset)
            if len(calls) > allowed:
                raise OSError(28, "No space left on device")
            real(fd, offset, nbytes)

        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", refuse)
            with pytest.raises(StoreFullError, match="No space left"):
                heap.allocate(8 * PAGE_SIZE)
        assert heap.used_bytes == used
        assert heap.segment.reserved == pages_taken(heap)
    heap.free(beyond, 4 * PAGE_SIZE)
    assert heap.allocate(8 * PAGE_SIZE) == 0
    assert heap.segment.reserved == pages_taken(heap) >= heap.home
    assert all(is_reserved(heap, page) for page in range(8))
    heap.close()


def test_addresses_are_not_endless_either() -> None:
    heap = Heap(PAGE_SIZE, 1)
    with pytest.raises(StoreFullError, match="fragmented"):
        heap.allocate(heap.segment.length + 1)
    assert heap.used_bytes == 0
    heap.close()


def test_what_a_thread_touched_too_much_goes_again() -> None:
    heap = Heap(8 * PAGE_SIZE, 100)
    holes = every_other(heap)
    heap.allocate(3 * PAGE_SIZE)
    if not heap.segment.prefault(0, 8 * PAGE_SIZE):
        pytest.skip("this kernel has no MADV_POPULATE_WRITE")
    assert pages_taken(heap) == heap.segment.reserved + 3 * PAGE_SIZE
    heap.prefaulted(0, 8 * PAGE_SIZE)
    assert pages_taken(heap) == heap.segment.reserved
    assert sum(is_reserved(heap, offset // PAGE_SIZE) for offset in holes) == 1
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
    assert heap.segment.reserved == heap.home == heap.used_bytes
    heap.close()


def test_a_directory_without_room_for_growth_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heap = Heap(2 * PAGE_SIZE, 10, directory=str(tmp_path))
    offset = heap.allocate(2 * PAGE_SIZE)
    with monkeypatch.context() as patch:
        state = SimpleNamespace(f_blocks=10, f_bavail=0, f_frsize=4096)
        patch.setattr(os, "fstatvfs", lambda fd: state)
        with pytest.raises(StoreFullError, match=f"{tmp_path} has 0 left"):
            heap.allocate(1)
    assert heap.segment.reserved == heap.home == heap.used_bytes
    second = heap.allocate(1)
    assert heap.segment.reserved == heap.home + PAGE_SIZE
    heap.free(second, 1)
    heap.free(offset, 2 * PAGE_SIZE)
    assert heap.segment.reserved == heap.home
    heap.close()
