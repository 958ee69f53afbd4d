"""`make bench`: every part, or those that are named.

    python -m benchmarks [PART...] [--rounds N] [--row N] [--save]

Each figure is a median of rounds in which rivals took turns. `--save` keeps the results: as JSON in
`benchmarks/results`, and in the tables of docs/performance.md.
"""

import argparse
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from benchmarks import beside, curves, peer_rows, start_rows, store_rows
from benchmarks.contest import Contest, Outcome, run
from benchmarks.curve import Curve, Drawn, draw
from benchmarks.report import line, save

PARTS: dict[str, Callable[[], AbstractContextManager[Sequence[Contest | Curve]]]] = {
    "peer": peer_rows.contests,
    "store": store_rows.contests,
    "start": start_rows.contests,
    "beside": beside.contests,
    "curves": curves.curves,
}


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure plasmastream beside its rivals.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all, if none is named")
    parser.add_argument("--rounds", type=int, default=9, help="turns that each contestant has (9)")
    parser.add_argument("--row", type=int, action="append", help="only this row of the table of marks")
    parser.add_argument("--save", action="store_true", help="keep the results in the repository")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the processes that were started are ended then, too
    for part in asked.parts or PARTS:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}")
        print(f"{part}:", flush=True)
        results: list[Outcome | Drawn] = []
        with PARTS[part]() as entries:
            for entry in entries:
                if asked.row and not entry.rows & set(asked.row):
                    continue
                if isinstance(entry, Curve):
                    # Whether a curve is flat is asked of few points, which have to be right.
                    drawn = draw(entry, asked.rounds if entry.is_flat else max(3, asked.rounds // 3))
                    print(drawn.table(), "", sep="\n", flush=True)
                    results.append(drawn)
                else:
                    outcome = run(entry, asked.rounds)
                    print(line(outcome), flush=True)
                    results.append(outcome)
        if asked.save:
            print(f"kept in {save(part, results)}")


main()
