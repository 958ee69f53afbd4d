"""Long requests take turns: what names very many objects is done a little at a time, with others in between.

What a request does to the store is done in slices of about a millisecond. Between two slices everybody else is served
once, and then it is the next long request's turn: however many there are, the others wait for one slice. Turning long
messages into bytes and back touches nothing that is shared, and is done in a thread beside.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import trio

_T = TypeVar("_T")
_R = TypeVar("_R")

_SLICE = 0.001


class Turns:
    """Where the long requests to one store wait for each other."""

    def __init__(self) -> None:
        self._lane = trio.Lock()
        self._thread = trio.CapacityLimiter(1)  # with more, they would take the interpreter from the event loop

    async def each(self, do: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """Call a function with each item, in order; without a checkpoint where that is soon done.

        A cancel comes between two slices, and leaves the rest undone; so does an error.
        """
        done: list[_R] = []
        rest = iter(items)
        if _do_slice(do, rest, done):
            return done
        while True:
            async with self._lane:
                if _do_slice(do, rest, done):
                    return done

    async def aside(self, work: Callable[[], _R]) -> _R:
        """Do something in a thread that touches nothing but what its caller owns."""
        return await trio.to_thread.run_sync(work, limiter=self._thread)


def _do_slice(do: Callable[[_T], _R], rest: Iterator[_T], done: list[_R]) -> bool:
    """Do some of the rest, and tell whether that was all."""
    end = time.perf_counter() + _SLICE
    for item in rest:
        done.append(do(item))
        if time.perf_counter() > end:
            return False
    return True
