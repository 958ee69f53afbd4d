"""Every example, against real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plasmastream import ObjectID
from tests.cli.processes import Node, get_object, put_object

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: str(path.name))
def test_examples_are_short_and_tested(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 80
    assert path.name in Path(__file__).read_text()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: str(path.name))
def test_examples_tell_how_they_are_called(path: Path) -> None:
    result = run_example(path.name)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"usage: python examples/{path.name} ")


def test_asyncio_parser(here: Node) -> None:
    small = put_object(here.socket, b"small", b"about it")
    large = put_object(here.socket, os.urandom(3_000_000), b"large")
    empty = put_object(here.socket, b"")
    result = run_example("asyncio_parser.py", here.address, large, small, empty)
    assert result.stdout.splitlines() == [
        f"{large}: 3,000,000 bytes, metadata 'large'",
        f"{small}: 5 bytes, metadata 'about it'",
        f"{empty}: 0 bytes, metadata ''",
    ], result
    assert (result.returncode, result.stderr) == (0, "")


def test_asyncio_parser_refused(here: Node) -> None:
    result = run_example("asyncio_parser.py", here.address, str(ObjectID.random()))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "nothing was copied: the server refused: an object was not found\n"


def test_share_array(here: Node) -> None:
    result = run_example("share_array.py", here.socket)
    assert result.stdout == "the sum of 1,000,000 numbers is 499,999,500,000\n", result
    assert (result.returncode, result.stderr) == (0, "")


def test_blocking_numbers(here: Node) -> None:
    result = run_example("blocking_numbers.py", here.socket)
    assert result.stdout == "the sum of 1,000,000 numbers is 499,999,500,000, in 4 parts\n", result
    assert (result.returncode, result.stderr) == (0, "")


def test_move_objects(here: Node, there: Node) -> None:
    ids = [put_object(here.socket, bytes([number])) for number in range(3)]
    result = run_example("move_objects.py", there.address, here.address, *ids)
    assert result.stdout == "COPY of 2 objects: success\nTAKE of 1 object: success\n", result
    assert get_object(there.socket, ids[2]) == b"\x02"
    assert get_object(here.socket, ids[2]) is None
    again = run_example("move_objects.py", there.address, here.address, *ids)
    assert (again.returncode, again.stdout) == (0, result.stdout)  # what is there already is no failure
    missing = run_example("move_objects.py", there.address, here.address, str(ObjectID.random()))
    assert missing.returncode == 1
    assert missing.stdout == "COPY of 1 object: an object was not found\n"
