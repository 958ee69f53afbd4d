"""Spoiling bytes: what a hostile or broken program may make of a real message, decided by a seed alone.

`Mutator` owns the randomness. Its changes are those that parsers stumble over: bits, numbers of all widths (lengths,
counts, offsets of vtables), missing, repeated, foreign and inserted parts. `shrink` goes the other way: it looks for
the shortest input that still does what the long one did.
"""

import random
import struct
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

_NUMBERS: Final = (
    0, 1, 2, 3, 4, 7, 8, 20, 24, 0x7F, 0x80, 0xFF, 0x100, 0x1FF, 0x200, 0x7FFF, 0x8000, 0xFFFF, 0x1_0000, 0x10_0000,
    0x10_0001, 0x400_0000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFC, 0xFFFF_FFFF, 1 << 32, 1 << 44, (1 << 48) - 1,
    (1 << 63) - 1, 1 << 63, (1 << 64) - 9, (1 << 64) - 1,
)  # fmt: skip
_WIDTHS: Final = ((2, "<H"), (4, "<I"), (4, "<I"), (8, "<Q"))


class Mutator:
    """Changes that depend on `seed`, on the input's number, and on nothing else."""

    def __init__(self, seed: int, number: int) -> None:
        self.random = random.Random(seed << 40 | number)

    def one_of(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[int(self.random.random() * len(choices))]

    def chance(self, one_in: int) -> bool:
        """True once in so many times."""
        return self.random.random() * one_in < 1

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1, or 0."""
        return int(self.random.random() * limit)

    def spoil(self, data: bytes, others: Sequence[bytes]) -> bytes:
        """Change `data` one to four times; parts may come from `others`."""
        spoilt = bytearray(data)
        for _ in range(1 + self.below(4)):
            self.one_of(_CHANGES)(self, spoilt, others)
        return bytes(spoilt)

    def _flip(self, data: bytearray, others: Sequence[bytes]) -> None:
        if data:
            data[self.below(len(data))] ^= 1 << self.below(8)

    def _overwrite(self, data: bytearray, others: Sequence[bytes]) -> None:
        if data:
            data[self.below(len(data))] = self.below(256)

    def _number(self, data: bytearray, others: Sequence[bytes]) -> None:
        """Put a number where one may stand: they are aligned."""
        width, layout = self.one_of(_WIDTHS)
        at = self.below(len(data) // width) * width
        if at + width <= len(data):
            struct.pack_into(layout, data, at, self.one_of(_NUMBERS) & ((1 << 8 * width) - 1))

    def _nudge(self, data: bytearray, others: Sequence[bytes]) -> None:
        """Move a number a little, which leads an offset beside its goal and a count past its end."""
        width, layout = self.one_of(_WIDTHS)
        at = self.below(len(data) // width) * width
        if at + width <= len(data):
            (value,) = struct.unpack_from(layout, data, at)
            moved = value + self.one_of((-8, -4, -2, -1, 1, 2, 4, 8, len(data)))
            struct.pack_into(layout, data, at, moved & ((1 << 8 * width) - 1))

    def _cut(self, data: bytearray, others: Sequence[bytes]) -> None:
        del data[self.below(len(data) + 1) :]

    def _drop(self, data: bytearray, others: Sequence[bytes]) -> None:
        at = self.below(len(data))
        del data[at : at + self.one_of((1, 2, 4, 8, 24))]

    def _insert(self, data: bytearray, others: Sequence[bytes]) -> None:
        at = self.below(len(data) + 1)
        data[at:at] = self.random.randbytes(self.one_of((1, 2, 4, 8, 24, 64)))

    def _repeat(self, data: bytearray, others: Sequence[bytes]) -> None:
        at = self.below(len(data))
        part = data[at : at + self.one_of((1, 4, 8, 20, 24, 200))]
        data[at:at] = part * self.one_of((1, 2, 16))

    def _splice(self, data: bytearray, others: Sequence[bytes]) -> None:
        other = self.one_of(others)
        data[self.below(len(data) + 1) :] = other[self.below(len(other) + 1) :]

    def _transplant(self, data: bytearray, others: Sequence[bytes]) -> None:
        """Put a part of another message in place of a part of this one."""
        other = self.one_of(others)
        start, nbytes = self.below(len(other)), self.one_of((2, 4, 8, 20, 64))
        at = self.below(len(data) + 1)
        data[at : at + nbytes] = other[start : start + nbytes]


_CHANGES: Final = (
    Mutator._flip, Mutator._flip, Mutator._overwrite, Mutator._number, Mutator._number, Mutator._number, Mutator._nudge,
    Mutator._nudge, Mutator._cut, Mutator._drop, Mutator._insert, Mutator._repeat, Mutator._splice, Mutator._transplant,
)  # fmt: skip


def shrink(items: Sequence[T], still_fails: Callable[[Sequence[T]], bool], attempts: int = 2000) -> Sequence[T]:
    """Leave out what is not needed for `still_fails`, in ever smaller parts: bytes, or anything in a sequence."""
    size = len(items) // 2
    while size and attempts:
        at = 0
        while at < len(items) and attempts:
            shorter = [*items[:at], *items[at + size :]]
            attempts -= 1
            if still_fails(shorter):
                items = shorter
            else:
                at += size
        size //= 2
    return items
