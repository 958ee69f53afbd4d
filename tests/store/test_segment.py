"""Shared memory: its pages are counted, its size is fixed, and a machine that is full says so."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from plasmastream import StoreError, StoreFullError
from plasmastream.store import _segment
from plasmastream.store._segment import PAGE_SIZE, Segment, available_memory, round_to_pages


def pages_taken(segment: Segment) -> int:
    """Bytes of memory behind a segment, as the kernel counts them."""
    return os.fstat(segment.fd).st_blocks * 512


def test_lengths_are_rounded_to_pages() -> None:
    assert [round_to_pages(n) for n in (0, 1, PAGE_SIZE, PAGE_SIZE + 1)] == [0, PAGE_SIZE, PAGE_SIZE, 2 * PAGE_SIZE]


def test_what_is_reserved_is_what_the_kernel_has_given() -> None:
    with Segment(1 << 30) as segment:
        assert (segment.length, segment.reserved, pages_taken(segment)) == (1 << 30, 0, 0)
        segment.reserve(0, 64 * PAGE_SIZE)
        assert segment.reserved == pages_taken(segment) == 64 * PAGE_SIZE
        segment.view[: 64 * PAGE_SIZE] = b"x" * (64 * PAGE_SIZE)
        assert segment.reserved == pages_taken(segment)
        segment.give_back(16 * PAGE_SIZE, 32 * PAGE_SIZE)
        assert segment.reserved == pages_taken(segment) == 32 * PAGE_SIZE
        assert segment.view[16 * PAGE_SIZE] == 0  # the address stays valid, and this read takes one page
        assert segment.view[0] == ord("x")


def test_its_size_cannot_be_changed_by_whoever_holds_the_descriptor() -> None:
    with Segment(16 * PAGE_SIZE) as segment:
        for length in (0, 15 * PAGE_SIZE, 17 * PAGE_SIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(segment.fd, length)
        with pytest.raises(OSError, match="not permitted"):
            os.write(os.open(f"/proc/self/fd/{segment.fd}", os.O_WRONLY | os.O_APPEND), b"x")


def test_other_processes_cannot_inherit_the_descriptor() -> None:
    with Segment(PAGE_SIZE) as segment:
        assert not os.get_inheritable(segment.fd)


def test_more_than_the_machine_has_is_refused_in_numbers() -> None:
    with Segment(1 << 44) as segment:
        with pytest.raises(StoreFullError, match=r"17,592,186,044,416 bytes .* has [\d,]+ left; give"):
            segment.reserve(0, 1 << 44)
        assert segment.reserved == pages_taken(segment) == 0


def test_a_little_is_left_to_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_segment, "available_memory", lambda: (64 << 20) + PAGE_SIZE)
    with Segment(1 << 20) as segment:
        segment.reserve(0, PAGE_SIZE)
        with pytest.raises(StoreFullError):
            segment.reserve(PAGE_SIZE, 2 * PAGE_SIZE)


def test_pages_that_move_need_not_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with Segment(1 << 20) as segment:
        segment.reserve(0, 8 * PAGE_SIZE)
        monkeypatch.setattr(_segment, "available_memory", lambda: 0)
        segment.give_back(0, 4 * PAGE_SIZE)
        segment.reserve(32 * PAGE_SIZE, 3 * PAGE_SIZE, replacing=4 * PAGE_SIZE)
        with pytest.raises(StoreFullError, match=r"4,096 bytes .* has 0 left"):
            segment.reserve(0, 2 * PAGE_SIZE, replacing=PAGE_SIZE)
        assert segment.reserved == pages_taken(segment) == 7 * PAGE_SIZE


def test_a_refusal_by_the_kernel_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.posix_fallocate

    def half(fd: int, offset: int, nbytes: int) -> None:
        real(fd, offset, nbytes // 2)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", half)
    with Segment(1 << 20) as segment:
        with pytest.raises(StoreFullError, match="No space left"):
            segment.reserve(0, 8 * PAGE_SIZE)
        assert segment.reserved == pages_taken(segment) == 0


def test_a_map_that_fails_leaks_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(StoreFullError, match="allocate"):
        Segment(PAGE_SIZE)
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("length", [1 << 50, 1 << 70])
def test_more_addresses_than_there_are_is_refused_too(length: int) -> None:
    before = set(os.listdir("/proc/self/fd"))
    words = rf"^{length:,} bytes .* take {length + (1 << 20):,} bytes of address space, .*less memory, .*ulimit -v"
    with pytest.raises(StoreFullError, match=words):
        Segment(length, addresses=1 << 20)
    assert set(os.listdir("/proc/self/fd")) == before


def test_prefault_touches_what_is_reserved_in_steps() -> None:
    with Segment(64 << 20) as segment:
        segment.reserve(0, 20 << 20)
        first = segment.prefault(0, 20 << 20)
        if not first:
            pytest.skip("this kernel has no MADV_POPULATE_WRITE")
        assert first == 16 << 20
        assert segment.prefault(first, (20 << 20) - first) == 4 << 20
        assert pages_taken(segment) == 20 << 20


def test_prefault_says_0_where_the_kernel_does_not_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_segment, "_MADV_POPULATE_WRITE", 4711)
    with Segment(PAGE_SIZE) as segment:
        segment.reserve(0, PAGE_SIZE)
        assert segment.prefault(0, PAGE_SIZE) == 0


# In a directory, and of huge pages; more of both in tests/cli/test_store_server.py


def test_a_file_in_a_directory_has_no_name(tmp_path: Path) -> None:
    with Segment(16 * PAGE_SIZE, addresses=1 << 20, directory=str(tmp_path)) as segment:
        assert list(tmp_path.iterdir()) == []
        assert (segment.home, segment.length) == (16 * PAGE_SIZE, (1 << 20) + 16 * PAGE_SIZE)
        assert os.fstat(segment.fd).st_dev == tmp_path.stat().st_dev
        assert not os.get_inheritable(segment.fd)
        segment.reserve(0, 16 * PAGE_SIZE)
        assert pages_taken(segment) >= segment.reserved == 16 * PAGE_SIZE
        segment.view[: 16 * PAGE_SIZE] = b"x" * (16 * PAGE_SIZE)
        segment.give_back(0, 8 * PAGE_SIZE)
        assert segment.reserved == 8 * PAGE_SIZE
        assert segment.view[8 * PAGE_SIZE] == ord("x")


def test_a_disk_is_not_prefaulted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have to write what nobody has written yet."""
    monkeypatch.setattr(_segment, "file_system_of", lambda fd: "ext4")
    with Segment(16 * PAGE_SIZE, directory=str(tmp_path)) as segment:
        segment.reserve(0, 16 * PAGE_SIZE)
        assert segment.prefault(0, 16 * PAGE_SIZE) == 0


def test_a_file_system_that_knows_no_nameless_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with Segment(PAGE_SIZE, directory=str(tmp_path)) as segment:
        segment.reserve(0, PAGE_SIZE)
        assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_full_is_told_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Segment(1 << 20, directory=str(tmp_path)) as segment:
        with pytest.raises(StoreFullError, match=rf"{tmp_path} has [\d,]+ left; .* another directory, or none"):
            segment.reserve(0, 1 << 60)
        assert segment.reserved == pages_taken(segment) == 0

        def refuse(fd: int, offset: int, nbytes: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", refuse)
        with pytest.raises(StoreFullError, match=rf"refused in {tmp_path}: No space left"):
            segment.reserve(0, PAGE_SIZE)
        assert segment.reserved == 0


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError, match="No such file"):
        Segment(PAGE_SIZE, directory=str(tmp_path / "missing"))
    with pytest.raises(StoreError, match="has no huge pages"):
        Segment(PAGE_SIZE, directory=str(tmp_path), huge_pages=True)
    assert set(os.listdir("/proc/self/fd")) == before


def test_file_systems_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/proc/self/status") as file:
        assert _segment.file_system_of(file.fileno()) == "proc"
    with Segment(PAGE_SIZE) as segment:
        assert _segment.file_system_of(segment.fd) == ""  # not mounted anywhere
        monkeypatch.setattr(_segment, "Path", cgroup_files(tmp_path))
        assert _segment.file_system_of(segment.fd) == ""


def test_huge_pages_that_the_machine_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(os.listdir("/proc/self/fd"))
    size = _segment._memory_info().get("Hugepagesize", 0)
    if not size:
        pytest.skip("this kernel has no huge pages")
    info = {"Hugepagesize": size, "HugePages_Total": 9, "HugePages_Free": 5, "HugePages_Rsvd": 3}
    monkeypatch.setattr(_segment, "_memory_info", lambda: info)
    with pytest.raises(StoreFullError, match=r"3 huge pages .* has 2 free; sysctl vm.nr_hugepages=10 "):
        Segment(2 * size * 1024 + 1, huge_pages=True)
    monkeypatch.setattr(_segment, "_memory_info", dict)
    with pytest.raises(StoreFullError, match="of huge pages were refused"):
        Segment(1 << 46, huge_pages=True)

    def refuse(name: str, flags: int) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(StoreFullError, match="this kernel has no huge pages"):
        Segment(PAGE_SIZE, huge_pages=True)
    assert set(os.listdir("/proc/self/fd")) == before


def test_closing_twice_closes_once() -> None:
    segment = Segment(PAGE_SIZE)
    segment.close()
    number = os.dup(0)  # very likely the number that was just given back
    try:
        segment.close()
        os.fstat(number)
    finally:
        os.close(number)
    with pytest.raises(ValueError, match="released"):
        segment.view[0]


def test_views_outlive_closing() -> None:
    segment = Segment(PAGE_SIZE)
    segment.reserve(0, PAGE_SIZE)
    view = segment.view[:5]
    view[:] = b"hello"
    segment.close()
    assert bytes(view) == b"hello"
    view.release()


def cgroup_files(root: Path) -> Callable[[str], Path]:
    """Where `Path("/...")` leads, for a machine described by files under `root`."""
    return lambda path: root / path.lstrip("/")


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/user/store\n", {"user/store": ("3000000", "1000000"), "user": ("max", "0")}, 2_000_000),
        ("0::/user/store\n", {"user/store": ("max", "5"), "user": ("1500000", "500000")}, 1_000_000),
        ("0::/user/store\n", {"user/store": ("99999999999999", "0")}, 8_000_000 * 1024),
        ("0::/user/store\n", {"user/store": ("what?", "0")}, 8_000_000 * 1024),
        ("0::/\n", {}, 8_000_000 * 1024),
        (None, {}, 8_000_000 * 1024),
    ],
)
def test_the_limit_of_a_control_group_counts(
    group: str | None,
    files: dict[str, tuple[str, str]],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable:    8000000 kB\n")
    if group is not None:
        (tmp_path / "proc/self/cgroup").write_text(group)
    for folder, (limit, current) in files.items():
        place = tmp_path / "sys/fs/cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / "memory.max").write_text(limit + "\n")
        (place / "memory.current").write_text(current + "\n")
    monkeypatch.setattr(_segment, "Path", cgroup_files(tmp_path))
    assert available_memory() == expected
