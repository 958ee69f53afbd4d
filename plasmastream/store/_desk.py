"""One desk for all connections: whoever can be served at once is served there, by one task.

To wake a task for each message costs as much as to answer most of them. So connections whose clients have said nothing
yet are watched together, and one task serves those that have something to say, one after the other, without a
checkpoint for each. A connection for which something has to be waited for (room, a thread, a client that does not read)
leaves the desk and goes on in its own task; so does one that has much to say. It comes back when that is done.
"""

import select
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import attrs
import trio

from plasmastream._client import Haste

_T = TypeVar("_T")

_MOST_VISITS = 16  # and looks in vain, before other tasks have their turn


@attrs.define(eq=False)
class _Visit(Generic[_T]):
    """A connection that waits for what its client says next."""

    serve: Callable[[], _T | None]
    over: trio.Event = attrs.Factory(trio.Event)
    result: _T | None = None
    error: Exception | None = None


class Desk:
    """Where the connections of one listener are served. Leaving its `with` block closes it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._visits: dict[int, _Visit[Any]] = {}
        self._haste = Haste()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._epoll.close()

    async def attend(self, descriptor: int, serve: Callable[[], _T | None]) -> _T:
        """Have a function called at once, and then whenever there is something to read, until it returns something.

        Args:
            descriptor: where there may be something to read. It must stay open until this returns.
            serve: does what can be done without waiting, and not too much of that. What it raises is raised here.

        Returns:
            What it returned.
        """
        await trio.lowlevel.checkpoint()
        result = serve()
        if result is not None:
            return result
        visit: _Visit[_T] = _Visit(serve)
        self._visits[descriptor] = visit
        self._epoll.register(descriptor, select.EPOLLIN)
        try:
            await visit.over.wait()
        finally:
            self._epoll.unregister(descriptor)
            del self._visits[descriptor]
        if visit.error is not None:
            raise visit.error
        assert visit.result is not None
        return visit.result

    async def run(self) -> None:
        """Serve until cancelled."""
        haste, poll = self._haste, self._epoll.poll
        visits = 0
        haste.begin()
        while True:
            ready = poll(0, _MOST_VISITS)
            if ready:
                haste.end()
                for descriptor, _ in ready:
                    is_over = self._serve(self._visits[descriptor])
                    visits += _MOST_VISITS if is_over else 1  # so that its own task comes, and takes it away
                haste.begin()
            elif haste.looks_again():
                visits += 1
            else:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                visits = 0
            if visits >= _MOST_VISITS:
                await trio.lowlevel.checkpoint()
                visits = 0

    def _serve(self, visit: _Visit[Any]) -> bool:
        """Serve who goes on here, and tell whether they do not."""
        if visit.over.is_set():
            return True
        try:
            visit.result = visit.serve()
        except Exception as error:
            visit.error = error
        if visit.result is None and visit.error is None:
            return False
        visit.over.set()
        return True
