"""A contest: two or more ways to do the same work, by turns, in one run.

On a machine that others use, a figure alone says little: the next minute gives another one. So what has a rival is not
measured without it. Each round lets every contestant do the work once; a figure is the median of its rounds, with the
quartiles for spread, and a ratio is the median of the ratios within each round, so that what slowed a whole round down
is not in it.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import attrs

Turn: TypeAlias = Callable[[], float]
"""Does the work once; returns what it took, or reached, in the contest's unit."""


def short(number: float) -> str:
    """A number with three digits that count, or more before the point."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


@attrs.frozen
class Figure:
    """What the rounds gave: the median, and a quarter of them below `low`, a quarter above `high`."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Figure":
        """The figure for one sample or more."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high)


@attrs.frozen
class Mark:
    """What is to be reached: by the first contestant's ratio to `rival`, or by its own median where there is none."""

    bound: float
    is_most: bool
    """Whether more than the bound misses it, rather than less."""
    rival: str | None = None

    def __str__(self) -> str:
        number = f"{self.bound:,g}" if self.rival is None else f"{self.bound:g} x {self.rival}"
        return f"at {'most' if self.is_most else 'least'} {number}"

    def is_met_by(self, number: float) -> bool:
        """Whether a ratio, or a median, is good enough."""
        return number <= self.bound if self.is_most else number >= self.bound


def at_most(bound: float, rival: str | None = None) -> Mark:
    """Less is better."""
    return Mark(bound, True, rival)


def at_least(bound: float, rival: str | None = None) -> Mark:
    """More is better."""
    return Mark(bound, False, rival)


@attrs.frozen
class Contest:
    """Some work, and those who do it. The first contestant is the one that the others are held against."""

    row: int
    """Its number in the table of marks."""
    work: str
    unit: str
    contestants: Mapping[str, Turn]
    marks: Sequence[Mark] = ()
    missing: Mapping[str, str] = attrs.Factory(dict)
    """Rivals that cannot take part here, and why."""


@attrs.frozen
class Outcome:
    """How a contest ended."""

    row: int
    work: str
    unit: str
    rounds: int
    figures: Mapping[str, Figure]
    ratios: Mapping[str, Figure]
    """Of the first contestant to each other one."""
    marks: Sequence[Mark]
    missing: Mapping[str, str]

    def is_met(self, mark: Mark) -> bool | None:
        """Whether a mark is reached; None where its rival is missing."""
        if mark.rival is None:
            return mark.is_met_by(next(iter(self.figures.values())).median)
        return mark.is_met_by(self.ratios[mark.rival].median) if mark.rival in self.ratios else None


def run(contest: Contest, rounds: int, most_seconds: float = 30.0) -> Outcome:
    """Let everybody do the work once to warm up, and then `rounds` times by turns.

    Args:
        contest: what is done, and by whom.
        rounds: how often each has a turn.
        most_seconds: stop after that long, but not before the third round.
    """
    for turn in contest.contestants.values():
        turn()
    samples: dict[str, list[float]] = {name: [] for name in contest.contestants}
    end = time.monotonic() + most_seconds
    done = 0
    while done < rounds and (done < 3 or time.monotonic() < end):
        order = list(contest.contestants)
        for name in order if done % 2 == 0 else reversed(order):
            samples[name].append(contest.contestants[name]())
        done += 1
    first, *others = samples
    ratios = {
        other: Figure.of([ours / theirs for ours, theirs in zip(samples[first], samples[other], strict=True)])
        for other in others
    }
    figures = {name: Figure.of(taken) for name, taken in samples.items()}
    return Outcome(contest.row, contest.work, contest.unit, done, figures, ratios, contest.marks, contest.missing)
