"""One seed decides everything: what a simulation draws, and what would be left to chance otherwise.

`drawn(seed, what)` is a source of chance for one purpose, so that a purpose that draws more does not change another.
`determined(seed)` is for what the code under test leaves to chance: the order in which Trio runs tasks, which it
shuffles; the random numbers of the standard library; the moments at which the garbage collector finds something.
Time is that of a `MockClock`.
"""

import gc
import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import trio


def drawn(seed: int, what: str) -> random.Random:
    """A source of chance for one purpose. A string seeds it the same way in every process."""
    return random.Random(f"{seed}: {what}")


def log_uniform(chance: random.Random, low: float, high: float) -> float:
    """A number between two others, of any magnitude with the same probability."""
    return math.exp(chance.uniform(math.log(low), math.log(high)))


@contextmanager
def determined(seed: int) -> Iterator[None]:
    """A block in which the same seed leads to the same steps, in every process.

    What stays open: which of two cancel scopes with the very same deadline is cancelled first. Both are, before any
    task runs.
    """
    run = trio._core._run
    common = random.getstate()
    was_collecting = gc.isenabled()
    entropy = drawn(seed, "entropy").randbytes
    with (
        mock.patch.object(run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        mock.patch.object(run, "_r", drawn(seed, "order of tasks")),
        mock.patch.object(os, "urandom", entropy),
        mock.patch.object(random, "_urandom", entropy),
    ):
        random.seed(seed)
        gc.disable()
        try:
            yield
        finally:
            random.setstate(common)
            if was_collecting:
                gc.enable()
