"""Many worlds, one seed each: in this process, or divided over processes of their own, which no coverage slows down."""

import gc
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

import attrs

from tests.simulation.operations import Version, Version1
from tests.simulation.version2 import Version2
from tests.simulation.world import Report, simulate

VERSIONS: dict[str, Callable[[random.Random], Version]] = {"1": Version1, "2": Version2}
"""The versions of the protocol, by name."""

_HANGS_AFTER = 60.0
"""Seconds of work for one world, which takes some hundredths of one; of time, ten times as many: others work, too."""
_SHOWN = 400
"""Lines of a story."""


@attrs.frozen
class Outcome:
    """What became of many worlds."""

    worlds: int
    failures: list[str]
    """What to show, for each world in which something went wrong."""
    counts: Counter[str]
    """Of operations in trouble, as in `Report`."""
    seconds: float = 0.0

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {what}" for what, count in sorted(self.counts.items()))
        rate = self.worlds / self.seconds if self.seconds else 0.0
        return f"{self.worlds:,} worlds in {self.seconds:.0f} s ({rate:,.0f}/s); operations: {counts}"


@attrs.frozen
class Kind:
    """What kind of worlds."""

    version: str = "1"
    """One of `VERSIONS`."""
    lies: bool = False
    """Whether connections lie although the version believes it: then something is to be found."""

    @property
    def arguments(self) -> list[str]:
        """As the command takes it."""
        return ["--version", self.version, *["--lies"] * self.lies]


def show(kind: Kind, report: Report) -> str:
    """A failure, in words: what to repeat it with, and what happened."""
    arguments = " ".join(kind.arguments)
    return "\n".join(
        (
            f"SEED {report.seed}: python -m tests.simulation {arguments} --seed {report.seed} --story",
            *report.failures,
            *report.story[-_SHOWN:],
            f"SEED {report.seed}: {len(report.failures)} failures, the first: {report.failures[0]}",
        )
    )


def run_here(kind: Kind, seeds: range) -> Iterator[Report]:
    """Worlds in this process, one after the other. One that does not end, ends the process."""
    gc.freeze()
    timers = {
        signal.ITIMER_PROF: (signal.SIGPROF, _HANGS_AFTER),
        signal.ITIMER_REAL: (signal.SIGALRM, 10 * _HANGS_AFTER),
    }
    for seed in seeds:
        for timer, (number, patience) in timers.items():
            signal.signal(number, partial(_give_up, seed))
            signal.setitimer(timer, patience)
        try:
            report = simulate(seed, VERSIONS[kind.version], lies=kind.lies)
        finally:
            for timer in timers:
                signal.setitimer(timer, 0)
        yield report


def _give_up(seed: int, number: int, frame: FrameType | None) -> None:
    print(f"SEED {seed}: it has not ended after {_HANGS_AFTER:g} s", flush=True)
    traceback.print_stack(frame)
    os._exit(1)


def run(kind: Kind, seeds: range, *, workers: int | None = None) -> Outcome:
    """Worlds in as many processes as there are processors."""
    count = min(len(seeds), workers or len(os.sched_getaffinity(0)))
    begin = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.simulation", *kind.arguments, "--worker", "--seed", str(seeds[number]),
             "--step", str(count * seeds.step), "--seeds", str(len(seeds[number::count]))],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(count)
    ]  # fmt: skip
    outcome = Outcome(len(seeds), [], Counter())
    try:
        for process in processes:
            output, _ = process.communicate()
            story, _, figures = output.rstrip().rpartition("\n")
            if process.returncode:
                outcome.failures.append(output)
            else:
                assert not story, story
                for pair in figures.split(", "):
                    number, _, what = pair.partition(" ")
                    outcome.counts[what] += int(number)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return attrs.evolve(outcome, seconds=time.monotonic() - begin)
