"""What connections need of the event loop, Trio's or asyncio's: the time, and waits for sockets that have an end.

On Trio an end is an alarm, not a cancel scope: most waits are over long before theirs, and an alarm that does not ring
costs a place in a set. One task of each Trio run sleeps until the first of them.

Which loop runs is asked for each wait, as connections may be kept from one run to the next.
"""

import socket
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Protocol, TypeAlias

import anyio
import attrs
import trio
from trio.lowlevel import RunVar, in_trio_task

_Wait: TypeAlias = Callable[[socket.socket], Awaitable[None]]


class EventLoop(Protocol):
    """The event loop that runs here and now."""

    async def wait_readable(self, sock: socket.socket, deadline: float) -> bool:
        """Wait until a socket can be read from; False if the time is over, or the socket was closed.

        It may return early, where the time of another wait for the same socket is over.
        """
        ...

    async def wait_writable(self, sock: socket.socket, deadline: float) -> bool:
        """The same, until it can be written to."""
        ...


def now() -> float:
    """The time, in seconds, as `anyio.current_time` has it."""
    return trio.current_time() if in_trio_task() else anyio.current_time()


def running_loop() -> EventLoop:
    """The event loop that runs here and now."""
    return _of_trio() if in_trio_task() else _ASYNCIO


def call_at(when: float, callback: Callable[[], object]) -> "Alarm":
    """Have something called at a time, on Trio. It may not raise, nor wait. Nothing is called when the run is over."""
    return _of_trio().call_at(when, callback)


class _Asyncio:
    async def wait_readable(self, sock: socket.socket, deadline: float) -> bool:
        return await _wait_in_scope(anyio.wait_readable, sock, deadline)

    async def wait_writable(self, sock: socket.socket, deadline: float) -> bool:
        return await _wait_in_scope(anyio.wait_writable, sock, deadline)


_ASYNCIO = _Asyncio()


async def _wait_in_scope(wait: _Wait, sock: socket.socket, deadline: float) -> bool:
    with anyio.CancelScope(deadline=deadline):
        try:
            await wait(sock)
            return True
        except (anyio.ClosedResourceError, trio.ClosedResourceError):
            return False
    return False


class _Trio:
    """A Trio run, and the alarms of it."""

    def __init__(self) -> None:
        self.alarms: set[Alarm] = set()
        self._next = -inf  # when the task looks next; it begins by looking
        self._sleep = trio.CancelScope()
        self._has_task = True
        try:
            trio.lowlevel.spawn_system_task(self._ring)
        except RuntimeError:  # the run is being ended: generators are left to finalize, which may have connections
            self._has_task = False

    async def wait_readable(self, sock: socket.socket, deadline: float) -> bool:
        return await self._wait(trio.lowlevel.wait_readable, sock, deadline)

    async def wait_writable(self, sock: socket.socket, deadline: float) -> bool:
        return await self._wait(trio.lowlevel.wait_writable, sock, deadline)

    async def _wait(self, wait: _Wait, sock: socket.socket, deadline: float) -> bool:
        if not self._has_task:
            return await _wait_in_scope(wait, sock, deadline)
        alarm = self.call_at(deadline, partial(_wake, sock))
        try:
            await wait(sock)
        except trio.ClosedResourceError:
            return sock.fileno() >= 0 and trio.current_time() < deadline
        finally:
            alarm.cancel()
            if not self.alarms and self._next == deadline < inf:
                self.look_at(inf)  # a clock that jumps to what is due next, as tests have it, is to find nothing
        return True

    def call_at(self, when: float, callback: Callable[[], object]) -> "Alarm":
        alarm = Alarm(when, callback, self)
        self.alarms.add(alarm)
        if when < self._next:
            self.look_at(when)
        return alarm

    def look_at(self, when: float) -> None:
        """Have the task look next at this time."""
        self._next = self._sleep.deadline = when

    async def _ring(self) -> None:
        try:
            while True:
                time = trio.current_time()
                for alarm in [alarm for alarm in self.alarms if alarm.when <= time]:
                    alarm.ring()
                # One that is cancelled before may wake the task in vain, once: to look for the next, or for none, costs
                # more.
                self._next = min((alarm.when for alarm in self.alarms), default=inf)
                with trio.CancelScope(deadline=self._next) as self._sleep:
                    await trio.sleep_forever()
        finally:
            self._has_task = False
            for alarm in list(self.alarms):  # who still waits does it by a scope from now on
                alarm.ring()


_the_trio_run: RunVar[_Trio | None] = RunVar("alarms", None)


def _of_trio() -> _Trio:
    found = _the_trio_run.get()
    if found is None:
        found = _Trio()
        _the_trio_run.set(found)
    return found


def _wake(sock: socket.socket) -> None:
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)


@attrs.frozen(eq=False)
class Alarm:
    """A call that is to come."""

    when: float
    _callback: Callable[[], object]
    _run: _Trio

    def cancel(self) -> None:
        """See that it does not. May be called again, and after the call."""
        self._run.alarms.discard(self)

    def ring(self) -> None:
        """Make the call now."""
        self.cancel()
        self._callback()
