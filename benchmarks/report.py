"""What contests and curves have shown: lines for who watches, JSON for programs, tables for docs/performance.md."""

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.contest import Outcome, Verdict
from benchmarks.curve import Drawn
from benchmarks.machine import commit, machine, versions
from benchmarks.processes import ROOT

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"


def lines(outcome: Outcome) -> str:
    """A few lines for the terminal: the work, everybody's figure and ratios, and what became of the marks."""
    rows = ", ".join(map(str, sorted(outcome.rows - {0})))
    said = [f"{rows:>5}  {outcome.work}, {outcome.unit}:"]
    width = max(map(len, outcome.figures))
    for who, figure in outcome.figures.items():
        ratios = ", ".join(f"{ratio:.2f} of {name}" for name, ratio in outcome.ratios.get(who, {}).items())
        said.append(f"{who:{width}}  {figure}{'; ' if ratios else ''}{ratios}")
    said += _verdicts(outcome)
    said += [f"without {name}: {reason}" for name, reason in outcome.missing.items()]
    return "\n           ".join(said)


@attrs.frozen
class Setting:
    """When, on what and with what a part is measured. To be made before it begins: what it does is load, too."""

    measured_at: str = attrs.Factory(lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    commit: str = attrs.Factory(commit)
    machine: Mapping[str, str] = attrs.Factory(machine)
    versions: Mapping[str, str] = attrs.Factory(versions)


def as_json(part: str, results: Sequence[Outcome | Drawn], setting: Setting) -> dict[str, Any]:
    """All of a part's results, and what they were measured on."""
    return {
        "part": part,
        **attrs.asdict(setting),
        "outcomes": [
            attrs.asdict(result) | {"verdicts": [attrs.asdict(verdict) for verdict in result.verdicts()]}
            for result in results
            if isinstance(result, Outcome)
        ],
        "curves": [
            attrs.asdict(result) | {"verdicts": [attrs.asdict(verdict) for verdict in result.verdicts()]}
            for result in results
            if isinstance(result, Drawn)
        ],
    }


def table(results: Sequence[Outcome | Drawn], setting: Setting) -> str:
    """The same as a section of a page."""
    named = {**setting.machine, **setting.versions}
    facts = [f"commit `{setting.commit}`", *(f"{name} {value}" for name, value in named.items())]
    rows = ["| # | work | who | median (quartiles) | ours : this |", "|---|---|---|---|---|"]
    for result in results:
        if isinstance(result, Outcome):
            rows += _rows(result)
    curves = [result.table() for result in results if isinstance(result, Drawn)]
    tables = [*(["\n".join(rows)] if len(rows) > 2 else []), *curves]
    return "\n\n".join([*tables, f"Measured with {', '.join(facts)}."])


def save(part: str, results: Sequence[Outcome | Drawn], setting: Setting) -> Path:
    """Keep the results: as JSON, in their place on the page, and in the table of marks at its top."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{part}.json"
    path.write_text(json.dumps(as_json(part, results, setting), indent=1) + "\n")
    page = replace(PAGE.read_text(), part, table(results, setting))
    kept = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    PAGE.write_text(replace(page, "marks", marks(kept)))
    return path


def replace(page: str, name: str, text: str) -> str:
    """A page with another text in the place of that name.

    Raises:
        ValueError: it has no such place.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, begun, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise ValueError(f"there is no place for {name!r} on the page")
    return f"{before}{begin}\n{text}\n\n{end}{after}"


def marks(kept: Sequence[Mapping[str, Any]]) -> str:
    """The table of all marks, from the kept results of all parts."""
    found = [
        (Verdict(**verdict), part["commit"])
        for part in kept
        for entry in (*part["outcomes"], *part["curves"])
        for verdict in entry["verdicts"]
    ]
    found.sort(key=lambda entry: entry[0].row or _LAST)
    rows = ["| # | work | whose | mark | measured | |", "|---|---|---|---|---|---|"]
    for verdict, _ in found:
        what = f"{verdict.row or ''} | {verdict.work} | {verdict.who} | {verdict.mark}"
        rows.append(f"| {what} | {verdict.measured} | {verdict} |")
    commits = sorted({commit for _, commit in found})
    return "\n".join([*rows, "", f"Measured at commit {', '.join(f'`{commit}`' for commit in commits)}."])


_LAST = 1000


def _verdicts(outcome: Outcome) -> list[str]:
    verdicts = list(outcome.verdicts())
    several = len({verdict.who for verdict in verdicts}) > 1
    return [
        f"{f'{verdict.who}: ' if several else ''}{verdict.mark}: {verdict}" for verdict in verdicts
    ]


def _rows(outcome: Outcome) -> Iterator[str]:
    """A row for each who took part, or should have; what it was goes before the first."""
    rows = ", ".join(map(str, sorted(outcome.rows - {0})))
    what = f"{rows} | {outcome.work}, {outcome.unit}; {outcome.rounds} rounds"
    for who, figure in outcome.figures.items():
        ratios = ", ".join(f"{to[who]:.2f}" for to in outcome.ratios.values() if who in to)
        yield f"| {what} | {who} | {figure} | {ratios} |"
        what = " | "
    yield from (f"| {what} | {name} | not measured: {reason} | |" for name, reason in outcome.missing.items())
