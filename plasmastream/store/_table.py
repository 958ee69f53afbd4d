"""The objects of a store, who holds them, and what may happen to them: no memory, no I/O, no clock.

An object is *created* (its creator writes), then *sealed* (everybody reads, nobody writes). A client holds an
object at most once, however often it asks; an object that somebody holds is neither evicted nor deleted. A delete
that comes too early is remembered and done when the last holder lets go.

What a method takes away it returns as entries, so that the caller can free their memory and tell whoever
wants to know. Sources: Apache Plasma's life cycle as told in docs/plasma-ipc.md, without its faults.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter

import attrs

from plasmastream._errors import ObjectExistsError, ObjectNotFoundError, StoreFullError
from plasmastream._object_id import ObjectID
from plasmastream.store._eviction import LRUQueue
from plasmastream.store._quota import GLOBAL_SHARE, Quota
from plasmastream.store._record import Record
from plasmastream.wire.plasma import ErrorCode

MOST_AT_ONCE = 1000
"""Objects that are evicted in one go: nobody should wait long for that."""

ANONYMOUS = "anonymous_client"
"""What a client is called that has not said."""


@attrs.frozen
class Process:
    """A process at the other end of a connection."""

    pid: int
    """0 where it cannot be seen from here."""
    user: int
    name: str
    """What the system calls it."""


@attrs.define(eq=False)
class Client:
    """Somebody who holds objects: a connection, or a lease inside this process."""

    name: str
    held: dict[ObjectID, None] = attrs.Factory(dict)
    """In the order in which it got them, which is the order in which a disconnect lets them go."""
    quota: Quota | None = None
    label: str = ANONYMOUS
    """What it calls itself."""
    process: Process | None = None
    """None for this process itself."""
    unsealed: int = 0
    """How many objects it has created that nobody has sealed yet."""
    unsealed_bytes: int = 0


_NOBODY: dict[Client, float] = {}


@attrs.define(eq=False)
class Entry:
    """One object: `data_size` bytes of data at `offset` in the segment, its metadata right behind.

    A sealed one may be on disk too (it has a record), or there alone (it is not resident).
    """

    object_id: ObjectID
    data_size: int
    metadata_size: int
    creator: Client
    created_at: float
    offset: int = 0
    sealed_at: float | None = None
    digest: bytes = b""
    delete_when_released: bool = False
    owner: Client | None = None
    """Whose quota it is counted in."""
    holders: dict[Client, float] = _NOBODY
    """Since when, in that order. One of two or more is this object's own; others are shared, and never change."""
    last_used_at: float = attrs.field(default=attrs.Factory(attrgetter("created_at"), takes_self=True))
    """When somebody got it, or let go of it."""
    number: int = 0
    """How many objects were entered before it, and itself."""
    record: Record | None = None
    """Where it is on disk."""
    is_resident: bool = True
    """Whether it is in memory, as a whole."""
    in_transit: bool = False
    """Whether a thread reads or writes its memory, which must stay as long."""

    @property
    def size(self) -> int:
        """Bytes that are charged against the capacity, while it has memory."""
        return self.data_size + self.metadata_size

    @property
    def has_memory(self) -> bool:
        """Whether a block of memory is its own, whatever is in it by now."""
        return self.is_resident or self.in_transit

    @property
    def is_sealed(self) -> bool:
        """Whether everybody may read it."""
        return self.sealed_at is not None


@attrs.frozen
class Eviction:
    """What is to be evicted before an object fits, by whom it is counted; and what leaves a quota, being in use."""

    own: Sequence[Entry] = ()
    others: Sequence[Entry] = ()
    demoted: Sequence[Entry] = ()
    quota: Quota | None = None

    @property
    def victims(self) -> list[Entry]:
        """All that is to be evicted, in order."""
        return [*self.own, *self.others]


class ObjectTable:
    """All objects of a store of `capacity` bytes; `allocated` bytes of it are charged.

    `spills` says that what is evicted stays in the table, on disk.
    """

    def __init__(self, capacity: int, max_objects: int, *, spills: bool = False) -> None:
        self.capacity = capacity
        self.max_objects = max_objects
        self.spills = spills
        self.allocated = 0
        self.idle = LRUQueue()
        self.unsaved = LRUQueue()
        """Those of the idle objects that are not on disk, where the store spills."""
        self.keeps_unsaved = False
        """Whether these must stay, for the disk takes nothing."""
        self.spilled = 0
        """How many objects are on disk alone."""
        self.landing = 0
        """Bytes of memory that is being filled from disk, or will be free when a thread is done with it."""
        self.quotas: dict[Client, Quota] = {}
        self._entries: dict[ObjectID, Entry] = {}
        self._entered = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def page(self, after: int, most: int) -> list[Entry]:
        """The entries that follow the one of the number `after`, in the order in which they were entered."""
        entries = list(self._entries.values())  # tens of milliseconds for a million, but no index to keep
        start = bisect_right(entries, after, key=attrgetter("number"))
        return entries[start : start + most]

    def find(self, object_id: ObjectID) -> Entry | None:
        """The entry of an object in any state."""
        return self._entries.get(object_id)

    def find_sealed(self, object_id: ObjectID) -> Entry | None:
        """The entry of an object that can be read."""
        entry = self._entries.get(object_id)
        return entry if entry is not None and entry.sealed_at is not None else None

    @property
    def unassigned(self) -> int:
        """Bytes of the capacity that are in nobody's quota."""
        return self.capacity - sum(quota.nbytes for quota in self.quotas.values())

    def grant(self, client: Client, nbytes: int) -> bool:
        """Give a client a quota of its own.

        Returns:
            False, and no quota, where it has one already, or too little would be left to everybody.
        """
        left = self.unassigned - nbytes
        if client.quota is not None or nbytes < 0 or left < GLOBAL_SHARE * self.capacity:
            return False
        client.quota = self.quotas[client] = Quota(nbytes)
        return True

    def plan_room(self, client: Client, size: int, *, evict: bool, returns: bool = False) -> Eviction:
        """What must go before an object of `size` bytes fits; nothing is changed yet.

        More than needed goes at once, a fifth of the capacity where there is so much, so that a full store does
        not evict for every create (as Apache's does). A client with a quota makes room in it first. An object that
        `returns` from disk is in the table already.

        Raises:
            StoreFullError: it would not fit even then, or it does not fit and `evict` is false.
        """
        quota = client.quota
        own: list[Entry] = []
        demoted: list[Entry] = []
        if quota is not None:
            leaving, in_use = quota.plan(size, evict=evict, in_use=lambda id_: bool(self._entries[id_].holders))
            own = [self._entries[object_id] for object_id in leaving]
            demoted = [self._entries[object_id] for object_id in in_use]
        return Eviction(own, self._victims(size, own, evict=evict, returns=returns), demoted, quota)

    def begin(self, eviction: Eviction) -> None:
        """Do what a plan says of quotas; evicting the victims is up to the caller."""
        for entry in eviction.demoted:
            self._disown(entry)
        if eviction.quota is not None:
            eviction.quota.evictions += len(eviction.own)
            eviction.quota.evicted_bytes += sum(entry.size for entry in eviction.own)

    def add(self, entry: Entry) -> None:
        """Enter a created object; its creator holds it.

        Raises:
            ObjectExistsError: the id is taken, in whatever state.
        """
        self.check_is_new(entry.object_id)
        self.add_many((entry,))
        if entry.creator.quota is not None:
            entry.owner = entry.creator
            entry.creator.quota.owned.add(entry.object_id, entry.size)

    def has_room_for(self, object_ids: Sequence[ObjectID], nbytes: int) -> bool:
        """Whether `add_many` takes objects of these names, and so many bytes in all, as it is now."""
        entries, count = self._entries, len(object_ids)
        return (
            self.allocated + nbytes <= self.capacity
            and len(entries) + count <= self.max_objects
            and len(set(object_ids)) == count
            and entries.keys().isdisjoint(object_ids)
        )

    def add_many(self, created: Sequence[Entry]) -> None:
        """Enter created objects, of which each is new and in no quota; their creators hold them."""
        entries, number = self._entries, self._entered
        alone: dict[Client, float] = {}
        for entry in created:
            object_id, creator, size = entry.object_id, entry.creator, entry.data_size + entry.metadata_size
            number += 1
            entry.number = number
            entries[object_id] = entry
            if alone.get(creator) != entry.created_at:
                alone = {creator: entry.created_at}
            entry.holders = alone
            creator.held[object_id] = None
            creator.unsealed += 1
            creator.unsealed_bytes += size
            self.allocated += size
        self._entered = number

    def check_is_new(self, object_id: ObjectID) -> None:
        """Raise ObjectExistsError where the id is taken."""
        known = self._entries.get(object_id)
        if known is not None:
            state = "sealed" if known.is_sealed else "being written"
            raise ObjectExistsError(f"object {object_id} exists already: it is {state}")

    def seal(self, object_id: ObjectID, digest: bytes, now: float) -> Entry:
        """Make an object readable for all; whoever holds it goes on holding it.

        Raises:
            ObjectNotFoundError: there is no such object.
            ObjectExistsError: it is sealed already.
        """
        entry = self._entries.get(object_id)
        if entry is None:
            raise ObjectNotFoundError(f"object {object_id} cannot be sealed: it is not in the store")
        if entry.is_sealed:
            raise ObjectExistsError(f"object {object_id} is sealed already")
        self.seal_many(((object_id, digest),), now)
        return entry

    def seal_many(self, objects: Iterable[tuple[ObjectID, bytes]], now: float) -> list[Entry]:
        """Seal objects, given by id and digest, as far as they are there and not sealed yet: those are returned."""
        find, entries = self._entries.get, []
        for object_id, digest in objects:
            entry = find(object_id)
            if entry is not None and entry.sealed_at is None:
                creator = entry.creator
                creator.unsealed -= 1
                creator.unsealed_bytes -= entry.data_size + entry.metadata_size
                entry.sealed_at = entry.last_used_at = now
                entry.digest = digest
                entries.append(entry)
        return entries

    def acquire(self, client: Client, object_id: ObjectID, now: float) -> Entry | None:
        """Hold a sealed object for a client; None where it cannot be read now."""
        (entry,) = self.acquire_many(client, (object_id,), now)
        return entry

    def acquire_many(self, client: Client, object_ids: Iterable[ObjectID], now: float) -> list[Entry | None]:
        """As `acquire`, for each of these objects."""
        find, held, idle = self._entries.get, client.held, self.idle
        found: list[Entry | None] = []
        alone = {client: now}
        for object_id in object_ids:
            entry = find(object_id)
            if entry is None or entry.sealed_at is None or not entry.is_resident:
                found.append(None)
                continue
            holders = entry.holders
            if not holders:
                idle.discard(object_id)
                if self.spills:
                    self.unsaved.discard(object_id)
                entry.holders = alone
            elif client not in holders:
                if len(holders) == 1:
                    entry.holders = holders | alone
                else:
                    holders[client] = now
            entry.last_used_at = now
            held[entry.object_id] = None
            found.append(entry)
        return found

    def release(self, client: Client, object_id: ObjectID, now: float) -> Entry | None:
        """Let a client's hold go; without effect where it has none, or on an object that it is still writing.

        Returns:
            The entry, where a remembered delete has now removed it.
        """
        removed = self.release_many(client, (object_id,), now)
        return removed[0] if removed else None

    def release_many(self, client: Client, object_ids: Iterable[ObjectID], now: float) -> list[Entry]:
        """As `release`, for each of these objects.

        Returns:
            The entries that remembered deletes have now removed.
        """
        entries, held = self._entries, client.held
        removed: list[Entry] = []
        for object_id in object_ids:
            if object_id not in held:
                continue
            entry = entries[object_id]
            if entry.sealed_at is None:
                continue
            del held[object_id]
            entry.last_used_at = now
            if len(entry.holders) > 1:
                del entry.holders[client]
                continue
            entry.holders = _NOBODY
            if entry.delete_when_released:
                removed.append(self.remove(entry))
            elif entry.owner is None:
                self._rest(entry)
        return removed

    def abort(self, client: Client, object_id: ObjectID) -> Entry | None:
        """Take back an unsealed object that this client is writing; without effect on any other.

        Returns:
            The entry, where it was removed.
        """
        entry = self._entries.get(object_id)
        if entry is None or entry.is_sealed or entry.creator is not client:
            return None
        return self.remove(entry)

    def delete(self, object_id: ObjectID) -> tuple[ErrorCode, Entry | None]:
        """Remove an object, now or when its last holder lets go.

        Returns:
            OBJECT_NOT_FOUND, OBJECT_NOT_SEALED or OBJECT_IN_USE (both: remembered), or OK and the removed entry.
        """
        entry = self._entries.get(object_id)
        if entry is None:
            return ErrorCode.OBJECT_NOT_FOUND, None
        if not entry.is_sealed or entry.holders:
            entry.delete_when_released = True
            return ErrorCode.OBJECT_IN_USE if entry.is_sealed else ErrorCode.OBJECT_NOT_SEALED, None
        return ErrorCode.OK, self.remove(entry)

    def evictable(self, nbytes: int, more: int = 0) -> list[Entry]:
        """The oldest idle entries that may go and reach `nbytes` in sum, or `more` unless that takes very many.

        Nothing is changed yet. There are no more than one beyond `MOST_AT_ONCE`.
        """
        chosen = self.idle.oldest(nbytes, self.unsaved if self.keeps_unsaved else (), more=more, most=MOST_AT_ONCE + 1)
        return [self._entries[object_id] for object_id in chosen]

    @property
    def evictable_bytes(self) -> int:
        """Bytes of all idle entries that may go."""
        return self.idle.nbytes - (self.unsaved.nbytes if self.keeps_unsaved else 0)

    def disconnect(self, client: Client, now: float) -> list[Entry]:
        """Let everything go that a client held; what it left unsealed, and what waited for it, is removed.

        Returns:
            The removed entries.
        """
        removed: list[Entry] = []
        quota = self.quotas.pop(client, None)
        if quota is not None:
            for object_id in reversed(list(quota.owned)):  # most recent first, as Apache's store does
                entry = self._entries[object_id]
                self._disown(entry)
                if not entry.holders:
                    self._rest(entry)
            client.quota = None
        for object_id in list(client.held):
            gone = self.abort(client, object_id) or self.release(client, object_id, now)
            if gone is not None:
                removed.append(gone)
        return removed

    def remove(self, entry: Entry) -> Entry:
        """Take an entry out, whatever its state."""
        del self._entries[entry.object_id]
        if not entry.is_sealed:
            entry.creator.unsealed -= 1
            entry.creator.unsealed_bytes -= entry.size
        self.spilled -= not entry.is_resident
        self._retire(entry)
        for holder in entry.holders:
            holder.held.pop(entry.object_id, None)
        entry.holders = _NOBODY
        return entry

    def take_up(self, record: Record) -> None:
        """Enter an object that is on disk, from an earlier life of the store."""
        past = Client("an earlier store")
        entry = Entry(record.object_id, record.data_size, record.metadata_size, past, record.created_at)
        entry.sealed_at, entry.digest, entry.record, entry.is_resident = record.sealed_at, record.digest, record, False
        self.spilled += 1
        self._enter(entry)

    def spill(self, entry: Entry) -> None:
        """Leave an idle object that is on disk there alone."""
        assert entry.record is not None
        self._retire(entry)
        entry.is_resident = False
        self.spilled += 1

    def begin_return(self, entry: Entry) -> None:
        """Charge for the memory of an object that is to be read from disk."""
        entry.in_transit = True
        self.allocated += entry.size
        self.landing += entry.size

    def land(self, entry: Entry) -> None:
        """The memory of an object that was removed meanwhile is free now."""
        entry.in_transit = False
        self.allocated -= entry.size
        self.landing -= entry.size

    def end_return(self, entry: Entry, *, complete: bool) -> None:
        """The object is in memory, or gave its memory back."""
        entry.in_transit = False
        entry.is_resident = complete
        self.landing -= entry.size
        if complete:
            self.spilled -= 1
        else:
            self.allocated -= entry.size

    def saved(self, entry: Entry, record: Record) -> None:
        """The object is on disk as well."""
        entry.record = record
        self.unsaved.discard(entry.object_id)

    def lacking_saved(self, size: int = 0) -> int:
        """Bytes of objects that should be saved before an object of `size` bytes is created.

        A fifth of the capacity is to be free, or taken by idle objects that are on disk: so creates need not wait,
        and what is on disk alone has a way back, also when the disk takes nothing any more.
        """
        ready = self.capacity - self.allocated + self.idle.nbytes - self.unsaved.nbytes - size
        return max(0, min(self.unsaved.nbytes, self.capacity // 5 - ready))

    def oldest_unsaved(self, nbytes: int) -> list[Entry]:
        """The oldest idle entries that are not on disk and reach `nbytes` in sum."""
        return [self._entries[object_id] for object_id in self.unsaved.oldest(nbytes)]

    def rest(self, entry: Entry) -> None:
        """Count an object that is back in memory as idle, unless somebody holds it."""
        if not entry.holders:
            self._rest(entry)

    def refresh(self, object_ids: Iterable[ObjectID]) -> None:
        """Make idle objects the most recent ones, in the order given; others are passed over."""
        for object_id in object_ids:
            entry = self._entries.get(object_id)
            if entry is not None and entry.owner is not None and entry.owner.quota is not None:
                entry.owner.quota.owned.refresh(object_id)
            self.idle.refresh(object_id)
            self.unsaved.refresh(object_id)

    def _enter(self, entry: Entry) -> None:
        self._entries[entry.object_id] = entry
        self._entered += 1
        entry.number = self._entered

    def _rest(self, entry: Entry) -> None:
        self.idle.add(entry.object_id, entry.size)
        if self.spills and entry.record is None:
            self.unsaved.add(entry.object_id, entry.size)

    def _retire(self, entry: Entry) -> None:
        """Take an entry out of all that counts its memory; which a thread that is still at it keeps for a while."""
        if entry.in_transit:
            self.landing += entry.size if entry.is_resident else 0
        elif entry.is_resident:
            self.allocated -= entry.size
        self.idle.discard(entry.object_id)
        self.unsaved.discard(entry.object_id)
        self._disown(entry)

    def _disown(self, entry: Entry) -> None:
        """Take an entry out of its owner's quota, if it is in one."""
        if entry.owner is not None and entry.owner.quota is not None:
            entry.owner.quota.owned.discard(entry.object_id)
        entry.owner = None

    def _victims(self, size: int, own: Sequence[Entry], *, evict: bool, returns: bool) -> list[Entry]:
        crowded = not returns and len(self._entries) - (0 if self.spills else len(own)) >= self.max_objects
        needed = self.allocated - sum(entry.size for entry in own) + size - self.capacity
        if needed <= 0 and not crowded:
            return []
        if size > self.capacity:
            raise StoreFullError(f"{size:,} bytes are more than the store's capacity of {self.capacity:,}")
        if not evict or self.evictable_bytes < needed or not self.idle or (crowded and self.spills):
            if crowded:
                raise StoreFullError(f"the store holds {len(self._entries):,} objects, its limit")
            raise StoreFullError(
                f"{size:,} bytes do not fit: of {self.capacity:,} bytes {self.allocated:,} are taken, and "
                f"{self.allocated - self.idle.nbytes:,} of these are in use; release or delete objects, "
                "or give the store more memory"
            )
        # Where only the number of objects is the trouble, they may all be empty, and one is enough.
        # An object on disk has a use in memory as long as nothing else needs the room.
        batch = 0 if self.spills else self.capacity // 5
        return self.evictable(needed, batch) if needed > 0 else self.evictable(1)
