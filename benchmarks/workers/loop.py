"""A worker: a process that does named pieces of work when told to, and says how many seconds each took.

One line of JSON is a task, ``["create", 500, 100]``; the answer is one line with the seconds, and when the last of what
was timed began and ended, by the clock that all processes share. Only the standard library
is used here: Apache's worker runs in an environment that has nothing of this project.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


_timed = [0.0, 0.0]


def serve(works: Mapping[str, Callable[..., float]]) -> None:
    """Do what standard input says, to its end."""
    for line in sys.stdin:
        name, *args = json.loads(line)
        print(json.dumps([works[name](*args), *_timed]), flush=True)


def new_ids(count: int) -> list[bytes]:
    """Names that nobody has used."""
    return [os.urandom(20) for _ in range(count)]


def timed(do: Callable[[T], object], items: Iterable[T]) -> float:
    """Seconds that a call with each item takes, together."""
    return seconds(lambda: _each(do, items))


def seconds(do: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    do()
    _timed[:] = start, time.perf_counter()
    return _timed[1] - start


def _each(do: Callable[[T], object], items: Iterable[T]) -> None:
    for item in items:
        do(item)


def by_two_threads(do: Callable[[T], object], items: Iterable[T]) -> None:
    """Call with each item: whichever of two threads is free takes the next."""
    rest = iter(items)

    def work() -> None:
        for item in rest:
            do(item)

    beside = Thread(target=work)
    beside.start()
    work()
    beside.join()
