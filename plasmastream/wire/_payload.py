"""The bytes of an object on their way in: out of the scratch, and past it straight into the caller's memory."""

from typing import Final

import attrs

from plasmastream._errors import LocalProtocolError
from plasmastream.wire._scratch import Scratch, flat_view

DIRECT_SIZE: Final = 64 * 1024
"""A payload of which at least so many bytes are still to come is read straight into its destination.

Below that a copy out of the scratch is cheaper than a system call of its own (style.md; dask's `get_buffer`
and pyzmq's `COPY_THRESHOLD` draw the same line).
"""


@attrs.define(eq=False)
class Payload:
    """So many bytes that arrive, and the place for them."""

    size: int = 0
    """How many, in all."""
    received: int = 0
    """How many of them have arrived."""
    wants_buffer: bool = False
    """Whether it is undecided where they go."""
    direct: bool = False
    """Whether the rest is read straight into the destination, past the scratch."""
    destination: memoryview | None = None
    """Where they go; None until that is known, and where they are dropped."""

    @property
    def missing(self) -> int:
        """Bytes that have not arrived."""
        return self.size - self.received

    def supply(self, buffer: memoryview | bytearray, scratch: Scratch | None) -> None:
        """Say where the bytes go; what has arrived of them in the scratch, if they come from there, goes there now.

        Raises:
            LocalProtocolError: the buffer is not writable, not in one piece, or not of their size.
        """
        destination = flat_view(buffer)
        if destination.readonly or destination.nbytes != self.size:
            found = f"{'read-only' if destination.readonly else 'writable'} one of {destination.nbytes}"
            destination.release()
            raise LocalProtocolError(f"a writable buffer of {self.size} bytes is needed, not a {found}")
        self.wants_buffer = False
        self.destination = destination
        if scratch is None:
            return
        self.absorb(scratch)
        # Decided once: the last part of a large payload goes direct too, though it may be small.
        self.direct = self.missing >= DIRECT_SIZE

    def discard(self) -> None:
        """Say that the bytes go nowhere, or no longer to where they went."""
        self.wants_buffer = False
        self.let_go()

    def rest(self) -> memoryview:
        """The part of the destination that is still to be filled."""
        assert self.destination is not None
        return self.destination[self.received :]

    def fill(self, nbytes: int) -> None:
        """Say that the first `nbytes` of `rest` are filled now.

        Raises:
            LocalProtocolError: there was not so much space.
        """
        if nbytes > self.missing:
            raise LocalProtocolError(f"{nbytes} bytes cannot have been read into {self.missing} bytes of space")
        self.received += nbytes
        if not self.missing:
            self.direct = False  # what follows the payload belongs in the scratch

    def absorb(self, scratch: Scratch) -> None:
        """Move bytes that have arrived in the scratch to their place, or drop them."""
        nbytes = min(self.missing, len(scratch))
        if nbytes:
            if self.destination is not None:
                self.destination[self.received : self.received + nbytes] = scratch.peek(nbytes)
            scratch.consume(nbytes)
            self.fill(nbytes)

    def let_go(self) -> None:
        """Drop the destination: afterwards nothing here keeps its memory alive."""
        self.direct = False
        if self.destination is not None:
            self.destination.release()
            self.destination = None
