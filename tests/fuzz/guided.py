"""Fuzzing led by coverage: atheris looks for inputs that reach new code of the parsers. A program of its own.

``python -m tests.fuzz.guided SEED INPUTS`` needs atheris, which `make fuzz` installs into an environment of its own.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["plasmastream.wire", "plasmastream._object_id"]):
    from tests.fuzz import parsers

from tests.fuzz.decoder import Hang, feed, report


def main(seed: int, inputs: int) -> None:
    """Feed so many inputs; ends the process, with a status other than 0 if a promise was broken."""

    def one_input(data: bytes) -> None:
        try:
            feed(data)
        except (Exception, Hang) as error:
            print(report(f"guided, seed {seed}", data, error), file=sys.stderr, flush=True)
            raise

    with tempfile.TemporaryDirectory(prefix="plasmastream-fuzz-") as directory:
        for number, data in enumerate(parsers.seeds()):
            Path(directory, f"seed-{number:03}").write_bytes(data)
        # What is reported has all that an artifact has, so none is left in the working directory.
        # The deadline is ours: both would need the same signal.
        options = [f"-seed={seed}", f"-runs={inputs}", "-max_len=2048", "-timeout=0"]
        options += ["-rss_limit_mb=1024", "-print_final_stats=1", f"-artifact_prefix={directory}/", directory]
        atheris.Setup([sys.argv[0], *options], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
