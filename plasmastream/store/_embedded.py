"""The store inside this process: the same memory and the same rules as behind the socket, without the socket.

Not for use from several threads.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.abc import TaskStatus

from plasmastream._client import Inspection, Ticket, check_ids
from plasmastream._errors import StoreError, StoreFullError
from plasmastream._object_id import ObjectID
from plasmastream.store._core import DEFAULT_MAX_OBJECTS, NotYetError, PendingGet, StoreCore
from plasmastream.store._finishing import checkpoint_if_cancelled
from plasmastream.store._inspect import inspect_page
from plasmastream.store._object_store import Buffer, Lease, Leases, NewObject, UnsealedObject
from plasmastream.store._spill import SpillDirectory
from plasmastream.store._spiller import Spiller
from plasmastream.store._table import Client, Entry
from plasmastream.wire.plasma import ErrorCode, ObjectInfo, ObjectStatus, object_digest

_DIGEST_IN_THREAD = 1 << 20
_OBJECTS_PER_TURN = 64
_BYTES_PER_OBJECT = 4 << 10  # of large ones: to write so many takes about as long as all else for a small one

_T = TypeVar("_T")


class EmbeddedStore:
    """An `ObjectStore` of `capacity` bytes in this process; `core` is what a `StoreServer` serves to others.

    Use it as a context manager, or call `close`. `directory` and `huge_pages` say where the memory comes from: a file
    without a name in that directory, rather than no file system at all; and huge pages, rather than common ones.

    What is evicted goes to files in the directory `spill`, if there is one, up to `spill_limit` bytes, and comes back
    when somebody asks for it; what one store has left there, a later one finds, unless `spill_is_temporary`. Then `run`
    must run meanwhile.

    Raises:
        StoreFullError: the machine, or the directory, cannot reserve so much memory.
        StoreError: one of the directories cannot be used.
    """

    def __init__(
        self,
        capacity: int,
        *,
        max_objects: int = DEFAULT_MAX_OBJECTS,
        directory: str | None = None,
        huge_pages: bool = False,
        spill: str | None = None,
        spill_limit: int | None = None,
        spill_is_temporary: bool = False,
    ) -> None:
        with ExitStack() as stack:
            files = None if spill is None else stack.enter_context(
                SpillDirectory(spill, spill_limit, temporary=spill_is_temporary)
            )
            self.core = StoreCore(
                capacity, max_objects=max_objects, directory=directory, huge_pages=huge_pages, spill=files
            )
            stack.callback(self.core.close)
            self.spiller = None if files is None else Spiller(self.core, files)
            self._closing = stack.pop_all()
        self._since_turn = 0

    @property
    def capacity(self) -> int:
        """Bytes of data and metadata that all objects together may have."""
        return self.core.capacity

    @asynccontextmanager
    async def create(
        self, object_id: ObjectID, data_size: int, metadata: Buffer = b"", *, timeout: float = 0.0
    ) -> AsyncIterator[UnsealedObject]:
        """Make an object to be written in the `async with` block: see `ObjectStore.create`."""
        writer = Client("in-process writer")
        size = data_size + len(metadata)
        await self._breathe(1, size)
        entry = await self._when_there_is_room(
            lambda: self.core.create(writer, object_id, data_size, len(metadata)), size, timeout
        )

        async def seal(digest: bytes | None) -> None:
            if digest is None:
                data, metadata = self.core.memory_of(entry)
                if entry.size > _DIGEST_IN_THREAD:
                    digest = await anyio.to_thread.run_sync(object_digest, data, metadata)
                else:
                    digest = object_digest(data, metadata)
            self.core.seal(object_id, digest)

        data_view, metadata_view = self.core.memory_of(entry)
        unsealed = UnsealedObject(object_id, data_view, seal)
        try:
            metadata_view[:] = metadata
            yield unsealed
        finally:
            unsealed.forget_data()
            self.core.disconnect(writer)  # aborts, or lets go what was sealed

    async def put_many(self, objects: Sequence[NewObject], *, timeout: float = 0.0) -> Leases[Lease]:
        """Create and seal many objects at once: see `ObjectStore.put_many`."""
        holder = _Holder(self.core, "in-process put")
        columns, size = [], 0
        for new in objects:
            data, metadata = memoryview(new.data), memoryview(new.metadata)
            columns.append((new.object_id, data, metadata, new.digest))
            size += len(data) + len(metadata)
        await self._breathe(len(columns), size)
        entries = await self._when_there_is_room(lambda: self.core.put_many(holder.client, columns), size, timeout)
        return Leases([holder.lease(entry) for entry in entries])

    async def get(
        self, object_ids: Sequence[ObjectID], *, timeout: float | None = 0.0
    ) -> Leases[Lease | None]:
        """Hold many objects in one call: see `ObjectStore.get`."""
        check_ids(object_ids)
        await self._breathe(len(object_ids))
        if self.spiller is None and (timeout == 0 or None not in map(self.core.table.find_sealed, object_ids)):
            return self._leases(object_ids)
        # Holds each object from the moment it appears until the caller's own leases do.
        waiter = Client("in-process get")
        try:
            await self._wait(waiter, object_ids, timeout)
            return self._leases(object_ids)
        finally:
            self.core.disconnect(waiter)

    async def contains(self, object_ids: Sequence[ObjectID]) -> list[bool]:
        """Tell of each object whether it can be read."""
        check_ids(object_ids)
        await self._breathe(len(object_ids))
        return [self.core.table.find_sealed(object_id) is not None for object_id in object_ids]

    async def delete(self, object_ids: Sequence[ObjectID]) -> list[ErrorCode]:
        """Delete objects; those in use go when the last lease does: see `ObjectStore.delete`."""
        check_ids(object_ids)
        await self._breathe(len(object_ids))
        return [self.core.delete(object_id) for object_id in object_ids]

    async def list_objects(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectInfo]:
        """Describe objects, also unsealed ones: every one where none is named. See `ObjectStore.list_objects`."""
        check_ids(object_ids)
        await anyio.lowlevel.checkpoint()
        self.core.settle()
        table = self.core.table
        if object_ids is None:
            return [describe(entry) for entry in table]
        return [describe(entry) for object_id in object_ids if (entry := table.find(object_id)) is not None]

    async def inspect(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectStatus]:
        """Tell who holds objects, and all else that is known of them: of all where none is named.

        Returns:
            Of those that are there, in the order asked, or in that of their creation.
        """
        inspection = Inspection(object_ids)
        await anyio.lowlevel.checkpoint()
        while (request := inspection.next_request()) is not None:
            inspection.take(inspect_page(self.core, request.object_ids, request.cursor))
            await anyio.lowlevel.checkpoint()  # others may run between two pages
        return inspection.found

    async def evict(self, nbytes: int) -> int:
        """Evict the longest unused objects until `nbytes` bytes are free; returns bytes freed."""
        evicted = 0
        while evicted < nbytes:
            await self._breathe(1 + _OBJECTS_PER_TURN)
            some = await self._when_there_is_room(partial(self.core.evict_some, nbytes - evicted), 0, 0.0)
            if not some:
                break
            evicted += sum(entry.size for entry in some)
        return evicted

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work beside the store: touch its memory ahead of use, and move objects between memory and disk.

        Meant to be started in a nursery; may be cancelled, and returns early where there is nothing more to be done.
        """
        async with anyio.create_task_group() as tasks:
            if self.spiller is not None:
                await tasks.start(self.spiller.run)
            task_status.started()
            await self.prefault()

    async def prefault(self) -> None:
        """Touch all memory ahead of use, in a thread, so that the first objects are written as fast as later ones.

        Meant for a nursery; returns when done, and may be cancelled.
        """
        heap = self.core.heap
        done = 0
        while done < heap.home:
            step = await anyio.to_thread.run_sync(heap.segment.prefault, done, heap.home - done)
            heap.prefaulted(done, step)
            if not step:
                return
            done += step

    def close(self) -> None:
        """Let the memory go. Programs that have mapped it keep what they see until they let go, too."""
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _breathe(self, objects: int, nbytes: int = 0) -> None:
        """Give way to a cancel before a call about so many objects, of which so many bytes are to be written.

        And to others, if it has been much since; they would wait for the bytes of large objects longer than for many.
        """
        work = (objects or 1) + nbytes // _BYTES_PER_OBJECT
        self._since_turn += work
        if self._since_turn <= _OBJECTS_PER_TURN:
            await checkpoint_if_cancelled()
        else:
            self._since_turn = work
            await anyio.lowlevel.checkpoint()

    async def _when_there_is_room(self, attempt: Callable[[], _T], size: int, timeout: float) -> _T:
        """Try now, and whenever there is more room, for as long as `size` bytes may ever fit."""
        deadline: float | None = None
        while True:
            try:
                return attempt()
            except NotYetError as error:
                if self.spiller is None:
                    await anyio.lowlevel.checkpoint()
                else:
                    await self.spiller.make_way(error.entries)
                continue
            except StoreFullError:
                now = anyio.current_time()
                deadline = now + timeout if deadline is None else deadline
                if size > self.capacity or not now < deadline:  # nor for ever, should it be NaN
                    raise
            room = anyio.Event()
            self.core.watch_room(room.set)
            try:
                with anyio.move_on_after(deadline - anyio.current_time()):
                    await room.wait()
            finally:
                self.core.unwatch_room(room.set)

    async def _wait(self, waiter: Client, object_ids: Sequence[ObjectID], timeout: float | None) -> None:
        """Wait for objects; for those on disk also beyond the timeout, as they are in the store."""
        ready, returned = anyio.Event(), anyio.Event()
        pending = self.core.wait_for(waiter, object_ids, ready.set, returned.set)
        if pending is None:
            return
        try:
            self._check_running(pending)
            with anyio.move_on_after(timeout):
                await ready.wait()
            if pending.returning:
                await returned.wait()
            self._check_running(pending)
        finally:
            self.core.stop_waiting(pending)

    def _check_running(self, pending: PendingGet) -> None:
        for object_id in pending.missing:
            if self.spiller is not None and not self.spiller.is_running and self.core.table.find_sealed(object_id):
                raise StoreError(f"object {object_id} is on disk, and the store does not `run`")

    def _leases(self, object_ids: Sequence[ObjectID]) -> Leases[Lease | None]:
        holder = _Holder(self.core, "in-process lease")
        if len(set(object_ids)) == len(object_ids):
            return Leases([None if entry is None else holder.lease(entry) for entry in holder.get(object_ids)])
        # A client holds an object at most once.
        return Leases(lease for object_id in object_ids for lease in self._leases([object_id]))


class _Holder:
    """Who holds objects for leases, each for one; and their memory, also when the store is closed."""

    is_lost = False

    def __init__(self, core: StoreCore, name: str) -> None:
        self._core = core
        self.client = Client(name)
        self.fd = core.heap.segment.fd
        self.watched = core.heap.segment.watched

    def get(self, object_ids: Sequence[ObjectID]) -> list[Entry | None]:
        return self._core.get(self.client, object_ids)

    def lease(self, entry: Entry) -> Lease:
        """A lease on an object that is held, the only one."""
        return Lease(
            entry.object_id, (0, entry.offset, entry.data_size, entry.metadata_size), entry.object_id, self
        )

    def shown(self, index: int) -> Self:
        return self

    def give_back(self, tickets: Sequence[Ticket]) -> None:
        """As the core does: the tickets are the names of the objects."""
        self._core.give_back(self.client, cast("Sequence[ObjectID]", tickets))

    def released(self) -> None:
        self._core.settle()


def describe(entry: Entry) -> ObjectInfo:
    """An entry as the protocol shows it: whole seconds, and an empty digest while it is being written."""
    sealed_at = entry.sealed_at
    return ObjectInfo(
        object_id=entry.object_id,
        data_size=entry.data_size,
        metadata_size=entry.metadata_size,
        ref_count=len(entry.holders),
        create_time=int(entry.created_at),
        construct_duration=-1 if sealed_at is None else int(sealed_at) - int(entry.created_at),
        digest=entry.digest,
    )
