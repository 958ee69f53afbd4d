"""Moves objects between memory and disk, beside a store that serves.

What is about to be evicted is saved ahead of time, and what somebody asks for is brought back. An object that was
saved may stay in memory, and one that is back stays on disk: objects do not change. The core says what is to be done,
and files are touched in threads only. One task saves and another brings back; a door that needs room now calls `save`.

A disk that is full or fails takes nothing from anybody: what could not be saved stays in memory, the creates that would
need its room are refused with the reason, and it is tried again every second.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TypeAlias

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import TaskStatus

from plasmastream._errors import StoreError, StoreFullError
from plasmastream._object_id import ObjectID
from plasmastream.store._core import NotYetError, StoreCore
from plasmastream.store._record import Record
from plasmastream.store._spill import DamagedError, SpillDirectory
from plasmastream.store._table import Entry

_log = logging.getLogger(__name__)

_BATCH = 32 << 20
_BATCH_OBJECTS = 1024
_READERS = 4
_RETRY = 1.0

_Place: TypeAlias = tuple[Entry, Record, memoryview]
"""An object, where it is on disk, and the memory that it gets."""


class Spiller:
    """The traffic between a core and its spill directory. Gets of spilled objects are answered while `run` runs."""

    def __init__(self, core: StoreCore, directory: SpillDirectory) -> None:
        self.is_running = False
        self._core = core
        self._directory = directory
        self._writing = anyio.Lock()
        self._readers = anyio.CapacityLimiter(_READERS)
        self._to_save = anyio.Event()
        self._to_return = anyio.Event()
        self._freed = anyio.Event()
        self._used_when_refused = 0
        self._landed = anyio.Event()
        self._stuck: OrderedDict[ObjectID, None] = OrderedDict()
        self._retried: ObjectID | None = None
        self._unreadable: set[ObjectID] = set()
        self._complaint: str | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Save and bring back whatever the core says, until cancelled."""
        core = self._core
        core.on_spill_work = self._wake
        core.want_all()
        self.is_running = True
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._save_ahead)
                tasks.start_soon(self._bring_back)
                self._wake()
                task_status.started()
        finally:
            self.is_running = False
            core.unwatch_room(self._try_again)
            self._stuck.clear()
            self._retried = None
            self._unreadable.clear()
            core.nothing_returns()

    async def make_way(self, entries: Sequence[Entry]) -> None:
        """Do what a `NotYetError` asks for: save these objects, or let others have a turn, and threads be done."""
        if entries:
            await self.save(entries)
        elif self._core.table.landing:
            await self._landed.wait()
        else:
            await anyio.lowlevel.checkpoint()

    async def save(self, entries: Sequence[Entry]) -> None:
        """Have these objects on disk; where the disk refuses, `core.spill_error` says why."""
        async with self._writing:
            await self._write([*entries, *self._core.table.oldest_unsaved(_BATCH)])

    async def persist(self) -> None:
        """Have all sealed objects on disk, so that a later store finds them there.

        Raises:
            StoreError: that did not work out; the message counts what would be lost.
        """
        core = self._core
        core.spill_error = None
        async with self._writing:
            await self._write([entry for entry in core.table if entry.is_sealed])
            if self.unsaved_objects:
                raise StoreError(f"{self.unsaved_objects:,} objects could not be kept: {core.spill_error}")
            try:
                await anyio.to_thread.run_sync(self._directory.flush)
                await anyio.to_thread.run_sync(self._directory.sync)
            except OSError as error:
                raise StoreError(f"objects may be lost: {self._directory.directory}: {error.strerror}") from error

    @property
    def unsaved_objects(self) -> int:
        """How many sealed objects are in memory alone."""
        return sum(entry.is_sealed and entry.record is None for entry in self._core.table)

    def _wake(self) -> None:
        self._to_save.set()
        if self._directory.used < self._used_when_refused:
            self._freed.set()
        if self._core.wanted:
            self._to_return.set()

    # Out

    async def _save_ahead(self) -> None:
        core = self._core
        while True:
            await self._to_save.wait()
            self._to_save = anyio.Event()
            while core.spill_error is not None or core.table.lacking_saved() or self._directory.has_news:
                if core.spill_error is not None:
                    with anyio.move_on_after(_RETRY):
                        await self._freed.wait()
                    core.spill_error = None
                    self._freed = anyio.Event()
                async with self._writing:
                    await self._write(core.table.oldest_unsaved(_BATCH) if core.table.lacking_saved() else ())

    async def _write(self, entries: Iterable[Entry]) -> None:
        """Write down what is gone, and then entries that are not on disk, until the disk refuses."""
        core = self._core
        try:
            if self._directory.has_news:
                await anyio.to_thread.run_sync(self._directory.flush)
            for batch in _batches(entries):
                while core.spill_error is None and any(core.can_be_saved(entry) for entry in batch):
                    await anyio.lowlevel.checkpoint()
                    await self._write_batch(batch)
        except (OSError, StoreFullError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            core.spill_error = f"nothing can be spilled into {self._directory.directory}: {reason}"
            if core.spill_error != self._complaint:
                _log.error("%s", core.spill_error)
            self._complaint = core.spill_error
            self._used_when_refused = self._directory.used
            self._to_save.set()
        else:
            if self._complaint is not None and core.spill_error is None:
                _log.info("objects can be spilled into %s again", self._directory.directory)
                self._complaint = None

    async def _write_batch(self, batch: Sequence[Entry]) -> None:
        """Write what of a batch is in memory alone, or as much of it as the limit allows."""
        core, directory = self._core, self._directory
        jobs: list[tuple[Entry, Record, memoryview]] = []
        records: Sequence[Record | None] = ()
        with anyio.CancelScope(shield=True):  # the thread goes on in any case
            try:
                for entry in batch:
                    if core.can_be_saved(entry):
                        record = _record(entry, directory.reserve(entry.size))
                        jobs.append((entry, record, core.begin_save(entry)))
            finally:
                try:
                    records = await anyio.to_thread.run_sync(directory.write, [job[1:] for job in jobs])
                finally:
                    for (entry, record, _), written in zip_longest(jobs, records):
                        if written is None:
                            directory.release(record.offset, record.size)
                        core.end_save(entry, written)
                    self._touch_down()

    # And back

    async def _bring_back(self) -> None:
        async with anyio.create_task_group() as readers:
            while True:
                with anyio.move_on_after(_RETRY if self._unreadable else None):
                    await self._to_return.wait()
                self._to_return = anyio.Event()
                self._core.wanted += [object_id for object_id in self._unreadable if self._core.is_awaited(object_id)]
                self._unreadable.clear()
                while self._core.wanted:
                    batch: list[_Place] = []
                    try:
                        await self._make_places(batch)
                        readers.start_soon(self._read, batch.copy())
                        batch.clear()
                    finally:
                        for entry, *_ in batch:
                            self._core.end_return(entry, complete=False)
                        self._touch_down()
                    await anyio.lowlevel.checkpoint()

    async def _make_places(self, batch: list[_Place]) -> None:
        """Give memory to some of the objects that are wanted, in the order in which they were."""
        wanted = self._core.wanted
        size = 0
        for _ in range(_BATCH_OBJECTS):
            if not wanted or size >= _BATCH:
                return
            object_id = wanted.popleft()
            try:
                place = await self._make_place(object_id, is_first=not batch)
            except NotYetError:
                wanted.appendleft(object_id)
                return
            if place is not None:
                batch.append(place)
                size += place[0].size

    async def _make_place(self, object_id: ObjectID, *, is_first: bool) -> _Place | None:
        core = self._core
        if self._retried == object_id:
            self._retried = None
        while True:
            entry = core.table.find_sealed(object_id)
            if entry is None or entry.record is None or entry.has_memory or not core.is_awaited(object_id):
                self._stuck.pop(object_id, None)
                return None
            try:
                place = entry, entry.record, core.begin_return(entry)
                self._stuck.pop(object_id, None)
                return place
            except NotYetError as error:
                if not error.entries and not is_first:
                    raise  # what is in the way may be what waits for this one
                await self.make_way(error.entries)
            except StoreFullError:
                self._stuck.setdefault(object_id)
                core.watch_room(self._try_again)
                core.does_not_return(object_id)
                return None

    def _try_again(self) -> None:
        """There may be room for the first of those that found none; for the others, when that one is back."""
        while self._stuck:
            object_id = next(iter(self._stuck))
            if self._core.is_awaited(object_id):
                if self._retried is None:
                    self._retried = object_id
                    self._core.wanted.appendleft(object_id)
                break
            del self._stuck[object_id]
        else:
            self._core.unwatch_room(self._try_again)
        self._wake()

    def _touch_down(self) -> None:
        landed, self._landed = self._landed, anyio.Event()
        landed.set()

    async def _read(self, batch: Sequence[_Place]) -> None:
        core, directory = self._core, self._directory
        errors: list[Exception | None] = []

        def read() -> None:
            for _, record, memory in batch:
                try:
                    directory.read(record, memory)
                    errors.append(None)
                except (OSError, DamagedError) as error:
                    errors.append(error)

        with anyio.CancelScope(shield=True):
            try:
                await anyio.to_thread.run_sync(read, limiter=self._readers)
            finally:
                errors += [OSError("it was not read")] * (len(batch) - len(errors))
                for (entry, *_), error in zip(batch, errors, strict=True):
                    core.end_return(entry, complete=error is None)
                    if error is not None and core.table.find(entry.object_id) is entry:
                        self._failed(entry, error)
                self._touch_down()
                if self._stuck:
                    self._try_again()

    def _failed(self, entry: Entry, error: Exception) -> None:
        if isinstance(error, DamagedError):
            _log.error("%s; it is lost", error)
            self._core.lose(entry)
        else:
            reason = error.strerror if isinstance(error, OSError) else error
            _log.error("object %s cannot be read from %s: %s", entry.object_id, self._directory.directory, reason)
            self._unreadable.add(entry.object_id)
            self._core.does_not_return(entry.object_id)
            self._to_return.set()


def _record(entry: Entry, offset: int) -> Record:
    assert entry.sealed_at is not None
    sizes = entry.data_size, entry.metadata_size
    return Record(entry.object_id, offset, *sizes, entry.created_at, entry.sealed_at, entry.digest)


def _batches(entries: Iterable[Entry]) -> Iterable[list[Entry]]:
    """Cut into lists of some megabytes, or many objects, without what comes twice."""
    batch: list[Entry] = []
    size = 0
    for entry in dict.fromkeys(entries):
        batch.append(entry)
        size += entry.size
        if size >= _BATCH or len(batch) == _BATCH_OBJECTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
