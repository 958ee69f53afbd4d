"""Who finds what it looks for goes on looking; who looks in vain sleeps, for ever longer, and tries again."""

import pytest

from plasmastream._client import Haste, _haste


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds."""
    clock = [100.0]
    monkeypatch.setattr(_haste, "perf_counter", lambda: clock[0])
    return clock


def looks(haste: Haste, now: list[float], seconds: float) -> bool:
    """Wait as long, and tell whether it began by looking again."""
    haste.begin()
    did = haste.looks_again()
    now[0] += seconds
    haste.end()
    return did


def test_a_look_is_short(now: list[float]) -> None:
    haste = Haste()
    haste.begin()
    now[0] += 199e-6
    assert haste.looks_again()
    now[0] += 2e-6
    assert not haste.looks_again()


def test_who_finds_something_goes_on_looking(now: list[float]) -> None:
    haste = Haste()
    assert all(looks(haste, now, 30e-6) for _ in range(100))


def test_who_looks_in_vain_sleeps_ever_longer_though_waits_are_short(now: list[float]) -> None:
    haste = Haste()
    slept = [waits_until_it_looks_in_vain(haste, now) for _ in range(8)]
    assert slept == [0, 4, 16, 64, 256, 1024, 1024, 1024]


def test_each_success_makes_the_next_failure_cheaper(now: list[float]) -> None:
    haste = Haste()
    for _ in range(4):
        waits_until_it_looks_in_vain(haste, now)
    while not looks(haste, now, 30e-6):
        pass
    assert all(looks(haste, now, 30e-6) for _ in range(3))  # of 256, these and the one before leave 16
    assert waits_until_it_looks_in_vain(haste, now) == 0
    assert waits_until_it_looks_in_vain(haste, now) == 64


def test_a_failure_now_and_then_hardly_matters(now: list[float]) -> None:
    haste = Haste()
    looked = [looks(haste, now, 1e-3 if number % 20 == 0 else 30e-6) for number in range(2000)]
    assert sum(looked) > 0.75 * len(looked)


def waits_until_it_looks_in_vain(haste: Haste, now: list[float]) -> int:
    """Wait shortly where it sleeps at once, and long where it looks; tells how often it has slept."""
    slept = 0
    while True:
        haste.begin()
        looked = haste.looks_again()
        now[0] += 1e-3 if looked else 30e-6
        haste.end()
        if looked:
            return slept
        slept += 1
