"""How many bytes may be under way at once."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


class Budget:
    """So many bytes, spent and given back in the order in which they are asked for.

    What alone is more than all of them has its turn when nothing else is under way.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._waiting: deque[tuple[int, anyio.Event]] = deque()
        self.spent = 0
        """Bytes under way."""

    @asynccontextmanager
    async def spend(self, nbytes: int) -> AsyncIterator[None]:
        """Have `nbytes` under way within the block; wait for them first."""
        turn = anyio.Event()
        self._waiting.append((nbytes, turn))
        self._admit()
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self._give_back(nbytes)
            else:
                self._waiting.remove((nbytes, turn))
                self._admit()
            raise
        try:
            yield
        finally:
            self._give_back(nbytes)

    def _give_back(self, nbytes: int) -> None:
        self.spent -= nbytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            nbytes, turn = self._waiting[0]
            if self.spent and self.spent + nbytes > self._nbytes:
                return
            self._waiting.popleft()
            self.spent += nbytes
            turn.set()
