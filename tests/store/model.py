"""A store in plain words, for comparison: dictionaries and lists, and the rules of docs/plasma-ipc.md.

It has no memory, no sockets and no plans: each method is one request, done at once, and says what the answer is. Two
machines hold the real thing against it: `test_core_model` the core itself, `test_server_model` a store that is served.
Whoever uses the store is a number here. What becomes of an evicted object is in `evicted`, and nowhere else.
"""

import os
from collections.abc import Callable, Iterable

import attrs
from hypothesis import settings

from plasmastream import ObjectID
from plasmastream.wire.plasma import ErrorCode, ObjectInfo

OK = ErrorCode.OK

_MAX_SIZE = 1 << 62


def thorough(max_examples: int, steps: int) -> settings:
    """Settings of a machine; PLASMASTREAM_EXAMPLES says how many times as many runs are wanted."""
    times = int(os.environ.get("PLASMASTREAM_EXAMPLES", "1"))
    return settings(max_examples=times * max_examples, stateful_step_count=steps, deadline=None, print_blob=True)


@attrs.define(eq=False)
class Known:
    """One object."""

    object_id: ObjectID
    data_size: int
    metadata_size: int
    creator: int
    created_at: float
    sealed_at: float | None = None
    digest: bytes = b""
    doomed: bool = False
    """Whether it goes as soon as nobody holds it."""
    holders: set[int] = attrs.Factory(set)
    owner: int | None = None
    """In whose quota it is."""
    content: bytes | None = None
    """Data and metadata; None as long as nobody has written or seen them."""
    offset: int | None = None
    """Where it is, if somebody was told."""

    @property
    def size(self) -> int:
        return self.data_size + self.metadata_size

    @property
    def is_sealed(self) -> bool:
        return self.sealed_at is not None

    @property
    def told(self) -> ObjectInfo:
        """What a subscriber is told when it is sealed."""
        return ObjectInfo(self.object_id, self.data_size, self.metadata_size, digest=self.digest)

    @property
    def listed(self) -> ObjectInfo:
        """What a list says of it."""
        created, sealed = int(self.created_at), self.sealed_at
        return attrs.evolve(
            self.told,
            ref_count=len(self.holders),
            create_time=created,
            construct_duration=-1 if sealed is None else int(sealed) - created,
        )


@attrs.define(eq=False)
class Share:
    """A quota: at most so many bytes of objects, oldest first, in use or not."""

    nbytes: int
    owned: list[ObjectID] = attrs.Factory(list)
    evictions: int = 0
    evicted_bytes: int = 0


@attrs.define(eq=False)
class Waiting:
    """A get that waits for what is missing."""

    who: int
    missing: set[ObjectID]


class Model:
    """All of a store. What listeners are told, message by message, is in `told`."""

    def __init__(self, capacity: int, max_objects: int, clock: Callable[[], float]) -> None:
        self.capacity = capacity
        self.max_objects = max_objects
        self.clock = clock
        self.objects: dict[ObjectID, Known] = {}
        self.idle: list[ObjectID] = []
        self.held: dict[int, list[ObjectID]] = {}
        self.shares: dict[int, Share] = {}
        self.labels: dict[int, str] = {}
        self.waiting: list[Waiting] = []
        self.given_back: list[tuple[int, ObjectID]] = []
        self.told: list[tuple[ObjectInfo, ...]] = []
        self.evictions = 0
        self.evicted_bytes = 0

    def connect(self, who: int) -> None:
        self.held[who] = []
        self.labels[who] = "anonymous_client"

    # Sums

    def size(self, object_ids: Iterable[ObjectID]) -> int:
        return sum(self.objects[object_id].size for object_id in object_ids)

    @property
    def allocated(self) -> int:
        return self.size(self.objects)

    @property
    def room(self) -> int:
        """Bytes that somebody without a quota could have."""
        return self.capacity - self.allocated + self.size(self.idle)

    def oldest(self, queue: list[ObjectID], nbytes: int) -> list[ObjectID]:
        """As many from the front as reach a sum, or all."""
        count = 0
        while count < len(queue) and self.size(queue[:count]) < nbytes:
            count += 1
        return queue[:count]

    # What happens to objects

    def forget(self, known: Known) -> None:
        del self.objects[known.object_id]
        if known.object_id in self.idle:
            self.idle.remove(known.object_id)
        for holder in known.holders:
            self.held[holder].remove(known.object_id)
        self.disown(known)

    def remove(self, known: Known) -> None:
        self.forget(known)
        if known.is_sealed:
            self.told.append((ObjectInfo(known.object_id, is_deletion=True),))

    def evicted(self, object_id: ObjectID) -> None:
        known = self.objects[object_id]
        self.evictions += 1
        self.evicted_bytes += known.size
        self.remove(known)

    def disown(self, known: Known) -> None:
        if known.owner is not None:
            self.shares[known.owner].owned.remove(known.object_id)
            known.owner = None

    def hold(self, who: int, known: Known) -> None:
        if known.object_id in self.idle:
            self.idle.remove(known.object_id)
        if who not in known.holders:
            known.holders.add(who)
            self.held[who].append(known.object_id)

    def let_go(self, who: int, known: Known) -> None:
        known.holders.remove(who)
        self.held[who].remove(known.object_id)
        if known.holders:
            return
        if known.doomed:
            self.remove(known)
        elif known.owner is None:
            self.idle.append(known.object_id)

    def readable(self, known: Known) -> None:
        """Who waits for an object holds it from now on; a get that waits for nothing more is complete."""
        for waiting in list(self.waiting):
            if known.object_id in waiting.missing:
                waiting.missing.remove(known.object_id)
                self.hold(waiting.who, known)
                if not waiting.missing:
                    self.waiting.remove(waiting)

    def make_room(self, who: int, size: int, evict: bool) -> bool:
        share = self.shares.get(who)
        leaving: list[ObjectID] = []
        if share is not None:
            excess = self.size(share.owned) + size - share.nbytes
            if size > share.nbytes or (excess > 0 and not evict):
                return False
            leaving = self.oldest(share.owned, excess)
        own = [object_id for object_id in leaving if not self.objects[object_id].holders]
        needed = self.allocated - self.size(own) + size - self.capacity
        crowded = len(self.objects) - len(own) >= self.max_objects
        others: list[ObjectID] = []
        if needed > 0 or crowded:
            if size > self.capacity or not evict or not self.idle or self.size(self.idle) < needed:
                return False
            others = self.oldest(self.idle, max(needed, self.capacity // 5) if needed > 0 else 1)
        if share is not None:
            for object_id in leaving:
                if object_id not in own:
                    self.disown(self.objects[object_id])
            share.evictions += len(own)
            share.evicted_bytes += self.size(own)
        for object_id in own + others:
            self.evicted(object_id)
        return True

    # Requests

    def create(self, who: int, object_id: ObjectID, data_size: int, metadata_size: int, evict: bool) -> ErrorCode:
        self.settle()
        if object_id in self.objects:
            return ErrorCode.OBJECT_EXISTS
        if max(data_size, metadata_size) >= _MAX_SIZE or not self.make_room(who, data_size + metadata_size, evict):
            return ErrorCode.OUT_OF_MEMORY
        known = self.objects[object_id] = Known(object_id, data_size, metadata_size, who, self.clock())
        self.hold(who, known)
        if who in self.shares:
            known.owner = who
            self.shares[who].owned.append(object_id)
        return OK

    def seal(self, object_id: ObjectID, digest: bytes) -> ErrorCode:
        known = self.objects.get(object_id)
        if known is None:
            return ErrorCode.OBJECT_NOT_FOUND
        if known.is_sealed:
            return ErrorCode.OBJECT_EXISTS
        known.sealed_at, known.digest = self.clock(), digest
        self.told.append((known.told,))
        self.readable(known)
        return OK

    def put_many(self, who: int, new: Iterable[tuple[ObjectID, bytes, bytes, bytes]], evict: bool) -> ErrorCode:
        """All of them or none, given as (id, data, metadata, digest); whoever puts them holds them."""
        made: list[Known] = []
        for object_id, data, metadata, digest in new:
            code = self.create(who, object_id, len(data), len(metadata), evict)
            if code is not OK:
                for known in made:
                    self.forget(known)
                return code
            made.append(self.objects[object_id])
            made[-1].content, made[-1].digest = data + metadata, digest
        for known in made:
            known.sealed_at = self.clock()
        self.told.append(tuple(known.told for known in made))
        for known in made:
            self.readable(known)
        return OK

    def abort(self, who: int, object_id: ObjectID) -> bool:
        known = self.objects.get(object_id)
        if known is None or known.is_sealed or known.creator != who:
            return False
        self.forget(known)
        return True

    def get(self, who: int, object_ids: Iterable[ObjectID]) -> list[Known | None]:
        found = [self.find_sealed(object_id) for object_id in object_ids]
        for known in found:
            if known is not None:
                self.hold(who, known)
        return found

    def find_sealed(self, object_id: ObjectID) -> Known | None:
        known = self.objects.get(object_id)
        return known if known is not None and known.is_sealed else None

    def wait_for(self, who: int, object_ids: Iterable[ObjectID]) -> Waiting | None:
        object_ids = list(object_ids)
        found = self.get(who, object_ids)
        waiting = Waiting(who, {id_ for id_, known in zip(object_ids, found, strict=True) if known is None})
        if not waiting.missing:
            return None
        self.waiting.append(waiting)
        return waiting

    def stop_waiting(self, waiting: Waiting) -> None:
        if waiting in self.waiting:
            self.waiting.remove(waiting)
        waiting.missing.clear()

    def release(self, who: int, object_id: ObjectID) -> None:
        known = self.find_sealed(object_id)
        if known is not None and who in known.holders:
            self.let_go(who, known)

    def settle(self) -> None:
        while self.given_back:
            self.release(*self.given_back.pop(0))

    def delete(self, object_id: ObjectID) -> ErrorCode:
        self.settle()
        known = self.objects.get(object_id)
        if known is None:
            return ErrorCode.OBJECT_NOT_FOUND
        if known.is_sealed and not known.holders:
            self.remove(known)
            return OK
        known.doomed = True
        return ErrorCode.OBJECT_IN_USE if known.is_sealed else ErrorCode.OBJECT_NOT_SEALED

    def evict(self, nbytes: int) -> int:
        self.settle()
        victims = self.oldest(self.idle, nbytes)
        freed = self.size(victims)
        for object_id in victims:
            self.evicted(object_id)
        return freed

    def refresh(self, object_ids: Iterable[ObjectID]) -> None:
        for object_id in object_ids:
            for queue in (self.idle, *(share.owned for share in self.shares.values())):
                if object_id in queue:
                    queue.remove(object_id)
                    queue.append(object_id)

    def grant(self, who: int, nbytes: int) -> bool:
        left = self.capacity - sum(share.nbytes for share in self.shares.values()) - nbytes
        if who in self.shares or nbytes < 0 or left < 0.3 * self.capacity:
            return False
        self.shares[who] = Share(nbytes)
        return True

    def disconnect(self, who: int) -> None:
        self.waiting = [waiting for waiting in self.waiting if waiting.who != who]
        if who in self.shares:
            for object_id in reversed(self.shares[who].owned.copy()):
                known = self.objects[object_id]
                self.disown(known)
                if not known.holders:
                    self.idle.append(object_id)
            del self.shares[who]
        for object_id in self.held[who].copy():
            known = self.objects[object_id]
            if known.is_sealed:
                self.let_go(who, known)
            else:
                self.forget(known)
        del self.held[who], self.labels[who]

    def debug_string(self) -> str:
        held = [known for known in self.objects.values() if known.holders]
        left = self.capacity - sum(share.nbytes for share in self.shares.values())
        lines = [
            f"num clients with quota: {len(self.shares)}",
            f"quota map size: {sum(len(share.owned) for share in self.shares.values())}",
            f"pinned quota map size: {len([known for known in held if known.owner is not None])}",
            f"allocated bytes: {self.allocated}",
            f"allocation limit: {self.capacity}",
            f"pinned bytes: {sum(known.size for known in held)}",
        ]
        used = 1 - (left - self.size(self.idle)) / self.capacity
        caches = [("global lru", left, used, self.idle, self.evictions, self.evicted_bytes)]
        for who, share in self.shares.items():
            used = self.size(share.owned) / share.nbytes if share.nbytes else 0
            row = (self.labels[who], share.nbytes, used, share.owned, share.evictions, share.evicted_bytes)
            caches.append(row)
        for label, capacity, used, queue, evictions, evicted in caches:
            lines += [
                f"({label}) capacity: {capacity}",
                f"({label}) used: {100 * used:g}%",
                f"({label}) num objects: {len(queue)}",
                f"({label}) num evictions: {evictions}",
                f"({label}) bytes evicted: {evicted}",
            ]
        return "\n".join(lines)
