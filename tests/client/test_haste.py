"""Who waited for a short time looks again; who waited longer, or has no other processor, sleeps."""

import pytest

from plasmastream._client import Haste, _haste

pytestmark = pytest.mark.usefixtures("_company")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds."""
    clock = [100.0]
    monkeypatch.setattr(_haste, "perf_counter", lambda: clock[0])
    return clock


@pytest.fixture
def _company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_haste, "_HAS_COMPANY", True)


def wait(haste: Haste, now: list[float], seconds: float) -> None:
    haste.begin()
    now[0] += seconds
    haste.end()


def test_nobody_looks_again_at_first(now: list[float]) -> None:
    haste = Haste()
    haste.begin()
    assert not haste.looks_again()


def test_after_a_short_wait_one_looks_again_for_a_while(now: list[float]) -> None:
    haste = Haste()
    wait(haste, now, 30e-6)
    haste.begin()
    assert haste.looks_again()
    now[0] += 49e-6
    assert haste.looks_again()
    now[0] += 2e-6
    assert not haste.looks_again()


def test_after_a_long_wait_one_sleeps(now: list[float]) -> None:
    haste = Haste()
    wait(haste, now, 30e-6)
    wait(haste, now, 1e-3)
    haste.begin()
    assert not haste.looks_again()


def test_alone_one_sleeps(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_haste, "_HAS_COMPANY", False)
    haste = Haste()
    wait(haste, now, 30e-6)
    haste.begin()
    assert not haste.looks_again()
