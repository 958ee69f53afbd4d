"""``python -m tests.simulation``: simulated worlds, from a seed on; or one of them, told as a story."""

import argparse
import sys
from collections import Counter

from tests.simulation import campaign


def main() -> int:
    """Run what the command line says; the status is 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="how many worlds")
    parser.add_argument("--seed", type=int, default=0, help="the first one's")
    parser.add_argument("--step", type=int, default=1, help="from one seed to the next")
    parser.add_argument("--version", choices=[*campaign.VERSIONS], default="2", help="of the protocol")
    parser.add_argument("--lies", action="store_true", help="connections do what this version cannot bear")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--story", action="store_true", help="tell what happens in each")
    how.add_argument("--digests", action="store_true", help="print a digest of each story")
    how.add_argument("--worker", action="store_true", help="run in this process, to the first failure")
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.seeds * options.step, options.step)
    kind = campaign.Kind(options.version, options.lies)
    if not (options.story or options.digests or options.worker):
        outcome = campaign.run(kind, seeds)
        print(*outcome.failures, outcome, sep="\n")
        return bool(outcome.failures)
    counts: Counter[str] = Counter()
    failed = False
    for report in campaign.run_here(kind, seeds):
        counts += report.counts
        failed = failed or bool(report.failures)
        if options.digests:
            print(report.digest)
        elif report.failures:
            print(campaign.show(kind, report))
            if options.worker:
                return 1
        elif options.story:
            print(*report.story, sep="\n")
    if options.worker:
        print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return failed


if __name__ == "__main__":
    sys.exit(main())
