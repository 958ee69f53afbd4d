"""What a contest, a curve and their report make of samples; nothing here takes the time of anything."""

import itertools
from collections.abc import Callable
from functools import partial

import pytest

from benchmarks.contest import Contest, Figure, Mark, at_least, at_most, run
from benchmarks.curve import Curve, draw
from benchmarks.report import Setting, as_json, lines, marks, replace, table


def turns(*samples: float) -> Callable[[], float]:
    return iter(samples).__next__


def test_ratios_are_those_of_rounds() -> None:
    contest = Contest(7, "work", "s", {"ours": turns(0, 1, 20, 300), "theirs": turns(0, 2, 40, 600)})
    outcome = run(contest, 3)
    assert outcome.figures["ours"] == Figure(20, 10.5, 160)
    assert outcome.ratios["ours"]["theirs"] == Figure(0.5, 0.5, 0.5)


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
    outcome = run(Contest(1, "work", "s", {"ours": ours.__next__, "theirs": theirs.__next__}, [mark]), 3)
    (verdict,) = outcome.verdicts()
    assert (verdict.row, verdict.who, verdict.is_met) == (1, "ours", is_met)


def test_two_of_ours_are_held_against_the_rivals_and_the_second_against_the_first() -> None:
    contestants = {"first": turns(1, 1, 1, 1), "second": turns(2, 2, 2, 2), "theirs": turns(4, 4, 4, 4)}
    marks = [at_least(0.2, "theirs"), at_least(0.7, "theirs", of="second", row=2), at_most(1, of="first", row=3)]
    contest = Contest(1, "work", "GB/s", contestants, marks, ours=2)
    assert contest.rows == {1, 2, 3}
    outcome = run(contest, 3)
    ratios = {who: {name: figure.median for name, figure in ratios.items()} for who, ratios in outcome.ratios.items()}
    assert ratios == {"first": {"theirs": 0.25}, "second": {"theirs": 0.5, "first": 2.0}}
    found = [(verdict.row, verdict.who, verdict.measured, verdict.is_met) for verdict in outcome.verdicts()]
    assert found == [
        (1, "first", "0.25 (0.25 to 0.25)", True),
        (1, "second", "0.50 (0.50 to 0.50)", True),
        (2, "second", "0.50 (0.50 to 0.50)", False),
        (3, "first", "1 (1 to 1) GB/s", True),
    ]
    assert "second  2 (2 to 2); 0.50 (0.50 to 0.50) of theirs, 2.00 (2.00 to 2.00) of first" in lines(outcome)
    assert "| 1, 2, 3 | work, GB/s; 3 rounds | first | 1 (1 to 1) |" in table([outcome], Setting())


@pytest.mark.parametrize(
    ("bound", "word"),
    [(1, "reached"), (2, "reached, within the spread"), (3, "**missed**, within the spread"), (5, "**missed**")],
)
def test_a_mark_amid_the_quartiles_is_not_clear(bound: float, word: str) -> None:
    contest = Contest(1, "work", "s", {"ours": turns(1, 1, 1, 2, 3, 4, 4)}, [at_least(bound)])
    (verdict,) = run(contest, 6).verdicts()
    assert (str(verdict), verdict.measured) == (word, "2.5 (1.25 to 3.75) s")


def test_a_missing_rival_is_named() -> None:
    contest = Contest(1, "work", "s", {"ours": lambda: 1.0}, [at_least(1, "theirs")], {"theirs": "it is not installed"})
    outcome = run(contest, 3)
    assert "without theirs: it is not installed" in lines(outcome)
    assert "| theirs | not measured: it is not installed |" in table([outcome], Setting())


def test_growth_is_from_the_first_third_to_the_last() -> None:
    points = {str(number): itertools.repeat(float(number)).__next__ for number in (1, 2, 3, 4, 5, 6)}
    drawn = draw(Curve("work", "s", "size", points, is_flat=True), 3)
    assert drawn.growth == pytest.approx(5.5 / 1.5)
    assert "3.67 times from first to last third" in table([drawn], Setting())
    assert [(verdict.row, verdict.measured, verdict.is_met) for verdict in drawn.verdicts()] == [(18, "3.67", False)]


def test_the_table_of_marks_has_all_parts_in_the_order_of_rows() -> None:
    later = run(Contest(7, "later", "s", {"ours": lambda: 1.0}, [at_most(2)]), 3)
    missing = run(Contest(3, "earlier", "s", {"ours": lambda: 1.0}, [at_most(2, "nobody")]), 3)
    unnumbered = run(Contest(0, "last", "s", {"ours": lambda: 1.0}, [at_least(2)]), 3)
    shown = marks([as_json("one", [unnumbered, later], Setting()), as_json("two", [missing], Setting())]).splitlines()
    assert shown[2:5] == [
        "| 3 | earlier | ours | at most 2 x nobody |  | not measured: its rival is missing |",
        "| 7 | later | ours | at most 2 | 1 (1 to 1) s | reached |",
        "|  | last | ours | at least 2 | 1 (1 to 1) s | **missed** |",
    ]


def test_a_table_has_its_place_on_the_page() -> None:
    page = "before\n<!-- part -->\nold\n<!-- end of part -->\nafter\n"
    assert replace(page, "part", "new") == "before\n<!-- part -->\n\nnew\n\n<!-- end of part -->\nafter\n"
    assert replace(replace(page, "part", "new"), "part", "new") == replace(page, "part", "new")
    with pytest.raises(ValueError, match="no place for 'other'"):
        replace(page, "other", "new")
