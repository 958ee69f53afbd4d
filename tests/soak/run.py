"""Two machines, load and faults in rounds, and what must hold. See `soak`.

A round is some time of load, in which one fault follows another, and then calm: nothing goes wrong any more, every
transfer under way must come to its end, and then everything is measured. So samples can be compared.
"""

import json
import random
import select
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import attrs

from plasmastream import blocking
from plasmastream.wire.plasma import GetDebugStringReply, GetDebugStringRequest
from tests.apache import short_directory
from tests.interop.namespaces import Side, open_link
from tests.interop.nodes import Node, StoreProcess
from tests.soak.clients import LIMIT, Counts, Setup
from tests.soak.counted import read_count
from tests.soak.faults import Faults
from tests.soak.figures import MIB, Samples

_ROOT = Path(__file__).parents[2]
_COUNTED = Path(__file__).with_name("counted.py")
_PORT = 2021
_ROUNDS = 40
_SHORT_ROUND = 8.0
_BYTES_PER_SECOND = 200 * MIB
_PATIENCE = 60.0
_NAMES = ("A", "B")


class SoakError(Exception):
    """Something has ended, or does not answer, without which the run cannot go on."""


@attrs.frozen(kw_only=True)
class Options:
    """What kind of a run; times in seconds, sizes in bytes."""

    seconds: float
    seed: int
    clients: int = 6
    """In each namespace."""
    largest: int = 200 * MIB
    longest_downtime: float = 30.0
    version: int = 1
    """Of the peer protocol, which decides what may go wrong without harm."""

    @property
    def round_seconds(self) -> float:
        """Of load, before the next calm."""
        return max(self.seconds / _ROUNDS, min(self.seconds, _SHORT_ROUND))

    @property
    def memory(self) -> int:
        """Of each store: nothing need be evicted."""
        return 2 * self.largest + 2 * self.clients * 8 * MIB + 64 * MIB


@attrs.define
class Outcome:
    """What a run has shown."""

    options: Options
    seconds: float = 0.0
    counts: Counts = attrs.field(factory=Counts)
    faults: Faults | None = None
    samples: Samples = attrs.field(factory=Samples)
    findings: list[str] = attrs.field(factory=list)


class Machine:
    """A store and a peer server, in processes of their own, in one of the namespaces."""

    def __init__(self, name: str, side: Side, directory: Path, options: Options) -> None:
        self.name = name
        self.side = side
        self.socket_path = str(directory / f"plasma-{name}")
        self.findings: list[str] = []
        self._tasks = {what: directory / f"tasks-{what}-{name}" for what in ("store", "server")}
        self._version = options.version
        self.store = StoreProcess(self.socket_path, options.memory, within=self._within("store"))
        try:
            self._server = self._new_server()
            self._client = blocking.open_store(self.socket_path)
        except BaseException:
            self.close()
            raise

    def _within(self, what: str) -> list[str]:
        return [*self.side.within, sys.executable, str(_COUNTED), str(self._tasks[what]), str(self._version)]

    def _new_server(self) -> Node:
        host = ["--host", self.side.address]
        return Node(self.socket_path, port=_PORT, arguments=host, within=self._within("server"))

    def kill_server(self) -> None:
        """See `faults.Machine`."""
        self._look_at_log(self._server)
        self._server.kill()
        self._server.close()

    def start_server(self) -> None:
        """See `faults.Machine`."""
        self._server = self._new_server()

    def sample(self, samples: Samples, at: float) -> None:
        """Measure both processes and the use of the store, when nothing should be left in it."""
        deadline = time.monotonic() + _PATIENCE
        while (used := self._used()) and time.monotonic() < deadline:
            time.sleep(0.1)
        samples.add(f"store {self.name}", "store use", at, used)
        for what, process in (("store", self.store), ("server", self._server)):
            if process.exit_status is not None:
                raise SoakError(f"{what} {self.name} has ended with status {process.exit_status}:\n{process.stderr()}")
            samples.add_process(f"{what} {self.name}", at, process.pid, read_count(self._tasks[what]))

    def _used(self) -> int:
        """Bytes that the store has charged for objects, sealed or not."""
        figures = self._client._call(GetDebugStringRequest(), GetDebugStringReply).debug_string.splitlines()
        return next(int(line.rpartition(" ")[2]) for line in figures if line.startswith("allocated bytes"))

    def end(self) -> None:
        """Look at what is there in the end."""
        self.findings += [f"left in store {self.name}: {info}" for info in self._client.list_objects()]
        for process in (self._server, self.store):
            self._look_at_log(process)

    def _look_at_log(self, process: Node | StoreProcess) -> None:
        if "Traceback" in process.stderr():
            self.findings.append(f"{process.name} {self.name} met what it did not expect:\n{process.stderr()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End both processes."""
        for name in ("_client", "_server", "store"):
            if hasattr(self, name):
                getattr(self, name).close()


class Driver:
    """The process `tests.soak.clients` in one of the namespaces."""

    def __init__(self, side: Side, setup: Setup) -> None:
        command = [*side.within, sys.executable, "-u", "-m", "tests.soak.clients", json.dumps(attrs.asdict(setup))]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        try:
            self.proxy_port = int(self._read_line())
        except BaseException:
            self.close()
            raise

    def tell(self, line: str) -> None:
        """Send a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")

    def counts(self) -> Counts:
        """The answer to "calm"."""
        return Counts.from_json(self._read_line())

    def _read_line(self) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        # It writes one line, and then waits for the next command: nothing of it is in Python's buffer.
        if not select.select([stdout], [], [], LIMIT + _PATIENCE)[0]:
            raise SoakError("clients are stuck themselves")
        line = stdout.readline()
        if not line:
            raise SoakError("clients have ended, see above")
        return line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it. It has nothing that the kernel would not put in order."""
        self._process.kill()
        with self._process:  # closes the pipes, and waits
            pass


def soak(options: Options) -> Outcome:
    """Run for so many seconds, and until then everything has come to its end.

    Returns:
        What was seen; `findings` is empty if all that must hold has held.

    Raises:
        SoakError: the run could not go on.
        NamespaceError: there can be no namespaces here.
    """
    outcome = Outcome(options)
    with ExitStack() as stack:
        link = stack.enter_context(open_link())
        link.throttle(_BYTES_PER_SECOND)
        directory = stack.enter_context(short_directory())
        first, second = (
            stack.enter_context(Machine(name, side, directory, options))
            for name, side in zip(_NAMES, link.sides, strict=True)
        )
        machines = first, second
        drivers = [
            stack.enter_context(Driver(side, _setup(options, index, machines))) for index, side in enumerate(link.sides)
        ]
        for driver in drivers:
            driver.tell(json.dumps([driver.proxy_port for driver in drivers]))
        faults = Faults(random.Random(options.seed), link, machines, options.longest_downtime)
        outcome.faults = faults
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < options.seconds:
            for driver in drivers:
                driver.tell("load")
            # A server that is looked at for long must live for long: the first one is killed early only.
            _spoil(faults, options.round_seconds, kill_any=passed < options.seconds / 5)
            for driver in drivers:
                driver.tell("calm")
            outcome.counts = Counts()
            for driver in drivers:
                outcome.counts.add(driver.counts())
            outcome.seconds = time.monotonic() - begin
            for machine in machines:
                machine.sample(outcome.samples, outcome.seconds)
        for machine in machines:
            machine.end()
            outcome.findings += machine.findings
    outcome.findings += outcome.counts.findings + outcome.samples.growing()
    return outcome


def _setup(options: Options, index: int, machines: tuple[Machine, Machine]) -> Setup:
    return Setup(
        side=index,
        addresses=(machines[0].side.address, machines[1].side.address),
        port=_PORT,
        stores=(machines[0].socket_path, machines[1].socket_path),
        seed=options.seed,
        clients=options.clients,
        largest=options.largest,
        version=options.version,
    )


def _spoil(faults: Faults, seconds: float, *, kill_any: bool) -> None:
    """Have something go wrong now and then, for so long."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, faults.pause()))
        faults.cause_one(kill_any=kill_any)
