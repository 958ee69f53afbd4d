"""Row 18 and the curves: what an operation costs as objects, stores and crowds grow, in a store and between peers.

The stores are those of nodes. In them our blocking client works; between them, version 2 of the peer protocol: see
`benchmarks.peer_curves`. Curves against what a store has in it have a node for each point.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import peer_curves
from benchmarks.contest import Turn
from benchmarks.curve import Curve
from benchmarks.nodes import Node, node
from benchmarks.processes import Worker, scratch, seconds_of_all, worker

_SIZES = {
    "1 B": 1,
    "1 KiB": 1 << 10,
    "64 KiB": 1 << 16,
    "1 MiB": 1 << 20,
    "64 MiB": 1 << 26,
    "1 GiB": 1 << 30,
    "4 GiB": 1 << 32,
}
_COUNTS = (1, 16, 256, 4096, 65_536)
_FILLED = (0, 100, 1000, 10_000, 100_000, 1_000_000)
_CLIENTS = (1, 2, 4, 8, 16, 32, 64)
_CONNECTED = (0, 64, 1024)
_FILLS = (0, 20, 40, 60, 80, 95)
_ROOMY = (4 << 30) + (256 << 20)
_MANY = 256 << 20
_CAPACITY = 64 << 20
_FILLER = 16 << 10


@contextlib.contextmanager
def curves() -> Iterator[Sequence[Curve]]:
    """The curves, while the nodes that they need are up."""
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(scratch())

        def start(name: str, memory: int) -> Node:
            return stack.enter_context(node(here / name, memory))

        roomy, other = start("roomy", _ROOMY), start("other", _ROOMY)
        many = {f"{count:,}": start(f"of-{count}", _MANY) for count in _FILLED}
        full = {f"{fill} %": start(f"full-{fill}", _CAPACITY) for fill in _FILLS}
        for filled, count in zip(many.values(), _FILLED, strict=True):
            _fill(filled, count, 100)
        for filled, fill in zip(full.values(), _FILLS, strict=True):
            _fill(filled, _CAPACITY * fill // 100 // _FILLER, _FILLER)
        yield [
            *_in_a_store(stack, here, roomy, many, full),
            *peer_curves.curves(roomy, other, many, full, start("crowded", _CAPACITY)),
        ]


def _in_a_store(
    stack: contextlib.ExitStack, here: Path, roomy: Node, many: Mapping[str, Node], full: Mapping[str, Node]
) -> Sequence[Curve]:
    def client(at: Node) -> Worker:
        return stack.enter_context(worker("blocking", at.path))

    def connected(count: int) -> Node:
        at = stack.enter_context(node(here / f"connected-{count}", _CAPACITY))
        if count:
            client(at).do("connect", count, 0)
        return at

    crowded = stack.enter_context(node(here / "crowd", _CAPACITY))
    crowd = [client(crowded) for _ in range(max(_CLIENTS))]
    alone = client(roomy)
    create = "create, write, seal, release"
    return [
        Curve(
            "put of one object",
            "µs",
            "its size",
            {name: partial(_put, alone, size) for name, size in _SIZES.items()},
        ),
        Curve(
            "get in one call and release, for each object",
            "µs",
            "objects in the call",
            {f"{count:,}": partial(_each, alone, "get_many", count) for count in _COUNTS},
        ),
        Curve(
            "put_many and release, for each object",
            "µs",
            "objects in the call",
            {f"{count:,}": partial(_each, alone, "put_many", count) for count in _COUNTS},
        ),
        Curve(
            "get and release",
            "µs for each, of all clients together",
            "clients at once",
            {str(count): partial(_together, crowd[:count]) for count in _CLIENTS},
        ),
        Curve(
            create,
            "µs",
            "objects in the store",
            {name: _turn(client(at), "create") for name, at in many.items()},
            is_flat=True,
        ),
        Curve(
            create,
            "µs",
            "share of the store that is full",
            {name: _turn(client(at), "create") for name, at in full.items()},
            is_flat=True,
        ),
        Curve(
            "get and release",
            "µs",
            "idle connections beside",
            {f"{count:,}": _turn(client(connected(count)), "get") for count in _CONNECTED},
            is_flat=True,
        ),
    ]


def _fill(at: Node, count: int, size: int) -> None:
    with worker("blocking", at.path) as filler:
        filler.do("fill", count, size)


def _turn(worker: Worker, work: str) -> Turn:
    count = 500
    return lambda: worker.do(work, count, 100) / count * 1e6


def _each(worker: Worker, work: str, count: int) -> float:
    times = max(1, 2000 // count)
    return sum(worker.do(work, count, 100) for _ in range(times)) / times / count * 1e6


def _put(worker: Worker, size: int) -> float:
    count = 1 if size > 1 << 26 else 4 if size > 1 << 20 else 200
    return worker.do("put", count, size) / count * 1e6


def _together(crowd: Sequence[Worker]) -> float:
    count = max(50, 2000 // len(crowd))
    return seconds_of_all(crowd, "get", count, 100) / (len(crowd) * count) * 1e6
