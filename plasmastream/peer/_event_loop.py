"""What connections need of the event loop, Trio's or asyncio's, with the question which one it is asked once for each.

A deadline is an alarm here, not a cancel scope: most waits end long before theirs, and an alarm that does not ring
costs a place in a set. One task for all of a Trio run sleeps until the first of them; asyncio has the like.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Protocol

import anyio
import attrs
import trio

_CLOSED = (anyio.ClosedResourceError, trio.ClosedResourceError)


class Alarm(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """See that it does not. May be called again, and after the call."""
        ...


@attrs.frozen
class EventLoop:
    """The running event loop, to be used while it runs, and in its thread."""

    now: Callable[[], float]
    """The time, in seconds, as `anyio.current_time` has it."""
    call_at: Callable[[float, Callable[[], object]], Alarm]
    """Have something called at a time. It may not raise, nor wait."""
    wait_readable: Callable[[socket.socket], Awaitable[None]]
    wait_writable: Callable[[socket.socket], Awaitable[None]]
    notify_closing: Callable[[socket.socket], None]

    async def wait(
        self, wait: Callable[[socket.socket], Awaitable[None]], sock: socket.socket, deadline: float
    ) -> bool:
        """Wait for a socket, by `wait_readable` or `wait_writable`; False if its time is over, or it was closed.

        It may return early, where the time of another wait for the same socket is over.
        """
        alarm = self.call_at(deadline, partial(self._wake, sock))
        try:
            await wait(sock)
        except _CLOSED:
            return sock.fileno() >= 0 and self.now() < deadline
        finally:
            alarm.cancel()
        return True

    def _wake(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self.notify_closing(sock)


def running_loop() -> EventLoop:
    """The event loop that runs here and now."""
    if not trio.lowlevel.in_trio_run():
        loop = asyncio.get_running_loop()
        return EventLoop(loop.time, loop.call_at, anyio.wait_readable, anyio.wait_writable, anyio.notify_closing)
    found = _of_this_run.get()
    if found is None:
        found = EventLoop(
            trio.lowlevel.current_clock().current_time,
            _Alarms().call_at,
            trio.lowlevel.wait_readable,
            trio.lowlevel.wait_writable,
            trio.lowlevel.notify_closing,
        )
        _of_this_run.set(found)
    return found


_of_this_run: trio.lowlevel.RunVar[EventLoop | None] = trio.lowlevel.RunVar("event loop", None)


class _Alarms:
    """The alarms of a Trio run."""

    def __init__(self) -> None:
        self._set: set[_TrioAlarm] = set()
        self._next = -inf  # when the task looks next; it begins by looking
        self._sleep = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._run)

    def call_at(self, when: float, callback: Callable[[], object]) -> "_TrioAlarm":
        alarm = _TrioAlarm(when, callback, self._set)
        self._set.add(alarm)
        if when < self._next:
            self._next = self._sleep.deadline = when
        return alarm

    async def _run(self) -> None:
        while True:
            now = trio.current_time()
            for alarm in [alarm for alarm in self._set if alarm.when <= now]:
                alarm.cancel()
                alarm.callback()
            # An alarm that is cancelled before may wake the task in vain, once: to tell it each time would cost more.
            self._next = min((alarm.when for alarm in self._set), default=inf)
            with trio.CancelScope(deadline=self._next) as self._sleep:
                await trio.sleep_forever()


@attrs.frozen(eq=False)
class _TrioAlarm:
    when: float
    callback: Callable[[], object]
    _all: "set[_TrioAlarm]"

    def cancel(self) -> None:
        self._all.discard(self)
