"""Blocks of shared memory: the allocator's arithmetic on a segment's pages.

The pages form a prefix of the segment, like the heap of a process. `home` bytes of it are reserved when the heap
is made and stay. Where rounding and fragmentation leave no hole although the bytes that are charged would still
fit, the heap grows beyond home, and shrinks again as soon as its end is free: the capacity that was promised
holds to the byte, and memory beyond it is used only while there is no other way. Huge pages cannot grow, so there
rounding and fragmentation take their share of home.
"""

from plasmastream._errors import StoreFullError
from plasmastream.store._allocator import ALIGNMENT, Allocator, block_size
from plasmastream.store._segment import PAGE_SIZE, Segment, round_to_pages

_FRAGMENTATION_ROOM = 4


class Heap:
    """Memory for objects of `capacity` bytes in all, and of `max_objects` in number.

    `directory` and `huge_pages` are those of `Segment`.

    Raises:
        StoreFullError: the machine, or the directory, cannot reserve `capacity` bytes.
        StoreError: the directory cannot be used.
    """

    def __init__(
        self, capacity: int, max_objects: int, *, directory: str | None = None, huge_pages: bool = False
    ) -> None:
        # Each block loses less than ALIGNMENT to rounding; free holes between blocks in use take the rest.
        # These are addresses, which cost nothing.
        addresses = (_FRAGMENTATION_ROOM - 1) * round_to_pages(capacity) + ALIGNMENT * max_objects
        self.segment = Segment(capacity, addresses=addresses, directory=directory, huge_pages=huge_pages)
        self.home = self.segment.home
        self.allocator = Allocator()
        try:
            self.segment.reserve(0, self.home)
        except BaseException:
            self.segment.close()
            raise
        self.allocator.grow(self.home)

    def allocate(self, nbytes: int) -> int:
        """Take a block for `nbytes` bytes; an empty block has no memory, and the offset 0.

        Returns:
            Its offset in the segment.

        Raises:
            StoreFullError: there is no hole of this size, and no memory to grow by.
        """
        size = block_size(nbytes)
        if not size:
            return 0
        offset = self.allocator.allocate(size)
        if offset is None:
            self._grow(size)
            offset = self.allocator.allocate(size)
            assert offset is not None, "the heap has just grown by what was missing"
        return offset

    def free(self, offset: int, nbytes: int) -> None:
        """Give back the block for `nbytes` bytes at `offset`."""
        size = block_size(nbytes)
        if not size:
            return
        self.allocator.free(offset, size)
        surplus = self.allocator.top - self.home
        if surplus:
            surplus = min(surplus, self.allocator.tail // PAGE_SIZE * PAGE_SIZE)
            if surplus:
                self.allocator.trim(surplus)
                self.segment.give_back(self.allocator.top, surplus)

    def view(self, offset: int, nbytes: int) -> memoryview:
        """A writable view of `nbytes` bytes at `offset`."""
        return self.segment.view[offset : offset + nbytes]

    def close(self) -> None:
        """Let the memory go."""
        self.segment.close()

    def _grow(self, size: int) -> None:
        missing = round_to_pages(size - self.allocator.tail)
        if self.allocator.top + missing > self.segment.length:
            raise StoreFullError("the store's memory is too fragmented: its address space is used up")
        self.segment.reserve(self.allocator.top, missing)
        self.allocator.grow(missing)
