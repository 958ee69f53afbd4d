"""Where in the segment a block goes: offsets and sizes only, no memory, no I/O.

Free blocks lie in bins by size, sixteen to each power of two, and a bitmap says which bins hold any, so that
neither allocating nor freeing depends on how many blocks there are (two-level segregated fit: Masmano, Ripoll,
Crespo, Real, "TLSF: a new dynamic memory allocator for real-time systems", ECRTS 2004). Two dictionaries find
the free neighbours of a freed block by its edges, so that free space coalesces at once.

Within a bin the block freed last is handed out first: its pages are the warmest. `changed` names the free blocks that
`take_changed` has not handed out yet as they are now, so that whoever cares about free space need not look at all of
it again and again.
"""

ALIGNMENT = 64
"""Blocks start at multiples of this many bytes: a cache line, and what Arrow buffers want."""

_UNIT_BITS = 6
_FIRST_LEVEL_BITS = 4
_SCAN_LIMIT = 16


def block_size(nbytes: int) -> int:
    """Bytes that a block for `nbytes` takes: the next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _bin_of(size: int) -> int:
    units = size >> _UNIT_BITS
    exponent = units.bit_length() - 1 - _FIRST_LEVEL_BITS
    if exponent <= 0:
        return units  # below 32 units a bin holds one exact size
    return (exponent << _FIRST_LEVEL_BITS) + (units >> exponent)


class Allocator:
    """Free space between 0 and `top`, in bytes; `grow` and `take` move `top`."""

    __slots__ = ("_bins", "_bitmap", "_end_to_start", "_start_to_size", "changed", "free_bytes", "top")

    def __init__(self) -> None:
        self.top = 0
        self.free_bytes = 0
        self.changed: set[int] = set()
        self._bins: dict[int, dict[int, int]] = {}
        self._bitmap = 0
        self._start_to_size: dict[int, int] = {}
        self._end_to_start: dict[int, int] = {}

    @property
    def largest_free(self) -> int:
        """Size of the largest free block, in bytes."""
        if not self._bitmap:
            return 0
        return max(self._bins[self._bitmap.bit_length() - 1].values())

    @property
    def tail(self) -> int:
        """Size of the free block that ends at `top`, in bytes; 0 when the last block is in use."""
        start = self._end_to_start.get(self.top)
        return 0 if start is None else self.top - start

    def allocate(self, size: int) -> int | None:
        """Take a block of `size` bytes, a positive multiple of `ALIGNMENT`.

        Returns:
            Its offset, or None where no free block is large enough.
        """
        found = self._find(size)
        if found is None:
            return None
        start, found_size = found
        self._remove(start, found_size)
        if found_size > size:
            self._insert(start + size, found_size - size)
        return start

    def free(self, start: int, size: int) -> None:
        """Give back the block of `size` bytes at `start`, both exactly as allocated."""
        before = self._end_to_start.get(start)
        if before is not None:
            self._remove(before, start - before)
            size += start - before
            start = before
        after = self._start_to_size.get(start + size)
        if after is not None:
            self._remove(start + size, after)
            size += after
        self._insert(start, size)

    def grow(self, size: int) -> None:
        """Add `size` bytes of free space at the top."""
        start = self.top
        self.top += size
        self.free(start, size)

    def take(self, size: int) -> None:
        """Add `size` bytes at the top that are in use from the start."""
        self.top += size

    def take_changed(self) -> tuple[int, int] | None:
        """One of the free blocks that `changed` names, which is then no longer among them: its start and size."""
        if not self.changed:
            return None
        start = self.changed.pop()
        return start, self._start_to_size[start]

    def _find(self, size: int) -> tuple[int, int] | None:
        own = _bin_of(size)
        candidates = self._bins.get(own)
        if candidates:
            for looked_at, (start, found) in enumerate(reversed(candidates.items())):
                if found >= size:
                    return start, found
                if looked_at == _SCAN_LIMIT:
                    break
        larger = self._bitmap >> (own + 1)
        if larger:
            start, found = next(reversed(self._bins[own + (larger & -larger).bit_length()].items()))
            return start, found
        if candidates:  # rather slow than refuse what would fit
            return next(((start, found) for start, found in candidates.items() if found >= size), None)
        return None

    def _insert(self, start: int, size: int) -> None:
        bin_ = _bin_of(size)
        blocks = self._bins.get(bin_)
        if blocks is None:
            blocks = self._bins[bin_] = {}
        blocks[start] = size
        self._bitmap |= 1 << bin_
        self._start_to_size[start] = size
        self._end_to_start[start + size] = start
        self.free_bytes += size
        self.changed.add(start)

    def _remove(self, start: int, size: int) -> None:
        bin_ = _bin_of(size)
        blocks = self._bins[bin_]
        del blocks[start]
        if not blocks:
            self._bitmap &= ~(1 << bin_)
        del self._start_to_size[start]
        del self._end_to_start[start + size]
        self.free_bytes -= size
        self.changed.discard(start)
