"""Whether to look again for what must come any moment, rather than to sleep until the kernel wakes us.

To be woken takes 20 to 50 microseconds, more than a store needs for a small request. So who waited for a short time
last time looks again for a while, and lets others run between two looks; who waited longer sleeps at once. What is idle
costs nothing that way, and no wait costs more than one short look. With a single processor nothing comes while we look,
so nobody does.
"""

import os
from time import perf_counter

_LONGEST_LOOK = 50e-6
_SHORT_WAIT = 100e-6  # of one who slept: the waking is in it

_HAS_COMPANY = len(os.sched_getaffinity(0)) > 1


class Haste:
    """What one end of a connection has seen of its waits."""

    __slots__ = ("_is_short", "_since")

    def __init__(self) -> None:
        self._is_short = False
        self._since = 0.0

    def begin(self) -> None:
        """A wait begins."""
        self._since = perf_counter()

    def looks_again(self) -> bool:
        """Whether to look again now."""
        return self._is_short and perf_counter() - self._since < _LONGEST_LOOK

    def end(self) -> None:
        """The wait is over."""
        self._is_short = _HAS_COMPANY and perf_counter() - self._since < _SHORT_WAIT
