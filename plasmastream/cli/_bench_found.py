"""What `bench` has found, as tables of 80 columns and as JSON; it does no work of its own.

A row is of one size of object, and has the times of all its rounds, by way. Where a measurement broke off, there are
fewer rows, and perhaps none.
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

import attrs

from plasmastream.cli._types import Address, show_size

WAYS = {
    "put": "from memory here into the store there",
    "copy": "from there into a store here",
    "one connection": "copy, over one connection",
    "version 1": "copy, by version 1 of the protocol: no checksums, connecting anew",
    "take": "copy, and delete there",
}

LARGE = 64 << 10
"""From here on bytes count, rather than objects."""

_HEADS = {"one connection": "one conn."}


@attrs.frozen
class Row:
    """How long rounds with so many objects of so many bytes took, in seconds, by way."""

    size: int
    objects: int
    samples: Mapping[str, Sequence[float]]

    @property
    def rounds(self) -> int:
        """How many rounds count."""
        return len(self.samples["put"])

    def median(self, way: str) -> float:
        """Seconds of a round."""
        return statistics.median(self.samples[way])

    def spread(self, way: str) -> float:
        """The distance of the quartiles, as a share of the median."""
        low, median, high = statistics.quantiles(self.samples[way], n=4, method="inclusive")
        return (high - low) / median

    def late(self, way: str) -> float:
        """Seconds that one round in a hundred exceeds."""
        return statistics.quantiles(self.samples[way], n=100, method="inclusive")[-1]

    @property
    def seconds_a_byte(self) -> float:
        """Of the slowest way."""
        return max(map(self.median, WAYS)) / (self.objects * self.size)

    def as_dict(self) -> dict[str, object]:
        """For programs: times in seconds."""
        ways = {
            _key(way): {
                "median": self.median(way),
                "quartile_distance": self.spread(way) * self.median(way),
                "percentile_99": self.late(way),
                "objects_per_second": self.objects / self.median(way),
                "bytes_per_second": self.objects * self.size / self.median(way),
            }
            for way in WAYS
        }
        return {"size": self.size, "objects": self.objects, "rounds": self.rounds, "seconds": ways}


@attrs.define
class Findings:
    """All that was measured so far."""

    server: Address
    latency: Row | None = None
    rates: list[Row] = attrs.Factory(list)

    def in_json(self) -> str:
        """For programs; what was not measured is null, or missing from the list."""
        latency = None if self.latency is None else self.latency.as_dict()
        ways = {_key(way): meaning for way, meaning in WAYS.items()}
        rates = [row.as_dict() for row in self.rates]
        return json.dumps({"peer": str(self.server), "ways": ways, "latency": latency, "rates": rates}, indent=2)

    def in_tables(self) -> Iterator[str]:
        """For people: lines, of which there is none where nothing was measured."""
        if self.latency is None:
            return
        latency = self.latency
        yield f"Between here and {self.server}: medians, ± half the distance of the quartiles"
        yield from (f"    {_head(way)}: {meaning}" for way, meaning in WAYS.items())
        yield ""
        yield _line("latency", "rounds", map(_head, WAYS))
        yield _line(in_units(latency.size), f"{latency.rounds}", (_time(latency.median(way)) for way in WAYS))
        yield _line("99 % below", "", (_time(latency.late(way)) for way in WAYS))
        if self.rates:
            yield ""
            yield _line("a second", "", map(_head, WAYS))
        for row in self.rates:
            yield _line(f"{row.objects:,} x {in_units(row.size)}", f"{row.rounds}", (_rate(row, way) for way in WAYS))


def in_units(size: int) -> str:
    """A size as people write it."""
    shown = show_size(size)
    return f"{shown} B" if shown.isdigit() else shown


def _key(way: str) -> str:
    return way.replace(" ", "_")


def _head(way: str) -> str:
    return _HEADS.get(way, way)


def _line(head: str, rounds: str, cells: Iterable[str]) -> str:
    return f"{head:>13} {rounds:>6}" + "".join(f" {cell:>11}" for cell in cells)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def _rate(row: Row, way: str) -> str:
    rate = row.objects / row.median(way)
    amount = _short(rate) if row.size < LARGE else f"{_short(rate * row.size)}B"
    share = min(row.spread(way) / 2, 9.99)  # beyond that it is as useless, and would not fit
    return f"{amount}{f'±{share:.0%}':>5}"


def _short(number: float) -> str:
    """With three digits and a decimal prefix: 1.23G."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.0f}{prefix}" if number >= 99.5 else f"{number:#.3g}{prefix}"
        number /= 1000
    return f"{number:.3g}T"
