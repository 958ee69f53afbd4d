"""`Pipe`: one direction of a connection in memory, and what the faults make of it.

No task moves the bytes. Each piece of them knows when it is due at the other end, and so does the end of the stream:
delays, stalls and paces only put that off, and a cut is an end that comes earlier than what is still under way. Who
reads or writes asks what there is now, and for how long that stays so.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence

import trio

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
from plasmastream.testing._passage import Triggered, each_flip


class Pipe:
    """Bytes on their way in one direction. All times are Trio's.

    Args:
        direction: which one.
        room: bytes that may be under way.
        faults: what goes wrong.
        triggered: where it is written down.
        cut: called when the connection is to be cut, with when, and whether by a reset.
    """

    def __init__(
        self,
        direction: Direction,
        room: int,
        faults: Sequence[Fault],
        triggered: list[Triggered],
        cut: Callable[[float, bool], None],
    ) -> None:
        self.direction = direction
        self.room = room
        self.passed = 0
        """Bytes that were taken from the sender, but for what comes after the end."""
        self.nbytes = 0
        """Bytes under way."""
        self.error: OSError | None = None
        """What the reader gets in the end, instead of a clean one."""
        self.ends_at = math.inf
        """When the reader finds the end. What is under way then is lost."""
        self.left_at = math.inf
        """When the reader learns that the other end is gone altogether: its own sends fail."""
        self.lot = trio.lowlevel.ParkingLot()
        """Where both wait for each other."""
        self._pieces: deque[tuple[float, bytearray]] = deque()
        self._triggered = triggered
        self._cut = cut
        # Sorting is stable: faults at one position stay in the order of their list.
        stops = [fault for fault in faults if isinstance(fault, Cut | HalfClose | Stall)]
        self._stops = deque(sorted(stops, key=lambda stop: stop.at))
        self._paces = [fault for fault in faults if isinstance(fault, Throttle | Trickle)]
        self._delays = [fault for fault in faults if isinstance(fault, Delay)]
        self._delay = sum(fault.seconds for fault in self._delays)
        self._flips = heapq.merge(*[each_flip(fault) for fault in faults if isinstance(fault, Flip | Noise)])
        self._next_flip = next(self._flips, None)
        self._not_before = -math.inf
        self._drops = False

    def begin(self) -> None:
        """Let happen what is to happen as soon as the connection stands."""
        if self._stops:
            self._meet_stops(trio.current_time())

    def put(self, octets: memoryview, now: float) -> int:
        """Take as much as there is room for; how many bytes that was."""
        size = min(len(octets), self.room - self.nbytes)
        left = bytearray(octets[:size])
        if self._next_flip is not None:
            self._flip(left, now)
        while left and not self._drops:
            steps = [pace.portion for pace in self._paces]
            if self._stops:
                steps.append(self._stops[0].at - self.passed)
            step = min([len(left), *steps])
            due = self._due(now)
            self._happened(now, *self._delays, *self._paces)
            self._pieces.append((due, left[:step]))
            del left[:step]
            self.passed += step
            self.nbytes += step
            if self._paces:
                self._not_before = due + step * max(pace.seconds_per_byte for pace in self._paces)
            self._meet_stops(due)
        self.lot.unpark_all()
        return size

    def take(self, buffer: memoryview, now: float) -> int:
        """Move what has arrived into a buffer, as far as it has room; how many bytes that was."""
        taken = 0
        while taken < len(buffer) and self.has_arrived(now):
            due, piece = self._pieces.popleft()
            step = min(len(piece), len(buffer) - taken)
            buffer[taken : taken + step] = piece[:step]
            taken += step
            if step < len(piece):
                self._pieces.appendleft((due, piece[step:]))
        self.nbytes -= taken
        self.lot.unpark_all()
        return taken

    def has_arrived(self, now: float) -> bool:
        """Whether there is something to read, other than the end."""
        return bool(self._pieces) and self._pieces[0][0] <= min(now, self.ends_at)

    def next_arrival(self) -> float:
        """When there is something to read, or the end, if nothing more is sent."""
        return min(self._pieces[0][0], self.ends_at) if self._pieces else self.ends_at

    def end(self, error: OSError | None = None, *, leaves: bool) -> None:
        """The sender sends no more; if it leaves, it takes nothing more either."""
        self.end_at(self._due(trio.current_time()), error, leaves=leaves)

    def end_at(self, due: float, error: OSError | None = None, *, leaves: bool) -> None:
        """Let the stream end at a time, unless it does so before."""
        if due < self.ends_at:
            self.ends_at, self.error = due, error
        if leaves:
            self.left_at = min(self.left_at, due)
        self.lot.unpark_all()

    def hold(self, until: float) -> None:
        """Nothing that is sent from now on arrives before a time, not even the end."""
        self._not_before = max(self._not_before, until)

    def forget(self) -> None:
        """Nobody will read what is under way."""
        self._pieces.clear()
        self.nbytes = 0
        self.lot.unpark_all()

    def _due(self, now: float) -> float:
        return max(now + self._delay, self._not_before)

    def _meet_stops(self, due: float) -> None:
        """Plan the faults at this position, which is reached when its last byte is due."""
        while self._stops and self._stops[0].at <= self.passed and not self._drops:
            stop = self._stops.popleft()
            due = max(due, self._not_before)
            self._happened(due, stop)
            match stop:
                case Stall():
                    self._not_before = due + stop.seconds
                case HalfClose():
                    self.end_at(due, leaves=False)
                    self._drops = True
                case _:
                    self._cut(due, stop.reset)
                    self._drops = True

    def _flip(self, octets: bytearray, now: float) -> None:
        while self._next_flip is not None and self._next_flip[0] < self.passed + len(octets):
            at, bit, fault = self._next_flip
            octets[at - self.passed] ^= 1 << bit
            self._happened(self._due(now), fault, at=at)
            self._next_flip = next(self._flips, None)

    def _happened(self, time: float, *faults: Fault, at: int | None = None) -> None:
        for fault in faults:
            if not any(seen.fault is fault and seen.direction is self.direction for seen in self._triggered):
                self._triggered.append(Triggered(fault, self.direction, self.passed if at is None else at, time))
