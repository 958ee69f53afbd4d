"""``python -m tests.fuzz``: a run of so many inputs, divided over parsers and live servers, or one input again."""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz import campaign, decoder
from tests.fuzz.live import Script
from tests.fuzz.servers import SERVERS


def main() -> int:
    """Run what the command line says; the status is 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="inputs of all kinds together")
    parser.add_argument("--seed", type=int, default=1, help="decides all inputs but those that coverage leads to")
    parser.add_argument("--guided", metavar="PYTHON", help="an interpreter that has atheris")
    parser.add_argument("--decode", metavar="HEX", help="feed this input to a parser, once more")
    for name in SERVERS:
        parser.add_argument(f"--{name}", metavar="FILE", help=f"send these inputs to a {name} server, once more")
    options = parser.parse_args()
    try:
        if options.decode:
            decoder.feed(bytes.fromhex(options.decode))
            return _done("nothing went wrong")
        for name in SERVERS:
            if file := getattr(options, name):
                scripts = [Script.parse(text) for text in Path(file).read_text().split()]
                fault = campaign.fault_of(name, options.seed, scripts)
                return _done("nothing went wrong" if fault is None else f"{fault}", int(fault is not None))
        return _run(options.inputs, options.seed, options.guided)
    except decoder.Finding as finding:
        return _done(f"FOUND: {finding}", 1)


def _run(inputs: int, seed: int, guided: str | None) -> int:
    """A quarter to the store, a twentieth to the peer server, the rest to the parsers: half of it led by coverage."""
    begin = time.monotonic()
    store, peer = inputs // 4, inputs // 20
    led = (inputs - store - peer) // 2 if guided else 0
    print(f"{inputs:,} inputs from seed {seed}", flush=True)
    print(f"parsers, by chance: {decoder.run(seed, inputs - store - peer - led)}", flush=True)
    if guided:
        found = _run_guided(guided, seed, led)
        if found:
            return found
    for name, count in (("store", store), ("peer", peer)):
        print(f"{name} server: {campaign.run(name, seed, range(count))}", flush=True)
    return _done(f"nothing went wrong in {inputs:,} inputs, in {time.monotonic() - begin:.0f} s")


def _run_guided(python: str, seed: int, inputs: int) -> int:
    begin = time.monotonic()
    command = [python, "-m", "tests.fuzz.guided", str(seed), str(inputs)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        return _done(f"FOUND: {done.stderr}", 1)
    last = next(line for line in reversed(done.stderr.splitlines()) if " cov: " in line)
    seconds = time.monotonic() - begin
    print(f"parsers, by coverage: {inputs:,} inputs in {seconds:.0f} s ({inputs / seconds:,.0f}/s); {last}", flush=True)
    return 0


def _done(words: str, status: int = 0) -> int:
    print(words, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
