"""`serve_store`: a store's objects for every local process, over a Unix socket, in Apache Plasma's protocol.

What can be answered at once is answered at one desk for all; what waits, or is long, by the task that each connection
has. Nobody blocks anybody else: a client that sends half a message, or does not read its replies, waits alone. What a
client sends is checked before it is believed; where it breaks the protocol, its connection ends with a line in the log,
and what it held is let go. The rules are those of docs/plasma-ipc.md.
"""

import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import trio

from plasmastream._errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    StoreFullError,
)
from plasmastream._listening import accept_connections
from plasmastream._object_id import ObjectID
from plasmastream.store._access import Access
from plasmastream.store._conversation import MANY, SEGMENT, Conversation, Rest
from plasmastream.store._core import FILLED_TOGETHER, New, NotYetError, PendingGet, StoreCore
from plasmastream.store._debug import debug_string
from plasmastream.store._desk import Desk
from plasmastream.store._embedded import describe
from plasmastream.store._inspect import inspect_page
from plasmastream.store._limits import DEFAULT_MAX_CONNECTIONS, ConnectionLimits
from plasmastream.store._socket_file import listening
from plasmastream.store._spiller import Spiller
from plasmastream.store._subscription import ENTRIES_PER_MESSAGE
from plasmastream.store._table import Entry
from plasmastream.store._turns import Turns
from plasmastream.wire.plasma import (
    EMPTY_SPEC,
    MISSING_SPEC,
    PACKED_MISSING,
    AbortReply,
    AbortRequest,
    ConnectReply,
    ConnectRequest,
    ContainsReply,
    ContainsRequest,
    CreateAndSealBatchReply,
    CreateAndSealBatchRequest,
    CreateAndSealReply,
    CreateAndSealRequest,
    CreateReply,
    CreateRequest,
    DeleteReply,
    DeleteRequest,
    ErrorCode,
    EvictReply,
    EvictRequest,
    Extension,
    GetDebugStringReply,
    GetDebugStringRequest,
    GetReply,
    GetRequest,
    InspectRequest,
    ListReply,
    ListRequest,
    Message,
    ObjectSpec,
    RefreshLRUReply,
    RefreshLRURequest,
    ReleaseManyRequest,
    ReleaseRequest,
    SealReply,
    SealRequest,
    SetOptionsReply,
    SetOptionsRequest,
    Specs,
    pack_spec,
)

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_RequestT = TypeVar("_RequestT", bound=Message)

_FEW = 32  # objects, up to which a request that need not wait is answered at once


async def serve_store(
    core: StoreCore,
    path: str,
    *,
    max_connections: int = DEFAULT_MAX_CONNECTIONS,
    spiller: Spiller | None = None,
    access: Access | None = None,
    limits: ConnectionLimits | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a store at a Unix socket, until cancelled.

    The socket file is removed in the end. Errors of one connection are logged and end that connection only.

    Args:
        core: the store.
        path: the socket to make. One where nobody answers any more is replaced.
        max_connections: at this number the next one waits until another ends.
        spiller: what moves the store's objects to disk, if it spills.
        access: who may connect; unless said otherwise the same user, and root.
        limits: what each connection may take.
        task_status: started when clients can connect.

    Raises:
        StoreError: a store is already at `path`, or the socket cannot be made there, or not with this access.
    """
    limits, turns = limits or ConnectionLimits(), Turns()
    with listening(path, access or Access()) as (listener, gate), Desk() as desk:

        async def serve(sock: socket.socket) -> None:
            await _Session(core, sock, gate, limits, desk, turns, spiller, nursery).run()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.run)
            task_status.started()
            await accept_connections(listener, serve, nursery, max_connections, f"the store at {path}")


def _in_its_own_task(
    answer: Callable[["_Session", _RequestT], Awaitable[None]],
) -> Callable[["_Session", _RequestT], Rest]:
    """For what may take long: nothing of it is done at the desk."""
    return lambda session, request: partial(answer, session, request)


class _Session(Conversation):
    """What a store answers."""

    def _respond(self, request: Message) -> Rest | None:
        return _ANSWERS[type(request)](self, request)

    def _spec(self, entry: Entry) -> ObjectSpec:
        return ObjectSpec(SEGMENT, entry.offset, entry.data_size, entry.offset + entry.data_size, entry.metadata_size)

    def _get(self, request: GetRequest) -> Rest | None:
        core, client, ids = self._core, self._client, request.object_ids
        if len(ids) > _FEW or len(client.held) + len(ids) > self._limits.held:
            return partial(self._get_in_turns, request)
        found = core.get(client, ids)
        if (request.timeout_ms or core.spill is not None) and None in found:
            return partial(self._get_in_turns, request)
        specs = [MISSING_SPEC if entry is None else self._spec(entry) for entry in found]
        self._send(self._get_reply(ids, specs, any(found)))
        return None if self._transport.flush_nowait() else self._flush

    async def _get_in_turns(self, request: GetRequest) -> None:
        core, client, ids = self._core, self._client, request.object_ids
        # What exists is not known yet, so every id counts.
        new = len(ids) if len(client.held) + len(ids) <= self._limits.held else len(set(ids).difference(client.held))
        refused = self._exceeds(self._limits.held, len(client.held) + new, "objects held")
        if (request.timeout_ms or core.spill is not None) and not refused:
            await self._wait_for(ids, request.timeout_ms)
            if self._hung_up:
                return

        def get(some: Sequence[ObjectID]) -> bytes:
            # What has been waited for is held already; what was deleted meanwhile is held until its release.
            if refused:
                found = [core.get(client, (object_id,))[0] if object_id in client.held else None for object_id in some]
            else:
                found = core.get(client, some)
            return b"".join([PACKED_MISSING if entry is None else _pack(entry) for entry in found])

        packed = b"".join(await self._turns.each(get, _parts(ids)))
        reply = self._get_reply(ids, Specs(packed), packed != PACKED_MISSING * len(ids))
        await self._send_long(reply, len(ids))
        await self._flush()

    def _get_reply(self, ids: tuple[ObjectID, ...], specs: Sequence[ObjectSpec], used: bool) -> GetReply:
        return GetReply(
            object_ids=ids,
            specs=specs if type(specs) is Specs else tuple(specs),
            store_fds=(SEGMENT,) if used else (),
            mmap_sizes=(self._mmap_size,) if used else (),
        )

    async def _wait_for(self, ids: Sequence[ObjectID], timeout_ms: int) -> None:
        """Hold objects as they appear, until all are there, or time is up, or the client hangs up."""
        deadline = trio.current_time() + (max(timeout_ms / 1000, 0.0) if timeout_ms != -1 else float("inf"))
        pending: list[PendingGet] = []
        ready: list[trio.Event] = []
        returned: list[trio.Event] = []

        def wait_for(some: Sequence[ObjectID]) -> None:
            events = trio.Event(), trio.Event()
            missing = self._core.wait_for(self._client, some, events[0].set, events[1].set)
            if missing is not None:
                pending.append(missing)
                ready.append(events[0])
                if missing.returning:
                    returned.append(events[1])

        try:
            await self._turns.each(wait_for, _parts(ids))
            if pending:
                await self._flush()
                with trio.move_on_at(deadline):
                    await self._wait_or_hang_up(ready)
                if returned and not self._hung_up:  # these are in the store, whatever the disk takes
                    await self._wait_or_hang_up(returned)
                await self._turns.each(self._core.stop_waiting, pending)
        finally:
            for missing in pending:
                self._core.stop_waiting(missing)

    def _connect(self, _: ConnectRequest) -> None:
        self._send(ConnectReply(self._core.capacity, Extension.INSPECT | Extension.RELEASE_MANY))

    def _create(self, request: CreateRequest) -> None:
        def refuse(code: ErrorCode) -> None:
            self._send(CreateReply(request.object_id, EMPTY_SPEC, code))

        if request.device_num:
            refuse(ErrorCode.OUT_OF_MEMORY)  # what a build without CUDA answers
            return
        if self._may_not_create(request.data_size + request.metadata_size):
            refuse(ErrorCode.OUT_OF_MEMORY)
            return
        try:
            entry = self._core.create(
                self._client,
                request.object_id,
                request.data_size,
                request.metadata_size,
                evict=request.evict_if_full,
            )
        except (ObjectExistsError, StoreFullError) as error:
            refuse(_code(error))
            return
        self._send(
            CreateReply(request.object_id, self._spec(entry), store_fd=SEGMENT, mmap_size=self._mmap_size)
        )

    def _may_not_create(self, nbytes: int) -> bool:
        client, limits = self._client, self._limits
        return (
            self._exceeds(limits.held, len(client.held) + 1, "objects held")
            or self._exceeds(limits.unsealed, client.unsealed + 1, "unsealed objects")
            or self._exceeds(limits.unsealed_bytes, client.unsealed_bytes + nbytes, "bytes of unsealed objects")
        )

    def _create_and_seal(self, request: CreateAndSealRequest) -> None:
        new = (request.object_id, request.data, request.metadata, request.digest)
        code = ErrorCode.OK
        try:
            self._core.put_many(self._client, [new], evict=request.evict_if_full)
            self._core.release(self._client, request.object_id)
        except (ObjectExistsError, StoreFullError) as error:
            code = _code(error)
        self._send(CreateAndSealReply(code))

    @_in_its_own_task
    async def _create_and_seal_batch(self, request: CreateAndSealBatchRequest) -> None:
        new = list(zip(request.object_ids, request.data, request.metadata, request.digests, strict=True))
        self._send(CreateAndSealBatchReply(await self._put(new, request.evict_if_full)))

    async def _put(self, new: Sequence[New], evict: bool) -> ErrorCode:
        """Create, fill and seal: all or none. Nobody sees any until there is no way back."""
        core, client = self._core, self._client
        created: list[Entry] = []

        def create(some: Sequence[New]) -> None:
            core.fill_many(client, some, created, evict=evict)

        def seal(some: Sequence[New]) -> None:
            core.seal_many((object_id, digest) for object_id, _, _, digest in some)
            core.release_many(client, [object_id for object_id, _, _, _ in some])

        try:
            await self._turns.each(create, _parts(new, FILLED_TOGETHER))
        except (ObjectExistsError, StoreFullError, NotYetError) as error:
            await self._turns.each(self._let_go, [entry.object_id for entry in created])
            if isinstance(error, NotYetError):
                raise
            return _code(error)
        with trio.CancelScope(shield=True):
            await self._turns.each(seal, _parts(new, ENTRIES_PER_MESSAGE))
        return ErrorCode.OK

    def _seal(self, request: SealRequest) -> None:
        code = ErrorCode.OK
        try:
            self._core.seal(request.object_id, request.digest)
        except (ObjectExistsError, ObjectNotFoundError) as error:
            code = _code(error)
        self._send(SealReply(request.object_id, code))

    def _abort(self, request: AbortRequest) -> None:
        self._core.abort(self._client, request.object_id)
        self._send(AbortReply(request.object_id))

    def _release(self, request: ReleaseRequest) -> None:
        self._core.release(self._client, request.object_id)

    def _release_many(self, request: ReleaseManyRequest) -> None:
        self._core.release_many(self._client, request.object_ids)

    def _delete(self, request: DeleteRequest) -> Rest | None:
        if len(request.object_ids) > _FEW:
            return partial(self._delete_in_turns, request)
        errors = tuple(map(self._core.delete, request.object_ids))
        self._send(DeleteReply(request.object_ids, errors))
        return None

    async def _delete_in_turns(self, request: DeleteRequest) -> None:
        errors = tuple(await self._turns.each(self._core.delete, request.object_ids))
        await self._send_long(DeleteReply(request.object_ids, errors), len(errors))

    def _contains(self, request: ContainsRequest) -> None:
        found = self._core.table.find_sealed(request.object_id) is not None
        self._send(ContainsReply(request.object_id, found))

    @_in_its_own_task
    async def _list(self, _: ListRequest) -> None:
        objects = tuple(await self._turns.each(describe, list(self._core.table)))
        await self._send_long(ListReply(objects), len(objects))

    def _inspect(self, request: InspectRequest) -> None:
        self._send(inspect_page(self._core, request.object_ids, request.cursor))

    @_in_its_own_task
    async def _evict(self, request: EvictRequest) -> None:
        # The field is unsigned, but clients put a signed number there, and less than nothing evicts nothing.
        left = request.num_bytes if request.num_bytes < 1 << 63 else 0
        evicted = 0
        while left > 0:
            try:
                some = self._core.evict_some(left)
            except NotYetError as error:
                assert self._spiller is not None
                await self._spiller.make_way(error.entries)
                continue
            except StoreFullError:
                break
            if not some:
                break
            nbytes = sum(entry.size for entry in some)
            evicted += nbytes
            left -= nbytes
            await trio.lowlevel.checkpoint()
        self._send(EvictReply(evicted))

    @_in_its_own_task
    async def _refresh_lru(self, request: RefreshLRURequest) -> None:
        await self._turns.each(self._core.table.refresh, _parts(request.object_ids))
        self._send(RefreshLRUReply())

    def _set_options(self, request: SetOptionsRequest) -> None:
        self._client.label = request.client_name
        granted = self._core.table.grant(self._client, request.output_memory_quota)
        # The protocol's only word for a quota that is refused.
        self._send(SetOptionsReply(ErrorCode.OK if granted else ErrorCode.OUT_OF_MEMORY))

    def _get_debug_string(self, _: GetDebugStringRequest) -> None:
        self._send(GetDebugStringReply(debug_string(self._core)))


_ANSWERS: dict[type[Message], Callable[..., Rest | None]] = {
    ConnectRequest: _Session._connect,
    CreateRequest: _Session._create,
    CreateAndSealRequest: _Session._create_and_seal,
    CreateAndSealBatchRequest: _Session._create_and_seal_batch,
    SealRequest: _Session._seal,
    GetRequest: _Session._get,
    AbortRequest: _Session._abort,
    ReleaseRequest: _Session._release,
    ReleaseManyRequest: _Session._release_many,
    DeleteRequest: _Session._delete,
    ContainsRequest: _Session._contains,
    ListRequest: _Session._list,
    InspectRequest: _Session._inspect,
    EvictRequest: _Session._evict,
    RefreshLRURequest: _Session._refresh_lru,
    SetOptionsRequest: _Session._set_options,
    GetDebugStringRequest: _Session._get_debug_string,
}


def _pack(entry: Entry) -> bytes:
    """Where an object lies, as a reply says it."""
    middle = entry.offset + entry.data_size
    return pack_spec(SEGMENT, entry.offset, entry.data_size, middle, entry.metadata_size, 0)


def _code(error: StoreError) -> ErrorCode:
    if isinstance(error, ObjectExistsError):
        return ErrorCode.OBJECT_EXISTS
    if isinstance(error, ObjectNotFoundError):
        return ErrorCode.OBJECT_NOT_FOUND
    return ErrorCode.OUT_OF_MEMORY


def _parts(items: Sequence[_T], size: int = MANY) -> Iterator[Sequence[_T]]:
    return (items[first : first + size] for first in range(0, len(items), size))
