"""Every example of docs/testing.md, as it stands there."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.testing.helpers import byte_server

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@asynccontextmanager
async def echo_server() -> AsyncIterator[tuple[str, int]]:
    """What the examples talk to."""
    async with byte_server() as server:
        yield server.address


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_work(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(EXAMPLES[number], f"docs/testing.md, example {number}", "exec"), {"echo_server": echo_server})
    output = capsys.readouterr().out
    expected = r"nowhere:2021: object [0-9a-f]{40}: server ended the" if "print(" in EXAMPLES[number] else "$"
    assert re.match(expected, output)


def test_the_page_has_examples_and_names_every_fault() -> None:
    assert len(EXAMPLES) == 4
    for name in ("Cut", "HalfClose", "Stall", "Flip", "Noise", "Delay", "Throttle", "Trickle"):
        assert f"| `{name}(" in PAGE
