"""Rows 1 and 3 to 9: objects from one machine to another, here over the loopback interface.

Two nodes of ours, each `plasmastream serve` with a store inside. The second is told by SYNC to fetch from the first, so
that all the work is done in the two processes that users have. The rivals are in `benchmarks.rivals`:
each has a process that sends the same bytes, and one that receives them and, unless it says otherwise, stores them.
"""

import contextlib
import ipaddress
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import trio

from benchmarks.contest import Contest, Turn, at_least, at_most
from benchmarks.processes import (
    RIVALS_PYTHON,
    Command,
    Worker,
    apache_store,
    free_port,
    process,
    scratch,
    wait_for_port,
    wait_for_socket,
    why_no_apache,
)
from plasmastream import ObjectID
from plasmastream.blocking import NewObject, StoreClient, open_store
from plasmastream.peer import open_peer
from plasmastream.wire.stream import PeerRequest, Status, TransferKind

OURS = "plasmastream, version 1"
IPERF = "`iperf3`"
FLOOR = "bare `sendfile` and `recv_into`"
DISCARDING = "bare `send` and `recv_into`, nothing stored"
FLIGHT = "Arrow Flight"
GRPC = "gRPC streaming"

_MEMORY = 1200 << 20
_GIB = 1 << 30


class Nodes:
    """Two nodes; the second fetches from the first what the first was given."""

    def __init__(self, ports: tuple[int, int], stores: tuple[StoreClient, StoreClient]) -> None:
        self.ports = ports
        self.source, self.destination = stores

    def give(self, count: int, size: int) -> list[ObjectID]:
        """Put so many objects of so many bytes into the first store."""
        ids = [ObjectID.random() for _ in range(count)]
        if size < 1 << 20:
            for lease in self.source.put_many([NewObject(object_id, bytes(size)) for object_id in ids]):
                lease.release()
            return ids
        data = bytes(size)
        for object_id in ids:
            with self.source.create(object_id, size) as unsealed:
                unsealed.data[:] = data
                unsealed.seal(digest=bytes(8))
        return ids

    def fetch(self, ids: Sequence[ObjectID], times: int = 1) -> list[float]:
        """Seconds from each SYNC to its answer; what was fetched is deleted in between."""
        return trio.run(self._fetch, ids, times)

    async def _fetch(self, ids: Sequence[ObjectID], times: int) -> list[float]:
        request = PeerRequest(TransferKind.COPY, ipaddress.ip_address("127.0.0.1"), self.ports[0], tuple(ids))
        taken: list[float] = []
        async with open_peer("127.0.0.1", self.ports[1]) as peer:
            for _ in range(times):
                start = time.perf_counter()
                (status,) = await peer.sync([request])
                taken.append(time.perf_counter() - start)
                assert status == Status.SUCCESS, status
                await trio.to_thread.run_sync(self.destination.delete, list(ids))
        return taken


@contextlib.contextmanager
def nodes(here: Path, name: str, sockets: Sequence[Path] = ()) -> Iterator[Nodes]:
    """Two nodes, with stores of their own or at the given sockets of others."""
    with contextlib.ExitStack() as stack:
        ports = free_port(), free_port()
        paths = []
        for number, port in enumerate(ports):
            path = sockets[number] if sockets else here / f"{name}-{number}"
            command: Command = [sys.executable, "-m", "plasmastream", "serve", "--port", str(port), "-s", path]
            command += ["--external-store"] if sockets else ["--memory", str(_MEMORY)]
            started = stack.enter_context(process(command))
            wait_for_socket(path, started)
            wait_for_port(port, started)
            paths.append(path)
        first, second = (stack.enter_context(open_store(path)) for path in paths)
        yield Nodes(ports, (first, second))


@contextlib.contextmanager
def contests() -> Iterator[Sequence[Contest]]:
    """The contests, while all nodes and rivals are up."""
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(scratch())
        ours = stack.enter_context(nodes(here, "ours"))
        rivals, missing = _rivals(stack)
        streams = [name for name in (IPERF, DISCARDING, FLOOR) if name in rivals]
        no_iperf = {IPERF: missing[IPERF]} if IPERF in missing else {}

        def against(names: Sequence[str], count: int, size: int, unit: Callable[[float], float]) -> dict[str, Turn]:
            ids: list[ObjectID] = []

            def fetch() -> float:
                if not ids:
                    ours.source.evict(_MEMORY)
                    ids.extend(ours.give(count, size))
                return unit(ours.fetch(ids)[0])

            return {OURS: fetch} | {name: _turn(rivals[name], count, size, unit) for name in names}

        def gigabytes(total: int) -> Callable[[float], float]:
            return lambda seconds: total / seconds / 1e9

        def objects(count: int) -> Callable[[float], float]:
            return lambda seconds: count / seconds

        grpc_and_flight = [name for name in (FLIGHT, GRPC) if name in rivals]
        lost = {name: reason for name, reason in missing.items() if name in (FLIGHT, GRPC)}
        yield [
            Contest(
                1,
                "COPY 1 x 1 GiB, warm",
                "GB/s",
                against(streams, 1, _GIB, gigabytes(_GIB)),
                [at_least(0.9, IPERF)],
                no_iperf,
            ),
            Contest(
                9,
                "COPY 1 x 1 GiB",
                "GB/s",
                against(grpc_and_flight, 1, _GIB, gigabytes(_GIB)),
                [at_least(1.3, FLIGHT)],
                lost,
            ),
            Contest(
                3,
                "COPY 1 x 1 GiB into a store that has just started",
                "GB/s",
                {OURS: partial(_into_fresh, here)}
                | {name: _turn(rivals[name], 1, _GIB, gigabytes(_GIB)) for name in streams},
                [at_least(0.5, IPERF)],
                no_iperf,
            ),
            Contest(
                4,
                "COPY 16 x 64 MiB",
                "GB/s",
                against(streams, 16, 64 << 20, gigabytes(_GIB)),
                [at_least(0.9, IPERF)],
                no_iperf,
            ),
            Contest(
                5,
                "COPY 1,000 x 100 KiB",
                "GB/s",
                against(streams, 1000, 100 << 10, gigabytes(1000 * 100 << 10)),
                [at_least(0.5, IPERF)],
                no_iperf,
            ),
            Contest(
                6, "COPY 10,000 x 1 KiB", "objects/s", against([], 10_000, 1 << 10, objects(10_000)), [at_least(60_000)]
            ),
            *_between_apaches(stack, here),
            Contest(
                7, "COPY 65,536 x 100 B", "objects/s", against([], 65_536, 100, objects(65_536)), [at_least(60_000)]
            ),
            *(
                Contest(8, f"SYNC of one object of 100 B, {name}", "ms", {OURS: partial(_latency, ours, share)}, [mark])
                for name, share, mark in (("median", 0.5, at_most(0.4)), ("99th percentile", 0.99, at_most(2.0)))
            ),
            Contest(
                9,
                "COPY 10,000 x 1 KiB",
                "objects/s",
                against(grpc_and_flight, 10_000, 1 << 10, objects(10_000)),
                [at_least(10, FLIGHT)],
                lost,
            ),
        ]


def _rivals(stack: contextlib.ExitStack) -> tuple[Mapping[str, Callable[[int, int], float]], Mapping[str, str]]:
    """What each rival that is here needs for so many objects of so many bytes, in seconds; and who is not here."""
    found: dict[str, Callable[[int, int], float]] = {}
    missing: dict[str, str] = {}
    here = Path(sys.executable)
    for name, module, python in (
        (DISCARDING, "discarding", here),
        (FLOOR, "floor", here),
        (FLIGHT, "flight", RIVALS_PYTHON),
        (GRPC, "grpc_stream", RIVALS_PYTHON),
    ):
        if not python.exists():
            missing[name] = "`make setup-bench` has not installed it"
            continue
        command: Command = [python, "-Wignore", "-m", f"benchmarks.rivals.{module}"]
        receiver = Worker(stack.enter_context(process(command, pipes=True)))
        found[name] = partial(receiver.do, "receive")
    if shutil.which("iperf3") is None:
        missing[IPERF] = "it is not installed"
    else:
        port = free_port()
        wait_for_port(port, stack.enter_context(process(["iperf3", "--server", "--port", str(port)])))
        found[IPERF] = partial(_iperf, port)
    return found, missing


def _turn(rival: Callable[[int, int], float], count: int, size: int, unit: Callable[[float], float]) -> Turn:
    return lambda: unit(rival(count, size))


def _iperf(port: int, count: int, size: int) -> float:
    command = ["iperf3", "--client", "127.0.0.1", "--port", str(port), "--bytes", str(count * size), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    received = json.loads(done.stdout)["end"]["sum_received"]
    return float(count * size / received["bits_per_second"] * 8)


def _into_fresh(here: Path) -> float:
    with nodes(here, "fresh") as fresh:
        # The destination is as new as can be: the source was filled while both started.
        ids = fresh.give(1, _GIB)
        return _GIB / fresh.fetch(ids)[0] / 1e9


def _latency(ours: Nodes, share: float) -> float:
    ids = ours.give(1, 100)
    taken = sorted(ours.fetch(ids, 300)[20:])
    return taken[int(share * len(taken))] * 1e3


def _between_apaches(stack: contextlib.ExitStack, here: Path) -> Sequence[Contest]:
    work, mark = "COPY 10,000 x 1 KiB between two of Apache's stores", at_least(15_000)
    if (reason := why_no_apache()) is not None:
        print(f"  6  {work}: not measured: {reason}")
        return []
    sockets = [stack.enter_context(apache_store(here / f"apache-{number}", 64 << 20)) for number in range(2)]
    pair = stack.enter_context(nodes(here, "beside", sockets))
    ids = pair.give(10_000, 1 << 10)
    return [Contest(6, work, "objects/s", {OURS: lambda: 10_000 / pair.fetch(ids)[0]}, [mark])]
