"""One connection of version 2 at a server: requests in order, each answered before the next is read."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import attrs
import trio

from plasmastream._errors import LocalProtocolError, PeerError, ProtocolError, RemoteProtocolError, StoreError
from plasmastream._object_id import ObjectID
from plasmastream.peer._admission import BusyError
from plasmastream.peer._holds import Hold
from plasmastream.peer._put_server import PutRequest
from plasmastream.peer._results import outcome_of
from plasmastream.peer._sender import contents
from plasmastream.peer._services import CancelledByClientError, ServerChannel, Services
from plasmastream.peer._sync_server import answer_sync
from plasmastream.peer._transport import PeerStalledError, Transport
from plasmastream.peer._turns import parts
from plasmastream.store._object_store import Lease
from plasmastream.wire.plasma import NO_DIGEST, ErrorCode, ObjectInfo
from plasmastream.wire.stream.v2 import (
    GREETING,
    Close,
    ConnectionClosed,
    DamagedError,
    Described,
    Drop,
    Encoding,
    End,
    Hello,
    Lateness,
    Listed,
    ListObjects,
    Message,
    Open,
    Outcome,
    Put,
    Range,
    Read,
    ServerConnection,
    Stat,
    Sync,
)

_log = logging.getLogger(__name__)

_HELD_AT_ONCE = 256
_DONE = End()

_Outcomes = defaultdict[tuple[int, str], list[int]]


class Session:
    """A connection of version 2, of which the first eight bytes have been read.

    Args:
        services: what the server has.
        transport: the connection.
        head_start: what came with those bytes.
        peer: the client's IP address.
        used: where the tokens are noted that are used on this connection.
        greeting: how long the rest of the greeting may take, in seconds.
    """

    def __init__(
        self,
        services: Services,
        transport: Transport,
        head_start: bytes,
        peer: str,
        used: set[Hold],
        greeting: float,
    ) -> None:
        self._services = services
        patience = attrs.evolve(services.patience, hello=greeting)
        connection = ServerConnection(
            services.hello,
            trio.current_time(),
            limits=services.limits,
            patience=patience,
            head_start=head_start,
        )
        self._channel = ServerChannel(connection, transport, patience)
        self._peer = peer
        self._node = b""
        self._used = used

    async def run(self, refusal: str = "") -> None:
        """Serve until the client is done, or given up; with a reason to refuse it, say that and no more.

        Raises:
            PeerError: the connection broke.
            ProtocolError: the client broke the protocol.
        """
        failure: PeerError | ProtocolError | None = None
        async with trio.open_nursery() as self._channel.nursery:
            try:
                await self._serve(refusal)
            except (PeerError, ProtocolError) as error:
                failure = error
        if failure is not None:
            raise failure
        self._channel.close()

    async def _serve(self, refusal: str) -> None:
        channel = self._channel
        try:
            greeting = await channel.next_event()
            if isinstance(greeting, ConnectionClosed):
                return
            assert isinstance(greeting, Hello)
            if refusal:
                await channel.send(End(Outcome.BUSY, refusal, 1.0))
                return
            self._node = greeting.identity
            channel.connection.greet()
            await channel.flush()
            while await self._answer_requests():
                pass
        except ProtocolError as error:
            # What was damaged on its way is asked for again on another connection. Only who has no answer yet needs a
            # word, lest it take us for version 1.
            if not isinstance(error, DamagedError) or not self._node:
                await self.say(error)
            raise
        finally:
            channel.connection.close()

    async def say(self, error: ProtocolError) -> None:
        """Tell a client that broke the protocol, if it can be told, before the connection ends.

        After damage nobody knows which request it would answer; but a greeting that ends without a word is version 1.
        """
        is_damage = isinstance(error, DamagedError)
        if is_damage and self._channel.connection.state is not GREETING:
            return
        outcome = Outcome.DAMAGED if is_damage else Outcome.REFUSED
        with trio.move_on_after(self._services.patience.hello):
            try:
                await self._channel.send(End(outcome, str(error)[:1000]))
                self._channel.transport.close()
            except (PeerError, LocalProtocolError):
                return

    async def _answer_requests(self) -> bool:
        """Answer requests in order; False after the last, True where one was given up, and others may follow."""
        channel = self._channel
        with trio.CancelScope() as channel.work:
            while isinstance(request := await self._next_request(), Message):
                await self._answer(request)
            return False
        if not isinstance(channel.why_given_up, CancelledByClientError):
            raise channel.why_given_up
        await channel.send(End(Outcome.CANCELLED, str(channel.why_given_up)))
        return True

    async def _next_request(self) -> Message | ConnectionClosed | None:
        """The next request, or the clean end; None where the connection stays idle, or the server stops."""
        scope = self._channel.nursery.cancel_scope
        with self._services.may_stop(scope, self._used):
            request = await self._read_request()
        return None if scope.cancel_called else request

    async def _read_request(self) -> Message | ConnectionClosed | None:
        try:
            event = await self._channel.next_event()
        except PeerStalledError:
            if self._channel.connection.late(trio.current_time()) is Lateness.IDLE:
                return None
            raise
        assert isinstance(event, Message | ConnectionClosed)
        return event

    async def _answer(self, request: Message) -> None:
        services = self._services
        admission = services.syncs if isinstance(request, Sync) else services.admission
        try:
            if admission.enter_at_once(self._peer):
                try:
                    await self._carry_out(request)
                finally:
                    admission.leave(self._peer)
            else:
                async with AsyncExitStack() as place:
                    await self._channel.patiently(partial(place.enter_async_context, admission.admit(self._peer)))
                    await self._carry_out(request)
            end = _DONE
        except BusyError as error:
            end = End(Outcome.BUSY, str(error), error.retry_after)
        except CancelledByClientError as error:
            end = End(Outcome.CANCELLED, str(error))
        except StoreError as error:
            _log.warning("%s: the store failed: %s", self._channel.peer, error)
            end = End(outcome_of(error), str(error)[:1000])
        await self._channel.send(end)
        services.holds.tidy(self._used)  # behind the answer, which need not wait for it

    async def _carry_out(self, request: Message) -> None:
        match request:
            case Open():
                await self._open(request)
            case Read():
                await self._read(request)
            case Drop():
                await self._drop(request)
            case Close():
                await self._close(request)
            case Put():
                hold = self._hold(request.token)
                await self._end_putting(hold)
                async with self._services.holds.put_by(hold, self._channel):
                    await PutRequest(self._services, self._channel, hold, request).answer()
            case Sync():
                await answer_sync(self._services, self._channel, request)
            case Stat():
                await self._list(request.object_ids)
            case _:
                assert isinstance(request, ListObjects)
                await self._list(None)

    def _hold(self, token: bytes) -> Hold:
        hold = self._services.holds.use(token, self._node, self._peer, self._used)
        if hold is None:
            raise RemoteProtocolError("the token of a request is another node's")
        return hold

    async def _end_putting(self, hold: Hold) -> None:
        if hold.putting is not None:  # by a connection that may be waiting for the store
            await self._channel.patiently(partial(self._services.holds.end_putting, hold))

    # Open

    async def _open(self, request: Open) -> None:
        hold = self._hold(request.token)
        encoding = self._encoding(request.encoding)
        outcomes: _Outcomes = defaultdict(list)
        missing: list[int] = []
        ids = request.object_ids
        for first in range(0, len(ids), _HELD_AT_ONCE):
            if first:
                await self._flush()
            batch = range(first, min(first + _HELD_AT_ONCE, len(ids)))
            missing += await self._open_batch(request, hold, batch, 0.0, encoding, outcomes)
        if missing:
            lacking = await self._open_late(request, hold, missing, encoding, outcomes)
            if lacking:
                outcomes[Outcome.NOT_FOUND, ""] = lacking
        await self._channel.send_outcomes(outcomes)

    async def _open_late(
        self, request: Open, hold: Hold, missing: Sequence[int], encoding: Encoding, outcomes: _Outcomes
    ) -> list[int]:
        """Wait a moment for objects that are not there, and open those that come; returns the others."""
        deadline = trio.current_time() + self._services.objects_timeout
        lacking: list[int] = []
        for batch in parts(missing, _HELD_AT_ONCE):
            patience = max(0.0, deadline - trio.current_time())
            lacking += await self._open_batch(request, hold, batch, patience, encoding, outcomes)
        return lacking

    async def _open_batch(
        self,
        request: Open,
        hold: Hold,
        batch: Sequence[int],
        timeout: float,
        encoding: Encoding,
        outcomes: _Outcomes,
    ) -> list[int]:
        """Open some objects, and send or describe them; returns those that are not there."""
        services, channel = self._services, self._channel
        missing: list[int] = []
        ids = [request.object_ids[index] for index in batch]
        found = await channel.patiently(partial(services.store.get, ids, timeout=timeout))
        try:
            run: list[tuple[int, Lease]] = []
            size = described = 0
            for position, index in enumerate(batch):
                lease = found[position]
                if lease is None:
                    missing.append(index)
                    continue
                outcome = await self._admit(request, hold, lease)
                if outcome is not None:
                    outcomes[outcome].append(index)
                    continue
                is_small = lease.size <= services.limits.small_size
                if is_small:
                    run.append((index, lease))
                    size += lease.size
                if request.take or not is_small:
                    handle = hold.handle_of.get(lease.object_id)
                    if handle is None:
                        handle = services.holds.keep(hold, lease)
                        found[position] = None
                    if not is_small:
                        channel.connection.send_object(index, lease.data_size, bytes(lease.metadata), handle)
                        described += lease.metadata_size
                if size >= services.limits.run_size:
                    self._queue_run(run, encoding)
                    run, size = [], 0
                    await self._flush()
                elif described >= services.limits.run_size:
                    described = 0
                    await self._flush()
            if run:
                self._queue_run(run, encoding)  # it leaves with what follows
            return missing
        finally:
            found.release()

    async def _admit(self, request: Open, hold: Hold, lease: Lease) -> tuple[int, str] | None:
        """Whether an object may be opened: None, or the outcome and its reason."""
        holds, limits = self._services.holds, self._services.limits
        if lease.data_size > limits.max_data_size or lease.metadata_size > limits.max_metadata_size:
            sizes = f"{lease.data_size:,} bytes of data and {lease.metadata_size:,} of metadata"
            return Outcome.TOO_LARGE, f"it has {sizes}"
        is_held = request.take or lease.size > limits.small_size
        if is_held and lease.object_id not in hold.leases and not await holds.make_room(hold, lease.size):
            return Outcome.NO_ROOM, "too much is held for this peer already"
        if self._services.taking.overlap((lease.object_id,)):
            return Outcome.BEING_TAKEN, ""
        if request.take:
            if not holds.claim(hold, lease.object_id):
                return Outcome.BEING_TAKEN, ""
        elif not holds.gives_way(hold, lease.object_id):
            return Outcome.BEING_TAKEN, ""
        return None

    def _queue_run(self, run: Sequence[tuple[int, Lease]], encoding: Encoding) -> None:
        self._channel.connection.send_run([(index, *contents(lease)) for index, lease in run], encoding)

    async def _flush(self) -> None:
        await self._channel.flush()
        await self._channel.check_cancel()

    def _encoding(self, number: int) -> Encoding:
        if number not in (1, 2):
            return Encoding.NONE
        peer, ours, encoding = self._channel.connection.peer, self._services.hello, Encoding(number)
        name = encoding.name.lower()
        known = peer is not None and name in peer.features and name in ours.features
        return encoding if known else Encoding.NONE

    # Read

    async def _read(self, request: Read) -> None:
        hold = self._hold(request.token)
        encoding = Encoding.ABSENT if request.checksums else self._encoding(request.encoding)
        outcomes: _Outcomes = defaultdict(list)
        for part in parts(tuple(enumerate(request.ranges))):
            for index, asked in part:
                outcome = await self._read_range(hold, index, asked, encoding)
                if outcome is not None:
                    outcomes[outcome].append(index)
            await trio.lowlevel.checkpoint()  # what is not known any more is refused without a wait
        await self._channel.send_outcomes(outcomes)

    async def _read_range(
        self, hold: Hold, index: int, asked: Range, encoding: Encoding
    ) -> tuple[int, str] | None:
        channel = self._channel
        object_id = hold.handles.get(asked.what)
        at, end = asked.offset, asked.offset + asked.length
        while at < end:
            lease = None if object_id is None else hold.leases.get(object_id)
            if lease is None:  # perhaps closed meanwhile, on another connection
                return Outcome.EXPIRED, ""
            if end > lease.data_size:
                return Outcome.REFUSED, f"bytes {asked.offset} to {end} of {lease.data_size} were asked for"
            step = min(end, at + channel.connection.chunk_size)
            # Let go of at a known line: an error on its way up would keep the slice, and so the object.
            with lease.data[at:step] as piece:
                channel.connection.send_chunk(index, at, piece, encoding)
                await channel.flush()
            await channel.check_cancel()
            await trio.lowlevel.checkpoint()  # small requests have their turn, however fast this goes
            at = step
        return None

    # Drop, close

    async def _drop(self, request: Drop) -> None:
        hold = self._hold(request.token)
        outcomes: _Outcomes = defaultdict(list)
        for part in parts(tuple(enumerate(request.object_ids)), _HELD_AT_ONCE):
            await self._drop_some(hold, part, outcomes)
            await trio.lowlevel.checkpoint()
        await self._channel.send_outcomes(outcomes)

    async def _drop_some(self, hold: Hold, asked: Sequence[tuple[int, ObjectID]], outcomes: _Outcomes) -> None:
        doomed: list[tuple[int, ObjectID]] = []
        for index, object_id in asked:
            if object_id in hold.dropped:
                outcomes[Outcome.DONE, ""].append(index)
            elif object_id in hold.leases and object_id in hold.claimed:
                doomed.append((index, object_id))
            else:
                outcomes[Outcome.EXPIRED, ""].append(index)
        doomed = await self._unless_replaced(hold, doomed, outcomes)
        if doomed:
            ids = [object_id for _, object_id in doomed]
            codes = await self._channel.patiently(partial(self._services.store.delete, ids))
            for (index, object_id), code in zip(doomed, codes, strict=True):
                if code in (ErrorCode.OK, ErrorCode.OBJECT_IN_USE, ErrorCode.OBJECT_NOT_FOUND):
                    hold.dropped.add(object_id)
                    outcomes[Outcome.DONE, ""].append(index)
                else:
                    outcomes[Outcome.STORE_ERROR, f"the store answered {code.name}"].append(index)
            self._services.holds.let_go(hold, ids)

    async def _unless_replaced(
        self, hold: Hold, doomed: Sequence[tuple[int, ObjectID]], outcomes: _Outcomes
    ) -> list[tuple[int, ObjectID]]:
        """Those that are still the objects which were opened: a restarted store may have others of these ids."""
        ids = [object_id for _, object_id in doomed]
        found = await self._channel.patiently(partial(self._services.store.get, ids)) if ids else []
        kept = []
        for (index, object_id), lease in zip(doomed, found, strict=True):
            opened = hold.leases.get(object_id)  # perhaps closed meanwhile, on another connection
            if opened is not None and (lease is None or lease.file == opened.file):
                kept.append((index, object_id))
            else:
                outcomes[Outcome.EXPIRED, ""].append(index)
                self._services.holds.let_go(hold, [object_id])
            if lease is not None:
                lease.release()
        return kept

    async def _close(self, request: Close) -> None:
        hold = self._hold(request.token)
        if request.object_ids:
            for part in parts(request.object_ids):
                self._services.holds.let_go(hold, part)
                await trio.lowlevel.checkpoint()
        else:
            await self._end_putting(hold)
            await self._services.holds.release(hold)

    # Stat, list

    async def _list(self, object_ids: Sequence[ObjectID] | None) -> None:
        infos = await self._channel.patiently(partial(self._services.store.list_objects, object_ids))
        for part in parts(infos):
            self._channel.connection.send(_listed(part))
            await self._channel.flush()
            await self._channel.check_cancel()
            await trio.lowlevel.checkpoint()


def _listed(infos: Sequence[ObjectInfo]) -> Listed:
    return Listed(
        tuple(info.object_id for info in infos),
        tuple(
            Described(
                info.data_size, info.metadata_size, info.ref_count, info.create_time, info.construct_duration
            )
            for info in infos
        ),
        tuple(info.digest or NO_DIGEST for info in infos),
    )
