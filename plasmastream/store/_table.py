"""The objects of a store, who holds them, and what may happen to them: no memory, no I/O, no clock.

An object is *created* (its creator writes), then *sealed* (everybody reads, nobody writes). A client holds an
object at most once, however often it asks; an object that somebody holds is neither evicted nor deleted. A delete
that comes too early is remembered and done when the last holder lets go.

What a method takes away it returns as entries, so that the caller can free their memory and tell whoever
wants to know. Sources: Apache Plasma's life cycle as told in docs/plasma-ipc.md, without its faults.
"""

from collections.abc import Iterable, Iterator, Sequence

import attrs

from plasmastream._errors import ObjectExistsError, ObjectNotFoundError, StoreFullError
from plasmastream._object_id import ObjectID
from plasmastream.store._eviction import LRUQueue
from plasmastream.store._quota import GLOBAL_SHARE, Quota
from plasmastream.wire.plasma import ErrorCode


@attrs.define(eq=False)
class Client:
    """Somebody who holds objects: a connection, or a lease inside this process."""

    name: str
    held: dict[ObjectID, None] = attrs.Factory(dict)
    """In the order in which it got them, which is the order in which a disconnect lets them go."""
    quota: Quota | None = None
    label: str = "anonymous_client"
    """What it calls itself."""
    unsealed: int = 0
    """How many objects it has created that nobody has sealed yet."""
    unsealed_bytes: int = 0


@attrs.define(eq=False)
class Entry:
    """One object: `data_size` bytes of data at `offset` in the segment, its metadata right behind."""

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
    holders: set[Client] = attrs.Factory(set)

    @property
    def size(self) -> int:
        """Bytes that are charged against the capacity."""
        return self.data_size + self.metadata_size

    @property
    def is_sealed(self) -> bool:
        """Whether everybody may read it."""
        return self.sealed_at is not None


class ObjectTable:
    """All objects of a store of `capacity` bytes; `allocated` bytes of it are charged."""

    def __init__(self, capacity: int, max_objects: int) -> None:
        self.capacity = capacity
        self.max_objects = max_objects
        self.allocated = 0
        self.idle = LRUQueue()
        self.quotas: dict[Client, Quota] = {}
        self._entries: dict[ObjectID, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

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

    def make_room(self, client: Client, size: int, *, evict: bool) -> list[Entry]:
        """Remove the entries that must go before an object of `size` bytes fits.

        More than needed go at once, a fifth of the capacity where there is so much, so that a full store does
        not evict for every create (as Apache's does). A client with a quota makes room in it first.

        Returns:
            The removed entries.

        Raises:
            StoreFullError: it would not fit even then, or it does not fit and `evict` is false; nothing was removed.
        """
        quota = client.quota
        own: list[Entry] = []
        in_use: list[ObjectID] = []
        if quota is not None:
            leaving, in_use = quota.plan(size, evict=evict, in_use=lambda id_: bool(self._entries[id_].holders))
            own = [self._entries[object_id] for object_id in leaving]
        others = self._victims(size, own, evict=evict)
        for object_id in in_use:
            self._disown(self._entries[object_id])
        if quota is not None:
            quota.evictions += len(own)
            quota.evicted_bytes += sum(entry.size for entry in own)
        return [self.remove(entry) for entry in (*own, *others)]

    def add(self, entry: Entry) -> None:
        """Enter a created object; its creator holds it.

        Raises:
            ObjectExistsError: the id is taken, in whatever state.
        """
        self.check_is_new(entry.object_id)
        self._entries[entry.object_id] = entry
        self.allocated += entry.size
        self._hold(entry.creator, entry)
        entry.creator.unsealed += 1
        entry.creator.unsealed_bytes += entry.size
        if entry.creator.quota is not None:
            entry.owner = entry.creator
            entry.creator.quota.owned.add(entry.object_id, entry.size)

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
        self._leave_unsealed(entry)
        entry.sealed_at = now
        entry.digest = digest
        return entry

    def acquire(self, client: Client, object_id: ObjectID) -> Entry | None:
        """Hold a sealed object for a client; None where it cannot be read."""
        entry = self.find_sealed(object_id)
        if entry is not None:
            self._hold(client, entry)
        return entry

    def release(self, client: Client, object_id: ObjectID) -> Entry | None:
        """Let a client's hold go; without effect where it has none, or on an object that it is still writing.

        Returns:
            The entry, where a remembered delete has now removed it.
        """
        if object_id not in client.held:
            return None
        entry = self._entries[object_id]
        if not entry.is_sealed:
            return None
        del client.held[object_id]
        entry.holders.remove(client)
        if entry.holders:
            return None
        if entry.delete_when_released:
            return self.remove(entry)
        if entry.owner is None:
            self.idle.add(object_id, entry.size)
        return None

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

    def evictable(self, nbytes: int) -> list[Entry]:
        """The oldest idle entries that reach `nbytes` in sum; nothing is changed yet."""
        return [self._entries[object_id] for object_id in self.idle.oldest(nbytes)]

    def disconnect(self, client: Client) -> list[Entry]:
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
                    self.idle.add(object_id, entry.size)
            client.quota = None
        for object_id in list(client.held):
            gone = self.abort(client, object_id) or self.release(client, object_id)
            if gone is not None:
                removed.append(gone)
        return removed

    def remove(self, entry: Entry) -> Entry:
        """Take an entry out, whatever its state."""
        del self._entries[entry.object_id]
        self.allocated -= entry.size
        if not entry.is_sealed:
            self._leave_unsealed(entry)
        self.idle.discard(entry.object_id)
        self._disown(entry)
        for holder in entry.holders:
            holder.held.pop(entry.object_id, None)
        entry.holders.clear()
        return entry

    def refresh(self, object_ids: Iterable[ObjectID]) -> None:
        """Make idle objects the most recent ones, in the order given; others are passed over."""
        for object_id in object_ids:
            entry = self._entries.get(object_id)
            if entry is not None and entry.owner is not None and entry.owner.quota is not None:
                entry.owner.quota.owned.refresh(object_id)
            self.idle.refresh(object_id)

    def _leave_unsealed(self, entry: Entry) -> None:
        entry.creator.unsealed -= 1
        entry.creator.unsealed_bytes -= entry.size

    def _disown(self, entry: Entry) -> None:
        """Take an entry out of its owner's quota, if it is in one."""
        if entry.owner is not None and entry.owner.quota is not None:
            entry.owner.quota.owned.discard(entry.object_id)
        entry.owner = None

    def _victims(self, size: int, own: Sequence[Entry], *, evict: bool) -> list[Entry]:
        crowded = len(self._entries) - len(own) >= self.max_objects
        needed = self.allocated - sum(entry.size for entry in own) + size - self.capacity
        if needed <= 0 and not crowded:
            return []
        if size > self.capacity:
            raise StoreFullError(f"{size:,} bytes are more than the store's capacity of {self.capacity:,}")
        if not evict or self.idle.nbytes < needed or not self.idle:
            if crowded:
                raise StoreFullError(f"the store holds {len(self._entries):,} objects, its limit")
            raise StoreFullError(
                f"{size:,} bytes do not fit: of {self.capacity:,} bytes {self.allocated:,} are taken, and "
                f"{self.allocated - self.idle.nbytes:,} of these are in use; release or delete objects, "
                "or give the store more memory"
            )
        # Where only the number of objects is the trouble, they may all be empty, and one is enough.
        return self.evictable(max(needed, self.capacity // 5) if needed > 0 else 1)

    def _hold(self, client: Client, entry: Entry) -> None:
        if not entry.holders:
            self.idle.discard(entry.object_id)
        entry.holders.add(client)
        client.held[entry.object_id] = None
