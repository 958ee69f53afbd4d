"""Row 18 and the curves: what one operation costs as objects, stores and crowds grow.

Our blocking client at our store; each point has a store of its own, or one that is filled as the point says.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.contest import Turn
from benchmarks.curve import Curve
from benchmarks.processes import Worker, our_store, scratch, worker

_SIZES = {"1 B": 1, "1 KiB": 1 << 10, "64 KiB": 1 << 16, "1 MiB": 1 << 20, "64 MiB": 1 << 26, "1 GiB": 1 << 30}
_COUNTS = (1, 16, 256, 4096, 65_536)
_FILLED = (0, 1000, 10_000, 100_000, 1_000_000)
_CLIENTS = (1, 2, 4, 8, 16, 32, 64)
_CONNECTED = (0, 64, 1024)
_FILLS = (0, 25, 50, 75, 95)
_CAPACITY = 64 << 20
_FILLER = 16 << 10


@contextlib.contextmanager
def curves() -> Iterator[Sequence[Curve]]:
    """The curves, while the stores that they need are up."""
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(scratch())

        def store(name: str, memory: int) -> Path:
            return stack.enter_context(our_store(here / name, memory))

        def client(path: Path) -> Worker:
            return stack.enter_context(worker("blocking", path))

        roomy = client(store("roomy", 3 << 30))
        crowded = store("crowded", _CAPACITY)
        crowd = [client(crowded) for _ in range(max(_CLIENTS))]
        yield [
            Curve(
                "put of one object",
                "µs",
                "its size",
                {name: partial(_put, roomy, size) for name, size in _SIZES.items()},
            ),
            Curve(
                "get in one call and release, for each object",
                "µs",
                "objects in the call",
                {f"{count:,}": partial(_each, roomy, "get_many", count) for count in _COUNTS},
            ),
            Curve(
                "put_many and release, for each object",
                "µs",
                "objects in the call",
                {f"{count:,}": partial(_each, roomy, "put_many", count) for count in _COUNTS},
            ),
            Curve(
                "get and release",
                "µs for each, of all clients together",
                "clients at once",
                {str(count): partial(_together, crowd[:count]) for count in _CLIENTS},
            ),
            Curve(
                "create, write, seal, release",
                "µs",
                "objects in the store",
                {
                    f"{count:,}": _turn(client(_filled(stack, here, f"of-{count}", count, 100, 1 << 30)), "create")
                    for count in _FILLED
                },
                is_flat=True,
            ),
            Curve(
                "create, write, seal, release",
                "µs",
                "share of the store that is full",
                {
                    f"{fill} %": _turn(
                        client(
                            _filled(stack, here, f"full-{fill}", _CAPACITY * fill // 100 // _FILLER, _FILLER, _CAPACITY)
                        ),
                        "create",
                    )
                    for fill in _FILLS
                },
                is_flat=True,
            ),
            Curve(
                "get and release",
                "µs",
                "idle connections beside",
                {f"{count:,}": _turn(client(_connected(stack, here, count)), "get") for count in _CONNECTED},
                is_flat=True,
            ),
        ]


def _filled(stack: contextlib.ExitStack, here: Path, name: str, count: int, size: int, memory: int) -> Path:
    path = stack.enter_context(our_store(here / name, memory))
    with worker("blocking", path) as filler:
        filler.do("fill", count, size)
    return path


def _connected(stack: contextlib.ExitStack, here: Path, count: int) -> Path:
    path = stack.enter_context(our_store(here / f"connected-{count}", _CAPACITY))
    if count:
        stack.enter_context(worker("blocking", path)).do("connect", count, 0)
    return path


def _turn(worker: Worker, work: str) -> Turn:
    count = 500
    return lambda: worker.do(work, count, 100) / count * 1e6


def _each(worker: Worker, work: str, count: int) -> float:
    times = max(1, 2000 // count)
    return sum(worker.do(work, count, 100) for _ in range(times)) / times / count * 1e6


def _put(worker: Worker, size: int) -> float:
    count = 1 if size > 1 << 26 else 10 if size > 1 << 20 else 200
    return worker.do("put", count, size) / count * 1e6


def _together(crowd: Sequence[Worker]) -> float:
    count = max(50, 2000 // len(crowd))
    for one in crowd:
        one.begin("get", count, 100)
    return 1e6 / sum(count / one.end() for one in crowd)
