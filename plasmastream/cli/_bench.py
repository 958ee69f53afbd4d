"""What `bench` measures between this machine and the store of a peer.

A round (`Gauge._round`) puts new objects from memory here into the store there, copies them in three ways into a store
here that nobody else sees, and takes them, whereupon they are gone there. So all ways take turns, and nothing stays.
Each size has a round that does not count, and then as many as its time allows; a figure is what most of them took.

At no moment are there more bytes in the other's store than the largest object has, and of several objects at most
`_BATCH`; fewer where the store has not room for so many. What breaks off, by Ctrl-C as by an error, is followed by
`_leave`: it clears, and says what could not be cleared, and what was there before and is gone.
"""

import math
import mmap
import os
import signal
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio

from plasmastream._errors import PeerError, PlasmastreamError, StoreFullError
from plasmastream._interruption import interruptible
from plasmastream._object_id import ObjectID
from plasmastream._progress import show_steps
from plasmastream.cli._bench_found import LARGE, WAYS, Findings, Row, in_units
from plasmastream.cli._peer import NO_ANSWER, asking
from plasmastream.cli._run import ExitStatus, complain
from plasmastream.cli._types import Address
from plasmastream.cli._waits import watching
from plasmastream.peer import Outcome, PeerClient, PeerTimeouts, Result, TransferKind, describe_outcome
from plasmastream.store import EmbeddedStore, NewObject

_SMALL = 100
_SIZES = (1, 1 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20, 1 << 30, 4 << 30, 16 << 30)
_BATCH = 16 << 20
_MOST_OBJECTS = 10_000
_TRIAL, _MOST_TRIED = 1 << 20, 64
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 1000
_NO_ROOM = (Outcome.TOO_LARGE, Outcome.NO_ROOM)
_NO_ANSWER = NO_ANSWER | {Outcome.NOT_DROPPED}  # of a TAKE whose end the peer does not confirm
_LEAST_MEMORY, _ROOM = 1 << 20, 1 << 20  # the second for what a store rounds up
_TIMEOUTS = PeerTimeouts(retry=2.0)  # as long as a server waits for room, it gives signs of life
_CLEAR_WITHIN, _CLEARINGS = 20.0, 3
_QUIET = 1.0  # seconds in which clearing needs no word, and a second signal may be an echo of the first

_Report = Callable[[float], None]


class NoRoomError(PlasmastreamError):
    """There is no room for objects of this size, there or here; where `is_final`, not even for one."""

    def __init__(self, message: str, is_final: bool) -> None:
        super().__init__(message)
        self.is_final = is_final


class Gauge:
    """Measures between a peer and this process. `open_gauge` makes one.

    Args:
        peer: the other machine.
        old_peer: the same, in version 1 of the protocol.
        most_bytes: of the largest object; nor is there ever more of objects there at once.
    """

    def __init__(self, peer: PeerClient, old_peer: PeerClient, most_bytes: int) -> None:
        self._peer = peer
        self._old_peer = old_peer
        self._most_bytes = most_bytes
        self._content = memoryview(b"")
        self._store = EmbeddedStore(_ROOM)
        self._there: list[ObjectID] = []
        self._moved: Callable[[], None] = lambda: None

    @property
    def remaining(self) -> int:
        """How many objects there may be there now that are ours."""
        return len(self._there)

    async def measure(self, size: int, seconds: float, report: _Report, most_objects: int = _MOST_OBJECTS) -> Row:
        """Measure with objects of `size` bytes for about so many seconds; `report` is told which share of it is over.

        Raises:
            NoRoomError: the store there does not take them, or this machine has not so much memory.
            PlasmastreamError: something became of an object that should not.
            PeerError: the peer is gone.
        """
        most = max(1, min(most_objects, min(_BATCH, self._most_bytes // 4) // size))
        try:
            await self._have_memory(most * size)
        except StoreFullError as error:
            reason = str(error).partition("; ")[0]
            raise NoRoomError(f"this machine has no memory for them: {reason}", is_final=True) from error
        async with watching(self._peer) as watch:
            self._moved = watch.moved
            while True:
                try:
                    return await self._measure(size, seconds, report, most)
                except NoRoomError as error:
                    if error.is_final or self.remaining == 1:
                        raise
                    most = self.remaining // 2
                    await self.clear()

    async def _measure(self, size: int, seconds: float, report: _Report, most: int) -> Row:
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

    async def _have_memory(self, nbytes: int) -> None:
        if nbytes > len(self._content):
            self.close()
            self._content = memoryview(b"")  # the old memory goes before there is new
            nbytes = max(nbytes, _LEAST_MEMORY)
            self._store, self._content = await trio.to_thread.run_sync(_allocate, nbytes, abandon_on_cancel=True)

    async def _round(self, size: int, count: int) -> Mapping[str, float]:
        new = [
            NewObject(ObjectID.random(), self._content[at * size : (at + 1) * size]) for at in range(count)
        ]
        self._there = ids = [made.object_id for made in new]
        copy, take = TransferKind.COPY, TransferKind.TAKE
        report = self._report
        fetch = partial(self._peer.fetch, object_ids=ids, store=self._store, on_progress=report)
        taken = {
            "put": await self._time(size, self._peer.put(new, on_progress=report)),
            "copy": await self._time(size, fetch(copy)),
            "one connection": await self._time(size, fetch(copy, max_bytes=1)),
            "version 1": await self._time(
                size, self._old_peer.fetch(copy, ids, self._store, on_progress=report)
            ),
            "take": await self._time(size, fetch(take)),
        }
        self._there = []
        return taken

    def _report(self, objects: int, nbytes: int) -> None:
        self._moved()

    async def _time(self, size: int, transfer: Awaitable[Sequence[Result]]) -> float:
        """Seconds that a transfer took; what it brought here is deleted thereafter."""
        began = time.perf_counter()
        results = await transfer
        seconds = time.perf_counter() - began
        self._moved()
        await self._store.delete(self._there)
        failed = [result for result in results if not result.is_success]
        if failed:
            raise self._error(size, failed[0], is_final=len(failed) == len(results))
        return seconds

    def _error(self, size: int, result: Result, is_final: bool) -> PlasmastreamError:
        """In words that have none of the ids, which nobody has ever named."""
        words = result.reason or describe_outcome(result.outcome)
        one = f"an object of {in_units(size)}"
        if result.outcome in _NO_ROOM:
            reason = words.partition("; ")[0].removeprefix(f"object {result.object_id}: ")
            return NoRoomError(f"the store of {self._peer} has no room for {one}: {reason}", is_final)
        if result.outcome == Outcome.NOT_FOUND:
            reason = "what is put there is evicted at once"
            return NoRoomError(f"the store of {self._peer} has no room for {one}: {reason}", is_final=False)
        words = words.replace(f"object {result.object_id}", one)
        words = words.removeprefix("it has arrived, but the source may have it still; ").removesuffix("; take it again")
        if str(self._peer) not in words:
            words = f"{self._peer}: {words}"
        return (PeerError if result.outcome in _NO_ANSWER else PlasmastreamError)(words)

    async def clear(self) -> None:
        """See that nothing stays there of a round that broke off; `remaining` tells what may have.

        What is half there, or still on its way, gives way to an empty object of the same id, which is then taken.

        Raises:
            PeerError: the peer is gone.
        """
        for _ in range(_CLEARINGS):
            if not self._there:
                return
            await self._store.delete(self._there)
            await self._peer.put([NewObject(object_id, b"") for object_id in self._there])
            await self._peer.fetch(TransferKind.TAKE, self._there, self._store)
            self._there = [info.object_id for info in await self._peer.stat(self._there)]

    def close(self) -> None:
        """Give back the memory."""
        self._store.close()


def _allocate(nbytes: int) -> tuple[EmbeddedStore, memoryview]:
    store = EmbeddedStore(nbytes + _ROOM)
    content = memoryview(mmap.mmap(-1, nbytes))
    piece = os.urandom(min(nbytes, 1 << 20))
    for at in range(0, nbytes, len(piece)):
        content[at : at + len(piece)] = piece[: nbytes - at]
    return store, content


@asynccontextmanager
async def open_gauge(server: Address, most_bytes: int) -> AsyncIterator[Gauge]:
    """Measure with objects of up to `most_bytes`, and leave nothing behind; say what that has cost, and what failed.

    Raises:
        PlasmastreamError: the peer speaks version 1 alone.
    """
    old_peer = PeerClient(server.host, server.port, timeouts=_TIMEOUTS, version=1)
    async with asking(server, _TIMEOUTS) as peer:
        async with watching(server):
            await peer.connect()
            before = await _sealed_at(peer)
        gauge, cause = Gauge(peer, old_peer, most_bytes), None
        try:
            yield gauge
        except PlasmastreamError as error:
            cause = error
            raise
        finally:
            await _leave(server, peer, gauge, before)
            if gauge.remaining:
                objects = f"{gauge.remaining:,} object{'s' if gauge.remaining > 1 else ''}"
                stayed = f"of what was measured with, {objects} may have stayed there"
                if cause is None:
                    complain("plasmastream", f"{server}: {stayed}")
                else:
                    cause.args = (f"{cause}; {stayed}",)  # the same error otherwise
            gauge.close()
            await old_peer.aclose()


async def _sealed_at(peer: PeerClient) -> set[ObjectID]:
    """What can be evicted there."""
    return {info.object_id for info in await peer.list_objects() if info.construct_duration >= 0}


async def _leave(server: Address, peer: PeerClient, gauge: Gauge, before: set[ObjectID]) -> None:
    """Clear, and say what was there before and is gone: as long as the peer answers, and nobody wants to end it."""
    is_interrupted = trio.current_effective_deadline() == -math.inf
    with (
        trio.move_on_after(_CLEAR_WITHIN, shield=True) as scope,
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_heed, signals, scope, server, gauge, "Ctrl-C again" if is_interrupted else "Ctrl-C")
            with suppress(PlasmastreamError):  # the peer is gone: `remaining` tells what that means
                await gauge.clear()
                gone = len(before - await _sealed_at(peer)) if before else 0
                if gone:
                    were = "was there before is" if gone == 1 else "were there before are"
                    objects = f"{gone:,} of the {len(before):,} objects that {were} gone"
                    complain("plasmastream", f"{server}: {objects}: evicted, if the store was full")
            nursery.cancel_scope.cancel()


async def _heed(
    signals: AsyncIterable[int], scope: trio.CancelScope, server: Address, gauge: Gauge, how: str
) -> None:
    """Say what is waited for, and let a signal end it, though not in the first moments."""
    await trio.sleep(_QUIET)
    if gauge.remaining:
        complain("plasmastream", f"waiting for {server} to clear what was measured with; {how} leaves it there")
    else:
        complain("plasmastream", f"waiting for {server} to list what it has; {how} ends that")
    async for _ in signals:
        scope.cancel()


async def run_bench(server: Address, *, max_size: int, seconds: float, as_json: bool) -> int:
    """Measure, and print tables or JSON, also of what was measured before it broke off.

    What could not be measured is said on standard error.

    Args:
        server: the peer.
        max_size: bytes of the largest object.
        seconds: for each size, about.
        as_json: whether to print JSON.

    Returns:
        The exit status.
    """
    found = Findings(server)
    async with interruptible(), open_gauge(server, max_size) as gauge:
        try:
            await _measure_all(gauge, found, max_size, seconds)
        finally:
            for line in [found.in_json()] if as_json else found.in_tables():
                print(line, flush=True)
    return ExitStatus.DONE


async def _measure_all(gauge: Gauge, found: Findings, max_size: int, seconds: float) -> None:
    sizes = sorted({size for size in _SIZES if size < max_size} | {max_size})
    with show_steps(f"Measuring to {found.server.host}", 1 + len(sizes)) as show:
        small = min(_SMALL, max_size)
        found.latency = await gauge.measure(small, seconds, lambda share: show("latency", share), most_objects=1)
        for done, size in enumerate(sizes, start=1):
            label = in_units(size)
            show(label, done)
            last = found.rates[-1] if found.rates else None
            expected = size * last.seconds_a_byte if last and last.size >= LARGE else 0.0
            if expected > seconds:
                reason = f"an object would take about {expected:.3g} s"
                complain("plasmastream", f"{label} and more are left out: {reason}")
                return
            try:
                found.rates.append(await gauge.measure(size, seconds, partial(_show_share, show, label, done)))
            except NoRoomError as error:
                complain("plasmastream", f"{label} and more are left out: {error}")
                await gauge.clear()
                return


def _show_share(show: Callable[[str, float], None], label: str, done: int, share: float) -> None:
    show(label, done + share)
