"""A PUT at the server: say what is wanted, take what comes, and say it again until all is here or given up."""

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
        self._placed: Incoming | None = None

    async def answer(self) -> None:
        """Answer the request, but for its END.

        Raises:
            PeerError: the connection broke, or the client wants no more.
            RemoteProtocolError: the client sent what nobody asked for.
            StoreError: the store is gone.
        """
        await self._find_present()
        await self._refuse_too_large()
        await self._services.holds.supersede(self._hold, self._request.object_ids)
        await self._refuse_what_has_no_room()
        try:
            while self._left:
                ranges = self._wanted_ranges()
                await self._channel.send(Want(ranges))
                await self._take_all()
                await self._find_present()
                await self._count_attempts(ranges)
        finally:
            self._channel.connection.discard_chunk()
        await self._channel.send_outcomes(self._outcomes)

    async def _find_present(self) -> None:
        for part in parts(tuple(self._left)):
            ids = [self._request.object_ids[index] for index in part]
            present = await self._channel.patiently(partial(self._store.contains, ids), again=True)
            there = [index for index, is_there in zip(part, present, strict=True) if is_there]
            if there:
                await self._compare(there)
            await trio.lowlevel.checkpoint()

    async def _compare(self, there: Sequence[int]) -> None:
        ids = [self._request.object_ids[index] for index in there]
        found = await self._channel.patiently(partial(self._store.list_objects, ids), again=True)
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

    async def _refuse_what_has_no_room(self) -> None:
        """Say so before the bytes come: they could only be thrown away."""
        for part in parts(tuple(self._left)):
            for index in part:
                size = self._size(index)
                is_new = size > self._services.limits.small_size and self._incoming(index) is None
                if is_new and not await self._services.holds.make_room(self._hold, size):
                    await self._finish(index, Outcome.NO_ROOM, _TOO_MUCH)
            await trio.lowlevel.checkpoint()

    async def _count_attempts(self, ranges: Sequence[Range]) -> None:
        """Give up what was wanted again and again, and has not come."""
        missing: set[int] = set()
        for part in parts(ranges):
            missing.update(wanted.what for wanted in part if wanted.what in self._left and self._is_missing(wanted))
            await trio.lowlevel.checkpoint()
        self._attempts.update(missing)
        for index in sorted(index for index in missing if self._attempts[index] >= _ATTEMPTS):
            await self._finish(index, Outcome.DAMAGED)

    def _size(self, index: int) -> int:
        sizes = self._request.sizes[index]
        return sizes.data + sizes.metadata

    def _wanted_ranges(self) -> tuple[Range, ...]:
        """What is lacking, as far as one WANT should name it."""
        ranges: list[Range] = []
        for index in self._left:
            if len(ranges) >= _WANTED_AT_ONCE:
                break
            incoming = self._incoming(index)
            whole = ((0, self._request.sizes[index].data),)
            missing = tuple(incoming.missing) if incoming is not None and incoming.has_begun else whole
            ranges += [Range(index, start, end - start) for start, end in missing]
        return tuple(ranges[:_WANTED_AT_ONCE])

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
                self._services.holds.forget_incoming(self._hold, incoming)
                await incoming.abort()  # without effect where it was sealed

    async def _take_description(self, described: ObjectDescribed) -> None:
        index = described.index
        self._check_index(index)
        sizes = self._request.sizes[index]
        if (described.data_size, len(described.metadata)) != (sizes.data, sizes.metadata):
            raise RemoteProtocolError(f"object {self._request.object_ids[index]} has other sizes than its PUT said")
        incoming = self._incoming(index)
        if index not in self._left:
            return
        if incoming is not None and (incoming.data_size, incoming.metadata) != (sizes.data, described.metadata):
            self._services.holds.forget_incoming(self._hold, incoming)
            await incoming.abort()
            incoming = None
        if incoming is None:
            incoming = await self._begin(index, described)
        if incoming is not None and not incoming.missing:
            await self._seal(index, incoming)

    async def _begin(self, index: int, described: ObjectDescribed) -> Incoming | None:
        holds, size = self._services.holds, described.data_size + len(described.metadata)
        if not await holds.make_room(self._hold, size):
            await self._finish(index, Outcome.NO_ROOM, _TOO_MUCH)
            return None
        incoming = Incoming(self._request.object_ids[index], described.data_size, described.metadata)

        async def begin() -> None:
            await incoming.begin(self._store, self._services.room_timeout)
            holds.keep_incoming(self._hold, incoming)  # at once: a cancel from here on finds it there

        try:
            await self._channel.patiently(begin)
        except StoreError as error:
            outcome = outcome_of_failed_put(error, size, self._store)
            if outcome is Outcome.BEING_WRITTEN:
                await self._find_present()  # somebody has been faster
            await self._finish(index, outcome, str(error))
            return None
        return incoming

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
        if not chunk.is_intact:
            self._note_damage("a chunk")
            return
        if incoming is None or incoming is not self._incoming(chunk.index):
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
                objects.append((index, NewObject(self._request.object_ids[index], data, metadata)))
        if not objects:
            return
        put = partial(put_small, self._store, [new for _, new in objects], self._services.room_timeout)
        outcomes = await self._channel.patiently(put)
        for (index, new), (lease, outcome, reason) in zip(objects, outcomes, strict=True):
            if lease is not None:
                with lease:
                    is_same = lease.data == new.data and lease.metadata == new.metadata
                if not is_same:
                    outcome = Outcome.DIFFERENT
            await self._finish(index, outcome, reason)


def _in_words(sizes: Sizes) -> str:
    return f"{sizes.data:,} bytes of data and {sizes.metadata:,} of metadata"
