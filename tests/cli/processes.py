"""Commands as real processes, each ended by who started it."""

import contextlib
import io
import os
import pty
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import attrs
import trio

from plasmastream import ObjectID, cli
from plasmastream.store import open_store

_LEGACY = "import sys; from plasmastream.cli import {name}; {name}()"


def command_line(program: str, *args: str | Path) -> list[str]:
    """How to run one of our programs, whether or not it is installed."""
    if program == "plasmastream":
        return [sys.executable, "-m", "plasmastream", *map(str, args)]
    return [sys.executable, "-c", _LEGACY.format(name=program.replace("-", "_")), *map(str, args)]


@attrs.frozen
class Result:
    """How a command ended."""

    status: int
    out: bytes
    err: str
    waits: str = ""
    """What it said of its waits, which may be anything where the test is about something else."""

    @property
    def text(self) -> str:
        """The standard output, as text."""
        return self.out.decode()

    def fails(self, status: int, *words: str, program: str = "plasmastream") -> None:
        """Check that it ended with this status, and one line on standard error that has these words in it."""
        assert (self.status, self.err.count("\n")) == (status, 1), self
        assert self.err.startswith(f"{program}: "), self
        assert not [word for word in words if word not in self.err], self

    def succeeds(self) -> "Result":
        """Check that it ended well, and in silence."""
        assert (self.status, self.err) == (0, ""), self
        return self


def run(
    *args: str | Path,
    program: str = "plasmastream",
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    timeout: float = 30,
) -> Result:
    """Run a command to its end."""
    done = subprocess.run(
        command_line(program, *args),
        input=stdin,
        capture_output=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
    )
    return Result(done.returncode, done.stdout, *without_waits(done.stderr.decode()))


def without_waits(err: str) -> tuple[str, str]:
    """What was written to standard error, and apart from it the lines that tell of waits: a slow machine has more."""
    lines = err.splitlines(keepends=True)
    waits = [line for line in lines if line.startswith("plasmastream: waiting for ")]
    return "".join(line for line in lines if line not in waits), "".join(waits)


def shown_on_terminal(*args: str | Path) -> str:
    """Run a command to its end, whose standard error is a terminal; return what it has written there.

    It is read all the while: a terminal takes a few KiB, and then who writes to it waits.
    """
    ours, theirs = pty.openpty()
    shown = b""
    try:
        with Running(command_line("plasmastream", *args), stderr=theirs) as running:
            os.close(theirs)
            with contextlib.suppress(OSError):  # at its end
                while some := os.read(ours, 1 << 16):
                    shown += some
            assert running.wait() == 0, shown
    finally:
        os.close(ours)
    return shown.decode()


class Running:
    """A command that runs; leaving the `with` block kills it if it still does."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        own_group: bool = False,
        stderr: int | None = None,
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._said = b""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log if stderr is None else stderr,
            env={**os.environ, **(env or {})},
            start_new_session=own_group,
            bufsize=0,
        )

    @property
    def out(self) -> str:
        """What it has written to its standard output, as far as it was waited for."""
        return self._said.decode()

    @property
    def err(self) -> str:
        """What it has written to its standard error so far."""
        log = self._log.fileno()
        return os.pread(log, os.fstat(log).st_size, 0).decode()  # seek() would move where it goes on to write

    def wait_for(self, words: str, timeout: float = 20) -> str:
        """Wait for a line of standard output with these words in it; return the line."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while True:
                for line in self.out.splitlines():
                    if words in line:
                        return line
                assert selector.select(deadline - time.monotonic()), f"not said: {words!r}; {self.out} {self.err}"
                chunk = os.read(self.process.stdout.fileno(), 1 << 16)
                assert chunk, f"ended without saying {words!r}: {self.out} {self.err}"
                self._said += chunk

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, timeout: float = 20) -> int:
        """Wait for its end; return its exit status."""
        return self.process.wait(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


def run_here(*args: str, program: str = "plasmastream") -> Result:
    """Run a command to its end in this process, which is ten times faster where nothing is to be served."""
    out, err = io.StringIO(), io.StringIO()
    main = getattr(cli, "main" if program == "plasmastream" else program.replace("-", "_"))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        unittest.mock.patch.object(sys, "argv", [program, *args]),
    ):
        try:
            main()
        except SystemExit as ended:
            return Result(int(ended.code or 0), out.getvalue().encode(), *without_waits(err.getvalue()))
    raise AssertionError("main() returned")


def put_object(socket: str | Path, data: bytes = b"abc", metadata: bytes = b"") -> str:
    """Put an object into a store without a command; return its id."""

    async def put() -> ObjectID:
        async with open_store(socket) as store:
            return await store.put(data, metadata)

    return str(trio.run(put))


def get_object(socket: str | Path, object_id: str) -> bytes | None:
    """Get the data of an object without a command; None where it is missing."""

    async def get() -> bytes | None:
        async with open_store(socket) as store:
            (lease,) = await store.get([ObjectID.from_hex(object_id)])
            if lease is None:
                return None
            with lease:
                return bytes(lease.data)

    return trio.run(get)


@attrs.frozen
class Node:
    """A `plasmastream serve` that is ready."""

    socket: str
    address: str
    process: Running


@contextlib.contextmanager
def node(socket: Path | str, *options: str, memory: str = "32MiB") -> Iterator[Node]:
    """Run `plasmastream serve` on a port that the system chooses."""
    options = ("--plasma-socket", str(socket), "--memory", memory, "--port", "0", *options)
    with Running(command_line("plasmastream", "serve", *options)) as process:
        address = process.wait_for("peer server ready").rpartition(" ")[2]
        yield Node(str(socket), address, process)
