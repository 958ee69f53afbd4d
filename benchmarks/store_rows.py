"""Rows 10 to 16: one store on one machine, beside Apache's pair of client and store.

Who does the work is a process of its own in every case, and times itself. "Apache's pair" is `pyarrow.plasma` at
Apache's store; the others have our store, our client, or both in its place. A large put has floors, too.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.contest import Contest, Mark, Turn, at_least, at_most
from benchmarks.processes import Worker, apache_store, our_store, scratch, seconds_of_all, why_no_apache, worker

PAIR = "Apache's pair"
UNDER_APACHE = "our store under `pyarrow.plasma`"
BLOCKING = "our blocking client and store"
ON_TRIO = "our Trio client and store"
DIGEST = "the digest alone, by two threads"
COPY = "the copy alone, by two threads"

_MEMORY = 256 << 20
_SMALL = 100
_LARGE = 64 << 20
_MANY = 10_000
_CLIENTS = 4


@contextlib.contextmanager
def contests() -> Iterator[Sequence[Contest]]:
    """The contests, while the stores and clients that take part are up."""
    reason = why_no_apache()
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(scratch())
        ours = stack.enter_context(our_store(here / "ours", _MEMORY))
        theirs = None if reason else stack.enter_context(apache_store(here / "apache", _MEMORY))

        def start(name: str, path: Path | None) -> Worker | None:
            return None if path is None else stack.enter_context(worker(name, path))

        workers = {
            UNDER_APACHE: start("apache", ours if theirs else None),
            BLOCKING: start("blocking", ours),
            ON_TRIO: start("on_trio", ours),
            PAIR: start("apache", theirs),
            DIGEST: start("digest_alone", ours),
            COPY: start("copy_alone", ours),
        }
        crowds = {
            BLOCKING: [start("blocking", ours) for _ in range(_CLIENTS)],
            UNDER_APACHE: [start("apache", ours if theirs else None) for _ in range(_CLIENTS)],
            PAIR: [start("apache", theirs) for _ in range(_CLIENTS)],
        }
        missing = {PAIR: reason} if reason else {}

        def contest(
            row: int,
            work: str,
            unit: str,
            who: str,
            marks: Sequence[Mark],
            turns: Callable[[str], Turn | None],
            *floors: str,
        ) -> Contest:
            taking_part = {name: turn for name in (who, PAIR, *floors) if (turn := turns(name)) is not None}
            return Contest(row, f"{work}: {who}", unit, taking_part, marks, missing)

        yield [
            entry
            for entry in [
                *(
                    contest(row, title, "µs", who, [at_most(most, PAIR)], _each(workers, work, count, _SMALL))
                    for row, who, most in ((10, UNDER_APACHE, 1.5), (11, BLOCKING, 1.2), (12, ON_TRIO, 2.0))
                    for work, title, count in (
                        ("create", "create, write, seal, release 100 B", 400),
                        ("get", "get, release 100 B", 800),
                        ("contains", "contains", 1200),
                    )
                ),
                contest(
                    13,
                    f"get {_MANY:,} in one call, release",
                    "ms",
                    BLOCKING,
                    [at_most(0.5, PAIR)],
                    _whole(workers, "get_many", _MANY, _SMALL),
                ),
                contest(
                    0,
                    f"get {_MANY:,} in one call, read a byte of each, release",
                    "ms",
                    BLOCKING,
                    [],
                    _whole(workers, "look_at_many", _MANY, _SMALL),
                ),
                contest(
                    14,
                    f"put_many of {_MANY:,} x 100 B",
                    "objects/s",
                    BLOCKING,
                    [at_least(5, PAIR)],
                    _rate(workers, "put_many", _MANY, _SMALL, _MANY),
                ),
                contest(
                    15,
                    "put of 64 MiB, digest included, warm",
                    "GB/s",
                    BLOCKING,
                    [at_least(1.5, PAIR)],
                    _rate(workers, "put", 10, _LARGE, 10 * _LARGE / 1e9),
                    DIGEST,
                    COPY,
                ),
                *(
                    contest(
                        16,
                        "get, release 100 B, four clients at once",
                        "operations/s",
                        who,
                        [at_least(0.5, PAIR)],
                        _together(crowds, "get", 1000, _SMALL),
                    )
                    for who in (BLOCKING, UNDER_APACHE)
                ),
            ]
            if len(entry.contestants) + len(entry.missing) >= 2
        ]


def _each(workers: Mapping[str, Worker | None], work: str, count: int, size: int) -> Callable[[str], Turn | None]:
    """Microseconds for one of `count`."""
    return _turns(workers, lambda worker: worker.do(work, count, size) / count * 1e6)


def _whole(workers: Mapping[str, Worker | None], work: str, count: int, size: int) -> Callable[[str], Turn | None]:
    """Milliseconds for all."""
    return _turns(workers, lambda worker: worker.do(work, count, size) * 1e3)


def _rate(
    workers: Mapping[str, Worker | None], work: str, count: int, size: int, amount: float
) -> Callable[[str], Turn | None]:
    """How much of an amount is done in a second."""
    return _turns(workers, lambda worker: amount / worker.do(work, count, size))


def _turns(workers: Mapping[str, Worker | None], turn: Callable[[Worker], float]) -> Callable[[str], Turn | None]:
    def of(name: str) -> Turn | None:
        worker = workers[name]
        return None if worker is None else lambda: turn(worker)

    return of


def _together(
    crowds: Mapping[str, Sequence[Worker | None]], work: str, count: int, size: int
) -> Callable[[str], Turn | None]:
    """How many operations all workers do in a second, together."""

    def of(name: str) -> Turn | None:
        crowd = [worker for worker in crowds[name] if worker is not None]

        return (lambda: len(crowd) * count / seconds_of_all(crowd, work, count, size)) if crowd else None

    return of
