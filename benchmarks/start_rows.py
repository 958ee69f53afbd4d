"""Row 17: how long one waits for a command, an import, and a store that serves.

Modules are compiled, as they are where the package is installed: by the first turn, which does not count.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from benchmarks.contest import Contest, at_most
from benchmarks.processes import Command, free_port, process, scratch, wait_for_port

_SERVED = str(1 << 30)
_KEEPS_COMPILED = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


@contextlib.contextmanager
def contests() -> Iterator[Sequence[Contest]]:
    """The contests: each has one mark, in seconds, and the bare interpreter as its rival."""
    bare = {"a bare interpreter": lambda: _run("-c", "pass")}
    yield [
        Contest(
            17,
            "`plasmastream --help`",
            "s",
            {"ours": lambda: _run("-m", "plasmastream", "--help"), **bare},
            [at_most(0.3)],
        ),
        Contest(
            17,
            "`import plasmastream.wire`",
            "s",
            {"ours": lambda: _run("-c", "import plasmastream.wire"), **bare},
            [at_most(0.06)],
        ),
        Contest(17, "`serve` with a store of 1 GiB, until ready", "s", {"ours": _serve}, [at_most(1)]),
    ]


def _run(*args: str) -> float:
    """Seconds until it has ended, which its output says: a wait with a timeout would look every 16, 32 and 50 ms."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *args], check=True, stdout=subprocess.PIPE, env=_KEEPS_COMPILED, timeout=60)
    return time.perf_counter() - start


def _serve() -> float:
    with scratch() as here:
        port = free_port()
        command: Command = [
            sys.executable,
            "-m",
            "plasmastream",
            "serve",
            "--port",
            str(port),
            "-s",
            here / "s",
            "--memory",
            _SERVED,
        ]
        start = time.perf_counter()
        with process(command, env=_KEEPS_COMPILED) as started:
            wait_for_port(port, started)
            return time.perf_counter() - start
