"""A curve: what some work costs against the size of something, and whether that grows.

Its points are measured by turns, too: each round goes along the whole curve, so that a machine that slows down does not
look like a cost that grows.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence

import attrs

from benchmarks.contest import Figure, Turn, Verdict, short

_ROW = 18
_MOST_GROWTH = 2


@attrs.frozen
class Curve:
    """Some work, measured at each of a few points, from the smallest to the largest."""

    work: str
    unit: str
    against: str
    points: Mapping[str, Turn]
    is_flat: bool = False
    """Whether the marks ask for a cost that does not double from the first third to the last."""

    @property
    def rows(self) -> set[int]:
        """Its row of the table of marks, if it is in one."""
        return {_ROW} if self.is_flat else set()


@attrs.frozen
class Drawn:
    """A curve as it was measured."""

    work: str
    unit: str
    against: str
    points: Mapping[str, Figure]
    is_flat: bool

    @property
    def growth(self) -> float:
        """The cost in the last third of the curve, as a multiple of that in its first."""
        medians = [figure.median for figure in self.points.values()]
        third = max(1, len(medians) // 3)
        return statistics.median(medians[-third:]) / statistics.median(medians[:third])

    def verdicts(self) -> Iterator[Verdict]:
        """What became of the mark, where there is one."""
        if self.is_flat:
            work = f"{self.work}, against {self.against}"
            mark = f"at most {_MOST_GROWTH} times from first to last third"
            yield Verdict(_ROW, work, "plasmastream", mark, f"{self.growth:.2f}", self.growth <= _MOST_GROWTH)

    def table(self) -> str:
        """For a page."""
        head = f"*{self.work}*, {self.unit}, against {self.against}"
        verdict = f"; {self.growth:.2f} times from first to last third" if self.is_flat else ""
        rows = [f"| {' | '.join(self.points)} |", f"|{'---|' * len(self.points)}"]
        rows.append(f"| {' | '.join(short(figure.median) for figure in self.points.values())} |")
        return f"{head}{verdict}:\n\n" + "\n".join(rows)


def draw(curve: Curve, rounds: int) -> Drawn:
    """Go along the curve `rounds` times, after once to warm up."""
    samples: dict[str, list[float]] = {name: [] for name in curve.points}
    for number in range(rounds + 1):
        names: Sequence[str] = list(curve.points)
        for name in names if number % 2 == 0 else reversed(names):
            taken = curve.points[name]()
            if number:
                samples[name].append(taken)
    points = {name: Figure.of(taken) for name, taken in samples.items()}
    return Drawn(curve.work, curve.unit, curve.against, points, curve.is_flat)
