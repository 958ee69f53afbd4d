"""Objects on disk: what is written comes back whole, also after a crash, and nothing else ever does."""

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from plasmastream import ObjectID, StoreError, StoreFullError
from plasmastream.store._record import Record
from plasmastream.store._spill import DamagedError, SpillDirectory, _entry
from tests.store.helpers import name, names

A, B, C = names(3)


@pytest.fixture
def spill(tmp_path: Path) -> Iterator[SpillDirectory]:
    with SpillDirectory(str(tmp_path)) as directory:
        yield directory


def write(directory: SpillDirectory, object_id: ObjectID, content: bytes, metadata_size: int = 0) -> Record:
    offset = directory.reserve(len(content))
    sizes = len(content) - metadata_size, metadata_size
    record = Record(object_id, offset, *sizes, created_at=1.5, sealed_at=2.5, digest=b"12345678")
    (written,) = directory.write([(record, memoryview(content))])
    return written


def read(directory: SpillDirectory, record: Record) -> bytes:
    memory = bytearray(record.size)
    directory.read(record, memoryview(memory))
    return bytes(memory)


def reopened(directory: SpillDirectory) -> SpillDirectory:
    """As a store that was killed leaves it: nothing is written when it is closed."""
    directory._gone.clear()
    directory.close()
    return SpillDirectory(directory.directory)


def disk_use(path: Path) -> int:
    return (path / "objects").stat().st_blocks * 512


def test_what_is_written_is_read(spill: SpillDirectory) -> None:
    records = [write(spill, name(size), os.urandom(size), size // 3) for size in (0, 1, 64, 65, 100_000)]
    contents = [read(spill, record) for record in records]
    assert [len(content) for content in contents] == [0, 1, 64, 65, 100_000]
    with reopened(spill) as later:
        found = {record.object_id: record for record in later.records}
        assert found == {record.object_id: record for record in records}
        assert [read(later, record) for record in records] == contents


def test_what_is_forgotten_is_gone_at_the_next_flush(spill: SpillDirectory, tmp_path: Path) -> None:
    first = write(spill, A, bytes(100_000))
    second = write(spill, B, b"b" * 100_000)
    spill.forget(first)
    assert spill.used == 102_400
    spill.flush()
    assert not spill.has_news
    assert disk_use(tmp_path) < 120_000
    with reopened(spill) as later:
        assert list(later.records) == [second]
        assert read(later, second) == b"b" * 100_000


def test_what_is_forgotten_when_it_is_closed_is_gone(spill: SpillDirectory, tmp_path: Path) -> None:
    spill.forget(write(spill, A, b"a"))
    spill.close()
    with SpillDirectory(str(tmp_path)) as later:
        assert list(later.records) == []


def test_room_is_used_again(spill: SpillDirectory) -> None:
    for _ in range(100):
        record = write(spill, A, bytes(1_000_000))
        assert record.offset == 0
        spill.forget(record)
    assert spill.used == 0


def test_an_id_may_come_back_with_another_content(spill: SpillDirectory) -> None:
    spill.forget(write(spill, A, b"old"))
    record = write(spill, A, b"new")
    with reopened(spill) as later:
        assert list(later.records) == [record]
        assert read(later, record) == b"new"


def test_a_limit_holds(tmp_path: Path) -> None:
    with SpillDirectory(str(tmp_path), limit=10_000) as spill:
        record = write(spill, A, bytes(5000))
        with pytest.raises(StoreFullError, match="has reached its limit: 8,192 of 10,000 bytes"):
            spill.reserve(1)
        spill.forget(record)
        assert spill.reserve(8192) == 0


def test_nobody_else_may_use_the_directory(spill: SpillDirectory, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="another store spills into"):
        SpillDirectory(str(tmp_path))
    spill.close()
    SpillDirectory(str(tmp_path)).close()


def test_a_directory_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot spill into .*file: "):
        SpillDirectory(str(tmp_path / "file"))


def test_a_foreign_journal_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("my diary, " * 20)
    with pytest.raises(StoreError, match="written by something else, or by a later version"):
        SpillDirectory(str(tmp_path))
    assert (tmp_path / "journal").read_text().startswith("my diary")


def test_damage_is_noticed(spill: SpillDirectory, tmp_path: Path) -> None:
    record = write(spill, A, b"good")
    with (tmp_path / "objects").open("r+b") as file:
        file.write(b"b")
    with pytest.raises(DamagedError, match=f"object {A} is damaged"):
        read(spill, record)
    os.truncate(tmp_path / "objects", 2)
    with pytest.raises(DamagedError, match=f"object {A} is cut off"):
        read(spill, record)


def test_objects_that_the_file_does_not_hold_are_dropped(
    spill: SpillDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = write(spill, A, bytes(64))
    write(spill, B, bytes(64))
    spill.close()
    os.truncate(tmp_path / "objects", 64)
    with SpillDirectory(str(tmp_path)) as later:
        assert list(later.records) == [kept]
    assert f"object {B} was lost" in caplog.text


def test_a_damaged_journal_counts_where_it_is_whole(
    spill: SpillDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut or changed at any byte: what its other entries tell of is there, and never anything wrong."""
    records = [write(spill, name(number), bytes([number]) * 100) for number in range(5)]
    spill.close()
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    journal = files[tmp_path / "journal"]
    entry = 88
    generator = random.Random(7)
    for _ in range(60):
        position = generator.randrange(entry, 6 * entry)
        hit = position // entry - 1
        for broken, expected in (
            (journal[:position], records[:hit]),
            (journal[:position] + b"\xff" + journal[position + 1 :], records[:hit] + records[hit + 1 :]),
        ):
            for path, content in files.items():
                path.write_bytes(content)
            (tmp_path / "journal").write_bytes(broken)
            with SpillDirectory(str(tmp_path)) as later:
                found = list(later.records)
                assert found in (expected, records)  # the byte may have been 0xff before
                for record in found:
                    assert read(later, record) == bytes([records.index(record)]) * 100
    assert "is damaged" in caplog.text


def test_a_temporary_one_has_no_name(tmp_path: Path) -> None:
    path = str(tmp_path)
    with SpillDirectory(path, temporary=True) as first, SpillDirectory(path, temporary=True) as second:
        records = [write(directory, A, content) for directory, content in ((first, b"one"), (second, b"two"))]
        assert [read(first, records[0]), read(second, records[1])] == [b"one", b"two"]
        first.forget(records[0])
        first.flush()
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="No such file or directory"):
        SpillDirectory(str(tmp_path / "nowhere"), temporary=True)


def test_what_a_kill_left_behind_takes_no_room(spill: SpillDirectory, tmp_path: Path) -> None:
    """Bytes without an entry in the journal: between objects, and behind the last one."""
    records = [write(spill, object_id, bytes(100_000)) for object_id in (A, B, C)]
    spill._append([_entry(b"GONE", records[1])])
    os.pwrite(spill._objects, bytes(100_000), 3 * 102_400)
    assert disk_use(tmp_path) >= 400_000
    with reopened(spill) as later:
        assert list(later.records) == [records[0], records[2]]
        assert disk_use(tmp_path) <= 2 * 102_400 == later.used


def test_a_long_journal_is_written_anew(
    spill: SpillDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plasmastream.store._spill._SHORTEST_TO_REWRITE", 50)
    kept = write(spill, B, b"kept")
    for number in range(200):
        spill.forget(write(spill, A, b"%d" % number))
    spill.flush()
    assert spill._length < 60
    assert read(spill, kept) == b"kept"
    with reopened(spill) as later:
        assert list(later.records) == [kept]


def test_a_write_that_fails_leaves_nothing(spill: SpillDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    record = write(spill, A, b"a")
    real = os.pwrite
    calls = 0

    def fail(fd: int, content: memoryview, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > working:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, content[:1], offset)

    for working in (0, 1, 2, 3):  # noqa: B007  (`fail` reads it)
        calls = 0
        monkeypatch.setattr(os, "pwrite", fail)
        with pytest.raises(OSError, match="No space left"):
            write(spill, B, b"bb")
        monkeypatch.setattr(os, "pwrite", real)
    spill.forget(record)
    calls = 0
    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="No space left"):
        spill.flush()
    assert spill.has_news
    monkeypatch.setattr(os, "pwrite", real)
    spill.flush()
    record = write(spill, C, b"c")
    with reopened(spill) as later:
        assert list(later.records) == [record]


def test_a_store_remembers_what_it_wrote_through_any_history(tmp_path: Path) -> None:
    """Random writes and deletes, with restarts: exactly what is there by the book is there, whole."""
    generator = random.Random(3)
    directory = SpillDirectory(str(tmp_path))
    book: dict[ObjectID, tuple[Record, bytes]] = {}
    for step in range(600):
        if generator.random() < 0.55 or not book:
            content = generator.randbytes(generator.choice((0, 10, 1000, 50_000)))
            book[name(step)] = (write(directory, name(step), content), content)
        else:
            record, _ = book.pop(generator.choice(list(book)))
            directory.forget(record)
        if generator.random() < 0.02:
            directory.flush()
            directory = reopened(directory)
            assert {record.object_id: record for record in directory.records} == {i: r for i, (r, _) in book.items()}
        for record, content in generator.sample(list(book.values()), min(3, len(book))):
            assert read(directory, record) == content
    assert directory.used == sum(-(-record.size // 4096) * 4096 for record, _ in book.values())
    directory.close()


def test_deletes_reach_a_full_disk(
    spill: SpillDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However many there are: what is punched out makes room for the next entries. And a store can start there."""
    records = [write(spill, name(number), b"x") for number in range(15_000)]
    fallocate = os.posix_fallocate
    free = 0

    def only_what_was_freed(fd: int, offset: int, nbytes: int) -> None:
        nonlocal free
        if nbytes > free:
            raise OSError(errno.ENOSPC, "No space left on device")
        free -= nbytes
        fallocate(fd, offset, nbytes)

    def punch(self: SpillDirectory, offset: int, nbytes: int) -> None:
        nonlocal free
        free += nbytes

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", only_what_was_freed)
        patch.setattr(SpillDirectory, "_punch", punch)
        for record in records[1:]:
            spill.forget(record)
        spill.flush()
        assert not spill.has_news
        free = 0
        spill.close()
        with SpillDirectory(str(tmp_path)) as later:
            assert list(later.records) == records[:1]
            later.forget(records[0])
            patch.setattr(os, "posix_fallocate", fallocate)
            later.flush()
    with SpillDirectory(str(tmp_path)) as last:
        assert list(last.records) == []
    assert not caplog.records


def test_files_that_were_taken_away_are_noticed(spill: SpillDirectory, tmp_path: Path) -> None:
    write(spill, A, b"a")
    spill.sync()
    (tmp_path / "objects").unlink()
    with pytest.raises(FileNotFoundError):
        spill.sync()
    (tmp_path / "objects").touch()
    with pytest.raises(FileNotFoundError, match="taken its files away"):
        spill.sync()
