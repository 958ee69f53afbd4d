"""Whether to look again for what must come any moment, rather than to sleep until the kernel wakes us.

To be woken takes 20 to 50 microseconds, more than a store needs for a small request; where both ends sleep, that is
most of the time that a request takes. So whoever waits looks again for a while, and gives the processor to others
between two looks: who is to answer may be among them. Who has looked in vain sleeps at once for the next waits, twice
as many after each failure, and then tries again. So what is idle, slow, or short of processors pays next to nothing.
"""

import os
from time import perf_counter

_LONGEST_LOOK = 100e-6  # a sleeping store is woken, and answers, within that
_FEWEST_SLEPT, _MOST_SLEPT = 16, 1024


class Haste:
    """What one end of a connection has seen of its waits."""

    __slots__ = ("_looks", "_since", "_sleeps", "_slept")

    def __init__(self) -> None:
        self._looks = True
        self._since = 0.0
        self._slept = 0
        self._sleeps = _FEWEST_SLEPT

    def begin(self) -> None:
        """A wait begins."""
        self._since = perf_counter()

    def looks_again(self) -> bool:
        """Whether to look again now; then others have just had the processor."""
        if not self._looks or perf_counter() - self._since >= _LONGEST_LOOK:
            return False
        os.sched_yield()
        return True

    def end(self) -> None:
        """The wait is over."""
        if not self._looks:
            self._slept += 1
            self._looks = self._slept >= self._sleeps
        elif perf_counter() - self._since < _LONGEST_LOOK:
            self._sleeps = _FEWEST_SLEPT
        else:
            self._looks, self._slept = False, 0
            self._sleeps = min(2 * self._sleeps, _MOST_SLEPT)
