"""Real messages, spoilt by chance, through every parser: `run` makes so many inputs from a seed."""

import signal
import time
from collections.abc import Sequence

import attrs

from tests.fuzz import parsers
from tests.fuzz.mutate import Mutator, shrink

INPUT_DEADLINE = 10.0
"""Seconds that a parser may take for one input; most take less than a thousandth of one."""


class Hang(BaseException):
    """A parser did not come back. No Exception, so that nothing on the way takes it for something else."""


class Finding(Exception):
    """An input broke a promise; the message has the seed, the shortest such input, and how to repeat it."""


@attrs.frozen
class Figures:
    """What a run has seen."""

    inputs: int
    seconds: float
    slowest: float
    """Seconds that the slowest input took."""

    def __str__(self) -> str:
        rate = self.inputs / self.seconds
        return f"{self.inputs:,} inputs in {self.seconds:.0f} s ({rate:,.0f}/s), slowest {1000 * self.slowest:.0f} ms"


def run(seed: int, inputs: int) -> Figures:
    """Feed so many inputs.

    Raises:
        Finding: a parser broke a promise.
    """
    begin = time.monotonic()
    slowest = 0.0
    for number in range(inputs):
        data = parsers.make(Mutator(seed, number))
        before = time.monotonic()
        try:
            feed(data)
        except (Exception, Hang) as error:
            raise Finding(report(f"seed {seed}, input {number}", data, error)) from error
        slowest = max(slowest, time.monotonic() - before)
    return Figures(inputs, time.monotonic() - begin, slowest)


def report(where: str, data: bytes, error: BaseException) -> str:
    """Say what an input did, with the shortest input that does it, too."""
    head = data[: parsers.HEAD]
    rest: Sequence[int] = data[parsers.HEAD :]

    def fails(shorter: Sequence[int]) -> bool:
        try:
            feed(head + bytes(shorter))
        except (Exception, Hang) as found:
            return type(found) is type(error)
        return False

    octets = shrink(rest, fails)
    shortest = head + bytes(octets)
    return (
        f"{where}, for the {parsers.TARGETS[data[0] % len(parsers.TARGETS)].name}: {type(error).__name__}: {error}\n"
        f"input, {len(data)} bytes: {data.hex()}\n"
        f"repeat it, in {len(shortest)} bytes: python -m tests.fuzz --decode {shortest.hex()}"
    )


def feed(data: bytes) -> None:
    """Feed one input, and raise `Hang` if that does not end."""

    def give_up(*_: object) -> None:
        raise Hang(f"not done after {INPUT_DEADLINE:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, INPUT_DEADLINE)
    try:
        parsers.check(data)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
