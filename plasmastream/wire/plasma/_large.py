"""The body of a frame that does not fit into scratch: memory of its own, to be read into."""

from typing import Final

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream.wire.plasma._messages import MessageType

_FIRST_SIZE: Final = 1 << 20


class LargeBody:
    """A body of `size` bytes, as far as it is there. Only bytes that have arrived ask for more memory.

    Raises:
        RemoteProtocolError: there is no memory for it.
    """

    __slots__ = ("_filled", "memory", "size", "type")

    def __init__(self, message_type: MessageType, size: int, begun: bytes) -> None:
        self.type = message_type
        self.size = size
        self.memory = self._reserve(_FIRST_SIZE)
        self.memory[: len(begun)] = begun
        self._filled = len(begun)

    @property
    def is_complete(self) -> bool:
        """Whether all of it is there: then it is what `memory` holds."""
        return self._filled == self.size

    def tail(self) -> memoryview:
        """A writable view of what is not filled yet."""
        return memoryview(self.memory)[self._filled :]

    def advance(self, nbytes: int) -> None:
        """Say that the first `nbytes` of the last `tail` are now filled.

        Raises:
            LocalProtocolError: more than the tail could hold.
        """
        if not 0 <= nbytes <= len(self.memory) - self._filled:
            raise LocalProtocolError(f"{nbytes} bytes cannot have been read into the space that was offered")
        self._filled += nbytes

    def make_room(self) -> None:
        """Where the memory is full, double it, up to the size; by a copy, since somebody may still hold a view of it.

        Raises:
            RemoteProtocolError: there is no memory for it.
        """
        if self._filled == len(self.memory):
            grown = self._reserve(2 * self._filled)
            grown[: self._filled] = self.memory
            self.memory = grown

    def _reserve(self, nbytes: int) -> bytearray:
        try:
            return bytearray(min(nbytes, self.size))
        except MemoryError:
            raise RemoteProtocolError(f"there is no memory for a body of {self.size} bytes") from None
