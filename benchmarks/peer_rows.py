"""Rows 1 to 9: objects from one machine to another, here over the loopback interface.

Two nodes of ours (`benchmarks.nodes`), and both versions of the protocol: version 2 is what users get unless they ask
for the other, and verifies every byte, which nobody can switch off; version 1 has no checksums. The rivals are in
`benchmarks.rivals`: each has a process that sends the same bytes, and one that receives them and, unless it says
otherwise, stores them.
"""

import contextlib
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.contest import Contest, Mark, Turn, at_least, at_most
from benchmarks.nodes import Node, node
from benchmarks.processes import (
    RIVALS_PYTHON,
    Command,
    Worker,
    apache_store,
    free_port,
    process,
    scratch,
    wait_for_port,
    why_no_apache,
)
from plasmastream import ObjectID

VERSION_1, VERSION_2 = "plasmastream, version 1", "plasmastream, version 2"
VERSIONS = {VERSION_1: 1, VERSION_2: 2}
IPERF = "`iperf3`"
FLOOR = "bare `sendfile` and `recv_into`"
DISCARDING = "bare `send` and `recv_into`, nothing stored"
NEW_MEMORY = "new shared memory, reserved, and written to once"
MEMORY_AT_HAND = "the same, from memory at hand"
RELAY = "three processes on Trio that pass 100 B on"
FLIGHT = "Arrow Flight"
FLIGHT_TABLE = "Arrow Flight, all in one column"
FLIGHT_EACH = "Arrow Flight, a DoGet for each"
GRPC = "gRPC streaming"

_MEMORY = 1200 << 20
_SOURCE_MEMORY = 4 << 30  # a server holds a quarter of it for one peer, and a GiB is fetched in one request
_GIB = 1 << 30
_LATENCIES = 300
_SMALL = 100
# A virtual machine may give what is free back to its host: the next one is not to find what the last one has just left.
_UNTIL_GIVEN_BACK = 3.0
_CONTENT = bytes(256 << 10)


@contextlib.contextmanager
def contests() -> Iterator[Sequence[Contest]]:
    """The contests, while all nodes and rivals are up."""
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(scratch())
        source = stack.enter_context(node(here / "source", _SOURCE_MEMORY))
        destination = stack.enter_context(node(here / "destination", _MEMORY))
        rivals, missing = _rivals(stack)
        relay = Worker(stack.enter_context(process([sys.executable, "-m", "benchmarks.rivals.relay"], pipes=True)))
        streams = (IPERF, DISCARDING, FLOOR)

        def contest(
            row: int,
            work: str,
            count: int,
            size: int,
            marks: Sequence[Mark],
            names: Sequence[str] = (),
            *,
            in_bytes: bool,
            before_start: Callable[[], None] | None = None,
            most_seconds: float = 10,
        ) -> Contest:
            amount = count * size / 1e9 if in_bytes else count
            ids: list[ObjectID] = []

            def fetch(version: int) -> float:
                if not ids:
                    source.store.evict(_SOURCE_MEMORY)
                    ids.extend(source.give(count, size))
                if before_start is None:
                    return amount / destination.fetch(source, ids, version)[0]
                before_start()
                with node(here / "fresh", _MEMORY) as fresh:
                    return amount / fresh.fetch(source, ids, version)[0]

            turns: dict[str, Turn] = {name: partial(fetch, version) for name, version in VERSIONS.items()}
            turns |= {name: _turn(rivals[name], count, size, amount) for name in names if name in rivals}
            absent = {name: missing[name] for name in names if name in missing}
            return Contest(row, work, "GB/s" if in_bytes else "objects/s", turns, marks, absent, 2, most_seconds)

        yield [
            contest(
                1,
                "COPY 1 x 1 GiB, warm",
                1,
                _GIB,
                [at_least(0.9, IPERF, of=VERSION_1), at_least(0.75, IPERF, of=VERSION_2, row=2)],
                streams,
                in_bytes=True,
            ),
            contest(9, "COPY 1 x 1 GiB", 1, _GIB, [at_least(1.3, FLIGHT)], [FLIGHT, GRPC], in_bytes=True),
            *(
                contest(
                    3,
                    f"COPY 1 x 1 GiB into a store that has just started, {when}",
                    1,
                    _GIB,
                    [at_least(0.5, IPERF)],
                    (IPERF, floor),  # the others have warm memory
                    in_bytes=True,
                    before_start=before_start,
                    most_seconds=most_seconds,
                )
                for when, floor, before_start, most_seconds in (
                    ("the host has taken back what was free", NEW_MEMORY, _let_host_take_back, 70),
                    ("the machine has memory at hand", MEMORY_AT_HAND, _have_memory_at_hand, 30),
                )
            ),
            contest(
                4,
                "COPY 16 x 64 MiB",
                16,
                64 << 20,
                [at_least(0.9, IPERF, of=VERSION_1), at_least(0.75, IPERF, of=VERSION_2)],
                streams,
                in_bytes=True,
            ),
            contest(
                5, "COPY 1,000 x 100 KiB", 1000, 100 << 10, [at_least(0.5, IPERF)], streams, in_bytes=True
            ),
            contest(6, "COPY 10,000 x 1 KiB", 10_000, 1 << 10, [at_least(60_000)], in_bytes=False),
            *_between_apaches(stack, here),
            contest(7, "COPY 65,536 x 100 B in one request", 65_536, 100, [at_least(60_000)], in_bytes=False),
            _memory(here),
            *(
                Contest(
                    8,
                    f"SYNC of one object of 100 B, {name}",
                    "ms",
                    {
                        who: partial(_latency, source, destination, version, share)
                        for who, version in VERSIONS.items()
                    }
                    | {RELAY: partial(_relayed, relay, share)},
                    [mark],
                    ours=2,
                )
                for name, share, mark in (("median", 0.5, at_most(0.4)), ("99th percentile", 0.99, at_most(2.0)))
            ),
            contest(
                9,
                "COPY 10,000 x 1 KiB",
                10_000,
                1 << 10,
                [at_least(10, FLIGHT)],
                [FLIGHT, FLIGHT_TABLE, FLIGHT_EACH, GRPC],
                in_bytes=False,
            ),
        ]


def _rivals(stack: contextlib.ExitStack) -> tuple[Mapping[str, Callable[[int, int], float]], Mapping[str, str]]:
    """What each rival that is here needs for so many objects of so many bytes, in seconds; and who is not here."""
    found: dict[str, Callable[[int, int], float]] = {
        NEW_MEMORY: partial(_write_once, _let_host_take_back),
        MEMORY_AT_HAND: partial(_write_once, _have_memory_at_hand),
    }
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
            missing |= dict.fromkeys((FLIGHT_TABLE, FLIGHT_EACH), missing[name]) if name == FLIGHT else {}
            continue
        command: Command = [python, "-Wignore", "-m", f"benchmarks.rivals.{module}"]
        receiver = Worker(stack.enter_context(process(command, pipes=True)))
        found[name] = partial(receiver.do, "receive")
        if name == FLIGHT:
            found[FLIGHT_TABLE] = partial(receiver.do, "receive_table")
            found[FLIGHT_EACH] = partial(receiver.do, "receive_each")
    if shutil.which("iperf3") is None:
        missing[IPERF] = "it is not installed"
    else:
        port = free_port()
        wait_for_port(port, stack.enter_context(process(["iperf3", "--server", "--port", str(port)])))
        found[IPERF] = partial(_iperf, port)
    return found, missing


def _let_host_take_back() -> None:
    """On a virtual machine: wait until what is free is not in the memory of the host any more."""
    time.sleep(_UNTIL_GIVEN_BACK)


def _have_memory_at_hand() -> None:
    """Use as much memory as is needed next, and free it."""
    with mmap.mmap(-1, 2 * _MEMORY) as memory:
        for at in range(0, len(memory), mmap.PAGESIZE):
            memory[at] = 1


def _write_once(before: Callable[[], None], count: int, size: int) -> float:
    """What the kernel alone takes for the first writes to memory that was reserved, as that of a store is."""
    before()
    descriptor = os.memfd_create("benchmark")
    try:
        os.posix_fallocate(descriptor, 0, count * size)
        with mmap.mmap(descriptor, count * size) as memory:
            began = time.perf_counter()
            for at in range(0, count * size, len(_CONTENT)):
                memory[at : at + len(_CONTENT)] = _CONTENT
            return time.perf_counter() - began
    finally:
        os.close(descriptor)


def _turn(rival: Callable[[int, int], float], count: int, size: int, amount: float) -> Turn:
    return lambda: amount / rival(count, size)


def _iperf(port: int, count: int, size: int) -> float:
    command = ["iperf3", "--client", "127.0.0.1", "--port", str(port), "--bytes", str(count * size), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    received = json.loads(done.stdout)["end"]["sum_received"]
    return float(count * size / received["bits_per_second"] * 8)


_SENDS, _RECEIVES = "who sends", "who receives"


def _memory(here: Path) -> Contest:
    turns: dict[str, Turn] = {}
    for name, version in VERSIONS.items():
        growth = _Growth(here, version)
        turns |= {f"{name}, {end}": partial(growth.of, end) for end in (_SENDS, _RECEIVES)}
    return Contest(
        7,
        "the same between nodes that have just started: by how much each process grows, at most",
        "MiB",
        turns,
        [at_most(64, of=who) for who in turns],
        ours=0,
        most_seconds=10,
    )


class _Growth:
    """By how many MiB the processes of two nodes grow, which have not fetched anything yet; one run tells both.

    What a store notes of each object that arrives is part of it.
    """

    def __init__(self, here: Path, version: int) -> None:
        self._here = here
        self._version = version
        self._found: dict[str, float] = {}

    def of(self, end: str) -> float:
        """Of one of them: from the run before, unless that has been told already."""
        if end not in self._found:
            self._found = self._measure()
        return self._found.pop(end)

    def _measure(self) -> dict[str, float]:
        found: dict[str, float] = {}
        with node(self._here / "sends", 64 << 20) as source, node(self._here / "receives", 64 << 20) as destination:
            ids = source.give(65_536, 100)

            def fetch() -> None:
                found[_RECEIVES] = destination.memory_growth(
                    lambda: destination.fetch(source, ids, self._version, keep=True)
                )

            found[_SENDS] = source.memory_growth(fetch)
        return found


def _latency(source: Node, destination: Node, version: int, share: float) -> float:
    ids = source.give(_LATENCIES, _SMALL)
    taken = sorted(destination.fetch_one_by_one(source, ids, version)[20:])
    source.store.delete(ids)
    return taken[int(share * len(taken))] * 1e3


def _relayed(relay: Worker, share: float) -> float:
    return relay.do("ask", _LATENCIES, _SMALL, share) * 1e3


def _between_apaches(stack: contextlib.ExitStack, here: Path) -> Sequence[Contest]:
    work, mark = "COPY 10,000 x 1 KiB between two of Apache's stores", at_least(15_000)
    if (reason := why_no_apache()) is not None:
        print(f"  6  {work}: not measured: {reason}")
        return []
    sockets = [stack.enter_context(apache_store(here / f"apache-{number}", 64 << 20)) for number in range(2)]
    source, destination = (stack.enter_context(node(path, None)) for path in sockets)
    ids = source.give(10_000, 1 << 10)
    turns = {
        name: partial(lambda version: 10_000 / destination.fetch(source, ids, version)[0], version)
        for name, version in VERSIONS.items()
    }
    return [Contest(6, work, "objects/s", turns, [mark], ours=2)]
