"""Every example of docs/testing.md, as it stands there."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
SERVER, *EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_work(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for text in (SERVER, EXAMPLES[number]):
        exec(compile(text, f"docs/testing.md, example {number}", "exec"), names)
    output = capsys.readouterr().out
    expected = r"nowhere:2021: object [0-9a-f]{40}: server ended the" if "print(" in EXAMPLES[number] else "$"
    assert re.match(expected, output)


def test_the_page_has_examples_and_names_every_fault() -> None:
    assert len(EXAMPLES) == 4
    for name in ("Cut", "HalfClose", "Stall", "Flip", "Noise", "Delay", "Throttle", "Trickle"):
        assert f"| `{name}(" in PAGE
