"""What contests and curves have shown: lines for who watches, JSON for programs, tables for docs/performance.md."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks.contest import Figure, Outcome, short
from benchmarks.curve import Drawn
from benchmarks.machine import commit, machine, versions
from benchmarks.processes import ROOT

PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"


def line(outcome: Outcome) -> str:
    """One line for the terminal."""
    figures = ", ".join(f"{name} {_number(figure)}" for name, figure in outcome.figures.items())
    ratios = "".join(f"; {_ratio(figure)} of {name}" for name, figure in outcome.ratios.items())
    marks = "".join(f"; {verdict}" for verdict in _verdicts(outcome))
    missing = "".join(f"; without {name}: {reason}" for name, reason in outcome.missing.items())
    return f"{outcome.row:>3}  {outcome.work}: {figures} {outcome.unit}{ratios}{marks}{missing}"


def as_json(part: str, results: Sequence[Outcome | Drawn]) -> dict[str, Any]:
    """All of a part's results, and what they were measured on."""
    return {
        "part": part,
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "outcomes": [
            attrs.asdict(result) | {"met": [result.is_met(mark) for mark in result.marks]}
            for result in results
            if isinstance(result, Outcome)
        ],
        "curves": [attrs.asdict(result) for result in results if isinstance(result, Drawn)],
    }


def table(part: str, results: Sequence[Outcome | Drawn]) -> str:
    """The same as a section of a page."""
    facts = [f"commit `{commit()}`", *(f"{name} {value}" for name, value in (machine() | versions()).items())]
    rows = ["| # | work | figures | ratio | mark |", "|---|---|---|---|---|"]
    for result in results:
        if isinstance(result, Outcome):
            figures = "<br>".join(f"{name}: {_number(f)} {result.unit}" for name, f in result.figures.items())
            ratios = "<br>".join(f"{_ratio(f)} of {name}" for name, f in result.ratios.items())
            rows.append(f"| {result.row} | {result.work} | {figures} | {ratios} | {'<br>'.join(_verdicts(result))} |")
    curves = [result.table() for result in results if isinstance(result, Drawn)]
    tables = [*(["\n".join(rows)] if len(rows) > 2 else []), *curves]
    return "\n\n".join([*tables, f"Measured with {', '.join(facts)}."])


def save(part: str, results: Sequence[Outcome | Drawn]) -> Path:
    """Keep the results: as JSON, and in their place on the page."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{part}.json"
    path.write_text(json.dumps(as_json(part, results), indent=1) + "\n")
    begin, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->\n"
    before, _, rest = PAGE.read_text().partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n{table(part, results)}\n\n{end}{after}")
    return path


def _verdicts(outcome: Outcome) -> list[str]:
    words = {True: "reached", False: "**missed**", None: "not measured: its rival is missing"}
    return [f"{mark}: {words[outcome.is_met(mark)]}" for mark in outcome.marks]


def _number(figure: Figure) -> str:
    return f"{short(figure.median)} ({short(figure.low)} to {short(figure.high)})"


def _ratio(figure: Figure) -> str:
    return f"{figure.median:.2f} ({figure.low:.2f} to {figure.high:.2f})"
