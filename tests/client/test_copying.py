"""A large object is copied and hashed as a small one is, and nothing goes on writing."""

import random
import threading
from collections.abc import Callable

import pytest

from plasmastream._client import _copying, copy, copy_and_digest
from plasmastream.wire.plasma import LargeDigest, object_digest


@pytest.mark.parametrize("size", [0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, (5 << 20) + 77])
@pytest.mark.parametrize("is_shared", [False, True])
def test_the_copy_and_its_digest(size: int, is_shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_copying, "_IS_SHARED", is_shared)
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


def test_where_no_thread_can_start_one_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(_copying, "_IS_SHARED", True)
    monkeypatch.setattr(_copying, "start_new_thread", start)
    source, into = random.Random(1).randbytes(5 << 20), memoryview(bytearray(5 << 20))
    assert copy_and_digest(source, into, b"") == object_digest(source)
    assert into == source


def test_a_thread_that_starts_too_late_finds_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[Callable[[], None]] = []
    monkeypatch.setattr(_copying, "_IS_SHARED", True)
    monkeypatch.setattr(_copying, "start_new_thread", lambda work, _: late.append(work))
    source, into = bytearray(random.Random(1).randbytes(5 << 20)), memoryview(bytearray(5 << 20))
    assert copy_and_digest(source, into, b"") == object_digest(source)
    into[:] = bytes(len(into))
    source.append(1)  # nobody looks at it any more
    late[0]()
    assert into == bytes(len(into))


@pytest.mark.parametrize("failing", ["the caller", "who works beside it"])
def test_nothing_is_written_after_a_failure(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the two fails at its first piece, when both have begun."""
    update, caller = LargeDigest.update, threading.get_ident()
    have_begun, mine = threading.Barrier(2), threading.local()
    threads = []

    def start(work: Callable[[], None], arguments: tuple[()]) -> None:
        threads.append(threading.Thread(target=work, args=arguments))
        threads[0].start()

    def fail(self: LargeDigest, part: int, data: memoryview) -> None:
        if not hasattr(mine, "has_begun"):
            mine.has_begun = have_begun.wait(20)
            if (threading.get_ident() == caller) is (failing == "the caller"):
                raise KeyboardInterrupt
        update(self, part, data)

    monkeypatch.setattr(_copying, "_IS_SHARED", True)
    monkeypatch.setattr(_copying, "start_new_thread", start)
    monkeypatch.setattr(LargeDigest, "update", fail)
    into = memoryview(bytearray(64 << 20))
    with pytest.raises(KeyboardInterrupt):
        copy_and_digest(b"\1" * len(into), into, b"")
    written = bytes(into)
    threads[0].join(20)
    assert into == written
