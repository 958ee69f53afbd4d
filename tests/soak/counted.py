"""Stands before a command ``python -m MODULE ...``: runs that module here, and keeps its number of tasks in a file.

Where version 1 of the peer protocol is what a soak is about, peer servers in it fetch by that; of themselves, by 2.

Nothing in the package tells from outside how many tasks a process has; Trio tells an instrument, which this one puts
into `trio.run`. The file has eight bytes, which are written in place: whoever reads them waits for nobody.
"""

import mmap
import runpy
import sys
from pathlib import Path
from typing import Any

import trio

from plasmastream.peer import PeerServer

SIZE = 8


class Tasks(trio.abc.Instrument):
    """Counts tasks that there are, Trio's own included."""

    def __init__(self, path: str) -> None:
        Path(path).write_bytes(bytes(SIZE))
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SIZE)
        self._count = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """One more."""
        self._note(1)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """One less."""
        self._note(-1)

    def _note(self, change: int) -> None:
        self._count += change
        self._memory[:] = self._count.to_bytes(SIZE, signed=True)


def read_count(path: Path) -> int:
    """The number of tasks, from the file."""
    return int.from_bytes(path.read_bytes(), signed=True)


def main() -> None:
    """Run what follows `-m`, with Trio under watch."""
    tasks, run = Tasks(sys.argv[1]), trio.run
    if sys.argv[2] == "1":
        vars(PeerServer)["__init__"].__kwdefaults__["fetch_version"] = 1

    def counted_run(*args: Any, instruments: Any = (), **options: Any) -> Any:
        return run(*args, instruments=[*instruments, tasks], **options)

    vars(trio)["run"] = counted_run
    sys.argv = sys.argv[sys.argv.index("-m") + 1 :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
