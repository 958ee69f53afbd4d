"""Objects on disk: two files in a directory, `objects` with their bytes and `journal` with what lies where.

Space in `objects` is shared out by the same arithmetic as shared memory, in whole pages, and what is freed is given
back to the file system. The journal is a list of fixed entries, each with a checksum of its own: an object was written,
or is gone. Each object's bytes have a checksum too, which is verified whenever they are read. After a crash of the
store, all that the journal tells is there; after a crash of the machine, what did not reach the disk is noticed and
never returned.

`reserve`, `forget` and the properties are for the loop and never wait for the disk. `write`, `flush`, `read` and `sync`
are for threads: those that write one at a time, and `read` at any time.
"""

import ctypes
import errno
import fcntl
import logging
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import attrs
from xxhash import xxh3_64_intdigest

from plasmastream._errors import StoreError, StoreFullError
from plasmastream._object_id import ObjectID
from plasmastream.store._allocator import Allocator
from plasmastream.store._record import Record
from plasmastream.store._segment import PAGE_SIZE, file_without_name

_log = logging.getLogger(__name__)

_MAGIC = b"plasmastream spill 1\n"
_ENTRY = struct.Struct("<4s20sQQQdd8sQ")
_CHECK = struct.Struct("<Q")
_ENTRY_SIZE = _ENTRY.size + _CHECK.size
_WRITTEN, _GONE = b"HERE", b"GONE"
_JOURNAL_STEP = 1 << 20  # reserved ahead: a disk that is full must not keep objects from being deleted
_SHORTEST_TO_REWRITE = 16 * 1024  # entries
_GONE_AT_ONCE = 4096
_LARGEST_CALL = 1 << 30

_FALLOC_PUNCH_HOLE_KEEP_SIZE = 0x03
_libc = ctypes.CDLL(None, use_errno=True)


class DamagedError(StoreError):
    """What was read back is not what was written."""


class SpillDirectory:
    """The spilled objects in `directory`, which is made if need be, and is nobody else's as long as this is open.

    Args:
        directory: where the files are, or will be.
        limit: bytes that all objects here may take together, in whole pages; None for what the file system has.
        temporary: keep no journal, and have no name for the other file: all is gone with this process, however it
            ends, and others may use the directory too.

    Raises:
        StoreError: the directory cannot be used, is in use, or holds something else.
    """

    def __init__(self, directory: str, limit: int | None = None, *, temporary: bool = False) -> None:
        self.directory = directory
        self.limit = limit
        self.used = 0
        self._allocator = Allocator()
        self._live: dict[ObjectID, Record] = {}
        self._gone: list[Record] = []
        self._files: list[int] = []
        self._journal = -1
        self._length = self._reserved = 0  # of the journal: entries, and bytes
        try:
            if temporary:
                self._objects = self._take(file_without_name(directory))
                return
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self._directory = self._take(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._objects = self._take(os.open(self._path("objects"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._restore_journal()
        except BlockingIOError:
            self.close()
            raise StoreError(f"another store spills into {directory}") from None
        except OSError as error:
            self.close()
            raise StoreError(f"the store cannot spill into {directory}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    @property
    def records(self) -> Iterable[Record]:
        """All objects here; for before the first write."""
        return self._live.values()

    @property
    def has_news(self) -> bool:
        """Whether `flush` has anything to write."""
        return bool(self._gone)

    # For the loop

    def reserve(self, size: int) -> int:
        """Take room for an object of `size` bytes.

        Returns:
            Its offset.

        Raises:
            StoreFullError: that is more than the limit allows.
        """
        block = _block_size(size)
        if self.limit is not None and self.used + block > self.limit:
            raise StoreFullError(
                f"{self.directory} has reached its limit: {self.used:,} of {self.limit:,} bytes are taken"
            )
        if not block:
            return 0
        offset = self._allocator.allocate(block)
        if offset is None:
            self._allocator.grow(block - self._allocator.tail)
            offset = self._allocator.allocate(block)
            assert offset is not None
        self.used += block
        return offset

    def release(self, offset: int, size: int) -> None:
        """Give back room that was reserved, and that no record tells of."""
        block = _block_size(size)
        if block:
            self._allocator.free(offset, block)
            self.used -= block

    def forget(self, record: Record) -> None:
        """Delete an object; the next `flush` or `write` makes it so on disk."""
        self._gone.append(record)
        self.release(record.offset, record.size)

    # For threads

    def write(self, objects: Sequence[tuple[Record, memoryview]]) -> list[Record]:
        """Write objects, each a contiguous view of data and metadata, to where room is reserved.

        Returns:
            The records, with checksums, of those that were written: the first ones, where not all could be.

        Raises:
            OSError: none could be.
        """
        self.flush()  # before anything takes the place of what is gone
        written: list[Record] = []
        for record, content in objects:
            try:
                _write_all(self._objects, content, record.offset)
            except OSError:
                if not written:
                    raise
                break
            written.append(attrs.evolve(record, checksum=xxh3_64_intdigest(content)))
        self._append([_entry(_WRITTEN, record) for record in written])
        self._live.update((record.object_id, record) for record in written)
        return written

    def flush(self) -> None:
        """Write down what is gone, and give its room back to the file system.

        Raises:
            OSError: it could not be written; the next call tries again.
        """
        while self._gone:
            some = self._gone[:_GONE_AT_ONCE]
            for record in some:
                self._live.pop(record.object_id, None)
            if not self._is_worth_rewriting() or not self._try_to_rewrite():
                self._append([_entry(_GONE, record) for record in some])
            del self._gone[: len(some)]
            for record in some:  # on a full disk this makes the room for the next
                self._punch(record.offset, _block_size(record.size))

    def read(self, record: Record, memory: memoryview) -> None:
        """Read an object's data and metadata into memory of its size.

        Raises:
            OSError: it cannot be read.
            DamagedError: it is not what was written.
        """
        offset = record.offset
        rest = memory
        while len(rest):
            count = os.preadv(self._objects, [rest[:_LARGEST_CALL]], offset)
            if not count:
                raise DamagedError(f"object {record.object_id} is cut off in {self._path('objects')}")
            offset += count
            rest = rest[count:]
        if xxh3_64_intdigest(memory) != record.checksum:
            raise DamagedError(f"object {record.object_id} is damaged in {self._path('objects')}")

    def sync(self) -> None:
        """Return when all that was written is on the disk.

        Raises:
            OSError: it did not get there, or nobody will find it there.
        """
        for file, name in ((self._objects, "objects"), (self._journal, "journal")):
            if not os.path.samestat(os.fstat(file), os.stat(self._path(name))):
                raise FileNotFoundError(errno.ENOENT, "somebody has taken its files away")
        for file in (self._objects, self._journal):
            os.fsync(file)

    def close(self) -> None:
        """Close the files; what is written stays. May be called again."""
        with suppress(OSError):
            self.flush()
        while self._files:
            os.close(self._files.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, file: int) -> int:
        self._files.append(file)
        return file

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    # The journal

    def _restore_journal(self) -> None:
        """Read the journal, take up what it tells of, and write it anew without what is gone."""
        for kind, record in self._entries():
            if kind == _WRITTEN:
                self._live[record.object_id] = record
            else:
                self._live.pop(record.object_id, None)
        end = os.fstat(self._objects).st_size
        top = 0
        for record in sorted(self._live.values(), key=lambda record: record.offset):
            block = _block_size(record.size)
            if block and (record.offset < top or record.offset % PAGE_SIZE or record.offset + record.size > end):
                _log.error("object %s was lost: %s does not hold it", record.object_id, self._path("objects"))
                del self._live[record.object_id]
            elif block:
                if record.offset > top:
                    self._allocator.grow(record.offset - top)
                    self._punch(top, record.offset - top)  # what was written there may have had no entry yet
                self._allocator.take(block)
                top = record.offset + block
                self.used += block
        os.ftruncate(self._objects, top)
        if not self._length:
            self._rewrite()
        elif not self._try_to_rewrite():  # what is gone is told of behind what is there, until there is room
            self._journal = self._take(os.open(self._path("journal"), os.O_RDWR | os.O_CLOEXEC))
            self._reserved = os.fstat(self._journal).st_size

    def _entries(self) -> Iterable[tuple[bytes, Record]]:
        try:
            with open(self._path("journal"), "rb") as journal:
                text = journal.read(_ENTRY_SIZE)
                if not text:
                    return
                if text != _MAGIC.ljust(_ENTRY_SIZE, b"\0"):
                    raise StoreError(f"{self._path('journal')} was written by something else, or by a later version")
                self._length = 1
                while text := journal.read(_ENTRY_SIZE):
                    if not text.strip(b"\0"):
                        continue  # reserved ahead, and never written
                    self._length = journal.tell() // _ENTRY_SIZE
                    if len(text) < _ENTRY_SIZE or xxh3_64_intdigest(text[:-8]) != _CHECK.unpack(text[-8:])[0]:
                        _log.error("%s: the entry at byte %d is damaged", journal.name, journal.tell() - len(text))
                        continue
                    kind, object_id, *fields = _ENTRY.unpack_from(text)
                    yield kind, Record(ObjectID(object_id), *fields)
        except FileNotFoundError:
            return

    def _append(self, entries: Sequence[bytes]) -> None:
        if self._journal < 0:
            return
        end = (self._length + len(entries)) * _ENTRY_SIZE
        if end > self._reserved:
            try:
                os.posix_fallocate(self._journal, self._reserved, end + _JOURNAL_STEP - self._reserved)
                self._reserved = end + _JOURNAL_STEP
            except OSError:
                os.posix_fallocate(self._journal, self._reserved, end - self._reserved)
                self._reserved = end
        _write_all(self._journal, memoryview(b"".join(entries)), self._length * _ENTRY_SIZE)
        self._length += len(entries)

    def _is_worth_rewriting(self) -> bool:
        return self._length > _SHORTEST_TO_REWRITE and self._length > 4 * len(self._live)

    def _try_to_rewrite(self) -> bool:
        """Whether the disk had room for another journal."""
        try:
            self._rewrite()
        except OSError:
            return False
        return True

    def _rewrite(self) -> None:
        """Put a journal of what there is in the place of the old one, in one step."""
        path = self._path("journal.new")
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            entries = [_MAGIC.ljust(_ENTRY_SIZE, b"\0"), *(_entry(_WRITTEN, record) for record in self._live.values())]
            reserved = len(entries) * _ENTRY_SIZE + _JOURNAL_STEP
            os.posix_fallocate(file, 0, reserved)
            _write_all(file, memoryview(b"".join(entries)), 0)
            os.fsync(file)
            os.rename(path, self._path("journal"))
            os.fsync(self._directory)
        except BaseException:
            os.close(file)
            with suppress(OSError):
                os.unlink(path)
            raise
        if self._journal >= 0:
            self._files.remove(self._journal)
            os.close(self._journal)
        self._files.append(file)
        self._journal, self._length, self._reserved = file, len(entries), reserved

    def _punch(self, offset: int, nbytes: int) -> None:
        """Give whole pages back to the file system, where it can take them."""
        if nbytes:
            _libc.fallocate(
                self._objects, _FALLOC_PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(nbytes)
            )


def _block_size(size: int) -> int:
    """Bytes that an object takes: whole pages, so that what is freed is free for the file system as well."""
    return -(-size // PAGE_SIZE) * PAGE_SIZE


def _entry(kind: bytes, record: Record) -> bytes:
    fields = attrs.astuple(record)
    text = _ENTRY.pack(kind, *fields)
    return text + _CHECK.pack(xxh3_64_intdigest(text))


def _write_all(file: int, content: memoryview, offset: int) -> None:
    while len(content):
        count = os.pwrite(file, content[:_LARGEST_CALL], offset)
        if not count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        offset += count
        content = content[count:]
