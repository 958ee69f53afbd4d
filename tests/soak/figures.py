"""What is measured of each process when nothing is under way, and when growth is more than noise. Reads `/proc`.

The rule: samples of the first fifth of the time are left out, in which caches fill. Through the others goes a line by
Theil and Sen: its slope is the median of the slopes between any two samples, which outliers do not move. What it climbs
from the first of these samples to the last is the drift. It is noise as long as it is not larger than a floor, or than
three standard deviations of the samples about the line, estimated from the median of their distances.
"""

import itertools
import statistics
from collections.abc import Iterator, Sequence

import attrs

from tests.interop.nodes import descriptor_count, private_bytes

MIB = 1 << 20
FLOORS = {"memory": 2.0 * MIB, "descriptors": 2.0, "tasks": 2.0, "store use": 0.0}
"""How much of a drift is nothing: bytes, descriptors, tasks, bytes."""

_WARM_UP = 0.2
_DEVIATIONS = 3 * 1.4826


@attrs.frozen
class Trend:
    """What samples did over time."""

    first: float
    last: float
    slope: float
    """Per second."""
    drift: float
    noise: float
    """The largest drift that is none."""

    @property
    def is_growth(self) -> bool:
        """Whether it grew by more than noise."""
        return self.drift > self.noise


def trend_of(times: Sequence[float], values: Sequence[float], floor: float) -> Trend:
    """Judge samples, of which there is at least one; `times` in seconds, in order."""
    begin = times[0] + _WARM_UP * (times[-1] - times[0])
    points = [(at, value) for at, value in zip(times, values, strict=True) if at >= begin]
    slopes = [(v1 - v0) / (t1 - t0) for (t0, v0), (t1, v1) in itertools.combinations(points, 2) if t1 > t0]
    slope = statistics.median(slopes) if slopes else 0.0
    level = statistics.median(value - slope * at for at, value in points)
    spread = statistics.median(abs(value - slope * at - level) for at, value in points)
    return Trend(values[0], values[-1], slope, slope * (points[-1][0] - points[0][0]), max(floor, _DEVIATIONS * spread))


class Series:
    """Samples of one thing over time."""

    def __init__(self, what: str, unit: str) -> None:
        self.what = what
        self.unit = unit
        self._times: list[float] = []
        self._values: list[float] = []

    def add(self, at: float, value: float) -> None:
        """One more sample, at so many seconds."""
        self._times.append(at)
        self._values.append(value)

    def trend(self) -> Trend:
        """What they did."""
        return trend_of(self._times, self._values, FLOORS[self.unit])

    @property
    def values(self) -> Sequence[float]:
        """All of them."""
        return self._values


class Samples:
    """All series, by what they are about and what is measured."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], Series] = {}

    def add(self, what: str, unit: str, at: float, value: float) -> None:
        """One sample."""
        self._series.setdefault((what, unit), Series(what, unit)).add(at, value)

    def add_process(self, what: str, at: float, pid: int, tasks: int) -> None:
        """Look at a process.

        Its memory is what is its own. The objects are shared, and counted as the use of their store; how much of them
        a process has mapped so far says nothing.
        """
        self.add(what, "memory", at, private_bytes(pid))
        self.add(what, "descriptors", at, descriptor_count(pid))
        self.add(what, "tasks", at, tasks)

    def growing(self) -> list[str]:
        """What grows, in words."""
        return [
            f"{series.what}: {series.unit} grows by {series.trend().drift:,.0f}, which noise is up to "
            f"{series.trend().noise:,.0f}: {[round(value) for value in series.values]}"
            for series in self._series.values()
            if series.trend().is_growth
        ]

    def table(self) -> Iterator[str]:
        """Lines of Markdown."""
        yield "| | at the start | at the end | slope, per hour | drift | noise up to |"
        yield "|---|---|---|---|---|---|"
        for series in self._series.values():
            found = series.trend()
            show = _mebibytes if series.unit in ("memory", "store use") else _number
            numbers = (found.first, found.last, 3600 * found.slope, found.drift, found.noise)
            yield f"| {series.what}, {series.unit} | {' | '.join(map(show, numbers))} |"


def _mebibytes(nbytes: float) -> str:
    return f"{nbytes / MIB:,.2f} MiB"


def _number(number: float) -> str:
    return f"{number:,.0f}"
