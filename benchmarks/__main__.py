"""`make bench`: every part, or those that are named.

    python -m benchmarks [PART...] [--rounds N] [--row N] [--save]

Each figure is a median of rounds in which rivals took turns. `--save` keeps the results: as JSON in
`benchmarks/results`, and in the tables of docs/performance.md.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager

from benchmarks import beside, curves, peer_rows, start_rows, store_rows
from benchmarks.contest import Contest, Outcome, run
from benchmarks.curve import Curve, Drawn, draw
from benchmarks.report import Setting, lines, save

PARTS: dict[str, Callable[[], AbstractContextManager[Sequence[Contest | Curve]]]] = {
    "peer": peer_rows.contests,
    "store": store_rows.contests,
    "start": start_rows.contests,
    "beside": beside.contests,
    "curves": curves.curves,
}
ROWS: dict[str, Set[int]] = {
    "peer": set(range(1, 10)),
    "store": set(range(10, 17)),
    "start": {17},
    "beside": set(),
    "curves": {18},
}
"""Of the table of marks, what each part measures: what it needs is set up only where some of that is asked for."""


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure plasmastream beside its rivals.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all, if none is named")
    parser.add_argument("--rounds", type=int, default=9, help="turns that each contestant has (9)")
    parser.add_argument("--row", type=int, action="append", help="only this row of the table of marks, 1 to 18")
    parser.add_argument("--save", action="store_true", help="keep the results in the repository")
    asked = parser.parse_args()
    if asked.save and asked.row:
        parser.error("--save keeps whole parts, not rows of them")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the processes that were started are ended then, too
    unknown = [part for part in asked.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}")
    if asked.rounds < 1:
        parser.error("there is at least one round")
    rows = set(asked.row or ())
    parts = [part for part in asked.parts or PARTS if not rows or rows & ROWS[part]]
    if not parts:
        parser.error("nothing there has these rows")
    try:
        failed = _measure_all(parts, asked.rounds, rows, is_saved=asked.save)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(failed)


def _measure_all(parts: Sequence[str], rounds: int, rows: Set[int], *, is_saved: bool) -> bool:
    """Measure parts; True where one could not be measured."""
    failed = False
    for part in parts:
        print(f"{part}:", flush=True)
        setting = Setting()
        try:
            results = measure(part, rounds, rows)
        except RuntimeError as error:  # a process has failed, perhaps for want of memory; the other parts may do
            print(f"not measured: {error}", flush=True)
            failed = True
            continue
        if is_saved:
            print(f"kept in {save(part, results, setting)}")
    return failed


def measure(part: str, rounds: int, rows: Set[int]) -> list[Outcome | Drawn]:
    """Measure a part, or only what belongs to some rows of the table of marks, and print what comes out.

    Raises:
        RuntimeError: a process that takes part has failed; it says why.
    """
    results: list[Outcome | Drawn] = []
    with PARTS[part]() as entries:
        for entry in entries:
            if rows and not entry.rows & rows:
                continue
            if isinstance(entry, Curve):
                # Whether a curve is flat is asked of few points, which have to be right.
                drawn = draw(entry, rounds if entry.is_flat else max(3, rounds // 3))
                print(drawn.table(), "", sep="\n", flush=True)
                results.append(drawn)
            else:
                outcome = run(entry, rounds)
                print(lines(outcome), flush=True)
                results.append(outcome)
    return results


main()
