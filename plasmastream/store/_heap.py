"""Blocks of shared memory: the allocator's arithmetic on a segment's pages.

Addresses are plentiful: the allocator has several times the capacity of them, so that a block that cannot be moved
need never be in the way of another. Pages are rationed. `home` bytes of them are reserved when the heap is made, at
the beginning of the segment. Where fragmentation leaves no hole among those, a block goes to where no pages are, and
they move there: as many are given back from blocks that are free, where nobody misses them. So the heap keeps its
`home` bytes from start to end, and takes more only

- up to `slack` bytes, so that what is full to the brim need not move pages for every block; and
- where pages in use alone are more than that: a page with a single byte in use is one. Between two blocks in use, or
  at either end, less than two pages are lost that way.

Huge pages cannot move: there, rounding and fragmentation take their share of home.
"""

from collections.abc import Sequence
from itertools import accumulate

from plasmastream._errors import StoreFullError
from plasmastream.store._allocator import ALIGNMENT, Allocator, block_size
from plasmastream.store._segment import Segment, round_to_pages

# Whoever chooses sizes and lifetimes so as to fragment a heap can spread it over half as many capacities as sizes
# differ in powers of two, and one more, whatever the allocator (Robson, "Bounds for some functions concerning dynamic
# storage allocation", Journal of the ACM 1974).
_FRAGMENTATION_ROOM = 16
_MOST_ROOM = 1 << 46  # of the 47 bits that a process has
_SLACK_SHARE = 64

_DRY, _WET = 0, 1


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
        fragmentation = min((_FRAGMENTATION_ROOM - 1) * round_to_pages(capacity), _MOST_ROOM)
        addresses = fragmentation + ALIGNMENT * max_objects
        self.segment = Segment(capacity, addresses=addresses, directory=directory, huge_pages=huge_pages)
        self.home = self.segment.home
        self._page_size = self.segment.page_size
        self.slack = self.home // _SLACK_SHARE // self._page_size * self._page_size
        self._most = self.home + self.slack
        self.allocator = Allocator()
        try:
            self.segment.reserve(0, self.home)
        except BaseException:
            self.segment.close()
            raise
        self.allocator.grow(self.segment.length)
        # One byte for each page: whether it is reserved. What lies beyond the last of them was never looked at.
        self._pages = bytearray(self.segment.length // self._page_size)
        self._last_wet = self.home // self._page_size
        self._pages[: self._last_wet] = bytes([_WET]) * self._last_wet
        self._wet_until = self.home
        """No page below this offset is dry."""

    @property
    def used_bytes(self) -> int:
        """Bytes of all blocks in use."""
        return self.allocator.top - self.allocator.free_bytes

    def allocate(self, nbytes: int) -> int:
        """Take a block for `nbytes` bytes; an empty block has no memory, and the offset 0.

        Returns:
            Its offset in the segment.

        Raises:
            StoreFullError: there is no hole of this size, or there are not enough pages for it.
        """
        size = block_size(nbytes)
        if not size:
            return 0
        offset = self.allocator.allocate(size)
        if offset is None:
            raise StoreFullError("the store's memory is too fragmented: its address space is used up")
        if offset + size > self._wet_until:
            held = self.segment.reserved
            try:
                self._reserve(offset // self._page_size, -(-(offset + size) // self._page_size), held)
            except BaseException:
                self.allocator.free(offset, size)
                self._give_back(self.segment.reserved - held)
                raise
        return offset

    def allocate_together(self, sizes: Sequence[int]) -> list[int] | None:
        """Take a block for each of these sizes, one behind the other; None where that takes more than a moment.

        Returns:
            Their offsets, as of `allocate`. Each is given back by itself.
        """
        *starts, length = accumulate(map(block_size, sizes), initial=0)
        if not length:
            return [0] * len(sizes)
        offset = self.allocator.allocate(length)
        if offset is None:
            return None
        if offset + length > self._wet_until:  # pages would have to move, for which there may be no need
            self.allocator.free(offset, length)
            return None
        return [offset + start if size else 0 for start, size in zip(starts, sizes, strict=True)]

    def free(self, offset: int, nbytes: int) -> None:
        """Give back the block for `nbytes` bytes at `offset`."""
        size = block_size(nbytes)
        if not size:
            return
        self.allocator.free(offset, size)
        if self.segment.reserved > self._most:
            self._give_back(self.segment.reserved - self._most)

    def view(self, offset: int, nbytes: int) -> memoryview:
        """A writable view of `nbytes` bytes at `offset`."""
        return self.segment.view[offset : offset + nbytes]

    def prefaulted(self, offset: int, nbytes: int) -> None:
        """A thread has touched these pages: let those go that were not reserved, or not any more."""
        pages = self._runs(_DRY, offset // self._page_size, (offset + nbytes) // self._page_size)
        for first, last in pages:
            self.segment.punch(first * self._page_size, (last - first) * self._page_size)

    def close(self) -> None:
        """Let the memory go."""
        self.segment.close()

    def _reserve(self, first: int, last: int, held: int) -> None:
        """See that none of these pages is dry; `held` bytes are reserved by now."""
        self._last_wet = max(self._last_wet, last)
        try:
            self._reserve_within(self._most, first, last, held)
        except StoreFullError:
            # The machine has nothing to spare for the slack. What is ours can still move.
            self._reserve_within(held, first, last, held)
        dry = self._pages.find(_DRY, self._wet_until // self._page_size)
        self._wet_until = dry * self._page_size if dry >= 0 else self.segment.length

    def _reserve_within(self, limit: int, first: int, last: int, held: int) -> None:
        runs = self._runs(_DRY, first, last)
        missing = sum(end - start for start, end in runs) * self._page_size
        self._give_back(self.segment.reserved + missing - limit)
        for start, end in runs:
            replacing = max(0, held - self.segment.reserved)
            self.segment.reserve(start * self._page_size, (end - start) * self._page_size, replacing=replacing)
            self._pages[start:end] = bytes([_WET]) * (end - start)

    def _give_back(self, nbytes: int) -> None:
        """Give back so many bytes in whole pages, or all that free blocks have."""
        while nbytes > 0 and (found := self.allocator.take_changed()):
            start, size = found
            first, last = -(-start // self._page_size), min((start + size) // self._page_size, self._last_wet)
            while nbytes > 0 and (end := self._pages.rfind(_WET, first, last) + 1):
                # From the end, since blocks are cut from the beginning.
                last = max(first, self._pages.rfind(_DRY, first, end) + 1, end - -(-nbytes // self._page_size))
                self._dry(last, end)
                nbytes -= (end - last) * self._page_size
            if nbytes <= 0:
                self.allocator.changed.add(start)

    def _dry(self, first: int, last: int) -> None:
        self.segment.give_back(first * self._page_size, (last - first) * self._page_size)
        self._pages[first:last] = bytes(last - first)
        self._wet_until = min(self._wet_until, first * self._page_size)

    def _runs(self, kind: int, first: int, last: int) -> list[tuple[int, int]]:
        runs = []
        start = self._pages.find(kind, first, last)
        while start >= 0:
            end = self._pages.find(1 - kind, start, last)
            end = end if end >= 0 else last
            runs.append((start, end))
            start = self._pages.find(kind, end, last)
        return runs
