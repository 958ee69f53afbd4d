"""Small beside large: how long 64 clients of a node wait for 1 KiB each while another node fetches 4 GiB from it."""

import contextlib
import statistics
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial

import trio

from benchmarks.contest import Contest, at_most
from benchmarks.crowd import delays
from benchmarks.nodes import Node, node
from benchmarks.processes import scratch
from plasmastream import ObjectID

_CLIENTS = 64
_SMALL, _OBJECTS = 1 << 10, 256
_LARGE = 4 << 30
_ALONE_SECONDS = 2.0
ALONE, BESIDE = "alone", "beside the other"


@contextlib.contextmanager
def contests() -> Iterator[Sequence[Contest]]:
    """The contests, while both nodes are up."""
    with (
        scratch() as here,
        node(here / "source", _LARGE + (64 << 20)) as source,
        node(here / "destination", _LARGE + (64 << 20)) as destination,
    ):
        small = source.give(_OBJECTS, _SMALL)
        large = source.give(1, _LARGE)
        transfer = partial(destination.sync_from, source, large, 2)

        def wait(meanwhile: Callable[[], Awaitable[object]]) -> float:
            return statistics.median(delays(source, _CLIENTS, small, meanwhile)) * 1e3

        yield [
            Contest(
                0,
                f"median wait of {_CLIENTS} clients for 1 KiB, beside a transfer of 4 GiB",
                "ms",
                {BESIDE: partial(wait, transfer), ALONE: partial(wait, partial(trio.sleep, _ALONE_SECONDS))},
                [at_most(5, ALONE)],
                most_seconds=25,
            ),
            Contest(
                0,
                f"that transfer, beside the {_CLIENTS} clients",
                "GB/s",
                {
                    BESIDE: partial(_rate_beside, source, destination, small, large),
                    ALONE: lambda: _LARGE / destination.fetch(source, large, 2)[0] / 1e9,
                },
                most_seconds=6,
            ),
        ]


def _rate_beside(source: Node, destination: Node, small: Sequence[ObjectID], large: Sequence[ObjectID]) -> float:
    taken: list[float] = []

    async def transfer() -> None:
        taken.extend(await destination.sync_from(source, large, 2))

    delays(source, _CLIENTS, small, transfer)
    return _LARGE / taken[0] / 1e9
