"""`serve_store`: a store's objects for every local process, over a Unix socket, in Apache Plasma's protocol.

A task serves each connection and blocks for nobody else: a client that sends half a message, or does not read its
replies, waits alone. What a client sends is checked before it is believed; where it breaks the protocol, its
connection ends with a line in the log, and what it held is let go. The rules are those of docs/plasma-ipc.md.
"""

import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from plasmastream._errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    RemoteProtocolError,
    StoreError,
    StoreFullError,
)
from plasmastream._listening import accept_connections
from plasmastream._object_id import ObjectID
from plasmastream._os_errors import reason_of
from plasmastream.store._core import StoreCore
from plasmastream.store._debug import debug_string
from plasmastream.store._embedded import describe
from plasmastream.store._subscription import Subscription
from plasmastream.store._table import Client, Entry
from plasmastream.store._transport import UnixTransport, close_descriptors
from plasmastream.wire.plasma import (
    CONNECTION_CLOSED,
    EMPTY_SPEC,
    MAX_BODY_SIZE,
    MISSING_SPEC,
    NEED_DATA,
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
    GetDebugStringReply,
    GetDebugStringRequest,
    GetReply,
    GetRequest,
    ListReply,
    ListRequest,
    Message,
    ObjectSpec,
    RefreshLRUReply,
    RefreshLRURequest,
    ReleaseRequest,
    SealReply,
    SealRequest,
    ServerConnection,
    SetOptionsReply,
    SetOptionsRequest,
)
from plasmastream.wire.plasma import Subscription as Subscribed

_log = logging.getLogger(__name__)

DEFAULT_MAX_CONNECTIONS = 4096

# What `store_fd` and `segment_index` say: an opaque key for the one segment that a store has.
_SEGMENT = 1

_SMALLEST_BODY_LIMIT = 64 << 20
_UNSENT_LIMIT = 256 << 10
_STEPS_PER_CHECKPOINT = 32
_HANG_UP_POLL = 0.5


async def serve_store(
    core: StoreCore,
    path: str,
    *,
    max_connections: int = DEFAULT_MAX_CONNECTIONS,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a store at a Unix socket, until cancelled; only the same user may connect.

    The socket file is removed in the end. Errors of one connection are logged and end that connection only.

    Args:
        core: the store.
        path: the socket to make. One where nobody answers any more is replaced.
        max_connections: at this number the next one waits until another ends.
        task_status: started when clients can connect.

    Raises:
        StoreError: a store is already at `path`, or the socket cannot be made there.
    """
    listener = _listen(path)
    identity = os.stat(path)
    try:
        async with trio.open_nursery() as nursery:
            task_status.started()
            await accept_connections(
                listener, lambda sock: _Session(core, sock, nursery).run(), nursery, max_connections
            )
    finally:
        listener.close()
        with suppress(OSError):  # somebody may have put another socket there
            if os.path.samestat(identity, os.stat(path)):
                os.unlink(path)


def _listen(path: str) -> socket.socket:
    with suppress(OSError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            if _answers(path):
                raise StoreError(f"a store is already being served at {path}")
            os.unlink(path)
        else:
            raise StoreError(f"the store's socket cannot be made at {path}: something that is no socket is there")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(path)
        os.chmod(path, 0o600)  # before listen, so that nobody else gets in meanwhile
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise StoreError(f"the store's socket cannot be made at {path}: {error.strerror or error}") from error
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # its queue is full, so somebody is there
        except OSError:
            return False
        return True


class _Session:
    """One client's connection."""

    def __init__(self, core: StoreCore, sock: socket.socket, nursery: trio.Nursery) -> None:
        pid, self._user, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self._core = core
        self._client = Client(f"process {pid}")
        # What is larger than the store could not be created anyway.
        body_limit = min(MAX_BODY_SIZE, max(_SMALLEST_BODY_LIMIT, core.capacity + (1 << 20)))
        self._wire: ServerConnection[int] = ServerConnection(max_body_size=body_limit)
        self._transport = UnixTransport(sock)
        self._segments = {_SEGMENT: core.heap.segment.fd}
        self._hung_up = False
        self._nursery = nursery
        self._subscription: Subscription | None = None

    async def run(self) -> None:
        """Serve until the client hangs up or breaks the protocol; then let go what it held."""
        try:
            if self._user in (0, os.geteuid()):  # whatever became of the mode of the socket file
                await self._converse()
            else:
                _log.warning("%s of user %d may not use this store", self._client.name, self._user)
        except RemoteProtocolError as error:
            _log.warning("%s broke the protocol, its connection is closed: %s", self._client.name, error)
        except OSError as error:
            _log.info("%s is gone: %s", self._client.name, reason_of(error))
        finally:
            self._core.disconnect(self._client)
            if self._subscription is not None:
                self._subscription.close()
            close_descriptors(self._wire.take_unclaimed_descriptors())
            self._transport.close()

    async def _converse(self) -> None:
        steps = 0
        while not self._hung_up:
            steps += 1
            if steps % _STEPS_PER_CHECKPOINT == 0:  # one read may bring a thousand requests
                await trio.lowlevel.checkpoint()  # a client that is always ready must not keep the others waiting
            event = self._wire.next_event()
            if event is NEED_DATA:
                await self._transport.flush()
                await self._read()
            elif event is CONNECTION_CLOSED:
                return
            elif isinstance(event, GetRequest):
                await self._get(event)
            elif isinstance(event, Message):
                _ANSWERS[type(event)](self, event)
                if self._transport.queued_bytes > _UNSENT_LIMIT:
                    await self._transport.flush()
            else:
                assert isinstance(event, Subscribed)
                self._subscribe(event.descriptor)

    def _subscribe(self, descriptor: int) -> None:
        if self._subscription is not None:
            self._subscription.close()  # a client that subscribes again reads from the new socket only
        try:
            self._subscription = Subscription(self._core, descriptor, self._client.name)
        except OSError as error:
            os.close(descriptor)
            raise RemoteProtocolError(f"notifications cannot be sent there: {error.strerror or error}") from error
        self._nursery.start_soon(self._subscription.run)

    async def _read(self) -> None:
        nbytes, descriptors = await self._transport.receive(self._wire.get_buffer())
        if nbytes:
            self._wire.advance(nbytes, descriptors)
        else:
            close_descriptors(descriptors)
            self._wire.receive_eof()

    def _send(self, message: Message) -> None:
        self._wire.send(message, self._segments)
        self._transport.queue(self._wire.data_to_send())

    def _spec(self, entry: Entry) -> ObjectSpec:
        return ObjectSpec(
            segment_index=_SEGMENT,
            data_offset=entry.offset,
            data_size=entry.data_size,
            metadata_offset=entry.offset + entry.data_size,
            metadata_size=entry.metadata_size,
        )

    @property
    def _mmap_size(self) -> int:
        return self._core.heap.segment.length + 8  # clients map 8 bytes less than is advertised (plasma-ipc 3.3)

    async def _get(self, request: GetRequest) -> None:
        core, client, ids = self._core, self._client, request.object_ids
        if request.timeout_ms:
            ready = trio.Event()
            pending = core.wait_for(client, ids, ready.set)
            if pending is not None:
                try:
                    await self._transport.flush()
                    timeout = max(request.timeout_ms / 1000, 0.0) if request.timeout_ms != -1 else float("inf")
                    with trio.move_on_after(timeout):
                        await self._wait_or_hang_up(ready)
                    if self._hung_up:
                        return
                finally:
                    core.stop_waiting(pending)
        # What has been waited for is held already; what was deleted meanwhile is held until its release.
        entries = core.get(client, ids)
        used = any(entry is not None for entry in entries)
        self._send(
            GetReply(
                object_ids=ids,
                specs=tuple(MISSING_SPEC if entry is None else self._spec(entry) for entry in entries),
                store_fds=(_SEGMENT,) if used else (),
                mmap_sizes=(self._mmap_size,) if used else (),
            )
        )
        await self._transport.flush()

    async def _wait_or_hang_up(self, ready: trio.Event) -> None:
        """Wait for a get's objects, or until the client hangs up; what it sends meanwhile is kept for later."""

        async def watch() -> None:
            try:
                while len(self._wire.get_buffer()):
                    nbytes, descriptors = await self._transport.receive(self._wire.get_buffer())
                    if not nbytes:
                        close_descriptors(descriptors)
                        break
                    self._wire.advance(nbytes, descriptors)
                else:  # enough was read ahead, and an end behind it does not show by reading
                    while not self._transport.has_hung_up():  # noqa: ASYNC110  (which is no event to Trio)
                        await trio.sleep(_HANG_UP_POLL)
            except OSError as error:
                _log.info("%s is gone: %s", self._client.name, error.strerror or error)
            self._hung_up = True
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await ready.wait()
            nursery.cancel_scope.cancel()

    def _connect(self, _: ConnectRequest) -> None:
        self._send(ConnectReply(self._core.capacity))

    def _create(self, request: CreateRequest) -> None:
        def refuse(code: ErrorCode) -> None:
            self._send(CreateReply(request.object_id, EMPTY_SPEC, code))

        if request.device_num:
            refuse(ErrorCode.OUT_OF_MEMORY)  # what a build without CUDA answers
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
            CreateReply(request.object_id, self._spec(entry), store_fd=_SEGMENT, mmap_size=self._mmap_size)
        )

    def _create_and_seal(self, request: CreateAndSealRequest) -> None:
        new = (request.object_id, memoryview(request.data), memoryview(request.metadata), request.digest)
        self._send(CreateAndSealReply(self._put([new], request.evict_if_full)))

    def _create_and_seal_batch(self, request: CreateAndSealBatchRequest) -> None:
        columns = (request.object_ids, request.data, request.metadata, request.digests)
        new = [
            (object_id, memoryview(data), memoryview(metadata), digest)
            for object_id, data, metadata, digest in zip(*columns, strict=True)
        ]
        self._send(CreateAndSealBatchReply(self._put(new, request.evict_if_full)))

    def _put(self, new: Sequence[tuple[ObjectID, memoryview, memoryview, bytes]], evict: bool) -> ErrorCode:
        try:
            entries = self._core.put_many(self._client, new, evict=evict)
        except (ObjectExistsError, StoreFullError) as error:
            return _code(error)
        for entry in entries:
            self._core.release(self._client, entry.object_id)
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

    def _delete(self, request: DeleteRequest) -> None:
        errors = tuple(self._core.delete(object_id) for object_id in request.object_ids)
        self._send(DeleteReply(request.object_ids, errors))

    def _contains(self, request: ContainsRequest) -> None:
        found = self._core.table.find_sealed(request.object_id) is not None
        self._send(ContainsReply(request.object_id, found))

    def _list(self, _: ListRequest) -> None:
        self._send(ListReply(tuple(describe(entry) for entry in self._core.table)))

    def _evict(self, request: EvictRequest) -> None:
        # The field is unsigned, but clients put a signed number there, and less than nothing evicts nothing.
        nbytes = request.num_bytes if request.num_bytes < 1 << 63 else 0
        self._send(EvictReply(self._core.evict(nbytes)))

    def _refresh_lru(self, request: RefreshLRURequest) -> None:
        self._core.table.refresh(request.object_ids)
        self._send(RefreshLRUReply())

    def _set_options(self, request: SetOptionsRequest) -> None:
        self._client.label = request.client_name
        granted = self._core.table.grant(self._client, request.output_memory_quota)
        # The protocol's only word for a quota that is refused.
        self._send(SetOptionsReply(ErrorCode.OK if granted else ErrorCode.OUT_OF_MEMORY))

    def _get_debug_string(self, _: GetDebugStringRequest) -> None:
        self._send(GetDebugStringReply(debug_string(self._core)))


_ANSWERS: dict[type[Message], Callable[..., None]] = {
    ConnectRequest: _Session._connect,
    CreateRequest: _Session._create,
    CreateAndSealRequest: _Session._create_and_seal,
    CreateAndSealBatchRequest: _Session._create_and_seal_batch,
    SealRequest: _Session._seal,
    AbortRequest: _Session._abort,
    ReleaseRequest: _Session._release,
    DeleteRequest: _Session._delete,
    ContainsRequest: _Session._contains,
    ListRequest: _Session._list,
    EvictRequest: _Session._evict,
    RefreshLRURequest: _Session._refresh_lru,
    SetOptionsRequest: _Session._set_options,
    GetDebugStringRequest: _Session._get_debug_string,
}


def _code(error: StoreError) -> ErrorCode:
    if isinstance(error, ObjectExistsError):
        return ErrorCode.OBJECT_EXISTS
    if isinstance(error, ObjectNotFoundError):
        return ErrorCode.OBJECT_NOT_FOUND
    return ErrorCode.OUT_OF_MEMORY
