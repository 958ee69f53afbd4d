"""A large object is copied and hashed as a small one is, and nothing goes on writing."""

import random
import threading

import pytest

from plasmastream._client import _copying, copy, copy_and_digest
from plasmastream.wire.plasma import LargeDigest, object_digest


@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (5 << 20) + 77])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_copy_and_its_digest(size: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_copying, "_WORKERS", workers)
    source = random.Random(size).randbytes(size)
    into = memoryview(bytearray(size))
    digest = copy_and_digest(source, into, b"about it")
    assert into == source
    assert digest == object_digest(source, b"about it")


def test_a_source_of_any_kind() -> None:
    source = memoryview(bytearray(b"ab" * (3 << 20)))[1:-1]
    into = memoryview(bytearray(len(source) + 2))[1:-1]
    copy_and_digest(source, into, b"")
    assert into == source


@pytest.mark.parametrize("size", [0, 1, 5 << 20])
def test_the_copy_alone(size: int) -> None:
    source = random.Random(size).randbytes(size)
    into = bytearray(size + 2)
    copy(source, memoryview(into)[1:-1])
    assert into == b"\0" + source + b"\0"


@pytest.mark.parametrize("failing", [0, 1])
def test_no_thread_outlives_a_failure(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Part 0 is hashed by the caller, part 1 beside it."""
    monkeypatch.setattr(_copying, "_WORKERS", 2)
    update = LargeDigest.update

    def fail(self: LargeDigest, part: int, data: memoryview) -> None:
        if part == failing:
            raise KeyboardInterrupt
        update(self, part, data)

    monkeypatch.setattr(LargeDigest, "update", fail)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        copy_and_digest(bytes(8 << 20), memoryview(bytearray(8 << 20)), b"")
    assert threading.active_count() == before
