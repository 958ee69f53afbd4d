"""Whether to look again for what must come any moment, rather than to sleep until the kernel wakes us.

To be woken takes 20 to 50 microseconds, more than a store needs for a small request, and makes either end's own work
slower; where both ends sleep, that is most of the time that a request takes. So whoever waits looks again for a while,
and gives the processor to others between two looks: who is to answer may be among them. Who has looked in vain sleeps
at once for the next waits: four times as many after each failure, half as many after each success. So a failure now and
then costs little, and what is idle, slow, or short of processors pays next to nothing.
"""

import os
from time import perf_counter

_LONGEST_LOOK = 200e-6  # a sleeping store is woken, and answers, within that, also on a machine that is slow or shared
_MOST_SLEPT = 1024


class Haste:
    """What one end of a connection has seen of its waits."""

    __slots__ = ("_price", "_since", "_to_sleep")

    def __init__(self) -> None:
        self._since = 0.0
        self._to_sleep = 0  # the next waits
        self._price = 1  # of the last failure, less what was earned since

    def begin(self) -> None:
        """A wait begins."""
        self._since = perf_counter()

    def looks_again(self) -> bool:
        """Whether to look again now; then others have just had the processor."""
        if self._to_sleep or perf_counter() - self._since >= _LONGEST_LOOK:
            return False
        os.sched_yield()
        return True

    def end(self) -> None:
        """The wait is over."""
        if self._to_sleep:
            self._to_sleep -= 1
        elif perf_counter() - self._since < _LONGEST_LOOK:
            self._price = max(self._price // 2, 1)
        else:
            self._to_sleep = self._price = min(4 * self._price, _MOST_SLEPT)
