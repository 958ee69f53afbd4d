"""The benchmark of allocation histories, in small: what must fit does, in no more memory than is allowed."""

import json

import pytest

from benchmarks import allocation_history
from benchmarks.allocation_history import PATTERNS, cost_against_number, main, run

CAPACITY = 16 << 20


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_must_fit_fits_into_the_memory_that_is_allowed(pattern: str, seed: int) -> None:
    report = run(pattern, CAPACITY, 3500, seed)
    assert report.failed_creates == 0
    assert report.beyond_bound <= 0
    assert report.is_good
    assert len(report.costs) == 10
    if pattern != "evicted":
        assert report.peak_memory >= CAPACITY
        assert report.moved > 0, "this history does not fragment the store"
    else:
        assert report.full_capacity_objects >= 100


def test_the_command_prints_json_and_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation_history, "COUNTS", (100,))
    monkeypatch.setattr(allocation_history, "cost_against_number", lambda count: 1.5)
    arguments = ["--operations", "200", "--capacity", "4MiB", "--pattern", "evicted"]
    assert main([*arguments, "--json", "--seed", "5"]) == 0
    (history,) = json.loads(capsys.readouterr().out)["histories"]
    assert (history["pattern"], history["seed"], history["failed_creates"]) == ("evicted", 5, 0)
    assert main(arguments) == 0
    assert "     100 blocks:    1.5 us" in capsys.readouterr().out


def test_the_cost_against_the_number_of_blocks_is_measured() -> None:
    assert cost_against_number(10, operations=100) > 0
