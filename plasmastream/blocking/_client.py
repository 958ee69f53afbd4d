"""What programs hold of a store: objects being written, and the client, safe for threads, interrupts and forks."""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias, TypeVar
from weakref import WeakSet

from plasmastream._client import (
    AT_ONCE,
    DEFAULT_SOCKET,
    RETRY_FIRST,
    RETRY_LAST,
    Buffer,
    Inspection,
    Lease,
    Leases,
    Mapping,
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
from plasmastream.blocking._connection import StoreConnection
from plasmastream.blocking._unsealed import UnsealedObject
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

if TYPE_CHECKING:
    from typing_extensions import Buffer as AnyBuffer

_BATCH_BYTES = 4 << 20
_BATCH_OBJECTS = 4096

_ReplyT = TypeVar("_ReplyT", bound=Message)
_T = TypeVar("_T")


_Session: TypeAlias = Session[StoreConnection]


class StoreClient:
    """A store behind a Unix socket, ours or Apache's own. Made by `open_store`; may be used from several threads.

    Methods have the names and the meaning that `plasmastream.store.ObjectStore` gives them. Besides the errors named
    there, each may raise StoreConnectionError when the store does not answer, broke the connection, or the client is
    closed. Leaving its `with` block closes it.
    """

    def __init__(self, path: str, connect_timeout: float, reply_timeout: float) -> None:
        self.path = path
        """The store's socket."""
        self._connect_timeout = connect_timeout
        self._reply_timeout = reply_timeout
        self._lock = Lock()
        self._session: _Session | None = None
        self._waiters: list[StoreConnection] = []  # idle ones
        self._waiting: set[StoreConnection] = set()
        self._capacity = 0
        self._closed = False
        _clients.add(self)

    @property
    def capacity(self) -> int:
        """Bytes of data and metadata that all objects together may have."""
        if not self._capacity:
            self.connect()
        return self._capacity

    def connect(self) -> None:
        """Connect, unless that was done before. Every other method does so where it has to.

        Raises:
            StoreConnectionError: no store answers, or the client is closed.
        """
        with self._lock:
            self._open_session()

    def close(self) -> None:
        """Close the connections: other threads that wait are told. May be called again.

        What is unsealed is aborted; what another thread still writes, when it leaves its `with` block.
        Leases that were not released, and views, go on to hold their objects: as long as any is left, one connection
        stays open for them. The store is told of each that goes.
        """
        with self._lock:
            self._closed = True
            for waiter in self._waiting:
                waiter.hang_up()
            session, self._session = self._session, None
            self._close_connections(session)
        if session is not None:
            self._settle(session)

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[str, float, float]]:
        return type(self), (self.path, self._connect_timeout, self._reply_timeout)

    def __repr__(self) -> str:
        return f"<StoreClient of {self.path}{', closed' if self._closed else ''}>"

    def create(
        self, object_id: ObjectID, data_size: int, metadata: Buffer = b"", *, timeout: float = 0.0
    ) -> AbstractContextManager[UnsealedObject]:
        """Make an object of `data_size` bytes, to be written and sealed within the `with` block.

        Leaving the block unsealed, by whatever way, aborts: it never was. A sealed object is held till the block
        is left.

        Args:
            object_id: its name; must be new in this store.
            data_size: bytes of data.
            metadata: its metadata, whole.
            timeout: how long to wait for room, in seconds, where the store is full of objects in use.

        Raises:
            ObjectExistsError: the id is taken.
            StoreFullError: no room in time. What is larger than the store fails at once and evicts nothing.
        """
        return self._writing(object_id, data_size, metadata, timeout)

    def put(
        self, data: "AnyBuffer", metadata: Buffer = b"", *, object_id: ObjectID | None = None
    ) -> ObjectID:
        """Create, write and seal an object in one call.

        Args:
            data: its bytes: anything that shows its memory, such as a numpy array.
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
        with self.create(object_id, len(source), metadata) as unsealed:
            unsealed.seal(copy_and_digest(source, unsealed.data, metadata))
        return object_id

    def put_many(self, objects: Sequence[NewObject], *, timeout: float = 0.0) -> Leases[Lease]:
        """Create and seal many objects: all of them or none.

        Small ones travel together, larger ones are written in place one after the other. No size is too large.

        Args:
            objects: what to put.
            timeout: how long to wait for room, in seconds, where the store is full of objects in use.

        Returns:
            A lease for each, in the order given: a list, which can be released as a whole.

        Raises:
            ObjectExistsError: an id is taken, or given twice.
            StoreFullError: they do not fit together. In both cases none of them is there afterwards.
            KeyboardInterrupt: then those that the store was just being asked to seal may be there.
        """
        deadline = time.monotonic() + timeout
        put: list[ObjectID] = []
        leases: Leases[Lease] = Leases()
        try:
            for batch in batches(objects, _BATCH_OBJECTS, _BATCH_BYTES):
                put_batch = self._put_in_place if written_in_place(batch) else self._put_together
                found = put_batch(batch, put, deadline)
                leases += [lease for lease in found if lease is not None]
                if None in found:
                    raise StoreFullError("an object was evicted as soon as it was written: the store is too small")
        except BaseException:
            with suppress(StoreConnectionError):  # then nobody can tell any more
                self.delete(put)
            leases.release()
            raise
        return leases

    def get(self, object_ids: Sequence[ObjectID], *, timeout: float | None = 0.0) -> Leases[Lease | None]:
        """Hold many objects in one call.

        Args:
            object_ids: any number; may repeat.
            timeout: how long to wait for those that are not there, in seconds; 0 asks for what is there now,
                None waits for ever.

        Returns:
            In the order asked: a lease each, or None for what could not be read in time. A list, which can be released
            as a whole.
        """
        check_ids(object_ids)
        leases = self._get_now(object_ids)
        if timeout == 0 or None not in leases:
            return leases
        try:
            absent = {object_id: None for object_id, lease in zip(object_ids, leases, strict=True) if not lease}
            return self._wait(tuple(absent), timeout, object_ids)
        finally:
            leases.release()

    def contains(self, object_ids: Sequence[ObjectID]) -> list[bool]:
        """Tell of each object whether it can be read."""
        check_ids(object_ids)
        found: list[bool] = []
        for first in range(0, len(object_ids), AT_ONCE):
            requests = [ContainsRequest(object_id) for object_id in object_ids[first : first + AT_ONCE]]
            replies = self._turn(lambda session: session.connection.call_all(requests, ContainsReply))  # noqa: B023
            found += [reply.has_object for reply, _ in replies]
        return found

    def delete(self, object_ids: Sequence[ObjectID]) -> list[ErrorCode]:
        """Delete objects; those in use go when the last lease does.

        Returns:
            In the order asked: OK, OBJECT_NOT_FOUND, or (remembered) OBJECT_NOT_SEALED, OBJECT_IN_USE.
        """
        check_ids(object_ids)
        return list(self._call(DeleteRequest(tuple(object_ids)), DeleteReply).errors) if object_ids else []

    def list_objects(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectInfo]:
        """Describe objects, also unsealed ones (whose digest is empty): every one where none is named.

        Returns:
            Of those that are there, in the order asked, or in that of their creation.
        """
        return those_asked_for(object_ids, self._call(ListRequest(), ListReply).objects)

    def inspect(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectStatus]:
        """Tell who holds objects, and all else that is known of them: of all where none is named.

        Args:
            object_ids: any number; may repeat.

        Returns:
            Of those that are there, in the order asked, or in that of their creation.

        Raises:
            NotSupportedError: the store is Apache's, which does not tell.
        """
        inspection = Inspection(object_ids)
        while (request := inspection.next_request()) is not None:
            inspection.take(self._call(request, InspectReply))
        return inspection.found

    def evict(self, nbytes: int) -> int:
        """Evict the longest unused objects until `nbytes` bytes are free or none is left; returns bytes freed."""
        return self._call(EvictRequest(nbytes), EvictReply).num_bytes

    # One request at a time

    def _turn(self, work: Callable[[_Session], _T], within: _Session | None = None) -> _T:
        """Have the connection for one request and all that follows from it: as a whole, or it is given up.

        Where it is broken, a new one is made; not `within` a session, whose objects would be unknown there.
        A function, and not a context manager: an interrupt while one is entered would leave the lock taken.
        """
        session = within
        try:
            with self._lock:
                session = session or self._open_session()
                session.settle()
                try:
                    return work(session)
                except StoreError:
                    raise
                except BaseException as error:
                    if session.connection.is_busy or not isinstance(error, Exception):
                        session.connection.fail_interrupted(error)
                    raise
                finally:
                    session.connection.is_busy = False
                    session.settle()
        finally:
            if session is not None:
                self._settle(session)

    def _settle(self, session: _Session) -> None:
        """Act on leases that have ended; where the lock is taken, whoever has it does so when they give it back."""
        has_lock = True
        while has_lock and session.has_notes:
            taken: list[bool] = []
            try:
                taken.extend(map(self._lock.acquire, (False,)))  # in one step, so that no interrupt comes between
                (has_lock,) = taken
                if has_lock:
                    session.settle()
            finally:
                if True in taken:
                    self._lock.release()

    def _call(self, request: Message, kind: type[_ReplyT]) -> _ReplyT:
        return self._turn(lambda session: session.connection.call(request, kind)[0])

    def _open_session(self) -> _Session:
        if self._closed:
            raise StoreConnectionError(f"this client of the store at {self.path} is closed")
        old = self._session
        if old is not None and not old.connection.broken:
            return old
        connection = StoreConnection.open(self.path, self._connect_timeout, self._reply_timeout)
        try:
            reply, _ = connection.call(ConnectRequest(), ConnectReply)
        except BaseException:
            connection.close()
            raise
        connection.is_busy = False
        self._close_connections(old)
        self._session = Session(connection, on_release=self._settle)
        self._capacity = reply.memory_capacity
        return self._session

    def _close_connections(self, session: _Session | None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.close()
        if session is not None:
            session.close()

    # Writing

    @contextmanager
    def _writing(
        self, object_id: ObjectID, data_size: int, metadata: Buffer, timeout: float
    ) -> Iterator[UnsealedObject]:
        size = data_size + len(metadata)
        if size > self.capacity:  # Apache's store would empty itself before it says no
            raise StoreFullError(
                f"object {object_id}: {size:,} bytes are more than the store's capacity of {self.capacity:,}"
            )
        request = CreateRequest(object_id, True, data_size, len(metadata))
        created: list[tuple[_Session, Mapping, ObjectSpec]] = []  # within the turn, so that no interrupt comes between
        tickets: list[Ticket] = []
        unsealed: UnsealedObject | None = None

        def seal(unsealed: UnsealedObject, digest: bytes | None) -> None:
            ((session, mapping, spec),) = created
            middle = spec.data_offset + data_size
            if digest is None:
                data = mapping.readable[spec.data_offset : middle]
                digest = object_digest(data, mapping.readable[middle : spec.data_offset + size])
            request = SealRequest(object_id, digest)

            def work(session: _Session) -> None:
                reply, _ = session.connection.call(request, SealReply)
                check(reply.error, f"object {object_id}")
                session.connection.unsealed.discard(object_id)
                session.take_in((object_id,), (spec,))
                tickets.append(session.hold(object_id))
                unsealed.is_sealed = True

            self._turn(work, session)

        try:
            what = f"object {object_id} of {size:,} bytes"
            self._when_there_is_room(partial(self._create, request, what, created), time.monotonic() + timeout)
            ((_, mapping, spec),) = created
            middle = spec.data_offset + data_size
            unsealed = UnsealedObject(object_id, mapping.writable[spec.data_offset : middle], seal)
            mapping.writable[middle : spec.data_offset + size] = metadata
            yield unsealed
        finally:
            for session, _, _ in created:
                if unsealed is not None and unsealed.is_sealed:
                    session.give_back(tickets)
                    self._settle(session)
                else:
                    if unsealed is not None:
                        unsealed.forget_data()
                    self._abort(session, object_id)

    def _create(
        self, request: CreateRequest, what: str, created: list[tuple[_Session, Mapping, ObjectSpec]]
    ) -> None:
        def work(session: _Session) -> None:
            reply, descriptors = session.connection.call(request, CreateReply)
            check(reply.error, what)
            assert reply.store_fd is not None  # the parser has checked both
            assert reply.mmap_size is not None
            session.map((reply.store_fd,), (reply.mmap_size,), descriptors)
            created.append((session, session.mappings[reply.store_fd], reply.spec))
            session.connection.unsealed.add(request.object_id)

        self._turn(work)

    def _put_together(self, batch: Sequence[NewObject], put: list[ObjectID], deadline: float) -> Leases[Lease | None]:
        request, what = batch_request(batch), name_of(batch)
        self._when_there_is_room(lambda: check(self._call(request, CreateAndSealBatchReply).error, what), deadline)
        put += request.object_ids
        return self.get(request.object_ids)

    def _put_in_place(self, batch: Sequence[NewObject], put: list[ObjectID], deadline: float) -> Leases[Lease | None]:
        (new,) = batch
        source = octets(new.data)
        timeout = deadline - time.monotonic()
        with self._writing(new.object_id, len(source), new.metadata, timeout) as unsealed:
            copy(source, unsealed.data)
            try:
                unsealed.seal(new.digest)
            finally:
                if unsealed.is_sealed:
                    put.append(new.object_id)
            return self.get((new.object_id,))

    def _abort(self, session: _Session, object_id: ObjectID) -> None:
        is_told = False

        def work(session: _Session) -> None:
            nonlocal is_told
            session.connection.call(AbortRequest(object_id), AbortReply)
            session.connection.unsealed.discard(object_id)  # before another thread may create it anew
            is_told = True

        try:
            with suppress(StoreConnectionError):  # then the store does so when it hears that nobody writes any more
                self._turn(work, session)
        finally:
            if not is_told:
                session.end_writing(object_id)

    @staticmethod
    def _when_there_is_room(ask: Callable[[], None], deadline: float) -> None:
        """Ask again while the store is full, until the deadline; the protocol has no way to wait for room."""
        delay = RETRY_FIRST
        while True:
            try:
                ask()
                return
            except StoreFullError:
                remaining = deadline - time.monotonic()
                if not remaining > 0:  # nor for ever, should it be NaN
                    raise
            time.sleep(min(delay, remaining))
            delay = min(2 * delay, RETRY_LAST)

    # Reading

    def _get_now(self, object_ids: Sequence[ObjectID]) -> Leases[Lease | None]:
        def work(session: _Session) -> Leases[Lease | None]:
            unknown = session.unknown(object_ids)
            if unknown:
                reply, descriptors = session.connection.call(GetRequest(unknown, 0), GetReply)
                session.map(reply.store_fds, reply.mmap_sizes, descriptors)
                session.take_in(unknown, reply.specs)
            return session.leases(object_ids)

        return self._turn(work)

    def _wait(
        self, absent: tuple[ObjectID, ...], timeout: float | None, object_ids: Sequence[ObjectID]
    ) -> Leases[Lease | None]:
        """Wait for objects on a connection that holds them only until the main one does."""
        milliseconds = wait_in_milliseconds(timeout)
        patience = math.inf if milliseconds < 0 else milliseconds / 1000 + self._reply_timeout
        with self._lock:
            waiter = self._borrow_waiter()
            self._waiting.add(waiter)
        try:
            reply, descriptors = waiter.call(GetRequest(absent, milliseconds), GetReply, patience)
            close_descriptors(descriptors.values())
            leases = self._get_now(object_ids)
            waiter.post(waiter.releases(found_of(absent, reply)))
            with suppress(StoreConnectionError):
                # When this is answered, the releases have been heard: no object is held by a get that is over.
                waiter.call(ConnectRequest(), ConnectReply)
                waiter.is_busy = False
        finally:
            with self._lock:
                self._waiting.discard(waiter)
                if waiter.is_busy or waiter.broken or self._closed:
                    waiter.close()  # the store forgets the get, and releases what came
                else:
                    self._waiters.append(waiter)
        return leases

    def _borrow_waiter(self) -> StoreConnection:
        if self._closed:
            raise StoreConnectionError(f"this client of the store at {self.path} is closed")
        return self._waiters.pop() if self._waiters else StoreConnection.open(self.path, 0.0, self._reply_timeout)

    def _leave_to_parent(self) -> None:
        """After a fork, in the child: let go of what is the parent's, without a word to the store."""
        why = f"this client of the store at {self.path} was connected before a fork, by the parent"
        self._lock = Lock()
        for waiter in (*self._waiters, *self._waiting):
            waiter.close(why)
        self._waiters, self._waiting = [], set()
        session, self._session = self._session, None
        if session is not None:
            session.connection.unsealed.clear()
            session.connection.close(why)
            session.close()


def open_store(
    path: str | os.PathLike[str] = DEFAULT_SOCKET, *, connect_timeout: float = 2.0, reply_timeout: float = 30.0
) -> StoreClient:
    """Connect to the store at a Unix socket; leaving the client's `with` block, or `close`, ends that.

    Views of objects that were got stay valid after that: see `Lease`.

    Args:
        path: the store's socket.
        connect_timeout: how long to go on trying, in seconds, while nobody answers there.
        reply_timeout: how long a request may take that needs no waiting, in seconds, before the store is given up.

    Raises:
        StoreConnectionError: no store answers.
    """
    client = StoreClient(os.fspath(path), connect_timeout, reply_timeout)
    client.connect()
    return client


_clients: WeakSet[StoreClient] = WeakSet()


def _leave_all_to_parent() -> None:
    for client in list(_clients):
        client._leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)
