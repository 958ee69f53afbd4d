"""A contest: two or more ways to do the same work, by turns, in one run.

On a machine that others use, a figure alone says little: the next minute gives another one. So what has a rival is not
measured without it. Each round lets every contestant do the work once; a figure is the median of its rounds, with the
quartiles for spread, and a ratio is the median of the ratios within each round, so that what slowed a whole round down
is not in it.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

    def __format__(self, spec: str) -> str:
        median, low, high = (format(number, spec) if spec else short(number) for number in attrs.astuple(self))
        return f"{median} ({low} to {high})"

    def __str__(self) -> str:
        return format(self)


@attrs.frozen
class Mark:
    """What is to be reached: by a ratio to `rival`, or by a median itself where there is none."""

    bound: float
    is_most: bool
    """Whether more than the bound misses it, rather than less."""
    rival: str | None = None
    of: str | None = None
    """Whose figure it is about; None for each of ours."""
    row: int | None = None
    """Its number in the table of marks, where that is not the contest's."""

    def __str__(self) -> str:
        number = f"{self.bound:,g}" if self.rival is None else f"{self.bound:g} x {self.rival}"
        return f"at {'most' if self.is_most else 'least'} {number}"

    def is_met_by(self, number: float) -> bool:
        """Whether a ratio, or a median, is good enough."""
        return number <= self.bound if self.is_most else number >= self.bound


def at_most(bound: float, rival: str | None = None, *, of: str | None = None, row: int | None = None) -> Mark:
    """Less is better."""
    return Mark(bound, True, rival, of, row)


def at_least(bound: float, rival: str | None = None, *, of: str | None = None, row: int | None = None) -> Mark:
    """More is better."""
    return Mark(bound, False, rival, of, row)


@attrs.frozen
class Verdict:
    """What became of a mark."""

    row: int
    work: str
    who: str
    mark: str
    measured: str
    """The ratio or median, with its quartiles, and its unit; empty where the rival is missing."""
    is_met: bool | None
    """None where the rival is missing."""
    is_clear: bool = True
    """Whether the quartiles say the same as the median."""

    def __str__(self) -> str:
        if self.is_met is None:
            return "not measured: its rival is missing"
        word = "reached" if self.is_met else "**missed**"
        return word if self.is_clear else f"{word}, within the spread"


@attrs.frozen
class Contest:
    """Some work, and those who do it."""

    row: int
    """Its number in the table of marks; 0 where it is not in it."""
    work: str
    unit: str
    contestants: Mapping[str, Turn]
    marks: Sequence[Mark] = ()
    missing: Mapping[str, str] = attrs.Factory(dict)
    """Rivals that cannot take part here, and why."""
    ours: int = 1
    """How many of the contestants, from the first on, are held against all others. A mark may be about any."""
    most_seconds: float = 10.0
    """After which it stops, but not before the third round."""

    @property
    def rows(self) -> set[int]:
        """All rows of the table of marks that it measures."""
        return {self.row, *(mark.row for mark in self.marks if mark.row is not None)}


@attrs.frozen
class Outcome:
    """How a contest ended."""

    row: int
    work: str
    unit: str
    rounds: int
    figures: Mapping[str, Figure]
    ratios: Mapping[str, Mapping[str, Figure]]
    """Of each of ours to each of those that come after it, and to the rivals."""
    marks: Sequence[Mark]
    missing: Mapping[str, str]

    @property
    def rows(self) -> set[int]:
        """See `Contest.rows`."""
        return {self.row, *(mark.row for mark in self.marks if mark.row is not None)}

    def verdicts(self) -> Iterator[Verdict]:
        """What became of the marks: each of ours has one, where a mark names nobody."""
        for mark in self.marks:
            for who in self.ratios if mark.of is None else [mark.of]:
                row = self.row if mark.row is None else mark.row
                if mark.rival is not None and mark.rival not in self.figures:
                    yield Verdict(row, self.work, who, str(mark), "", None)
                    continue
                figure = self.figures[who] if mark.rival is None else self.ratios[who][mark.rival]
                measured = f"{figure} {self.unit}" if mark.rival is None else f"{figure:.2f}"
                is_met = mark.is_met_by(figure.median)
                is_clear = mark.is_met_by(figure.low) is is_met is mark.is_met_by(figure.high)
                yield Verdict(row, self.work, who, str(mark), measured, is_met, is_clear)


def run(contest: Contest, rounds: int) -> Outcome:
    """Let everybody do the work once to warm up, and then at most `rounds` times by turns."""
    for turn in contest.contestants.values():
        turn()
    samples: dict[str, list[float]] = {name: [] for name in contest.contestants}
    end = time.monotonic() + contest.most_seconds
    done = 0
    while done < rounds and (done < 3 or time.monotonic() < end):
        order = list(contest.contestants)
        for name in order if done % 2 == 0 else reversed(order):
            samples[name].append(contest.contestants[name]())
        done += 1
    names = list(samples)
    ratios = {
        one: {
            other: Figure.of([mine / theirs for mine, theirs in zip(samples[one], samples[other], strict=True)])
            for other in names[max(index + 1, contest.ours) :] + names[:index]
        }
        for index, one in enumerate(names[: contest.ours])
    }
    figures = {name: Figure.of(taken) for name, taken in samples.items()}
    return Outcome(contest.row, contest.work, contest.unit, done, figures, ratios, contest.marks, contest.missing)
