"""The log of commands that serve."""

import subprocess
import sys

PROGRAM = """
import logging
from plasmastream.cli._log import log_to_stderr
log_to_stderr()
logging.getLogger("plasmastream.peer").warning("peer: %s", "\\x1b[2Jgone\\n2026 INFO all is well")
"""


def test_words_of_a_peer_neither_steer_a_terminal_nor_make_lines() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    (line,) = done.stderr.splitlines()
    assert line.endswith(" WARNING peer: ?[2Jgone?2026 INFO all is well")
