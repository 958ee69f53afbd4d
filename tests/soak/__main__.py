"""``python -m tests.soak``: a run of so many seconds, with a table of what it has shown."""

import argparse
import random
import signal
import sys
from collections.abc import Iterator

from tests.interop.namespaces import missing_reason
from tests.soak.figures import MIB
from tests.soak.run import Options, Outcome, soak

_GRACE = 900


def main() -> int:
    """Run what the command line says; the status is 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0, help="decides jobs and faults; 0 has one drawn")
    parser.add_argument("--peer-version", type=int, default=1, help="from 2 on, also what version 1 cannot notice")
    options = parser.parse_args()
    reason = missing_reason()
    if reason:
        print(f"not possible: {reason}")
        return 1
    # Whatever ends the run, every process is ended: the blocks that own them are left. And it ends in any case.
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _interrupt)
    signal.alarm(int(options.seconds) + _GRACE)
    seed = options.seed or random.SystemRandom().randrange(1, 1 << 32)
    print(f"{options.seconds:g} s from seed {seed}", flush=True)
    outcome = soak(Options(seconds=options.seconds, seed=seed, version=options.peer_version))
    print("\n".join(report(outcome)))
    for finding in outcome.findings:
        print(f"FOUND: {finding}")
    print("nothing went wrong" if not outcome.findings else f"make soak SEED={seed} draws the same again")
    return int(bool(outcome.findings))


def report(outcome: Outcome) -> Iterator[str]:
    """The counts, and what has been measured, in Markdown."""
    counts, faults = outcome.counts, outcome.faults
    assert faults is not None
    repeated = sum(counts.failures.values())
    yield "| what | how many |"
    yield "|---|---|"
    yield f"| seconds, from seed {outcome.options.seed} | {outcome.seconds:,.0f} |"
    for kind, number in sorted(counts.transfers.items()):
        yield f"| {kind} done | {number:,} |"
    yield f"| objects moved | {counts.objects:,}, {counts.nbytes / MIB:,.0f} MiB |"
    yield f"| requests | {counts.attempts:,}, of which {repeated:,} failed and were repeated |"
    for failure, number in counts.failures.most_common():
        yield f"| - {failure} | {number:,} |"
    yield f"| slowest transfer, with its repetitions | {counts.slowest:.1f} s |"
    for name, number in sorted((faults.seen + counts.faults).items()):
        yield f"| {name} | {number:,} |"
    yield f"| link down | {faults.seconds_down:.0f} s |"
    if outcome.options.version == 1:
        yield f"| takes that left objects at both sides | {counts.at_both:,} |"
    yield f"| **wrong bytes** | **{counts.wrong_bytes:,}** |"
    yield f"| **stuck transfers** | **{counts.stuck:,}** |"
    yield f"| other findings | {len(outcome.findings):,} |"
    yield ""
    yield from outcome.samples.table()


def _interrupt(number: int, _: object) -> None:
    raise SystemExit(f"ended by {signal.Signals(number).name}")


if __name__ == "__main__":
    sys.exit(main())
