"""A task beside the one that answers a request, for what takes long: it begins after a while, and so mostly never."""

from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from plasmastream.peer._event_loop import call_at


class Companion:
    """Within an `async with` block that lasts longer than `after` seconds, `work` runs beside it, and is told of this.

    It is cancelled when the block is left, but not while it has `sending`: half a frame would be the end of the
    connection. Where the block itself is cancelled, there is no such regard. The work may raise nothing.

    Args:
        nursery: of the connection, where the task lives.
        after: in seconds.
        work: what to do.
    """

    def __init__(self, nursery: trio.Nursery, after: float, work: Callable[["Companion"], Awaitable[None]]) -> None:
        self._nursery = nursery
        self._work = work
        self._over: trio.Event | None = None
        self._alarm = call_at(trio.current_time() + after, self._begin)

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alarm.cancel()
        if self._over is None:
            return
        try:
            if kind is None or issubclass(kind, Exception):
                async with self.sending:
                    self._scope.cancel()
        finally:
            self._scope.cancel()
            with trio.CancelScope(shield=True):
                await self._over.wait()

    def _begin(self) -> None:
        self.sending = trio.Lock()
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        self._nursery.start_soon(self._run)

    async def _run(self) -> None:
        assert self._over is not None
        try:
            with self._scope:
                await self._work(self)
        finally:
            self._over.set()
