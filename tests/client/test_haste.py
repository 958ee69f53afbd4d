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
    now[0] += 99e-6
    assert haste.looks_again()
    now[0] += 2e-6
    assert not haste.looks_again()


def test_who_finds_something_goes_on_looking(now: list[float]) -> None:
    haste = Haste()
    assert all(looks(haste, now, 30e-6) for _ in range(100))


def test_who_looks_in_vain_sleeps_ever_longer_though_waits_are_short(now: list[float]) -> None:
    haste = Haste()
    waits = "".join("L" if looks(haste, now, 1e-3 if haste._looks else 30e-6) else "s" for _ in range(3000))
    assert [len(slept) for slept in waits.split("L")[1:6]] == [32, 64, 128, 256, 512]


def test_after_a_success_a_failure_costs_little_again(now: list[float]) -> None:
    haste = Haste()
    looks(haste, now, 1e-3)
    while not looks(haste, now, 30e-6):
        pass
    looks(haste, now, 1e-3)
    assert [looks(haste, now, 30e-6) for _ in range(33)] == [False] * 32 + [True]
