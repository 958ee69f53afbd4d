"""Whether the other side lives: a judgement of times and bytes, without a clock."""

from enum import Enum
from math import inf

from plasmastream.wire.stream.v2._limits import Patience


class Lateness(Enum):
    """What the other side is too late with; the value says it in words, for errors."""

    HELLO = "sent no whole greeting"
    SILENT = "sent nothing"
    SLOW = "sent too little"
    IDLE = "asked for nothing"


class Liveness:
    """Watches one connection: what is due, since when, and how much of it has come.

    A frame that has begun must bring `rate` bytes a second over each `stall` seconds: silence is not the only way to
    stand still. Between frames only silence counts, since many frames are short. The greeting has a time as a whole.
    """

    def __init__(self, patience: Patience, now: float) -> None:
        self._patience = patience
        self._due: Lateness | None = Lateness.HELLO
        self._due_since = now
        self.last_progress = now
        self._window_end = inf
        self._window_bytes = 0

    def expect(self, due: Lateness | None, now: float) -> None:
        """Say what is due from now on, or that nothing is."""
        self._due = due
        self.last_progress = self._due_since = now

    def begin_frame(self, now: float) -> None:
        """Say that a frame begins."""
        self._window_end, self._window_bytes = now + self._patience.stall, 0

    def progress(self, nbytes: int, now: float) -> None:
        """Say that so many bytes have come."""
        self.last_progress = now
        self._window_bytes += nbytes
        if self._window_bytes >= self._patience.rate * self._patience.stall:
            self.begin_frame(now)

    def deadline(self, in_frame: bool) -> float:
        """When something is late, if nothing comes before; infinite if nothing is due."""
        patience = self._patience
        if self._due is Lateness.HELLO:
            return self._due_since + patience.hello
        if in_frame:
            return min(self.last_progress + patience.stall, self._window_end)
        match self._due:
            case None:
                return inf
            case Lateness.IDLE:
                return self.last_progress + patience.idle
            case _:
                return self.last_progress + patience.stall

    def late(self, in_frame: bool, now: float) -> Lateness | None:
        """What is late by now, if anything is."""
        if now < self.deadline(in_frame):
            return None
        if in_frame and self._due is not Lateness.HELLO:
            return Lateness.SILENT if now >= self.last_progress + self._patience.stall else Lateness.SLOW
        return self._due
