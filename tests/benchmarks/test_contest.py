"""What a contest, a curve and their report make of samples; nothing here takes the time of anything."""

import itertools
from collections.abc import Callable
from functools import partial

import pytest

from benchmarks.contest import Contest, Figure, Mark, at_least, at_most, run
from benchmarks.curve import Curve, draw
from benchmarks.report import line, table


def turns(*samples: float) -> Callable[[], float]:
    return iter(samples).__next__


def test_ratios_are_those_of_rounds() -> None:
    contest = Contest(7, "work", "s", {"ours": turns(0, 1, 20, 300), "theirs": turns(0, 2, 40, 600)})
    outcome = run(contest, 3)
    assert outcome.figures["ours"] == Figure(20, 10.5, 160)
    assert outcome.ratios["theirs"] == Figure(0.5, 0.5, 0.5)


def test_turns_alternate() -> None:
    order: list[str] = []

    def turn(name: str) -> float:
        order.append(name)
        return 1.0

    run(Contest(1, "work", "s", {name: partial(turn, name) for name in "ab"}), 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"


@pytest.mark.parametrize(
    ("mark", "is_met"),
    [
        (at_most(0.5, "theirs"), True),
        (at_most(0.4, "theirs"), False),
        (at_least(0.5, "theirs"), True),
        (at_least(10), True),
        (at_least(11), False),
        (at_least(1, "nobody"), None),
    ],
)
def test_marks(mark: Mark, is_met: bool | None) -> None:
    ours, theirs = itertools.repeat(10.0), itertools.repeat(20.0)
    outcome = run(Contest(1, "work", "s", {"ours": ours.__next__, "theirs": theirs.__next__}), 3)
    assert outcome.is_met(mark) is is_met


def test_a_missing_rival_is_named() -> None:
    contest = Contest(1, "work", "s", {"ours": lambda: 1.0}, [at_least(1, "theirs")], {"theirs": "it is not installed"})
    outcome = run(contest, 3)
    assert "without theirs: it is not installed" in line(outcome)
    assert "not measured: its rival is missing" in table("part", [outcome])


def test_growth_is_from_the_first_third_to_the_last() -> None:
    points = {str(number): itertools.repeat(float(number)).__next__ for number in (1, 2, 3, 4, 5, 6)}
    drawn = draw(Curve("work", "s", "size", points, is_flat=True), 3)
    assert drawn.growth == pytest.approx(5.5 / 1.5)
    assert "3.67 times from first to last third" in table("part", [drawn])
