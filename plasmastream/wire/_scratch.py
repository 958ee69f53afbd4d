"""A fixed receive buffer with two cursors: bytes enter at one, leave at the other.

It is never resized, so views of it stay valid memory; a view is meant to be used before the next call. Beside it
`flat_view`, which makes one shape of all the buffers that callers bring.
"""

from struct import Struct
from typing import Any

from plasmastream._errors import LocalProtocolError


def flat_view(buffer: bytes | bytearray | memoryview) -> memoryview:
    """A view of the bytes of any buffer, whatever the shape and the type of its items.

    Raises:
        LocalProtocolError: it is no buffer, or has been released, or is not in one piece.
    """
    try:
        # The outer view is released even on errors, whose tracebacks would keep the caller's memory alive.
        with memoryview(buffer) as view:
            if not view.nbytes:  # Python 3.11 does not cast empty views
                return memoryview(bytearray())
            return view.cast("B")
    except (TypeError, ValueError) as error:
        raise LocalProtocolError(f"not a usable buffer: {error}") from None


class Scratch:
    """`capacity` bytes, of which those between the cursors are waiting to be parsed."""

    __slots__ = ("_end", "_start", "_view", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._view = memoryview(bytearray(capacity))
        self._start = 0
        self._end = 0

    def __len__(self) -> int:
        """Number of bytes that wait to be parsed."""
        return self._end - self._start

    @property
    def room(self) -> int:
        """Number of bytes that still fit."""
        return self.capacity - len(self)

    def tail(self) -> memoryview:
        """A writable view of the free space behind the waiting bytes: empty only when `room` is 0.

        Moves the waiting bytes to the front when less than half of the capacity is left behind them, so that
        reads stay large and the move is paid for by the bytes parsed since the last one.
        """
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start and self.capacity - self._end < self.capacity // 2:
            waiting = self._end - self._start
            self._view[:waiting] = self._view[self._start : self._end]
            self._start, self._end = 0, waiting
        return self._view[self._end :]

    def advance(self, nbytes: int) -> None:
        """Say that the first `nbytes` of the last `tail` are now filled.

        Raises:
            LocalProtocolError: more than the tail could hold.
        """
        if not 0 <= nbytes <= self.capacity - self._end:
            raise LocalProtocolError(f"{nbytes} bytes cannot have been read into the space that was offered")
        self._end += nbytes

    def peek(self, nbytes: int, offset: int = 0) -> memoryview:
        """A view of `nbytes` waiting bytes, from `offset` on; the caller has checked that so many wait."""
        start = self._start + offset
        return self._view[start : start + nbytes]

    def unpack(self, layout: Struct, offset: int = 0) -> tuple[Any, ...]:
        """The values of `layout` in the waiting bytes, from `offset` on; the caller has checked that they wait."""
        return layout.unpack_from(self._view, self._start + offset)

    def unpack_whole(self, layout: Struct) -> tuple[Any, ...] | None:
        """The values of `layout` in the first waiting bytes; None where fewer wait."""
        if self._start + layout.size > self._end:
            return None
        return layout.unpack_from(self._view, self._start)

    def consume(self, nbytes: int) -> None:
        """Let go of the first `nbytes` waiting bytes."""
        self._start += nbytes

    def take_whole(self, nbytes: int, offset: int = 0) -> bytes | None:
        """As `take`; None, and nothing, where fewer wait."""
        start = self._start + offset
        end = start + nbytes
        if end > self._end:
            return None
        self._start = end
        return bytes(self._view[start:end])

    def take(self, nbytes: int, offset: int = 0) -> bytes:
        """Copy out `nbytes` waiting bytes, from `offset` on, and let go of all up to their end."""
        start = self._start + offset
        self._start = start + nbytes
        return bytes(self._view[start : self._start])
