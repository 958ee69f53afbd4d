"""Fetching: objects from a peer into a store, by version 2, tried again until each has its outcome.

Rounds of four steps, each over whatever is left: *open* the objects, which brings the small ones; *check* by checksums
what is here already; *read* what is missing, over several connections; and, to take rather than copy, *drop* at the
source what is sealed here. A round in which nothing moved is followed by a wait. What a round has verified stays.
"""

import logging
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import anyio
import anyio.lowlevel
from xxhash import xxh3_64_intdigest

from plasmastream._errors import (
    PeerError,
    PlasmastreamError,
    ProtocolError,
    RemoteProtocolError,
    StoreConnectionError,
    StoreError,
)
from plasmastream._object_id import ObjectID
from plasmastream.peer._budget import Budget
from plasmastream.peer._channel import ClientChannel
from plasmastream.peer._incoming import Incoming, Ranges, outcome_of_failed_put, put_small
from plasmastream.peer._lanes import Lane, Lanes, OldPeerError
from plasmastream.peer._opened import Opened
from plasmastream.peer._persistence import Persistence
from plasmastream.peer._reliance import doubts, losses
from plasmastream.peer._results import RefusedError, Result, advice_on, outcome_of
from plasmastream.peer._turns import release_all
from plasmastream.peer._wanted import Piece, Wanted, piece_of, shares
from plasmastream.store._object_store import NewObject, ObjectStore
from plasmastream.wire.stream.v2 import (
    ChunkEnded,
    ChunkStarted,
    ChunkSummed,
    Drop,
    Encoding,
    Event,
    Message,
    ObjectDescribed,
    Open,
    Outcome,
    Outcomes,
    Progress,
    Range,
    Read,
    RunArrived,
    RunDamaged,
    describe_outcome,
)

_log = logging.getLogger(__name__)

Turn = Callable[[], AbstractAsyncContextManager[object]]
"""Makes what a round of work is done in."""

Report = Callable[[int, int], None]
"""Called with (objects, bytes) that have arrived since the last call."""

_OPEN_AT_ONCE = 4096
_ATTEMPTS = 3
_SHARE = 64 << 20  # bytes of a READ, so that several connections share a large object


class Fetch:
    """One transfer of some objects from one peer.

    Args:
        lanes: connections to the peer.
        store: where the objects go.
        take: whether the peer is to delete its own.
        object_ids: which objects, all distinct.
        persistence: how long to try.
        encoding: what payloads may be encoded with.
        store_timeout: how long to wait for room in the store, in seconds.
        budget: bytes of large objects under way at once.
        report: told what arrives.
        is_claimed: whether somebody is taking an object from our store, as far as this process knows.
        turn: entered for each round, and left between two.
    """

    def __init__(
        self,
        lanes: Lanes,
        store: ObjectStore,
        *,
        take: bool,
        object_ids: Sequence[ObjectID],
        persistence: Persistence,
        encoding: Encoding,
        store_timeout: float,
        budget: Budget,
        report: Report,
        is_claimed: Callable[[ObjectID], bool] = lambda object_id: False,
        turn: Turn = nullcontext,
    ) -> None:
        self._lanes = lanes
        self._store = store
        self._take = take
        self._wanted = [Wanted(object_id) for object_id in object_ids]
        self._left = len(self._wanted)  # without a result
        self._persistence = persistence
        self._encoding = encoding
        self._store_timeout = store_timeout
        self._budget = budget
        self._report = report
        self._is_claimed = is_claimed
        self._turn = turn
        self._opened = Opened(lanes)
        self._moved = False
        self._hindered: set[ObjectID] = set()
        self._damaged: defaultdict[tuple[ObjectID, int], int] = defaultdict(int)

    async def run(self) -> list[Result]:
        """Fetch all that can be fetched.

        Returns:
            What became of each object, in order.

        Raises:
            OldPeerError: the peer speaks version 1 alone; nothing has been done.
            StoreConnectionError: our store is gone.
        """
        deadline = self._persistence.deadline
        try:
            if deadline == math.inf:
                await self._fetch_all()
            else:
                with anyio.CancelScope(deadline=deadline) as scope:
                    await self._fetch_all()
                if scope.cancelled_caught:
                    self._give_up(self._unfinished, Outcome.OUT_OF_TIME, "the time allowed for it is over")
        finally:
            await release_all([lease for wanted in self._wanted if (lease := wanted.let_go()) is not None])
            begun = [wanted.incoming for wanted in self._wanted if wanted.incoming is not None]
            if begun or self._opened.is_used:
                with anyio.CancelScope(shield=True):
                    for incoming in begun:
                        await incoming.abort()
                    await self._opened.abandon()
        return [wanted.result for wanted in self._wanted if wanted.result is not None]

    async def _fetch_all(self) -> None:
        await self._find_present(self._wanted)
        while self._left and await self._go_on():
            pass
        await self._close_all()

    @property
    def _unfinished(self) -> list[Wanted]:
        return [wanted for wanted in self._wanted if wanted.result is None]

    async def _find_present(self, absent: Sequence[Wanted]) -> None:
        """Find out which of some objects are sealed here, and hold them."""
        present = await self._store.contains([wanted.object_id for wanted in absent])
        there = [wanted for wanted, is_there in zip(absent, present, strict=True) if is_there]
        if not there:
            return
        leases = await self._store.get([wanted.object_id for wanted in there])
        for wanted, lease in zip(there, leases, strict=True):
            wanted.lease, wanted.was_present, wanted.handle = lease, lease is not None, 0
            if lease is not None and not self._take:
                self._finish(wanted, Outcome.PRESENT)

    async def _go_on(self) -> bool:
        """Make one round; False where it is no use to make another."""
        self._moved = False
        self._hindered.clear()
        failure: PlasmastreamError | None = None
        try:
            async with self._turn():
                await self._open_all()
                if self._left:
                    await self._check_all()
                    await self._read_all()
                    if self._take:
                        await self._drop_all()
                if self._left:  # otherwise all of it is closed, in the end
                    await self._opened.close_finished()
        except OldPeerError:
            if self._persistence.has_progressed:
                raise PeerError(f"{self._lanes} spoke version 2, and does no more") from None
            raise
        except (PeerError, ProtocolError) as error:
            self._persistence.failed(error)
            failure = error.with_traceback(None)  # or it and this frame would keep each other, and what is held
        if not self._left:
            return False
        left = self._unfinished
        if failure is not None:
            outcome = outcome_of(failure)
            for wanted in left:
                wanted.obstacle = outcome, str(failure)
            is_first = not self._persistence.has_progressed and self._persistence.deadline == math.inf
            if not outcome.may_pass or (outcome is Outcome.UNREACHABLE and is_first):
                self._give_up(left)
                return False
        if self._moved and failure is None:
            return True
        if failure is None:
            self._persistence.hindered(str(Result(left[0].object_id, *left[0].obstacle)))
        retry_after = failure.retry_after if isinstance(failure, RefusedError) else 0.0
        if await self._persistence.pause(retry_after):
            return True
        self._give_up(left)
        return False

    def _wait_on(self, event: Event | Message, *kinds: type) -> None:
        """See that an event is a sign of life, or of other kinds that change nothing, and that there is hope still."""
        if not isinstance(event, (Progress, *kinds)):
            raise RemoteProtocolError(f"an answer has a {type(event).__name__}, which does not belong there")
        self._persistence.check(self._lanes)

    def _progressed(self, objects: int, nbytes: int) -> None:
        self._moved = True
        self._persistence.progressed()
        self._report(objects, nbytes)

    # Outcomes

    def _finish(self, wanted: Wanted, outcome: int, reason: str = "") -> None:
        self._left -= wanted.result is None
        wanted.result = Result(wanted.object_id, outcome, reason)
        if wanted.is_open:
            self._opened.finish(wanted.object_id)
        self._moved = True

    def _succeed(self, wanted: Wanted) -> None:
        self._finish(wanted, Outcome.PRESENT if wanted.was_present else Outcome.DONE)

    def _hinder(self, wanted: Wanted, outcome: int, reason: str) -> None:
        """Note what stands in the way of an object now; it is final where it cannot pass."""
        known = Outcome.known(outcome)
        if known is not None and known.is_success:
            raise RemoteProtocolError(
                f"{self._lanes} says {known.name} of object {wanted.object_id}, without sending it"
            )
        wanted.obstacle = outcome, reason
        if known is None or not known.may_pass:
            self._finish(wanted, outcome, reason)
        elif outcome == Outcome.EXPIRED:
            wanted.is_open = False
        self._hindered.add(wanted.object_id)

    def _give_up(self, left: Iterable[Wanted], outcome: int | None = None, reason: str = "") -> None:
        for wanted in left:
            last, words = wanted.obstacle
            parts = [reason, words] if outcome is not None and last is not Outcome.BROKEN_OFF else [reason or words]
            incoming = wanted.incoming
            if incoming is not None:
                parts.append(f"{incoming.nbytes_verified:,} of {incoming.data_size:,} bytes had arrived")
            what = outcome if outcome is not None else last
            advice = advice_on(what)
            if wanted.lease is not None and not wanted.was_present:
                what, advice = Outcome.NOT_DROPPED, "take it again"
                parts.insert(0, "it has arrived, but the source may have it still")
            self._finish(wanted, what, self._persistence.last_words(self._lanes, *parts, advice=advice))

    # Open

    async def _open_all(self) -> None:
        closed = [wanted for wanted in self._unfinished if not wanted.is_open]
        for first in range(0, len(closed), _OPEN_AT_ONCE):
            async with self._lanes.channel(Lane.SMALL) as channel:
                await self._open(channel, closed[first : first + _OPEN_AT_ONCE])

    async def _open(self, channel: ClientChannel, batch: Sequence[Wanted]) -> None:
        unanswered = dict(enumerate(batch))

        def answered(indexes: Iterable[int]) -> list[Wanted]:
            try:
                return [unanswered.pop(index) for index in indexes]
            except KeyError as error:
                raise RemoteProtocolError(
                    f"{channel.peer} answered for object {error.args[0]}, which it was not asked for now"
                ) from None

        ids = tuple(wanted.object_id for wanted in batch)
        is_damaged = False
        self._opened.use()
        await channel.send(Open(self._opened.token, self._take, self._encoding, ids))
        while (event := await channel.answer()) is not None:
            match event:
                case RunArrived():
                    await self._take_run(answered(index for index, _, _ in event.objects), event.objects)
                case ObjectDescribed():
                    (wanted,) = answered((event.index,))
                    await self._take_description(wanted, event)
                case Outcomes():
                    named = answered(event.indexes)
                    if event.outcome == Outcome.NOT_FOUND:
                        await self._find_present([wanted for wanted in named if wanted.lease is None])
                        await self._arrive([wanted for wanted in named if wanted.lease is not None])
                        named = [wanted for wanted in named if wanted.lease is None]
                    for wanted in named:
                        self._hinder(wanted, event.outcome, event.reason)
                case _:
                    is_damaged = is_damaged or isinstance(event, RunDamaged)
                    self._wait_on(event, RunDamaged)
        for wanted in unanswered.values():
            if is_damaged:
                self._note_damage(wanted, -1)
            else:
                self._finish(wanted, Outcome.REFUSED, f"{channel.peer} did not answer for it")

    async def _take_run(self, run: Sequence[Wanted], arrived: Sequence[tuple[int, memoryview, memoryview]]) -> None:
        news: list[tuple[Wanted, NewObject]] = []
        for wanted, (_, data, metadata) in zip(run, arrived, strict=True):
            if wanted.lease is None:
                news.append((wanted, NewObject(wanted.object_id, data, metadata)))
                continue
            wanted.is_open = self._take
            if not wanted.is_same(data, metadata):
                self._finish(wanted, Outcome.DIFFERENT)
        if not news:
            return
        outcomes = await put_small(self._store, [new for _, new in news], self._store_timeout)
        objects = nbytes = 0
        for (wanted, new), (lease, outcome, reason) in zip(news, outcomes, strict=True):
            wanted.is_open = self._take and lease is not None
            if lease is None:
                self._hinder(wanted, outcome, reason)
                continue
            wanted.lease, wanted.was_present = lease, outcome is Outcome.PRESENT
            objects += 1
            nbytes += lease.size
            if not self._take:
                self._finish(wanted, outcome)
            elif wanted.was_present and not wanted.is_same(new.data, new.metadata):
                self._finish(wanted, Outcome.DIFFERENT)
        if objects:
            self._progressed(objects, nbytes)

    async def _take_description(self, wanted: Wanted, described: ObjectDescribed) -> None:
        incoming, lease = wanted.incoming, wanted.lease
        is_same_lease = wanted.handle == described.handle
        wanted.is_open, wanted.handle = True, described.handle
        if lease is not None:
            if len(lease.data) != described.data_size or lease.metadata != described.metadata:
                self._finish(wanted, Outcome.DIFFERENT)
            elif not is_same_lease:
                wanted.unchecked = Ranges((0, described.data_size))
            return
        if described.data_size + len(described.metadata) > self._store.capacity:
            size = described.data_size + len(described.metadata)
            self._finish(wanted, Outcome.TOO_LARGE, f"it has {size:,} bytes, and the store {self._store.capacity:,}")
            return
        if incoming is not None:
            if (incoming.data_size, incoming.metadata) == (described.data_size, described.metadata):
                if not is_same_lease and incoming.has_begun:
                    wanted.unchecked = Ranges((0, incoming.data_size))
                    for start, end in incoming.missing:
                        wanted.unchecked.remove(start, end)
                return
            await incoming.abort()
        wanted.incoming = Incoming(wanted.object_id, described.data_size, described.metadata)

    def _note_damage(self, wanted: Wanted, offset: int) -> None:
        _log.info("object %s was damaged on its way from %s", wanted.object_id, self._lanes)
        self._damaged[wanted.object_id, offset] += 1
        wanted.obstacle = Outcome.BROKEN_OFF, "it was damaged on its way"
        if self._damaged[wanted.object_id, offset] >= _ATTEMPTS:
            self._finish(wanted, Outcome.DAMAGED, f"it was damaged on its way from {self._lanes} {_ATTEMPTS} times")

    # Check

    async def _check_all(self) -> None:
        ranges = [
            (wanted, start, end)
            for wanted in self._unfinished
            if wanted.is_open and wanted.unchecked
            for start, end in wanted.unchecked
        ]
        if not ranges:
            return
        async with self._lanes.channel(Lane.LARGE) as channel:
            await self._send_read(channel, ranges, checksums=True)
            while (event := await channel.answer()) is not None:
                match event:
                    case ChunkSummed():
                        wanted, start, end = piece_of(event, ranges)
                        self._compare(wanted, start, end, event.checksum)
                        await anyio.lowlevel.checkpoint()
                    case Outcomes():
                        self._hinder_ranges(event, ranges)
                    case _:
                        self._wait_on(event)

    def _compare(self, wanted: Wanted, start: int, end: int, checksum: int) -> None:
        if wanted.unchecked is not None:
            wanted.unchecked.remove(start, end)
        self._moved = True
        self._persistence.progressed()
        if wanted.lease is not None:
            with wanted.lease.data[start:end] as ours:
                if xxh3_64_intdigest(ours) != checksum and wanted.result is None:
                    self._finish(wanted, Outcome.DIFFERENT)
        elif wanted.incoming is not None and not wanted.incoming.agrees(start, end, checksum):
            wanted.incoming.missing.add(start, end)

    # Read

    async def _read_all(self) -> None:
        readable = [
            wanted
            for wanted in self._unfinished
            if wanted.is_open and wanted.incoming is not None and wanted.lease is None and not wanted.unchecked
        ]
        left = deque(shares(readable, _SHARE, _OPEN_AT_ONCE))
        failures: list[PlasmastreamError] = []

        async def work() -> None:
            while left:
                share = left.popleft()
                try:
                    async with self._budget.spend(sum(end - start for _, start, end in share)):
                        await self._read_share(share)
                except (PeerError, ProtocolError, StoreConnectionError) as error:
                    failures.append(error.with_traceback(None))
                    return

        if len(left) <= 1:
            await work()
        else:
            async with anyio.create_task_group() as tasks:
                for _ in range(min(Lane.LARGE.value, len(left))):
                    tasks.start_soon(work)
        if failures:
            raise failures.pop(0)

    async def _read_share(self, share: Sequence[Piece]) -> None:
        ranges = [piece for piece in share if await self._begin(piece[0])]
        for wanted, start, end in ranges:
            if start == end:
                await self._seal(wanted)
        ranges = [piece for piece in ranges if piece[1] < piece[2]]
        if not ranges:
            return
        async with self._lanes.channel(Lane.LARGE) as channel:
            try:
                await self._send_read(channel, ranges, checksums=False)
                while (event := await channel.answer()) is not None:
                    match event:
                        case ChunkStarted():
                            wanted, start, end = piece_of(event, ranges)
                            if wanted.incoming is None or not wanted.incoming.missing.covers(start, end):
                                raise RemoteProtocolError(f"{channel.peer} sent the same bytes twice")
                            with wanted.incoming.place(start, end) as place:
                                channel.connection.supply_buffer(place)
                        case ChunkEnded():
                            wanted, start, end = piece_of(event, ranges)
                            await self._take_chunk(wanted, start, end, event.is_intact)
                        case Outcomes():
                            self._hinder_ranges(event, ranges)
                        case _:
                            self._wait_on(event)
            finally:
                channel.connection.discard_chunk()  # whose place may be given back soon

    async def _begin(self, wanted: Wanted) -> bool:
        """Make the object in the store, if that is not done; whether it can be written to."""
        incoming = wanted.incoming
        if wanted.result is not None or incoming is None or wanted.object_id in self._hindered:
            return False
        try:
            await incoming.begin(self._store, self._store_timeout)
        except StoreConnectionError:
            raise
        except StoreError as error:
            size = incoming.data_size + len(incoming.metadata)
            await self._store_refused(wanted, outcome_of_failed_put(error, size, self._store), str(error))
            return False
        return wanted.incoming is incoming

    async def _store_refused(self, wanted: Wanted, outcome: Outcome, reason: str) -> None:
        if outcome is Outcome.BEING_WRITTEN:
            (lease,) = await self._store.get([wanted.object_id])
            if lease is not None:  # somebody has been faster
                wanted.lease, wanted.was_present, wanted.incoming = lease, True, None
                wanted.is_open, wanted.handle = False, 0  # nobody has compared it with what the source has
                if not self._take:
                    self._succeed(wanted)
                self._moved = True
                return
            reason = describe_outcome(outcome)
        self._hinder(wanted, outcome, reason)

    async def _take_chunk(self, wanted: Wanted, start: int, end: int, is_intact: bool) -> None:
        incoming = wanted.incoming
        if incoming is None or wanted.result is not None:
            return
        if not is_intact:
            self._note_damage(wanted, start)
            return
        incoming.check_store()
        incoming.missing.remove(start, end)
        self._progressed(0, end - start)
        if not incoming.missing:
            await self._seal(wanted)
        await anyio.lowlevel.checkpoint()  # small requests have their turn, however fast this goes

    async def _seal(self, wanted: Wanted) -> None:
        incoming = wanted.incoming
        assert incoming is not None
        try:
            wanted.lease = await incoming.seal(self._store)
        except StoreConnectionError:
            raise
        except StoreError as error:
            self._hinder(wanted, outcome_of(error), str(error))
            return
        wanted.incoming = None
        self._progressed(1, len(incoming.metadata))
        if not self._take:
            self._succeed(wanted)

    async def _send_read(
        self, channel: ClientChannel, ranges: Sequence[Piece], *, checksums: bool
    ) -> None:
        asked = tuple(Range(wanted.handle, start, end - start) for wanted, start, end in ranges)
        await channel.send(Read(self._opened.token, checksums, self._encoding, asked))

    def _hinder_ranges(self, outcomes: Outcomes, ranges: Sequence[Piece]) -> None:
        for index in outcomes.indexes:
            if index >= len(ranges):
                raise RemoteProtocolError(f"{self._lanes} answered for range {index} of {len(ranges)}")
            if ranges[index][0].result is None:
                self._hinder(ranges[index][0], outcomes.outcome, outcomes.reason)

    # Drop

    async def _drop_all(self) -> None:
        sealed = [
            wanted
            for wanted in self._unfinished
            if wanted.is_open and wanted.lease is not None and not wanted.unchecked
        ]
        for first in range(0, len(sealed), _OPEN_AT_ONCE):
            async with self._lanes.channel(Lane.SMALL) as channel:
                # Right before the request, and before each repetition: a connection may have taken long to come about.
                batch = await self._reliable(sealed[first : first + _OPEN_AT_ONCE])
                if batch:
                    await self._drop(channel, batch)

    async def _drop(self, channel: ClientChannel, batch: Sequence[Wanted]) -> None:
        await channel.send(Drop(self._opened.token, tuple(wanted.object_id for wanted in batch)))
        while (event := await channel.answer()) is not None:
            if not isinstance(event, Outcomes):
                self._wait_on(event)
                continue
            if any(index >= len(batch) for index in event.indexes):
                raise RemoteProtocolError(f"{channel.peer} answered for object {max(event.indexes)} of {len(batch)}")
            named = [batch[index] for index in event.indexes]
            if event.outcome in (Outcome.DONE, Outcome.NOT_FOUND):
                for wanted in named:
                    wanted.is_open = False
                self._persistence.progressed()
                await self._arrive(named)
            else:
                for wanted in named:
                    self._hinder(wanted, event.outcome, event.reason)

    async def _reliable(self, sealed: Sequence[Wanted]) -> list[Wanted]:
        """Those whose copy here is a reason to delete the source's."""
        for wanted, outcome, reason in await doubts(sealed, self._store, self._is_claimed):
            self._hinder(wanted, outcome, reason)
        return [wanted for wanted in sealed if wanted.result is None and wanted.object_id not in self._hindered]

    async def _arrive(self, gone: Sequence[Wanted]) -> None:
        """Conclude with objects that we hold, and that the source does not have any more."""
        if not gone:
            return
        for wanted, outcome, reason in await losses(gone, self._store):
            self._finish(wanted, outcome, reason)
        for wanted in gone:
            if wanted.result is None:
                self._succeed(wanted)

    async def _close_all(self) -> None:
        if not self._take and not any(wanted.is_open or wanted.handle for wanted in self._wanted):
            self._opened.nothing_is_held()
        elif (error := await self._opened.close_all()) is not None:
            self._persistence.failed(error)
