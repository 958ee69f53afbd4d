"""How much one peer may have under way at a server: some requests work, some wait in order, the rest is refused."""

from collections import deque
from types import TracebackType

import attrs
import trio

from plasmastream._errors import PeerError


class BusyError(PeerError):
    """The peer has too much under way here already. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Admission:
    """Admits requests, a bounded number of each peer's at once.

    Args:
        at_work: requests of one peer that may work at once.
        waiting: how many more may wait.
        patience: for how long, in seconds.
    """

    def __init__(self, at_work: int, waiting: int, patience: float) -> None:
        self._at_work = at_work
        self._most_waiting = waiting
        self._patience = patience
        self._working: dict[str, int] = {}
        self._waiting: dict[str, deque[trio.Event]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nobody works or waits."""
        return not self._working and not self._waiting

    def enter_at_once(self, peer: str) -> bool:
        """Take the turn, for `leave` to give back; False where a request of a peer would have to wait."""
        working = self._working.get(peer, 0)
        if working >= self._at_work:
            return False
        self._working[peer] = working + 1
        return True

    def admit(self, peer: str) -> "_Place":
        """Work on a request of a peer within an `async with` block; wait for the turn first.

        Raises:
            BusyError: it did not come in time, or too many wait.
        """
        return _Place(self, peer)

    async def enter(self, peer: str) -> None:
        """Wait for the turn, and take it: see `admit`."""
        if not self.enter_at_once(peer):
            await self._wait(peer)

    async def _wait(self, peer: str) -> None:
        queue = self._waiting.setdefault(peer, deque())
        turn = trio.Event()
        if len(queue) < self._most_waiting:
            queue.append(turn)
            try:
                with trio.move_on_after(self._patience):
                    await turn.wait()
            except BaseException:
                if turn.is_set():
                    self.leave(peer)
                raise
            finally:
                if not turn.is_set():
                    queue.remove(turn)
                if not self._waiting.get(peer, True):  # which another queue may be by now
                    del self._waiting[peer]
        if not turn.is_set():
            raise BusyError(f"{self._at_work} requests of {peer} are at work, and others wait", 1.0)

    def leave(self, peer: str) -> None:
        """Let the next one have the turn."""
        queue = self._waiting.get(peer)
        if queue:
            queue.popleft().set()  # whose place this is from now on
            return
        self._working[peer] -= 1
        if not self._working[peer]:
            del self._working[peer]


@attrs.frozen
class _Place:
    """See `Admission.admit`."""

    admission: Admission
    peer: str

    async def __aenter__(self) -> None:
        await self.admission.enter(self.peer)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.admission.leave(self.peer)
