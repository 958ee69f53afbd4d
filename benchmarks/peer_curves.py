"""The curves between two nodes, by version 2 of the peer protocol: see `benchmarks.curves`."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

import trio

from benchmarks.contest import Turn
from benchmarks.crowd import delays
from benchmarks.curve import Curve
from benchmarks.nodes import HOST, Node
from plasmastream import ObjectID
from plasmastream.peer import open_peer

_VERSION = 2
_SIZES = {
    "1 B": 1,
    "1 KiB": 1 << 10,
    "64 KiB": 1 << 16,
    "1 MiB": 1 << 20,
    "16 MiB": 1 << 24,
    "256 MiB": 1 << 28,
    "4 GiB": 1 << 32,
}
_COUNTS = (1, 16, 256, 4096, 65_536)
_CLIENTS = (1, 2, 4, 8, 16, 32, 64)
_CONNECTED = (0, 18, 36, 54, 72, 90)  # a server has 128 at most, and 96 of one peer
_SMALL = 100
_BATCH = 1000
_SECONDS = 0.5


def curves(
    roomy: Node, other: Node, many: Mapping[str, Node], full: Mapping[str, Node], crowded: Node
) -> Sequence[Curve]:
    """The curves.

    Args:
        roomy: has room for an object of 4 GiB.
        other: has it, too.
        many: nodes by the number of objects in their stores.
        full: nodes by the share of their stores that is full.
        crowded: what many clients and connections come to.
    """
    there_and_back = f"COPY of {_BATCH:,} x {_SMALL} B to another node and as many from it, for each object"
    return [
        Curve(
            "COPY of one object",
            "ms",
            "its size",
            {name: partial(_one, roomy, other, size) for name, size in _SIZES.items()},
        ),
        Curve(
            f"COPY of objects of {_SMALL} B in one request, for each object",
            "µs",
            "objects in the request",
            {f"{count:,}": _batches(roomy, other, count) for count in _COUNTS},
        ),
        Curve(
            "COPY of one object of 1 KiB",
            "µs for each, of all clients together",
            "clients at once",
            {str(count): partial(_crowd, crowded, count) for count in _CLIENTS},
        ),
        Curve(
            there_and_back,
            "µs",
            "objects in the store",
            {name: _there_and_back(at, other) for name, at in many.items()},
            is_flat=True,
        ),
        Curve(
            there_and_back,
            "µs",
            "share of the store that is full",
            {name: _there_and_back(at, other) for name, at in full.items()},
            is_flat=True,
        ),
        Curve(
            there_and_back,
            "µs",
            "idle connections beside",
            {str(count): _beside_idle(crowded, other, count) for count in _CONNECTED},
            is_flat=True,
        ),
    ]


def _one(source: Node, destination: Node, size: int) -> float:
    ids = source.give(1, size)
    taken = destination.fetch(source, ids, _VERSION, 50 if size <= 1 << 20 else 5 if size <= 1 << 24 else 1)
    source.store.delete(ids)
    return statistics.median(taken) * 1e3


def _batches(source: Node, destination: Node, count: int) -> Turn:
    ids: list[ObjectID] = []

    def turn() -> float:
        if not ids:
            ids.extend(source.give(count, _SMALL))
        taken = destination.fetch(source, ids, _VERSION, max(1, min(50, 5000 // count)))
        return statistics.median(taken) / count * 1e6

    return turn


def _there_and_back(at: Node, other: Node) -> Turn:
    pairs: list[tuple[Node, Node, list[ObjectID]]] = []

    def turn() -> float:
        if not pairs:
            pairs.extend((source, destination, source.give(_BATCH, _SMALL)) for source, destination in _both(at, other))
        taken = [statistics.median(to.fetch(source, ids, _VERSION, 3)) for source, to, ids in pairs]
        return sum(taken) / 2 / _BATCH * 1e6

    return turn


def _both(at: Node, other: Node) -> Sequence[tuple[Node, Node]]:
    return (at, other), (other, at)


def _beside_idle(at: Node, other: Node, count: int) -> Turn:
    turn = _there_and_back(at, other)

    async def connected() -> float:
        async with AsyncExitStack() as stack:
            for _ in range(count):
                await stack.enter_async_context(open_peer(str(HOST), at.port))
            return await trio.to_thread.run_sync(turn)

    return lambda: trio.run(connected)


def _crowd(at: Node, clients: int) -> float:
    ids = at.give(256, 1 << 10)
    found = delays(at, clients, ids, partial(trio.sleep, _SECONDS))
    at.store.delete(ids)
    return _SECONDS / len(found) * 1e6
