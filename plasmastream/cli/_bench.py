"""What `bench` measures between this machine and the store of a peer.

A round (`Gauge._round`) puts new objects from memory here into the store there, copies them in three ways into a store
here that nobody else sees, and takes them, whereupon they are gone there. So all ways take turns, and nothing stays.
Each size has a round that does not count, and then as many as its time allows; a figure is what most of them took.

At no moment are there more bytes in the other's store than the largest object has, and of several objects at most
`_BATCH`. What breaks off, by Ctrl-C as by an error, is followed by `Gauge.clear`.
"""

import json
import mmap
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from plasmastream._errors import PeerError, PlasmastreamError
from plasmastream._interruption import interruptible
from plasmastream._object_id import ObjectID
from plasmastream._progress import in_words, show_steps
from plasmastream.cli._peer import NO_ANSWER, asking
from plasmastream.cli._run import ExitStatus, complain
from plasmastream.cli._types import Address, show_size
from plasmastream.peer import Outcome, PeerClient, PeerTimeouts, Result, TransferKind
from plasmastream.store import EmbeddedStore, NewObject

WAYS = {
    "put": "from memory here into the store there",
    "copy": "from there into a store here",
    "one connection": "copy, over one connection",
    "no checksums": "the same in version 1 of the protocol, which has none, and connects anew each time",
    "take": "copy, and delete there",
}

_SMALL = 100
_SIZES = (1, 1 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20, 1 << 30, 4 << 30, 16 << 30)
_LARGE = 64 << 10  # from here on bytes count, rather than objects
_BATCH = 16 << 20
_MOST_OBJECTS = 10_000
_TRIAL, _MOST_TRIED = 1 << 20, 64
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 1000
_NO_ROOM = (Outcome.TOO_LARGE, Outcome.NO_ROOM, Outcome.NOT_FOUND)  # the last where others have had it evicted
_ROOM = 1 << 20  # for what a store rounds up
_PATIENCE = 5.0
_CLEAR_WITHIN, _CLEARINGS = 20.0, 3

_Report = Callable[[float], None]


class NoRoomError(PlasmastreamError):
    """The store there does not take objects of this size."""


@attrs.frozen
class Row:
    """How long rounds with so many objects of so many bytes took, in seconds, by way."""

    size: int
    objects: int
    samples: Mapping[str, Sequence[float]]

    def median(self, way: str) -> float:
        """Seconds of a round."""
        return statistics.median(self.samples[way])

    def spread(self, way: str) -> float:
        """The distance of the quartiles, as a share of the median."""
        low, median, high = statistics.quantiles(self.samples[way], n=4, method="inclusive")
        return (high - low) / median

    def late(self, way: str) -> float:
        """Seconds that one round in a hundred exceeds."""
        return statistics.quantiles(self.samples[way], n=100, method="inclusive")[-1]

    @property
    def seconds_a_byte(self) -> float:
        """Of the slowest way."""
        return max(map(self.median, WAYS)) / (self.objects * self.size)

    def as_dict(self) -> dict[str, object]:
        """For programs: times in seconds."""
        ways = {
            way.replace(" ", "_"): {
                "median": self.median(way),
                "quartile_distance": self.spread(way) * self.median(way),
                "percentile_99": self.late(way),
                "objects_per_second": self.objects / self.median(way),
                "bytes_per_second": self.objects * self.size / self.median(way),
            }
            for way in WAYS
        }
        return {"size": self.size, "objects": self.objects, "rounds": len(self.samples["put"]), "seconds": ways}


class Gauge:
    """Measures between a peer and this process. `open_gauge` makes one.

    Args:
        peer: the other machine.
        old_peer: the same, in version 1 of the protocol.
        store: where objects go here.
        content: what they are made of; nor is there ever more of it there at once.
    """

    def __init__(self, peer: PeerClient, old_peer: PeerClient, store: EmbeddedStore, content: memoryview) -> None:
        self._peer = peer
        self._old_peer = old_peer
        self._store = store
        self._content = content
        self._there: list[ObjectID] = []

    async def measure(self, size: int, seconds: float, report: _Report, most_objects: int = _MOST_OBJECTS) -> Row:
        """Measure with objects of `size` bytes for about so many seconds; `report` is told which share of it is over.

        Raises:
            NoRoomError: the store there does not take them.
            PlasmastreamError: something became of an object that should not.
            PeerError: the peer is gone.
        """
        most = max(1, min(most_objects, min(_BATCH, len(self._content) // 4) // size))
        tried = max(1, min(most, _TRIAL // size, _MOST_TRIED))
        trial = sum((await self._round(size, tried)).values())
        count = max(1, min(most, int(tried * seconds / _FEWEST_ROUNDS / trial)))
        if count > tried:
            await self._round(size, count)
        rounds: list[Mapping[str, float]] = []
        began = time.perf_counter()
        while len(rounds) < _FEWEST_ROUNDS or (
            time.perf_counter() - began < seconds and len(rounds) < _MOST_ROUNDS
        ):
            rounds.append(await self._round(size, count))
            report(min(1.0, (time.perf_counter() - began) / seconds))
        return Row(size, count, {way: [taken[way] for taken in rounds] for way in WAYS})

    async def _round(self, size: int, count: int) -> Mapping[str, float]:
        new = [
            NewObject(ObjectID.random(), self._content[at * size : (at + 1) * size]) for at in range(count)
        ]
        self._there = ids = [made.object_id for made in new]
        copy, take, store = TransferKind.COPY, TransferKind.TAKE, self._store
        taken = {
            "put": await self._time(self._peer.put(new)),
            "copy": await self._time(self._peer.fetch(copy, ids, store)),
            "one connection": await self._time(self._peer.fetch(copy, ids, store, max_bytes=1)),
            "no checksums": await self._time(self._old_peer.fetch(copy, ids, store)),
            "take": await self._time(self._peer.fetch(take, ids, store)),
        }
        self._there = []
        return taken

    async def _time(self, transfer: Awaitable[Sequence[Result]]) -> float:
        """Seconds that a transfer took; what it brought here is deleted thereafter."""
        began = time.perf_counter()
        results = await transfer
        seconds = time.perf_counter() - began
        await self._store.delete(self._there)
        for result in results:
            if result.outcome in _NO_ROOM:
                raise NoRoomError(f"{self._peer}: {result}")
            if not result.is_success:
                raise (PeerError if result.outcome in NO_ANSWER else PlasmastreamError)(f"{self._peer}: {result}")
        return seconds

    async def clear(self) -> None:
        """See that nothing stays there of a round that broke off.

        What is half there, or still on its way, gives way to an empty object of the same id, which is then taken.

        Raises:
            PlasmastreamError: something may have stayed.
        """
        ids, self._there = self._there, []
        if not ids:
            return
        left: Sequence[object] = ids
        with trio.move_on_after(_CLEAR_WITHIN) as scope:
            scope.shield = True
            for _ in range(_CLEARINGS):
                await self._store.delete(ids)
                await self._peer.put([NewObject(object_id, b"") for object_id in ids])
                await self._peer.fetch(TransferKind.TAKE, ids, self._store)
                left = await self._peer.stat(ids)
                if not left:
                    return
        raise PlasmastreamError(f"{self._peer}: of what was measured with, {len(left):,} may have stayed there")


@asynccontextmanager
async def open_gauge(server: Address, most_bytes: int) -> AsyncIterator[Gauge]:
    """Measure with objects of up to `most_bytes`, and leave nothing behind.

    Raises:
        StoreFullError: this machine has not so much memory.
        PlasmastreamError: the peer speaks version 1 alone; or something may have stayed there.
    """
    timeouts = PeerTimeouts(retry=_PATIENCE)
    old_peer = PeerClient(server.host, server.port, timeouts=timeouts, version=1)
    async with asking(server, timeouts) as peer:
        await peer.connect()
        store, content = await trio.to_thread.run_sync(_allocate, most_bytes, abandon_on_cancel=True)
        gauge = Gauge(peer, old_peer, store, content)
        try:
            yield gauge
        finally:
            await gauge.clear()
            await old_peer.aclose()
            store.close()


def _allocate(most_bytes: int) -> tuple[EmbeddedStore, memoryview]:
    store = EmbeddedStore(most_bytes + _ROOM)
    content = memoryview(mmap.mmap(-1, most_bytes))
    piece = os.urandom(min(most_bytes, 1 << 20))
    for at in range(0, most_bytes, len(piece)):
        content[at : at + len(piece)] = piece[: most_bytes - at]
    return store, content


async def run_bench(server: Address, *, max_size: int, seconds: float, as_json: bool) -> int:
    """Measure, and print tables or JSON; what could not be measured is said on standard error.

    Args:
        server: the peer.
        max_size: bytes of the largest object.
        seconds: for each size, about.
        as_json: whether to print JSON.

    Returns:
        The exit status.
    """
    sizes = sorted({size for size in _SIZES if size < max_size} | {max_size})
    async with interruptible(), open_gauge(server, max_size) as gauge:
        with show_steps(f"Measuring to {server.host}", 1 + len(sizes)) as show:
            small = min(_SMALL, max_size)
            latency = await gauge.measure(small, seconds, lambda share: show("latency", share), most_objects=1)
            rates = await _rates(gauge, sizes, seconds, show)
    print(_in_json(server, latency, rates) if as_json else "\n".join(_in_tables(server, latency, rates)))
    return ExitStatus.DONE


async def _rates(
    gauge: Gauge, sizes: Sequence[int], seconds: float, show: Callable[[str, float], None]
) -> list[Row]:
    rows: list[Row] = []
    for done, size in enumerate(sizes, start=1):
        label = _in_units(size)
        expected = size * rows[-1].seconds_a_byte if rows and rows[-1].size >= _LARGE else 0.0
        show(label, done)
        if expected > seconds:
            complain("plasmastream", f"{label} and more are left out: an object would take about {expected:.3g} s")
            break
        try:
            rows.append(await gauge.measure(size, seconds, partial(_show_share, show, label, done)))
        except NoRoomError as error:
            complain("plasmastream", f"{label} and more are left out: {error}")
            await gauge.clear()
            break
    return rows


def _show_share(show: Callable[[str, float], None], label: str, done: int, share: float) -> None:
    show(label, done + share)


def _in_json(server: Address, latency: Row, rates: Iterable[Row]) -> str:
    found = {"peer": str(server), "latency": latency.as_dict(), "rates": [row.as_dict() for row in rates]}
    return json.dumps(found, indent=2)


def _in_tables(server: Address, latency: Row, rates: Sequence[Row]) -> Iterator[str]:
    yield f"Between here and {server}: medians, and how far the quartiles are apart"
    yield from (f"    {way}: {meaning}" for way, meaning in WAYS.items())
    yield ""
    yield _line(f"one object of {_in_units(latency.size)}", WAYS)
    yield _line("    median", (f"{latency.median(way) * 1e3:.3g} ms" for way in WAYS))
    yield _line("    99 % are below", (f"{latency.late(way) * 1e3:.3g} ms" for way in WAYS))
    yield ""
    yield _line("many, or large ones", WAYS)
    for row in rates:
        yield _line(f"{row.objects:>10,} x {_in_units(row.size)}", (_rate(row, way) for way in WAYS))


def _line(head: str, cells: Iterable[str]) -> str:
    return f"{head:24}" + "".join(f"{cell:>18}" for cell in cells)


def _rate(row: Row, way: str) -> str:
    rate = row.objects / row.median(way)
    amount = f"{rate:,.0f}" if row.size < _LARGE else in_words(rate * row.size)
    return f"{amount}/s {row.spread(way):4.0%}"


def _in_units(size: int) -> str:
    shown = show_size(size)
    return f"{shown} B" if shown.isdigit() else shown
