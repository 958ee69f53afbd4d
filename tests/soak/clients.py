"""A process in each namespace: clients that have objects moved between the two stores, and the proxy of this side.

Started by `run`, with a `Setup` in JSON. Its first line of output is the port of the proxy. Lines of input: the ports
of both proxies, in JSON; then "load" and "calm" in turn. It answers "calm" with `Counts` in JSON, when every transfer
has ended. The end of its input ends it.

A client makes objects in one store, asks the other side's server for them until it has them, looks at every byte,
and deletes them; or it has them in its own memory, and puts them into that store until they are there. It sees both
stores, since Unix sockets know no network namespaces. Whatever the network does, a transfer that has not succeeded
after `LIMIT` seconds is stuck.
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import IPv4Address
from typing import Any

import attrs
import trio

from plasmastream import ObjectID, PlasmastreamError
from plasmastream.peer import PeerRequest, Result, Status, TransferKind, describe_outcome, describe_status, open_peer
from plasmastream.store import NewObject, StoreClient, open_store
from plasmastream.testing import open_fault_proxy
from tests.soak.content import KIB, LARGE, Content, Job, Kind, draw_job
from tests.soak.faults import script_of

LIMIT = 180.0
_ANSWER_TIMEOUT = 60.0
_PAUSE = 0.2
_SMALL = 64 * KIB
_DELETED_WITHIN = 5.0
_PRESENT = describe_status(Status.ALREADY_PRESENT)


@attrs.frozen
class Setup:
    """What a process is told."""

    side: int
    addresses: tuple[str, str]
    port: int
    """Of both servers."""
    stores: tuple[str, str]
    """Paths of their sockets."""
    seed: int
    clients: int
    largest: int
    """Of objects, in bytes."""
    version: int
    """Of the peer protocol."""


@attrs.define
class Counts:
    """What has happened so far."""

    transfers: Counter[str] = attrs.field(factory=Counter)
    """COPY, TAKE, PUT: how many have ended well."""
    faults: Counter[str] = attrs.field(factory=Counter)
    """Faults of the proxy, by their names."""
    failures: Counter[str] = attrs.field(factory=Counter)
    """Attempts that failed, by what they were answered."""
    findings: list[str] = attrs.field(factory=list)
    """What must not be, in words."""
    objects: int = 0
    nbytes: int = 0
    attempts: int = 0
    wrong_bytes: int = 0
    stuck: int = 0
    at_both: int = 0
    """TAKEs that left objects at both sides, and that this version cannot finish."""
    slowest: float = 0.0
    """Seconds from the first attempt to success."""

    def add(self, other: "Counts") -> None:
        """Add what another process has counted."""
        for field in attrs.fields(Counts):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            setattr(self, field.name, max(ours, theirs) if field.name == "slowest" else ours + theirs)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(attrs.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Counts":
        """The same again."""
        fields: dict[str, Any] = json.loads(line)
        for name in ("transfers", "faults", "failures"):
            fields[name] = Counter(fields[name])
        return cls(**fields)


class Clients:
    """All clients of a process."""

    def __init__(self, setup: Setup, stores: tuple[StoreClient, StoreClient], proxies: tuple[int, int]) -> None:
        self.counts = Counts()
        self._setup = setup
        self._stores = stores
        self._proxies = proxies
        self._content = Content(setup.seed)
        self._one_of_the_largest = trio.CapacityLimiter(1)
        self._load = trio.Event()
        self._running = 0
        self._idle = trio.Event()

    def load(self) -> None:
        """Let clients begin transfers."""
        self._load.set()

    async def calm(self) -> None:
        """Let them begin no more, and wait until all have ended."""
        self._load = trio.Event()
        if self._running:
            await self._idle.wait()

    async def run(self) -> None:
        """Run all of them, for ever."""
        async with trio.open_nursery() as nursery:
            for number in range(self._setup.clients):
                nursery.start_soon(self._run_one, random.Random(f"{self._setup.seed} {self._setup.side} {number}"))

    async def _run_one(self, rng: random.Random) -> None:
        while True:
            while not self._load.is_set():
                await self._load.wait()
            job = draw_job(rng, self._setup.largest)
            if not self._running:
                self._idle = trio.Event()
            self._running += 1
            try:
                if job.nbytes > LARGE:
                    async with self._one_of_the_largest:
                        await self._move(job)
                else:
                    await self._move(job)
            finally:
                self._running -= 1
                if not self._running:
                    self._idle.set()

    async def _move(self, job: Job) -> None:
        source, destination = self._stores[job.source], self._stores[1 - job.source]
        ids = list(job.objects)
        if job.kind is not Kind.PUT:
            await self._make(source, job)
        begun = time.monotonic()
        with trio.move_on_after(LIMIT) as limit:
            async with AsyncExitStack() as stack:
                if job.kind is Kind.TAKE:
                    await stack.enter_async_context(self._somewhere(source, destination, job))
                await (self._put(job) if job.kind is Kind.PUT else self._succeed(job))
            self.counts.slowest = max(self.counts.slowest, time.monotonic() - begun)
            await self._check(destination, job)
            if job.kind is Kind.TAKE:
                await self._await_deletion(source, job)
            elif job.kind is Kind.COPY and not all(await source.contains(ids)):
                self._find(f"the source has lost objects: {job}")
            self.counts.transfers[job.kind.name] += 1
            self.counts.objects += len(ids)
            self.counts.nbytes += job.nbytes
        if limit.cancelled_caught:
            self.counts.stuck += 1
            self._find(f"stuck: {job}")
        for store in self._stores:
            await store.delete(ids)

    async def _make(self, store: StoreClient, job: Job) -> None:
        small = []
        for object_id, size in job.objects.items():
            metadata = self._content.metadata(object_id)
            if size <= _SMALL:
                small.append(NewObject(object_id, b"".join(self._content.pieces(object_id, size)), metadata))
                continue
            async with store.create(object_id, size, metadata) as unsealed:
                first = 0
                for piece in self._content.pieces(object_id, size):
                    unsealed.data[first : first + len(piece)] = piece
                    first += len(piece)
                    await trio.lowlevel.checkpoint()
                await unsealed.seal(bytes(8))
        for lease in await store.put_many(small) if small else ():
            lease.release()

    async def _succeed(self, job: Job) -> None:
        """Ask until the answer is yes."""
        ids = list(job.objects)
        while ids:
            failure = await self._attempt(job, ids)
            if failure is None or (failure == _PRESENT and self._setup.version > 1):
                return
            self.counts.failures[failure] += 1
            await trio.sleep(_PAUSE)
            if failure == _PRESENT:
                # Some of them are there, all that a killed server has left: version 1 wants to be asked for the others.
                there = await self._stores[1 - job.source].contains(ids)
                ids = [object_id for object_id, is_there in zip(ids, there, strict=True) if not is_there]

    async def _attempt(self, job: Job, ids: list[ObjectID]) -> str | None:
        """Ask the destination's server once; why it failed, or None."""
        self.counts.attempts += 1
        setup = self._setup
        port = self._proxies[job.source] if job.through_proxy else setup.port
        request = PeerRequest(TransferKind[job.kind.name], IPv4Address(setup.addresses[job.source]), port, tuple(ids))
        try:
            async with open_peer(setup.addresses[1 - job.source], setup.port) as peer:
                (status,) = await peer.sync([request], timeout=_ANSWER_TIMEOUT)
        except PlasmastreamError as error:
            return type(error).__name__
        return None if status == Status.SUCCESS else describe_status(status)

    async def _put(self, job: Job) -> None:
        """Put objects until all are there."""
        left = {
            object_id: NewObject(
                object_id, b"".join(self._content.pieces(object_id, size)), self._content.metadata(object_id)
            )
            for object_id, size in job.objects.items()
        }
        while left:
            for result in await self._attempt_put(job, list(left.values())):
                if result.is_success:
                    del left[result.object_id]
                else:
                    self.counts.failures[f"PUT: {describe_outcome(result.outcome)}"] += 1
            if left:
                await trio.sleep(_PAUSE)

    async def _attempt_put(self, job: Job, new: list[NewObject]) -> list[Result]:
        """Put them once, straight or through the destination's proxy."""
        self.counts.attempts += 1
        destination = 1 - job.source
        port = self._proxies[destination] if job.through_proxy else self._setup.port
        try:
            async with open_peer(self._setup.addresses[destination], port, version=2) as peer:
                return await peer.put(new, timeout=_ANSWER_TIMEOUT)
        except PlasmastreamError as error:
            self.counts.failures[type(error).__name__] += 1
            return []

    @asynccontextmanager
    async def _somewhere(self, source: StoreClient, destination: StoreClient, job: Job) -> AsyncIterator[None]:
        """Look all the time, within the block, whether each object is sealed somewhere."""
        ids = list(job.objects)

        async def look() -> None:
            while True:
                # In this order: what is not at the source any more must have been at the destination before.
                at_source = await source.contains(ids)
                at_destination = await destination.contains(ids)
                if not all(a or b for a, b in zip(at_source, at_destination, strict=True)):
                    self._find(f"an object was nowhere: {job}")
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            yield
            nursery.cancel_scope.cancel()

    async def _check(self, store: StoreClient, job: Job) -> None:
        """Look at every byte."""
        leases = await store.get(list(job.objects))
        for (object_id, size), lease in zip(job.objects.items(), leases, strict=True):
            if lease is None:
                self._find(f"{object_id} is not there after success: {job}")
                continue
            with lease:
                wrong = self._content.wrong_bytes(object_id, size, lease.data, lease.metadata)
            self.counts.wrong_bytes += wrong
            if wrong:
                self._find(f"{wrong:,} wrong bytes in {object_id}: {job}")

    async def _await_deletion(self, source: StoreClient, job: Job) -> None:
        """Wait until the source has deleted what was taken.

        Should that take long, a word was lost on the way. Version 2 finishes the job when it is asked again.
        """
        ids = list(job.objects)
        deadline = time.monotonic() + _DELETED_WITHIN
        while any(await source.contains(ids)):
            await trio.sleep(_PAUSE)
            if time.monotonic() > deadline:
                if self._setup.version == 1:
                    self.counts.at_both += 1
                    return
                await self._succeed(job)

    def _find(self, what: str) -> None:
        if what not in self.counts.findings:
            print(f"FOUND: {what}", file=sys.stderr, flush=True)
            self.counts.findings.append(what)


async def _main(setup: Setup) -> None:
    script = partial(script_of, setup.seed, setup.side, version=setup.version)
    address = setup.addresses[setup.side]
    async with (
        open_store(setup.stores[0]) as first,
        open_store(setup.stores[1]) as second,
        open_fault_proxy(address, setup.port, script, listen_at=address) as proxy,
        trio.open_nursery() as nursery,
    ):
        print(proxy.address[1], flush=True)
        ports = json.loads(await _read_line())
        clients = Clients(setup, (first, second), (ports[0], ports[1]))
        nursery.start_soon(clients.run)
        while command := await _read_line():
            if command == "load":
                clients.load()
                continue
            await clients.calm()
            triggered = [seen.fault for connection in proxy.connections for seen in connection.triggered]
            clients.counts.faults = Counter(type(fault).__name__ for fault in triggered)
            print(clients.counts.to_json(), flush=True)
        nursery.cancel_scope.cancel()


async def _read_line() -> str:
    line: str = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    return line.strip()


if __name__ == "__main__":
    trio.run(_main, Setup(**json.loads(sys.argv[1])))
