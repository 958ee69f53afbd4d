"""`StoreClient`: any Plasma store behind a Unix socket, on Trio or asyncio. Ours or Apache's own.

A store counts a connection's hold on an object once, however often it is asked, so the client counts its leases
itself and tells the store when the last one goes. All leases belong to one connection. A get that has to wait
occupies its connection until it is answered, and can only be called off by closing it; so it waits on a connection
of its own, which never holds anything longer than it takes the main one to get hold of it too.

When the connection breaks, whoever uses it is told; the next call connects anew.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import anyio
import anyio.lowlevel

from plasmastream._client import (
    AT_ONCE,
    DEFAULT_SOCKET,
    RETRY_FIRST,
    RETRY_LAST,
    Buffer,
    Inspection,
    Lease,
    Leases,
    NewObject,
    Session,
    Ticket,
    batch_request,
    batches,
    check,
    check_ids,
    close_descriptors,
    copy,
    copy_and_digest,
    found_of,
    name_of,
    octets,
    those_asked_for,
    wait_in_milliseconds,
    written_in_place,
)
from plasmastream._errors import StoreConnectionError, StoreError, StoreFullError
from plasmastream._object_id import ObjectID
from plasmastream.store._finishing import checkpoint_if_cancelled, finish, finish_in_thread, notice_cancel
from plasmastream.store._object_store import UnsealedObject
from plasmastream.store._session import StoreConnection
from plasmastream.wire.plasma import (
    AbortReply,
    AbortRequest,
    ConnectReply,
    ConnectRequest,
    ContainsReply,
    ContainsRequest,
    CreateAndSealBatchReply,
    CreateReply,
    CreateRequest,
    DeleteReply,
    DeleteRequest,
    ErrorCode,
    EvictReply,
    EvictRequest,
    GetReply,
    GetRequest,
    InspectReply,
    ListReply,
    ListRequest,
    Message,
    ObjectInfo,
    ObjectSpec,
    ObjectStatus,
    SealReply,
    SealRequest,
    object_digest,
)

_BATCH_BYTES = 4 << 20
_BATCH_OBJECTS = 4096
_DIGEST_IN_THREAD = 1 << 20

_ReplyT = TypeVar("_ReplyT", bound=Message)
_RoomReplyT = TypeVar("_RoomReplyT", CreateReply, CreateAndSealBatchReply)


class StoreClient:
    """An `ObjectStore` over a Unix socket. Made by `open_store`; not for use from several threads.

    Methods may be called from many tasks at once. Besides the errors that `ObjectStore` names, each may raise
    StoreConnectionError when the store does not answer, broke the connection, or the client is closed.
    """

    def __init__(self, path: str, connect_timeout: float, reply_timeout: float) -> None:
        self.path = path
        """The store's socket."""
        self._connect_timeout = connect_timeout
        self._reply_timeout = reply_timeout
        self._lock = anyio.Lock(fast_acquire=True)  # who takes it comes to a checkpoint all the same
        self._session: Session[StoreConnection] | None = None
        self._waiters: list[StoreConnection] = []  # idle ones
        self._waiting: set[StoreConnection] = set()
        self._unsent = anyio.Event()
        self._capacity = 0
        self._closed = False

    @property
    def capacity(self) -> int:
        """Bytes of data and metadata that all objects together may have."""
        return self._capacity

    @asynccontextmanager
    async def create(
        self, object_id: ObjectID, data_size: int, metadata: Buffer = b"", *, timeout: float = 0.0
    ) -> AsyncIterator[UnsealedObject]:
        """Make an object to be written in the `async with` block: see `ObjectStore.create`."""
        session, spec = await self._create(object_id, data_size, len(metadata), timeout)
        middle = spec.data_offset + spec.data_size
        mapping = session.mappings[spec.segment_index]

        tickets: list[Ticket] = []

        async def seal(digest: bytes | None) -> None:
            if digest is None:
                data = mapping.readable[spec.data_offset : middle]
                metadata = mapping.readable[middle : middle + spec.metadata_size]
                if spec.data_size > _DIGEST_IN_THREAD:
                    digest = await finish_in_thread(object_digest, data, metadata)
                else:
                    digest = object_digest(data, metadata)
            reply, _, _ = await self._call(SealRequest(object_id, digest), SealReply, within=session)
            await _check(reply.error, f"object {object_id}")
            # Nobody ran between the reply and here, so no get can have missed it.
            session.connection.unsealed.discard(object_id)
            session.take_in((object_id,), (spec,))
            tickets.append(session.hold(object_id))

        unsealed: UnsealedObject | None = None
        try:
            await notice_cancel()
            data = mapping.writable[spec.data_offset : middle]
            unsealed = UnsealedObject(object_id, data, seal, session.connection.check)
            mapping.writable[middle : middle + spec.metadata_size] = metadata
            yield unsealed
        finally:
            if unsealed is not None:
                unsealed.forget_data()
            if unsealed is not None and unsealed.is_sealed:
                session.give_back(tickets)
                session.settle()
            else:
                await finish(self._abort(session, object_id))

    async def put(self, data: Buffer, metadata: Buffer = b"", *, object_id: ObjectID | None = None) -> ObjectID:
        """Create, write and seal an object in one call.

        Args:
            data: its bytes.
            metadata: its metadata.
            object_id: its name; a random one where none is given.

        Returns:
            Its name.

        Raises:
            TypeError: the data has Python objects in it.
            ObjectExistsError: the id is taken.
            StoreFullError: it does not fit.
        """
        object_id = object_id or ObjectID.random()
        source = octets(data)
        async with self.create(object_id, len(source), metadata) as unsealed:
            if len(source) <= _DIGEST_IN_THREAD:
                digest = copy_and_digest(source, unsealed.data, metadata)
            else:
                digest = await finish_in_thread(copy_and_digest, source, unsealed.data, metadata)
            await unsealed.seal(digest)
        return object_id

    async def put_many(self, objects: Sequence[NewObject], *, timeout: float = 0.0) -> Leases[Lease]:
        """Create and seal many objects, small ones together, larger ones in place: see `ObjectStore.put_many`."""
        deadline = anyio.current_time() + timeout
        put: list[ObjectID] = []
        leases: Leases[Lease] = Leases()
        try:
            for batch in batches(objects, _BATCH_OBJECTS, _BATCH_BYTES):
                put_batch = self._put_in_place if written_in_place(batch) else self._put_together
                found = await put_batch(batch, put, deadline)
                leases += [lease for lease in found if lease is not None]
                if None in found:
                    raise StoreFullError("an object was evicted as soon as it was written: the store is too small")
        except BaseException:
            await self._take_back(put)
            leases.release()
            raise
        return leases

    async def get(
        self, object_ids: Sequence[ObjectID], *, timeout: float | None = 0.0
    ) -> Leases[Lease | None]:
        """Hold many objects in one call: see `ObjectStore.get`."""
        check_ids(object_ids)
        leases = await self._get_now(object_ids)
        if timeout == 0 or None not in leases:
            return leases
        try:
            absent = {object_id: None for object_id, lease in zip(object_ids, leases, strict=True) if not lease}
            found = await self._wait(tuple(absent), timeout, object_ids)
        finally:
            leases.release()
        return found

    async def contains(self, object_ids: Sequence[ObjectID]) -> list[bool]:
        """Tell of each object whether it can be read."""
        check_ids(object_ids)
        found: list[bool] = []
        for first in range(0, len(object_ids), AT_ONCE):
            requests = [ContainsRequest(object_id) for object_id in object_ids[first : first + AT_ONCE]]
            await checkpoint_if_cancelled()
            async with self._lock:
                session = await self._open_session()
                session.settle()
                try:
                    replies = await session.connection.call_all(requests, ContainsReply)
                finally:
                    session.settle()
            await notice_cancel()
            found += [reply.has_object for reply, _ in replies]
        return found

    async def delete(self, object_ids: Sequence[ObjectID]) -> list[ErrorCode]:
        """Delete objects; those in use go when the last lease does: see `ObjectStore.delete`."""
        check_ids(object_ids)
        if not object_ids:
            await anyio.lowlevel.checkpoint()
            return []
        return list((await self._ask(DeleteRequest(tuple(object_ids)), DeleteReply)).errors)

    async def list_objects(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectInfo]:
        """Describe objects, also unsealed ones (whose digest is empty): every one where none is named.

        Returns:
            Of those that are there, in the order asked, or in that of their creation.
        """
        return those_asked_for(object_ids, (await self._ask(ListRequest(), ListReply)).objects)

    async def evict(self, nbytes: int) -> int:
        """Evict the longest unused objects until `nbytes` bytes are free; returns bytes freed."""
        return (await self._ask(EvictRequest(nbytes), EvictReply)).num_bytes

    async def inspect(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectStatus]:
        """Tell who holds objects, and all else that is known of them: of all where none is named.

        Args:
            object_ids: any number; may repeat.

        Returns:
            Of those that are there, in the order asked, or in that of their creation.

        Raises:
            NotSupportedError: the store is Apache's, which does not tell.
        """
        inspection = Inspection(object_ids)
        await anyio.lowlevel.checkpoint()
        while (request := inspection.next_request()) is not None:
            inspection.take(await self._ask(request, InspectReply))
        return inspection.found

    async def _ask(self, request: Message, kind: type[_ReplyT]) -> _ReplyT:
        """Send a request whose reply has no consequences here, and wait for it."""
        reply, _, _ = await self._call(request, kind)
        await notice_cancel()
        return reply

    async def _call(
        self, request: Message, kind: type[_ReplyT], *, within: Session[StoreConnection] | None = None
    ) -> tuple[_ReplyT, dict[int, int], Session[StoreConnection]]:
        """Send a request, wait for its reply, and say in which session that was.

        Where the connection is broken, a new one is made; not `within` a session, whose objects would be unknown there.
        A cancel of asyncio's own that came meanwhile is put off: whoever calls this draws the consequences of the
        reply, and then has it raised by `notice_cancel`.
        """
        await checkpoint_if_cancelled()
        async with self._lock:
            session = within or await self._open_session()
            session.settle()
            try:
                reply, descriptors = await session.connection.call(request, kind)
                return reply, descriptors, session
            except StoreError:
                await notice_cancel()
                raise
            finally:
                session.settle()

    async def _open_session(self) -> Session[StoreConnection]:
        if self._closed:
            raise StoreConnectionError(f"this client of the store at {self.path} is closed")
        if self._session is None or self._session.connection.broken:
            connection = await StoreConnection.open(self.path, self._connect_timeout, self._reply_timeout)
            session = Session(connection, self._note_unsent)
            try:
                if self._closed:
                    raise StoreConnectionError(f"this client of the store at {self.path} is closed")
                reply, _ = await connection.call(ConnectRequest(), ConnectReply)
            except BaseException:
                session.close()
                raise
            self._close_connections()
            self._session = session
            self._capacity = reply.memory_capacity
        return self._session

    async def _create(
        self, object_id: ObjectID, data_size: int, metadata_size: int, timeout: float
    ) -> tuple[Session[StoreConnection], ObjectSpec]:
        size = data_size + metadata_size
        if size > self._capacity:  # Apache's store would empty itself before it says no
            raise StoreFullError(
                f"object {object_id}: {size:,} bytes are more than the store's capacity of {self._capacity:,}"
            )
        request = CreateRequest(object_id, True, data_size, metadata_size)
        deadline = anyio.current_time() + timeout
        what = f"object {object_id} of {size:,} bytes"
        reply, descriptors, session = await self._call_for_room(request, CreateReply, what, deadline)
        assert reply.store_fd is not None  # the parser has checked both
        assert reply.mmap_size is not None
        session.map((reply.store_fd,), (reply.mmap_size,), descriptors)
        session.connection.unsealed.add(object_id)
        return session, reply.spec

    async def _call_for_room(
        self, request: Message, kind: type[_RoomReplyT], what: str, deadline: float
    ) -> tuple[_RoomReplyT, dict[int, int], Session[StoreConnection]]:
        """Ask again while the store is full, until the deadline; the protocol has no way to wait for room."""
        delay = RETRY_FIRST
        while True:
            reply, descriptors, session = await self._call(request, kind)
            remaining = deadline - anyio.current_time()
            if reply.error is not ErrorCode.OUT_OF_MEMORY or not remaining > 0:  # nor for ever, should it be NaN
                await _check(reply.error, what)
                return reply, descriptors, session
            await anyio.sleep(min(delay, remaining))
            delay = min(2 * delay, RETRY_LAST)

    async def _put_together(
        self, batch: Sequence[NewObject], put: list[ObjectID], deadline: float
    ) -> Leases[Lease | None]:
        request = batch_request(batch)
        await self._call_for_room(request, CreateAndSealBatchReply, name_of(batch), deadline)
        put += request.object_ids
        return await self.get(request.object_ids)

    async def _put_in_place(
        self, batch: Sequence[NewObject], put: list[ObjectID], deadline: float
    ) -> Leases[Lease | None]:
        (new,) = batch
        source = octets(new.data)
        timeout = deadline - anyio.current_time()
        async with self.create(new.object_id, len(source), new.metadata, timeout=timeout) as unsealed:
            if len(source) <= _DIGEST_IN_THREAD:
                copy(source, unsealed.data)
            else:
                await finish_in_thread(copy, source, unsealed.data)
            try:
                await unsealed.seal(new.digest)
            finally:  # a cancel that was put off is raised when it is sealed
                if unsealed.is_sealed:
                    put.append(new.object_id)
            return await self.get((new.object_id,))

    async def _abort(self, session: Session[StoreConnection], object_id: ObjectID) -> None:
        try:
            with suppress(StoreConnectionError):  # then the store does so when it hears that nobody writes any more
                await self._call(AbortRequest(object_id), AbortReply, within=session)  # which has a deadline of its own
        finally:
            session.end_writing(object_id)

    async def _take_back(self, object_ids: Sequence[ObjectID]) -> None:
        with suppress(StoreConnectionError):  # then nobody can tell any more
            await finish(self.delete(object_ids))

    async def _get_now(self, object_ids: Sequence[ObjectID]) -> Leases[Lease | None]:
        await checkpoint_if_cancelled()
        async with self._lock:
            session = await self._open_session()
            session.settle()
            unknown = session.unknown(object_ids)
            # Another task may let go, while the store is asked, of what is known now.
            kept = [session.hold(object_id) for object_id in set(object_ids).difference(unknown)]
            try:
                if unknown:
                    reply, descriptors = await session.connection.call(GetRequest(unknown, 0), GetReply)
                    session.map(reply.store_fds, reply.mmap_sizes, descriptors)
                    session.take_in(unknown, reply.specs)
                else:
                    await anyio.lowlevel.checkpoint()
                leases = session.leases(object_ids)
            except BaseException:
                session.forget_unleased(unknown)
                raise
            finally:
                session.give_back(kept)
                session.settle()
        try:
            await notice_cancel()
        except BaseException:
            leases.release()
            raise
        return leases

    async def _wait(
        self, absent: tuple[ObjectID, ...], timeout: float | None, object_ids: Sequence[ObjectID]
    ) -> Leases[Lease | None]:
        waiter = await self._borrow_waiter()
        self._waiting.add(waiter)
        try:
            milliseconds = wait_in_milliseconds(timeout)
            patience = None if milliseconds < 0 else milliseconds / 1000 + waiter.reply_timeout
            reply, descriptors = await waiter.exchange(GetRequest(absent, milliseconds), GetReply, patience)
            close_descriptors(descriptors.values())
            leases = await self._get_now(object_ids)
        except BaseException:
            waiter.close()  # the store forgets the get
            raise
        finally:
            self._waiting.discard(waiter)
        waiter.post(waiter.releases(found_of(absent, reply)))
        try:
            # When this is answered, the releases have been heard: nobody finds an object held by a get that is over.
            await waiter.call(ConnectRequest(), ConnectReply)
            await notice_cancel()
        except StoreConnectionError:
            return leases  # the connection is closed, which is a release, too
        except BaseException:
            waiter.close()
            leases.release()
            raise
        if self._closed:
            waiter.close()
        else:
            self._waiters.append(waiter)
        return leases

    async def _borrow_waiter(self) -> StoreConnection:
        if self._waiters:
            return self._waiters.pop()
        return await StoreConnection.open(self.path, 0.0, self._reply_timeout)

    def _note_unsent(self) -> None:
        self._unsent.set()

    async def _send_the_rest(self) -> None:
        """Send releases that the kernel did not take at once: they have no reply, so no call waits for them."""
        while True:
            await self._unsent.wait()
            async with self._lock:
                self._unsent = anyio.Event()
                if self._session is not None:
                    await self._session.connection.flush()
                    self._session.settle()

    def _close(self) -> None:
        self._closed = True
        for waiter in self._waiting:
            waiter.close()
        self._close_connections()

    def _close_connections(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.close()
        session, self._session = self._session, None
        if session is not None:
            session.close()


async def _check(error: ErrorCode, what: str) -> None:
    """As `check`; a cancel that was put off is raised rather than the error."""
    if error is not ErrorCode.OK:
        await notice_cancel()
        check(error, what)


@asynccontextmanager
async def open_store(
    path: str | os.PathLike[str] = DEFAULT_SOCKET,
    *,
    connect_timeout: float = 2.0,
    reply_timeout: float = 30.0,
) -> AsyncIterator[StoreClient]:
    """Connect to the store at a Unix socket, on Trio or asyncio.

    Leaving the block closes the client: what is unsealed is aborted; what another task still writes, when it leaves its
    block. Leases that were not released, and views, go on to hold their objects: as long as any is left, one connection
    stays open for them. The store is told of each that goes.

    Args:
        path: the store's socket.
        connect_timeout: how long to go on trying, in seconds, while nobody answers there.
        reply_timeout: how long a request may take that needs no waiting, in seconds, before the store is given up.

    Raises:
        StoreConnectionError: no store answers.
    """
    client = StoreClient(os.fspath(path), connect_timeout, reply_timeout)
    failure: BaseException | None = None
    try:
        async with client._lock:
            await client._open_session()
        await notice_cancel()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client._send_the_rest)
            try:
                yield client
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # passed on as it is, and not as a group of one
                failure = error
            tasks.cancel_scope.cancel()
    finally:
        client._close()
    if failure is not None:
        raise failure
