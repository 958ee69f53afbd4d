"""A PUT at the server: say what is wanted, take what comes, and say it again until all is here or given up.

Bytes of a large object are wanted only once it has its place in the store, where they go directly. A place needs the
metadata: where there is some, the description alone is wanted first.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial

import trio

from plasmastream._errors import RemoteProtocolError, StoreError
from plasmastream.peer._holds import Hold
from plasmastream.peer._incoming import Incoming, outcome_of_failed_put, put_small
from plasmastream.peer._results import outcome_of
from plasmastream.peer._services import ServerChannel, Services
from plasmastream.peer._turns import parts
from plasmastream.store._object_store import NewObject
from plasmastream.wire.stream.v2 import (
    ChunkEnded,
    ChunkStarted,
    ObjectDescribed,
    Outcome,
    Progress,
    Put,
    Range,
    RunArrived,
    RunDamaged,
    Sizes,
    Want,
)

_log = logging.getLogger(__name__)

_ATTEMPTS = 3
_TOO_MUCH = "too much of this peer's is on its way here already"
_WANTED_AT_ONCE = 16_384
_PLACED_AT_ONCE = 64 << 20  # bytes: of many objects, each waits for its own without a place in the store


class PutRequest:
    """One PUT. What has been verified of large objects stays under its token, should the connection break."""

    def __init__(self, services: Services, channel: ServerChannel, hold: Hold, request: Put) -> None:
        self._services = services
        self._store = services.store
        self._channel = channel
        self._hold = hold
        self._request = request
        self._outcomes: dict[tuple[int, str], list[int]] = defaultdict(list)
        self._left = dict.fromkeys(range(len(request.object_ids)))  # in order, which sets have not
        self._attempts: Counter[int] = Counter()
        self._room_timeout = services.room_timeout
        self._placed: Incoming | None = None

    async def answer(self) -> None:
        """Answer the request, but for its END.

        Raises:
            PeerError: the connection broke, or the client wants no more.
            RemoteProtocolError: the client sent what nobody asked for.
            StoreError: the store is gone.
        """
        await self._find_present(tuple(self._left))
        await self._refuse_too_large()
        await self._services.holds.supersede(self._hold, self._request.object_ids)
        await self._forget_others()
        try:
            while ranges := (await self._wanted_ranges())[:_WANTED_AT_ONCE]:
                await self._channel.send(Want(ranges))
                await self._take_all()
                await self._count_attempts(ranges)
        finally:
            self._channel.connection.discard_chunk()
        await self._channel.send_outcomes(self._outcomes)

    async def _find_present(self, absent: Sequence[int]) -> None:
        for part in parts(absent):
            ids = [self._request.object_ids[index] for index in part]
            present = await self._channel.patiently(partial(self._store.contains, ids))
            there = [index for index, is_there in zip(part, present, strict=True) if is_there]
            if there:
                await self._compare(there)
            await trio.lowlevel.checkpoint()

    async def _compare(self, there: Sequence[int]) -> None:
        ids = [self._request.object_ids[index] for index in there]
        found = await self._channel.patiently(partial(self._store.list_objects, ids))
        known = {described.object_id: Sizes(described.data_size, described.metadata_size) for described in found}
        for index in there:
            sizes, put = known.get(self._request.object_ids[index]), self._request.sizes[index]
            if sizes == put:
                await self._finish(index, Outcome.PRESENT)
            elif sizes is not None:  # otherwise it has gone since
                reason = f"another object of its id is there, with {_in_words(sizes)}; it has {_in_words(put)}"
                await self._finish(index, Outcome.DIFFERENT, reason)

    async def _refuse_too_large(self) -> None:
        for part in parts(tuple(self._left)):
            for index in part:
                size = self._size(index)
                if size > self._store.capacity:
                    reason = f"it has {size:,} bytes, and the store {self._store.capacity:,}"
                    await self._finish(index, Outcome.TOO_LARGE, reason)
            await trio.lowlevel.checkpoint()

    async def _forget_others(self) -> None:
        """Forget what this token was putting under the same ids, but in other sizes."""
        for part in parts(tuple(self._left)):
            for index in part:
                incoming = self._incoming(index)
                if incoming is not None and incoming.sizes != self._request.sizes[index]:
                    await self._forget(incoming)
            await trio.lowlevel.checkpoint()

    async def _forget(self, incoming: Incoming) -> None:
        self._services.holds.forget_incoming(self._hold, incoming)
        await incoming.abort()  # without effect where it was sealed

    async def _count_attempts(self, ranges: Sequence[Range]) -> None:
        """Give up what was wanted again and again, and has not come."""
        missing: set[int] = set()
        for part in parts(ranges):
            missing.update(wanted.what for wanted in part if wanted.what in self._left and self._is_missing(wanted))
            await trio.lowlevel.checkpoint()
        await self._find_present([index for index in sorted(missing) if self._incoming(index) is None])
        missing.intersection_update(self._left)
        self._attempts.update(missing)
        for index in sorted(index for index in missing if self._attempts[index] >= _ATTEMPTS):
            await self._finish(index, Outcome.DAMAGED)

    def _size(self, index: int) -> int:
        sizes = self._request.sizes[index]
        return sizes.data + sizes.metadata

    async def _wanted_ranges(self) -> tuple[Range, ...]:
        """What is lacking, as far as one WANT should name it; a range of no bytes asks for a description."""
        ranges: list[Range] = []
        nbytes = announced = 0
        for part in parts(tuple(self._left)):
            for index in part:
                if len(ranges) >= _WANTED_AT_ONCE or nbytes >= _PLACED_AT_ONCE:
                    return tuple(ranges)
                sizes, size = self._request.sizes[index], self._size(index)
                if size <= self._services.limits.small_size:
                    ranges.append(Range(index, 0, sizes.data))
                    continue
                if self._incoming(index) is None and sizes.metadata:
                    if await self._has_room(index, announced):
                        ranges.append(Range(index, 0, 0))
                        announced += size
                    elif ranges:
                        return tuple(ranges)
                    else:
                        await self._finish(index, Outcome.NO_ROOM, _TOO_MUCH)
                elif self._incoming(index) is None and not await self._find_place(index, b"", may_wait=not ranges):
                    return tuple(ranges)
                if (incoming := self._incoming(index)) is not None:
                    missing = tuple(incoming.missing) or ((0, 0),)
                    ranges += [Range(index, start, end - start) for start, end in missing]
                nbytes += size
            await trio.lowlevel.checkpoint()
        return tuple(ranges)

    def _is_missing(self, wanted: Range) -> bool:
        incoming = self._incoming(wanted.what)
        if incoming is None or not incoming.has_begun:
            return True
        return incoming.missing.overlap(wanted.offset, wanted.offset + wanted.length)

    async def _take_all(self) -> None:
        while True:
            event = await self._channel.next_event()
            match event:
                case ObjectDescribed():
                    await self._take_description(event)
                case ChunkStarted():
                    self._place_chunk(event)
                case ChunkEnded():
                    await self._take_chunk(event)
                case RunArrived():
                    await self._take_run(event)
                case RunDamaged():
                    self._note_damage("a run of small objects")
                case Progress():
                    return
                case _:
                    raise self._channel.not_wanted(event)

    def _note_damage(self, what: str) -> None:
        _log.info("%s: %s of a PUT was damaged on its way; it is wanted again", self._channel.peer, what)

    def _incoming(self, index: int) -> Incoming | None:
        return self._hold.incoming.get(self._request.object_ids[index])

    def _check_index(self, index: int) -> None:
        if index >= len(self._request.object_ids):
            raise RemoteProtocolError(f"a PUT of {len(self._request.object_ids)} objects has no object {index}")

    async def _finish(self, index: int, outcome: int, reason: str = "") -> None:
        if index in self._left:
            del self._left[index]
            self._outcomes[outcome, reason].append(index)
            incoming = self._incoming(index)
            if incoming is not None:
                await self._forget(incoming)

    async def _take_description(self, described: ObjectDescribed) -> None:
        index = described.index
        self._check_index(index)
        sizes = self._request.sizes[index]
        if (described.data_size, len(described.metadata)) != (sizes.data, sizes.metadata):
            raise RemoteProtocolError(f"object {self._request.object_ids[index]} has other sizes than its PUT said")
        incoming = self._incoming(index)
        if index not in self._left:
            return
        if incoming is not None and incoming.metadata != described.metadata:
            await self._forget(incoming)
            incoming = None
        if incoming is None:
            await self._find_place(index, described.metadata, may_wait=True)
            incoming = self._incoming(index)
        if incoming is not None and not incoming.missing:
            await self._seal(index, incoming)

    async def _find_place(self, index: int, metadata: bytes, *, may_wait: bool) -> bool:
        """Begin an object in the store, or finish it without. False where it may not wait for room, and has to."""
        if not await self._has_room(index):
            if may_wait:
                await self._finish(index, Outcome.NO_ROOM, _TOO_MUCH)
            return may_wait
        incoming = Incoming(self._request.object_ids[index], self._request.sizes[index].data, metadata)

        async def begin() -> None:
            await incoming.begin(self._store, self._room_timeout if may_wait else 0.0)
            self._services.holds.keep_incoming(self._hold, incoming)  # at once: a cancel from here on finds it there

        try:
            await self._channel.patiently(begin)
        except StoreError as error:
            outcome = outcome_of_failed_put(error, incoming.size, self._store)
            if outcome is Outcome.NO_ROOM:
                if not may_wait:
                    return False
                self._room_timeout = 0.0  # one has waited for all
            if outcome is Outcome.BEING_WRITTEN:
                await self._find_present([index])  # somebody has been faster
            await self._finish(index, outcome, str(error))
        return True

    async def _has_room(self, index: int, announced: int = 0) -> bool:
        """Whether an object may be held for this peer, beside so many bytes that are not held yet."""
        return await self._services.holds.make_room(self._hold, self._size(index), announced)

    def _place_chunk(self, chunk: ChunkStarted) -> None:
        self._check_index(chunk.index)
        incoming = self._incoming(chunk.index)
        start, end = chunk.offset, chunk.offset + chunk.length
        if end > self._request.sizes[chunk.index].data:
            raise RemoteProtocolError(f"a chunk reaches out of object {self._request.object_ids[chunk.index]}")
        if incoming is None or not incoming.has_begun or not incoming.missing.covers(start, end):
            self._channel.connection.discard_chunk()
            self._placed = None
            return
        self._placed = incoming
        with incoming.place(start, end) as place:
            self._channel.connection.supply_buffer(place)

    async def _take_chunk(self, chunk: ChunkEnded) -> None:
        incoming = self._placed
        if incoming is None or incoming is not self._incoming(chunk.index):
            return
        if not chunk.is_intact:
            self._note_damage("a chunk")
            return
        incoming.missing.remove(chunk.offset, chunk.offset + chunk.length)
        if not incoming.missing:
            await self._seal(chunk.index, incoming)

    async def _seal(self, index: int, incoming: Incoming) -> None:
        try:
            (await self._channel.patiently(partial(incoming.seal, self._store))).release()
        except StoreError as error:
            await self._finish(index, outcome_of(error), str(error))
            return
        await self._finish(index, Outcome.DONE)

    async def _take_run(self, run: RunArrived) -> None:
        for part in parts(run.objects):
            await self._take_small(part)
            await trio.lowlevel.checkpoint()

    async def _take_small(self, arrived: Sequence[tuple[int, memoryview, memoryview]]) -> None:
        objects = []
        for index, data, metadata in arrived:
            self._check_index(index)
            sizes = self._request.sizes[index]
            if (len(data), len(metadata)) != (sizes.data, sizes.metadata):
                raise RemoteProtocolError(f"object {self._request.object_ids[index]} has other sizes than its PUT said")
            if index in self._left:
                incoming = self._incoming(index)
                if incoming is not None:  # to the client it is small
                    await self._forget(incoming)
                objects.append((index, NewObject(self._request.object_ids[index], data, metadata)))
        if not objects:
            return
        put = partial(put_small, self._store, [new for _, new in objects], self._room_timeout)
        outcomes = await self._channel.patiently(put)
        if any(outcome is Outcome.NO_ROOM for _, outcome, _ in outcomes):
            self._room_timeout = 0.0  # one has waited for all
        for (index, new), (lease, outcome, reason) in zip(objects, outcomes, strict=True):
            if lease is not None:
                with lease:
                    is_same = lease.data == new.data and lease.metadata == new.metadata
                if not is_same:
                    outcome = Outcome.DIFFERENT
            await self._finish(index, outcome, reason)


def _in_words(sizes: Sizes) -> str:
    return f"{sizes.data:,} bytes of data and {sizes.metadata:,} of metadata"
