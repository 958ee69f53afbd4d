"""One direction of a proxied connection: reads from one socket, and writes to the other what the faults leave of it.

A task reads and a task writes, so that a delayed byte does not keep the next one from being read; between them are a
few chunks at most. How the connection as a whole ends is not decided here: `end` is told.
"""

import fcntl
import heapq
import math
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeAlias

import attrs
import trio
from trio.socket import SocketType

from plasmastream.testing._faults import (
    Cut,
    Delay,
    Direction,
    Fault,
    Flip,
    HalfClose,
    Noise,
    Stall,
    Throttle,
    Trickle,
)

_CHUNK = 64 << 10
_CHUNKS_BETWEEN = 2

_SIOCOUTQNSD: Final = 0x894B  # linux/sockios.h: how many bytes the kernel could not send yet
_CUT_PATIENCE = 1.0

_Arrival: TypeAlias = tuple[float, bytearray]
"""When it was read, in Trio's time, and the bytes; none for the end."""


@attrs.frozen
class Triggered:
    """A fault that has happened; of one that goes on, its beginning."""

    fault: Fault
    direction: Direction
    at: int
    """How many bytes of this direction had been passed on; for flips, the byte that was changed."""
    time: float
    """When, by Trio's clock."""


class Changes:
    """Lets tasks wait for what others bring about."""

    def __init__(self) -> None:
        self._lot = trio.lowlevel.ParkingLot()

    def tell(self) -> None:
        """Something has changed."""
        self._lot.unpark_all()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds."""
        await trio.lowlevel.checkpoint()
        while not condition():
            await self._lot.park()


class Passage:
    """One direction of a connection, and what has happened to it.

    Args:
        direction: which one.
        faults: what goes wrong.
        triggered: where it is written down.
        changes: told then.
        log_limit: how many of the bytes to keep.
    """

    def __init__(
        self,
        direction: Direction,
        faults: Sequence[Fault],
        triggered: list[Triggered],
        changes: Changes,
        log_limit: int,
    ) -> None:
        self.direction = direction
        self.received = 0
        """Bytes that the sender has sent and the proxy has read."""
        self.passed = 0
        """Bytes that were passed on."""
        self.log = bytearray()
        """The first of the bytes that were passed on, as many as were asked for."""
        self._log_limit = log_limit
        self._triggered = triggered
        self._changes = changes
        self._released = trio.Event()
        self._seen: set[int] = set()
        # Sorting is stable: faults at one position stay in the order of their list.
        stops = [fault for fault in faults if isinstance(fault, Cut | HalfClose | Stall)]
        self._stops = sorted(stops, key=lambda stop: stop.at)
        self._delays = [fault for fault in faults if isinstance(fault, Delay)]
        self._paces = [fault for fault in faults if isinstance(fault, Throttle | Trickle)]
        self._due = -math.inf
        self._flips = heapq.merge(*[each_flip(fault) for fault in faults if isinstance(fault, Flip | Noise)])
        self._next_flip = next(self._flips, None)

    def release(self) -> None:
        """Let this direction go on if it stalls now."""
        self._released.set()
        self._released = trio.Event()

    async def run(self, source: SocketType, destination: SocketType, end: Callable[[bool], None]) -> None:
        """Pass on all bytes, and then their end.

        Args:
            source: where bytes come from.
            destination: where they go.
            end: called when the connection has to end, with whether by a reset.
        """
        send, receive = trio.open_memory_channel[_Arrival](_CHUNKS_BETWEEN)
        async with trio.open_nursery() as nursery, receive:
            nursery.start_soon(self._read, source, send, end)
            with _broken_ends(end):
                await self._write(receive, destination, end)

    async def _read(
        self, source: SocketType, arrivals: trio.MemorySendChannel[_Arrival], end: Callable[[bool], None]
    ) -> None:
        with _broken_ends(end):
            is_over = False
            while not is_over:
                chunk = bytearray(await source.recv(_CHUNK))
                is_over = not chunk
                self.received += len(chunk)
                await arrivals.send((trio.current_time(), chunk))

    async def _write(
        self,
        arrivals: trio.MemoryReceiveChannel[_Arrival],
        destination: SocketType,
        end: Callable[[bool], None],
    ) -> None:
        is_open = await self._meet_stops(destination, end)
        while True:
            arrived, chunk = await arrivals.receive()
            if is_open:
                await self._delay(arrived)
                self._flip(chunk)
            with memoryview(chunk) as rest:
                sent = 0
                while is_open and sent < len(rest):
                    sent += await self._write_some(destination, rest[sent:])
                    is_open = await self._meet_stops(destination, end)
            if not chunk:
                break
        if is_open:
            destination.shutdown(socket.SHUT_WR)

    async def _delay(self, arrived: float) -> None:
        for fault in self._delays:
            self._happened(fault, self.passed)
        await trio.sleep_until(arrived + sum(fault.seconds for fault in self._delays))

    async def _write_some(self, destination: SocketType, view: memoryview) -> int:
        """Send as much as pace and next fault allow."""
        size = len(view)
        if self._stops:
            size = min(size, self._stops[0].at - self.passed)
        if self._paces:
            for fault in self._paces:
                self._happened(fault, self.passed)
            size = min(size, *[pace.portion for pace in self._paces])
            await trio.sleep_until(self._due)
        size = await destination.send(view[:size])
        if self._paces:
            # A portion takes its time after it was sent: the first one goes at once.
            self._due = trio.current_time() + size * max(pace.seconds_per_byte for pace in self._paces)
        self.log += view[: min(size, self._log_limit - len(self.log))]
        self.passed += size
        self._changes.tell()
        return size

    async def _meet_stops(self, destination: SocketType, end: Callable[[bool], None]) -> bool:
        """Carry out the faults at this position; whether anything more is to be passed on."""
        while self._stops and self._stops[0].at <= self.passed:
            stop = self._stops.pop(0)
            self._happened(stop, self.passed)
            match stop:
                case Stall():
                    with trio.move_on_after(stop.seconds):
                        await self._released.wait()
                case HalfClose():
                    destination.shutdown(socket.SHUT_WR)
                    return False
                case Cut():
                    await _all_sent(destination)
                    end(stop.reset)
                    return False
        return True

    def _flip(self, chunk: bytearray) -> None:
        """Change the bits of a chunk, of which nothing was passed on yet."""
        while self._next_flip is not None and self._next_flip[0] < self.passed + len(chunk):
            at, bit, fault = self._next_flip
            chunk[at - self.passed] ^= 1 << bit
            self._happened(fault, at)
            self._next_flip = next(self._flips, None)

    def _happened(self, fault: Fault, at: int) -> None:
        if id(fault) not in self._seen:
            self._seen.add(id(fault))
            self._triggered.append(Triggered(fault, self.direction, at, trio.current_time()))
            self._changes.tell()

    def __repr__(self) -> str:
        return f"<Passage {self.direction.value}, {self.received:,} bytes received, {self.passed:,} passed on>"


def each_flip(fault: Flip | Noise) -> Iterator[tuple[int, int, Fault]]:
    """Which bits a fault changes: (byte, bit, the fault), in order."""
    for at, bit in fault.flips():
        yield at, bit, fault


async def _all_sent(sock: SocketType) -> None:
    """Wait, for a moment, until the receiver has had room for everything: a reset would throw away what is queued."""
    with trio.move_on_after(_CUT_PATIENCE):
        while any(fcntl.ioctl(sock.fileno(), _SIOCOUTQNSD, bytes(4))):  # noqa: ASYNC110 - nobody tells
            await trio.sleep(_CUT_PATIENCE / 1000)


@contextmanager
def _broken_ends(end: Callable[[bool], None]) -> Iterator[None]:
    """A connection that one side broke is broken for the other, too."""
    try:
        yield
    except OSError:
        end(True)
