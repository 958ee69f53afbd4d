"""The store itself: the table and the heap joined, without sockets, tasks or waiting.

Every door to the store (the Unix socket, the embedded store) is a thin layer over `StoreCore`. Its methods answer at
once. What cannot be answered yet is a `PendingGet` or a room watcher: a callback that runs when the moment has come.
What takes a while (evicting very many objects, having them on disk first) is a `NotYetError`: a door sees to it, and
asks again.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias

import attrs

from plasmastream._errors import StoreFullError
from plasmastream._object_id import ObjectID
from plasmastream.store._heap import Heap
from plasmastream.store._record import Record
from plasmastream.store._spill import SpillDirectory
from plasmastream.store._table import MOST_AT_ONCE, Client, Entry, ObjectTable
from plasmastream.wire.plasma import ErrorCode

DEFAULT_MAX_OBJECTS = 1 << 20
FILLED_TOGETHER = 128
"""Objects that are created and filled in one go: nobody should wait long for that."""

New: TypeAlias = tuple[ObjectID, bytes | bytearray | memoryview, bytes | bytearray | memoryview, bytes]
"""An object to be made: its name, data, metadata, digest."""

_MAX_SIZE = 1 << 62
_NOBODY = Client("the store itself")


class StoreListener(Protocol):
    """Whoever wants to know what becomes visible in the store, and what goes."""

    def sealed(self, entries: Sequence[Entry]) -> None:
        """These objects can be read from now on; they were sealed by one request."""

    def removed(self, entry: Entry) -> None:
        """This sealed object was deleted or evicted."""


class NotYetError(Exception):
    """It can be done, but not at once: when these idle objects, which are in the way, are on disk.

    Where there are none, when what a thread reads or writes now has landed, or others have had a turn.
    """

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        super().__init__(f"{len(entries)} objects must be on disk first")
        self.entries = entries


@attrs.define(eq=False)
class PendingGet:
    """A get that waits for objects: each is held for `client` from the moment it can be read.

    Those `returning` are in the store, but on disk; `on_returned` is called when none of them is to be waited for.
    """

    client: Client
    missing: set[ObjectID]
    on_ready: Callable[[], None]
    on_returned: Callable[[], None]
    returning: set[ObjectID] = attrs.Factory(set)

    def no_longer_returns(self, object_id: ObjectID) -> None:
        """An object is in memory now, or will not be soon."""
        if object_id in self.returning:
            self.returning.remove(object_id)
            if not self.returning:
                self.on_returned()


def _nothing() -> None:
    pass


class StoreCore:
    """Objects of `capacity` bytes in all, in shared memory that is reserved when this is made.

    Args:
        capacity: bytes of data and metadata that all objects together may have, exactly.
        max_objects: how many objects there may be.
        directory: keep the memory in a file without a name here, rather than in none.
        huge_pages: use huge pages; a directory must then be one of a hugetlbfs.
        spill: where evicted objects go, and may be from earlier; without, they are gone. Stays the caller's.
        clock: seconds since the epoch; a parameter for tests.

    Raises:
        ValueError: the capacity is not positive.
        StoreFullError: the machine, or the directory, has not so much memory.
        StoreError: the directory cannot be used.
    """

    def __init__(
        self,
        capacity: int,
        *,
        max_objects: int = DEFAULT_MAX_OBJECTS,
        directory: str | None = None,
        huge_pages: bool = False,
        spill: SpillDirectory | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if capacity <= 0:
            raise ValueError(f"a store needs a capacity of at least 1 byte, not {capacity}")
        self.table = ObjectTable(capacity, max_objects, spills=spill is not None)
        self.spill = spill
        for record in spill.records if spill is not None else ():
            self.table.take_up(record)
        self.heap = Heap(capacity, max_objects, directory=directory, huge_pages=huge_pages)
        self.evictions = 0
        self.evicted_bytes = 0
        self._spill_error: str | None = None
        self.wanted: deque[ObjectID] = deque()
        """Objects on disk that somebody waited for when this was noted."""
        self.on_spill_work: Callable[[], None] = _nothing
        """Called when objects are wanted, or should be saved, or are gone from disk."""
        self._clock = clock
        self._pending: dict[ObjectID, list[PendingGet]] = {}
        self._room_watchers: set[Callable[[], None]] = set()
        self._listeners: dict[StoreListener, None] = {}
        self._given_back: deque[tuple[Client, Sequence[ObjectID]]] = deque()

    @property
    def capacity(self) -> int:
        """Bytes of data and metadata that all objects together may have."""
        return self.table.capacity

    @property
    def spill_error(self) -> str | None:
        """Why nothing can be spilled now."""
        return self._spill_error

    @spill_error.setter
    def spill_error(self, why: str | None) -> None:
        self._spill_error = why
        self.table.keeps_unsaved = why is not None
        if why is None:
            self._tell_room_watchers()

    # Writing

    def create(
        self, client: Client, object_id: ObjectID, data_size: int, metadata_size: int, *, evict: bool = True
    ) -> Entry:
        """Make an unsealed object, held by its creator.

        Raises:
            ObjectExistsError: the id is taken.
            StoreFullError: it does not fit, whatever is evicted. Nothing was evicted then, unless it would fit and the
                machine has no memory left for a store that is fragmented.
            NotYetError: it will fit when these objects are on disk, or when it is asked again.
        """
        self.settle()
        self.table.check_is_new(object_id)
        if not (0 <= data_size < _MAX_SIZE and 0 <= metadata_size < _MAX_SIZE):
            raise StoreFullError(f"object {object_id} cannot have {data_size} + {metadata_size} bytes")
        entry = Entry(object_id, data_size, metadata_size, client, self._clock())
        if self.table.spilled:
            self._keep_a_way_back(entry.size)
        self._make_room(client, entry.size, evict=evict)
        entry.offset = self._allocate(entry.size, evict=evict)
        self.table.add(entry)
        if self.spill is not None:
            self._save_ahead()
        return entry

    def seal(self, object_id: ObjectID, digest: bytes) -> Entry:
        """Make an object readable for all, and answer who waits for it.

        Raises:
            ObjectNotFoundError: there is no such object.
            ObjectExistsError: it is sealed already.
        """
        entry = self.table.seal(object_id, digest, self._clock())
        for listener in list(self._listeners):  # one that fails takes itself out
            listener.sealed((entry,))
        self._answer_waiting(entry)
        return entry

    def put_many(
        self,
        client: Client,
        objects: Sequence[New],
        *,
        evict: bool = True,
    ) -> list[Entry]:
        """Create, fill and seal objects given as (id, data, metadata, digest): all of them or none.

        The client still holds them afterwards, so that none can be evicted for the sake of the next.

        Raises:
            ObjectExistsError: an id is taken, or given twice.
            StoreFullError: they do not fit together.
            NotYetError: they will, as for `create`.
        """
        entries: list[Entry] = []
        try:
            for first in range(0, len(objects), FILLED_TOGETHER):
                self.fill_many(client, objects[first : first + FILLED_TOGETHER], entries, evict=evict)
        except BaseException:
            for entry in entries:
                self.abort(client, entry.object_id)
            raise
        self.seal_many((object_id, digest) for object_id, _, _, digest in objects)
        return entries

    def fill_many(self, client: Client, objects: Sequence[New], created: list[Entry], *, evict: bool = True) -> None:
        """Create and fill objects, at most `FILLED_TOGETHER`; `created` gets the entries, which the caller may abort.

        Raises:
            ObjectExistsError, StoreFullError, NotYetError: as for `create`, for the one behind those that were added.
        """
        self.settle()
        entries = self._create_together(client, objects)
        created += entries
        memory = self.heap.segment.view
        for number, (object_id, data, metadata, _) in enumerate(objects):
            if entries:
                entry = entries[number]
            else:
                entry = self.create(client, object_id, len(data), len(metadata), evict=evict)
                created.append(entry)
            middle = entry.offset + entry.data_size
            memory[entry.offset : middle] = data
            if metadata:
                memory[middle : middle + entry.metadata_size] = metadata

    def seal_many(self, objects: Iterable[tuple[ObjectID, bytes]]) -> None:
        """Make objects readable for all, given as (id, digest); whoever listens is told of all of them at once.

        They are there. One that somebody else has sealed meanwhile stays as it is.
        """
        entries = self.table.seal_many(objects, self._clock())
        for listener in list(self._listeners):  # one that fails takes itself out
            listener.sealed(entries)
        if self._pending:
            for entry in entries:
                self._answer_waiting(entry)

    def abort(self, client: Client, object_id: ObjectID) -> bool:
        """Take back an unsealed object; without effect unless this client is writing it.

        Returns:
            Whether there was anything to take back.
        """
        entry = self.table.abort(client, object_id)
        if entry is not None:
            self._free(entry)
        return entry is not None

    # Reading

    def get(self, client: Client, object_ids: Iterable[ObjectID]) -> list[Entry | None]:
        """Hold objects for a client: an entry each, None where it cannot be read now."""
        return self.table.acquire_many(client, object_ids, self._clock())

    def wait_for(
        self,
        client: Client,
        object_ids: Iterable[ObjectID],
        on_ready: Callable[[], None],
        on_returned: Callable[[], None] = _nothing,
    ) -> PendingGet | None:
        """Hold for a client each of these objects as soon as it can be read; call back when all are held.

        Objects that are on disk are brought back. `on_returned` is called when those are held, or cannot be for now.

        Returns:
            None where all are held at once, without a call; otherwise what `stop_waiting` takes.
        """
        acquire, now = self.table.acquire, self._clock()
        missing = {object_id for object_id in object_ids if acquire(client, object_id, now) is None}
        if not missing:
            return None
        pending = PendingGet(client, missing, on_ready, on_returned)
        for object_id in missing:
            self._pending.setdefault(object_id, []).append(pending)
            if self.spill is not None and self.table.find_sealed(object_id) is not None:
                pending.returning.add(object_id)
                self.wanted.append(object_id)
        if pending.returning:
            self.on_spill_work()
        return pending

    def stop_waiting(self, pending: PendingGet) -> None:
        """Forget a get; what it holds by now stays held. Without effect on one that is complete."""
        for object_id in pending.missing:
            waiting = self._pending[object_id]
            waiting.remove(pending)
            if not waiting:
                del self._pending[object_id]
        pending.missing.clear()

    def release(self, client: Client, object_id: ObjectID) -> None:
        """Let a client's hold go; without effect where it has none."""
        self.release_many(client, (object_id,))

    def release_many(self, client: Client, object_ids: Iterable[ObjectID]) -> None:
        """As `release`, for each of these objects."""
        watched = [object_id for object_id in object_ids if object_id in client.held] if self._room_watchers else ()
        for removed in self.table.release_many(client, object_ids, self._clock()):
            self._remove_sealed(removed)
        for object_id in watched:
            entry = self.table.find(object_id)
            if entry is not None and not entry.holders:
                self._tell_room_watchers()
                break
        if self.spill is not None:
            self._save_ahead()

    def give_back(self, client: Client, object_ids: Sequence[ObjectID]) -> None:
        """Remember releases, for `settle`. For finalizers: may be called in any thread, in the midst of anything."""
        self._given_back.append((client, object_ids))

    def settle(self) -> None:
        """Release what was given back. Whatever depends on who holds what does this first."""
        given_back = self._given_back
        while given_back:
            client, some = given_back.popleft()
            object_ids = list(some)
            while given_back and given_back[0][0] is client:
                object_ids += given_back.popleft()[1]
            self.release_many(client, object_ids)

    def memory_of(self, entry: Entry) -> tuple[memoryview, memoryview]:
        """Writable views of an object's data and of its metadata."""
        middle = entry.offset + entry.data_size
        memory = self.heap.segment.view
        return memory[entry.offset : middle], memory[middle : middle + entry.metadata_size]

    # Taking away

    def delete(self, object_id: ObjectID) -> ErrorCode:
        """Delete an object, or remember to do so when its last holder lets go.

        Returns:
            OK; OBJECT_NOT_FOUND; OBJECT_NOT_SEALED or OBJECT_IN_USE, where it is remembered.
        """
        self.settle()
        code, entry = self.table.delete(object_id)
        if entry is not None:
            self._remove_sealed(entry)
        return code

    def evict(self, nbytes: int) -> int:
        """Evict the oldest idle objects until `nbytes` bytes are free, or none is left.

        Returns:
            Bytes that were freed.

        Raises:
            StoreFullError: they cannot be spilled.
            NotYetError: these objects must be on disk first.
        """
        self.settle()
        evicted = 0
        while evicted < nbytes and (some := self.evict_some(nbytes - evicted)):
            evicted += sum(entry.size for entry in some)
        return evicted

    def evict_some(self, nbytes: int) -> list[Entry]:
        """As `evict`, but no more than `MOST_AT_ONCE` objects, so that others can be served in between.

        Returns:
            What was evicted.
        """
        self.settle()
        victims = self.table.evictable(nbytes)[:MOST_AT_ONCE]
        self._check_saved(victims)
        self._evict(victims)
        return victims

    def disconnect(self, client: Client) -> None:
        """Let everything go that a client held, and take back what it left unsealed."""
        for entry in self.table.disconnect(client, self._clock()):
            if entry.is_sealed:
                self._remove_sealed(entry)
            else:
                self._free(entry)
        self._tell_room_watchers()
        if self.spill is not None:
            self._save_ahead()

    def close(self) -> None:
        """Let the memory go; the core cannot be used any more."""
        self.heap.close()

    # Those who want to know

    def watch_room(self, callback: Callable[[], None]) -> None:
        """Call back whenever a create that did not fit may fit now."""
        self._room_watchers.add(callback)

    def unwatch_room(self, callback: Callable[[], None]) -> None:
        """Undo `watch_room`."""
        self._room_watchers.discard(callback)

    def add_listener(self, listener: StoreListener) -> None:
        """Tell somebody, in order, what is sealed and what is removed."""
        self._listeners[listener] = None

    def remove_listener(self, listener: StoreListener) -> None:
        """Undo `add_listener`."""
        self._listeners.pop(listener, None)

    # To disk and back, for the spiller

    def can_be_saved(self, entry: Entry) -> bool:
        """Whether an object is in memory alone, and does not change any more."""
        return entry.record is None and entry.is_sealed and not entry.in_transit and self._has(entry)

    def begin_save(self, entry: Entry) -> memoryview:
        """Keep the memory of an object in place while a thread reads it: data and metadata."""
        entry.in_transit = True
        return self.heap.view(entry.offset, entry.size)

    def end_save(self, entry: Entry, record: Record | None) -> None:
        """The thread is done; `record` tells where the object is on disk, if it is."""
        entry.in_transit = False
        if self._has(entry):
            if record is not None:
                self.table.saved(entry, record)
                self._tell_room_watchers()
            return
        self.heap.free(entry.offset, entry.size)
        self.table.land(entry)
        entry.record = record
        self._forget_record(entry)
        self._tell_room_watchers()

    def begin_return(self, entry: Entry) -> memoryview:
        """Give an object on disk memory, to be filled by a thread with data and metadata.

        Raises:
            StoreFullError: there is none, whatever is evicted.
            NotYetError: these objects must be on disk first.
        """
        self.settle()
        self._make_room(_NOBODY, entry.size, evict=True, returns=True)
        entry.offset = self._allocate(entry.size, evict=True)
        self.table.begin_return(entry)
        return self.heap.view(entry.offset, entry.size)

    def end_return(self, entry: Entry, *, complete: bool) -> None:
        """The thread is done: the object can be read again if that is `complete`."""
        if self._has(entry):
            self.table.end_return(entry, complete=complete)
        else:
            self.table.land(entry)
            complete = False
        if complete:
            self._answer_waiting(entry)
            self.table.rest(entry)
        else:
            self.heap.free(entry.offset, entry.size)
        self._tell_room_watchers()

    def does_not_return(self, object_id: ObjectID) -> None:
        """Let gets that wait for an object on disk go on without it, if they are not meant to wait longer."""
        for pending in list(self._pending.get(object_id, ())):
            pending.no_longer_returns(object_id)

    def nothing_returns(self) -> None:
        """As `does_not_return`, for all objects: nobody brings any back."""
        for waiting in list(self._pending.values()):
            for pending in list(waiting):
                for object_id in list(pending.returning):
                    pending.no_longer_returns(object_id)

    def want_all(self) -> None:
        """Note all objects on disk that somebody waits for."""
        self.wanted = deque(
            object_id
            for object_id in self._pending
            if (entry := self.table.find_sealed(object_id)) is not None and not entry.has_memory
        )

    def lose(self, entry: Entry) -> None:
        """Take out an object whose only copy is damaged."""
        if self._has(entry):
            self._remove_sealed(self.table.remove(entry))

    def is_awaited(self, object_id: ObjectID) -> bool:
        """Whether a get waits for an object."""
        return object_id in self._pending

    def _has(self, entry: Entry) -> bool:
        return self.table.find(entry.object_id) is entry

    def _answer_waiting(self, entry: Entry) -> None:
        for pending in self._pending.pop(entry.object_id, ()):
            self.table.acquire(pending.client, entry.object_id, self._clock())
            pending.missing.discard(entry.object_id)
            pending.no_longer_returns(entry.object_id)
            if not pending.missing:
                pending.on_ready()

    def _create_together(self, client: Client, objects: Sequence[New]) -> list[Entry]:
        """Make objects, if that takes neither eviction nor care; otherwise none, and one by one they may go or fail."""
        if self.spill is not None or client.quota is not None:
            return []
        ids = [new[0] for new in objects]
        sizes = [len(data) + len(metadata) for _, data, metadata, _ in objects]
        offsets = self.heap.allocate_together(sizes) if self.table.has_room_for(ids, sum(sizes)) else None
        if offsets is None:
            return []
        now = self._clock()
        entries = [
            Entry(object_id, len(data), len(metadata), client, now, offset)
            for (object_id, data, metadata, _), offset in zip(objects, offsets, strict=True)
        ]
        self.table.add_many(entries)
        return entries

    def _make_room(self, client: Client, size: int, *, evict: bool, returns: bool = False) -> None:
        try:
            eviction = self.table.plan_room(client, size, evict=evict, returns=returns)
        except StoreFullError as error:
            if self.table.landing and size <= self.capacity and evict:
                raise NotYetError from None
            if self.spill_error is None:
                raise
            raise StoreFullError(f"{error}; what is in memory alone must stay there: {self.spill_error}") from None
        victims = eviction.victims
        self._check_saved(victims)
        if len(victims) > MOST_AT_ONCE:
            self._evict(eviction.others[:MOST_AT_ONCE] or victims[:MOST_AT_ONCE])
            raise NotYetError
        self.table.begin(eviction)
        self._evict(victims)

    def _allocate(self, size: int, *, evict: bool) -> int:
        while True:
            try:
                return self.heap.allocate(size)
            except StoreFullError:  # no hole, and the machine has nothing to grow by: evicting may make a hole
                victims = self.table.evictable(max(size, self.capacity // 5)) if evict else []
                if not victims:
                    raise
                self._check_saved(victims)
                self._evict(victims)

    def _check_saved(self, victims: Sequence[Entry]) -> None:
        if self.spill is None:
            return
        unsaved = [entry for entry in victims if entry.record is None]
        if unsaved and self.spill_error is not None:
            raise StoreFullError(f"what is in memory alone must stay there: {self.spill_error}")
        if unsaved:
            raise NotYetError(unsaved)

    def _keep_a_way_back(self, size: int) -> None:
        """See that what is on disk alone can come back after an object of `size` bytes was created."""
        lacking = self.table.lacking_saved(size)
        if lacking:
            self._check_saved(self.table.oldest_unsaved(lacking))

    def _save_ahead(self) -> None:
        if self.table.lacking_saved():
            self.on_spill_work()

    def _evict(self, victims: Sequence[Entry]) -> None:
        for entry in victims:
            self.evictions += 1
            self.evicted_bytes += entry.size
            if self.spill is None:
                self._remove_sealed(self.table.remove(entry))
            else:
                self.table.spill(entry)
                self.heap.free(entry.offset, entry.size)
                self._tell_room_watchers()

    def _remove_sealed(self, entry: Entry) -> None:
        self._free(entry)
        self._forget_record(entry)
        self.does_not_return(entry.object_id)
        for listener in list(self._listeners):  # one that fails takes itself out
            listener.removed(entry)

    def _forget_record(self, entry: Entry) -> None:
        if self.spill is not None and entry.record is not None:
            self.spill.forget(entry.record)
            entry.record = None
            self.on_spill_work()

    def _free(self, entry: Entry) -> None:
        """Free an entry's memory, or leave that to the thread that is still at it."""
        if entry.is_resident and not entry.in_transit:
            self.heap.free(entry.offset, entry.size)
            if self._room_watchers:
                self._tell_room_watchers()

    def _tell_room_watchers(self) -> None:
        for callback in list(self._room_watchers):
            callback()
