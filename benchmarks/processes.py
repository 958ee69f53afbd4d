"""Stores and workers as processes of their own, each ended by who started it."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).parent.parent
APACHE_PYTHON = ROOT / ".venv-apache" / "bin" / "python"
RIVALS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"

Command: TypeAlias = list[str | Path]

_PATIENCE = 60.0


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new directory with a short path, for sockets."""
    path = Path(tempfile.mkdtemp(prefix="plasmastream-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Process:
    """A process of ours, and what it says on standard error."""

    def __init__(self, command: Sequence[str | Path], *, pipes: bool, env: Mapping[str, str] | None) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (`process` closes it)
        pipe = subprocess.PIPE if pipes else subprocess.DEVNULL
        self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, cwd=ROOT, env=env, text=True)

    def failure(self) -> RuntimeError:
        """What to raise where it ended too early."""
        self._log.seek(0)
        return RuntimeError(f"{self.popen.args!r} has failed: {self._log.read().decode()}")

    def close(self) -> None:
        """End it."""
        self.popen.terminate()
        try:
            self.popen.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.communicate()
        self._log.close()


@contextlib.contextmanager
def process(
    command: Sequence[str | Path], *, pipes: bool = False, env: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """A process that runs as long as the block, at most."""
    started = Process(command, pipes=pipes, env=env)
    try:
        yield started
    finally:
        started.close()


class Worker:
    """A process that does the named pieces of work: see `benchmarks.workers.loop`."""

    def __init__(self, started: Process) -> None:
        self._process = started

    def begin(self, work: str, *args: float) -> None:
        """Have it begin."""
        stdin = self._process.popen.stdin
        assert stdin is not None
        stdin.write(json.dumps([work, *args]) + "\n")
        stdin.flush()

    def end(self) -> float:
        """Seconds that the work has taken, once it is done."""
        return self._answer()[0]

    def _answer(self) -> list[float]:
        stdout = self._process.popen.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise self._process.failure()
        answer: list[float] = json.loads(line)
        return answer

    def do(self, work: str, *args: float) -> float:
        """Both."""
        self.begin(work, *args)
        return self.end()


def seconds_of_all(workers: Sequence[Worker], work: str, *args: float) -> float:
    """Have all do the same at once; tells the time from when the first began to when the last ended."""
    for one in workers:
        one.begin(work, *args)
    begun, ended = zip(*[one._answer()[1:] for one in workers], strict=True)
    return float(max(ended) - min(begun))


@contextlib.contextmanager
def worker(name: str, path: Path) -> Iterator[Worker]:
    """A worker of `benchmarks.workers` at the store at `path`."""
    python = APACHE_PYTHON if name == "apache" else Path(sys.executable)
    with process([python, "-Wignore", "-m", f"benchmarks.workers.{name}", path], pipes=True) as started:
        yield Worker(started)


@contextlib.contextmanager
def our_store(path: Path, memory: int) -> Iterator[Path]:
    """Our store at a socket."""
    command: Command = [sys.executable, "-m", "plasmastream", "store", "-s", path, "--memory", str(memory)]
    with process(command) as started:
        wait_for_socket(path, started)
        yield path


@contextlib.contextmanager
def apache_store(path: Path, memory: int) -> Iterator[Path]:
    """Apache's store at a socket."""
    find = "import pyarrow, pathlib; print(pathlib.Path(pyarrow.__file__).parent / 'plasma-store-server')"
    found = subprocess.run([APACHE_PYTHON, "-c", find], capture_output=True, text=True, check=True, timeout=_PATIENCE)
    with process([found.stdout.strip(), "-m", str(memory), "-s", path]) as started:
        wait_for_socket(path, started)
        yield path


def why_no_apache() -> str | None:
    """Why Apache's parts cannot take part, if they cannot."""
    return None if APACHE_PYTHON.exists() else "`make setup-apache` found no CPython 3.11 for pyarrow 11.0.0"


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for_port(port: int, started: Process) -> None:
    """Wait until a process accepts connections."""
    _wait(lambda: socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE).close(), started)


def wait_for_socket(path: Path, started: Process) -> None:
    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(os.fspath(path))

    _wait(connect, started)


def _wait(connect: Callable[[], None], started: Process) -> None:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            connect()
            return
        except OSError:
            if started.popen.poll() is not None or time.monotonic() > end:
                raise started.failure() from None
        time.sleep(0.005)
