"""`PeerClient`: ask a plasmastream server for its objects, or to fetch objects from others. On Trio or asyncio.

It speaks version 2 of the protocol, and version 1 with servers that know no other.
"""

import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import anyio
import attrs

from plasmastream import __version__
from plasmastream._errors import (
    LocalProtocolError,
    PeerError,
    RemoteProtocolError,
    StoreConnectionError,
    StoreError,
    TransferError,
)
from plasmastream._object_id import ObjectID
from plasmastream.peer._budget import Budget
from plasmastream.peer._comparison import Comparison
from plasmastream.peer._contents import NewFile, content_of
from plasmastream.peer._fetch import Fetch, Report, Turn
from plasmastream.peer._lanes import Introduction, Lane, Lanes, OldPeerError
from plasmastream.peer._persistence import Persistence
from plasmastream.peer._put_client import Upload
from plasmastream.peer._results import Result, check_results, naming_objects, outcome_of, status_of
from plasmastream.peer._sync_client import SyncCall, SyncProgress
from plasmastream.peer._timeouts import PeerTimeouts
from plasmastream.peer._transport import DEFAULT_PORT, Connect, UnreachableError, connect, format_address
from plasmastream.peer._version1 import NotOldError, Version1Client
from plasmastream.store._object_store import NewObject, ObjectStore, check_ids
from plasmastream.wire.plasma import ObjectInfo
from plasmastream.wire.stream import PeerRequest, Status, TransferKind, describe_status
from plasmastream.wire.stream.v2 import (
    TOKEN_SIZE,
    Hello,
    Limits,
    Listed,
    ListObjects,
    Outcome,
    Progress,
    Stat,
    encoding_of,
    known_encodings,
)

_T = TypeVar("_T")

_MOST_LISTED = 1 << 24
DEFAULT_MAX_BYTES = 256 << 20

_NOTHING: Report = lambda objects, nbytes: None  # noqa: E731


def make_hello(limits: Limits) -> Hello:
    """What a client or server says of itself."""
    return Hello(os.urandom(TOKEN_SIZE), limits.chunk_size, known_encodings(), f"plasmastream {__version__}")


class PeerClient:
    """A client of the plasmastream server at `host` and `port`. Any number of requests may run at once.

    It connects when it has to, and keeps a few connections, which the end of an `async with` block closes, and `aclose`
    does. Until then it belongs to the thread that first used it. `open_peer` makes one that is connected.

    Args:
        host: a name, or an IPv4 or IPv6 address.
        port: its TCP port.
        timeouts: how patient to be.
        limits: what is asked for and accepted, in version 2.
        connect: makes a connection; by TCP, unless something else is given.
        version: 1 or 2, to speak that alone; None to speak 2, or 1 with a server that knows no other.
        hello: what to say of ourselves; made up, unless it is given.
    """

    def __init__(
        self,
        host: str,
        port: int = DEFAULT_PORT,
        *,
        timeouts: PeerTimeouts | None = None,
        limits: Limits | None = None,
        connect: Connect = connect,
        version: int | None = None,
        hello: Hello | None = None,
    ) -> None:
        if not isinstance(host, str) or not isinstance(port, int):
            raise TypeError(f"a peer has a host as text and a port as a number, not {host!r:.80} and {port!r:.80}")
        if version not in (None, 1, 2):
            raise ValueError(f"there are versions 1 and 2, not {version}")
        self.host = host
        self.port = port
        self._timeouts = timeouts or PeerTimeouts()
        self._limits = limits or Limits()
        self._version = version
        introduction = Introduction(
            hello or make_hello(self._limits),
            self._limits,
            self._timeouts.patience,
            self._timeouts.connect,
            may_fall_back=version is None,
        )
        self._lanes = Lanes(host, port, connect, introduction)
        witness = self._lanes if version is None else None
        self._version1 = Version1Client(host, port, timeouts=self._timeouts, connect=connect, witness=witness)

    async def fetch(
        self,
        kind: TransferKind,
        object_ids: Sequence[ObjectID],
        store: ObjectStore,
        *,
        timeout: float | None = None,
        compression: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        budget: Budget | None = None,
        is_claimed: Callable[[ObjectID], bool] = lambda object_id: False,
        turn: Turn = nullcontext,
        on_progress: Report | None = None,
    ) -> list[Result]:
        """Fetch objects into a store, each with an outcome of its own. Broken connections are taken up again.

        Args:
            kind: COPY, or TAKE, whereupon the peer deletes what has arrived here.
            object_ids: which objects, all distinct.
            store: where they go.
            timeout: for all of it, in seconds. Without one, a peer that nobody ever reached is not tried again, and one
                that broke off is given up after `PeerTimeouts.retry` seconds without progress.
            compression: "zstd" or "lz4", where the peer knows it too; None for none.
            max_bytes: bytes of large objects under way at once.
            budget: the same, shared with other calls.
            is_claimed: whether somebody is taking an object from the store, as far as this process knows.
            turn: entered for each round of work, and left while it waits for the next.
            on_progress: called with (objects, bytes) that arrived since the last call.

        Returns:
            What became of each object, in order. With a peer of version 1, all or none of up to 65,536.

        Raises:
            ValueError: there is no such kind.
            LocalProtocolError: an object is named twice, or the compression is not known here.
            StoreError: the store is gone.
        """
        kind = TransferKind(kind)  # or whatever is not TAKE itself would be a COPY
        _check_distinct(object_ids)
        results: list[Result] = []
        persistence = Persistence(self._timeouts.retry, timeout)
        budget = budget or Budget(max_bytes)
        encoding = encoding_of(compression)

        async def fetch_by_version_2(batch: Sequence[ObjectID]) -> list[Result]:
            fetch = Fetch(
                self._lanes,
                store,
                take=kind is TransferKind.TAKE,
                object_ids=batch,
                persistence=persistence,
                encoding=encoding,
                store_timeout=self._timeouts.store,
                budget=budget,
                report=on_progress or _NOTHING,
                is_claimed=is_claimed,
                turn=turn,
            )
            return await fetch.run()

        for first in range(0, len(object_ids), self._limits.max_objects):
            batch = object_ids[first : first + self._limits.max_objects]
            by_version_1 = partial(self._fetch_by_version_1, kind, batch, store, persistence.deadline, on_progress)
            try:
                results += await self._by_either_version(partial(fetch_by_version_2, batch), by_version_1, persistence)
            except UnreachableError as error:
                results += [_result(object_id, error) for object_id in batch]
        return results

    async def copy(
        self,
        object_ids: Sequence[ObjectID],
        store: ObjectStore,
        *,
        timeout: float | None = None,
        compression: str | None = None,
        on_progress: Report | None = None,
    ) -> None:
        """Fetch objects into a store; the peer keeps its own. See `fetch`.

        Raises:
            IncompleteError: not all have arrived; `results` says what became of each.
            UnreachableError: nobody answers there.
            StoreError: the store is gone.
        """
        fetch = partial(self.fetch, timeout=timeout, compression=compression, on_progress=on_progress)
        check_results(await fetch(TransferKind.COPY, object_ids, store), self)

    async def take(
        self,
        object_ids: Sequence[ObjectID],
        store: ObjectStore,
        *,
        timeout: float | None = None,
        compression: str | None = None,
        on_progress: Report | None = None,
    ) -> None:
        """Fetch objects into a store, whereupon the peer deletes its own: as `copy` otherwise.

        At every moment at least one of the two has each object whole and sealed.
        """
        fetch = partial(self.fetch, timeout=timeout, compression=compression, on_progress=on_progress)
        check_results(await fetch(TransferKind.TAKE, object_ids, store), self)

    async def put(
        self,
        objects: Sequence[NewObject | NewFile],
        *,
        timeout: float | None = None,
        compression: str | None = None,
        on_progress: Report | None = None,
    ) -> list[Result]:
        """Put objects from memory, or from files, into the peer's store, each with an outcome of its own.

        What is there already is not put: it is PRESENT where its sizes are the same, without a look at its contents
        (see `compare`), and DIFFERENT otherwise.

        Args:
            objects: what to put, all of different ids; nothing of it may change meanwhile.
            timeout: for all of it, in seconds; see `fetch`.
            compression: see `fetch`.
            on_progress: called with (objects, bytes) that have left since the last call.

        Raises:
            LocalProtocolError: an object is named twice, or the compression is not known here.
            PeerError: the peer speaks version 1 alone.
            PlasmastreamError: a file changed, or became shorter; it was not put.
        """
        _check_distinct([new.object_id for new in objects])
        upload = Upload(
            self._lanes,
            objects,
            persistence=Persistence(self._timeouts.retry, timeout),
            encoding=encoding_of(compression),
            limits=self._limits,
            report=on_progress or _NOTHING,
            prove=self._version1.connect,
        )
        return await upload.run()

    async def compare(self, new: NewObject | NewFile) -> Result:
        """See whether the peer's store has the same bytes under an id; of a large object, only checksums travel.

        Returns:
            PRESENT where all is the same, DIFFERENT, or why nobody can tell: NOT_FOUND, BEING_TAKEN and others.

        Raises:
            PeerError: the peer cannot be reached, broke off, or speaks version 1 alone.
            RemoteProtocolError: it broke the protocol.
            PlasmastreamError: a file became shorter.
        """
        with naming_objects([new.object_id]):
            async with self._lanes.channel(Lane.LARGE, self._version1.connect) as channel:
                persistence = Persistence(self._timeouts.retry, None)
                return await Comparison(channel, new.object_id, content_of(new), persistence).run()

    async def stat(self, object_ids: Sequence[ObjectID]) -> list[ObjectInfo]:
        """Describe objects of the peer's store; those that are not there are left out.

        Raises:
            PeerError: the peer cannot be reached, broke off, or speaks version 1 alone.
            RemoteProtocolError: it broke the protocol.
        """
        check_ids(object_ids)
        found: list[ObjectInfo] = []
        with naming_objects(object_ids):
            for first in range(0, len(object_ids), self._limits.max_objects):
                found += await self._list(Stat(tuple(object_ids[first : first + self._limits.max_objects])))
        return found

    async def list_objects(self) -> list[ObjectInfo]:
        """Describe every object of the peer's store. Raises what `stat` does."""
        with naming_objects([]):
            return await self._list(ListObjects())

    async def sync_each(
        self,
        peer_requests: Sequence[PeerRequest],
        *,
        timeout: float | None = None,
        detach: bool = False,
        max_bytes: int = 0,
        compression: str | None = None,
        on_progress: SyncProgress | None = None,
    ) -> tuple[tuple[Result, ...], ...]:
        """Have the server fetch objects from other peers into its own store, each with an outcome of its own.

        Args:
            peer_requests: what to fetch from whom; no object twice.
            timeout: for all of it, in seconds; None for as long as anything moves.
            detach: what happens when we leave before the end: the server goes on, rather than stopping.
            max_bytes: bytes of large objects under way at once; 0 leaves it to the server.
            compression: see `fetch`; between the server and the peers.
            on_progress: called with the (objects, bytes) of each peer request so far, at least every second.

        Returns:
            For each peer request, what became of each of its objects; with a server of version 1, all the same: it
            fetches none of them where it has one already.

        Raises:
            LocalProtocolError: an object is named twice, or the compression is not known here.
            PeerError: the server cannot be reached, broke off, or refused.
            RemoteProtocolError: it broke the protocol.
        """
        _check_distinct(_ids_of(peer_requests), "a SYNC")
        call = SyncCall(peer_requests, timeout, detach, max_bytes, encoding_of(compression), on_progress)
        with naming_objects(_ids_of(peer_requests)):
            outcomes = await self._sync(call)
        if isinstance(outcomes, _Statuses):
            return tuple(map(_results_of_version_1, peer_requests, outcomes.statuses))
        return outcomes

    async def _sync(self, call: SyncCall) -> "tuple[tuple[Result, ...], ...] | _Statuses":
        persistence = Persistence(self._timeouts.retry, call.timeout)

        async def sync_by_version_1() -> _Statuses:
            return _Statuses(await self._version1.sync(call.peer_requests, timeout=call.timeout))

        return await self._by_either_version(
            lambda: call.run(self._lanes, persistence), sync_by_version_1, persistence
        )

    async def _by_either_version(
        self, by_version_2: Callable[[], Awaitable[_T]], by_version_1: Callable[[], Awaitable[_T]], again: Persistence
    ) -> _T:
        """Do something by version 2; by version 1, where the peer proves that it knows no other.

        Raises:
            UnreachableError: it does not answer in version 1 either, nor later on, if there is time.
        """
        while True:
            try:
                if self._version != 1:
                    return await by_version_2()
            except OldPeerError:
                pass
            try:
                return await by_version_1()
            except NotOldError as error:
                again.failed(error)
            except UnreachableError as error:
                again.failed(error)
                if again.deadline == math.inf or not await again.pause():
                    raise

    async def sync(self, peer_requests: Sequence[PeerRequest], *, timeout: float | None = None) -> tuple[int, ...]:
        """Do what `sync_each` does, with one status byte of version 1 for each peer request.

        Returns:
            A status byte for each peer request, in order: see `plasmastream.wire.stream.Status`.
        """
        with naming_objects(_ids_of(peer_requests)):
            outcomes = await self._sync(SyncCall(peer_requests, timeout))
        return outcomes.statuses if isinstance(outcomes, _Statuses) else tuple(map(status_of, outcomes))

    async def connect(self) -> None:
        """Make sure that the peer can be reached.

        Raises:
            PeerError: it cannot.
        """
        with naming_objects([]):
            try:
                if self._version != 1:
                    async with self._lanes.channel(Lane.SMALL, self._version1.connect):
                        return
            except OldPeerError:
                pass
            await self._version1.connect()

    async def aclose(self) -> None:
        """Close the connections. May be called again; the client may go on to be used."""
        self._lanes.close_idle()
        await self._version1.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def close_idle(self) -> None:
        """Close connections that no request is using."""
        self._lanes.close_idle()

    async def _fetch_by_version_1(
        self,
        kind: TransferKind,
        object_ids: Sequence[ObjectID],
        store: ObjectStore,
        deadline: float,
        on_progress: Report | None,
    ) -> list[Result]:
        fetch = self._version1.take if kind is TransferKind.TAKE else self._version1.copy
        with anyio.CancelScope(deadline=deadline):
            try:
                await fetch(object_ids, store, on_progress=on_progress)
            except (NotOldError, UnreachableError, StoreConnectionError):
                raise
            except (PeerError, RemoteProtocolError, StoreError) as error:
                return [_result(object_id, error) for object_id in object_ids]
            return [Result(object_id, Outcome.DONE) for object_id in object_ids]
        reason = f"the time allowed for it is over, with {self}, which speaks version 1"
        return [Result(object_id, Outcome.OUT_OF_TIME, reason) for object_id in object_ids]

    async def _list(self, request: Stat | ListObjects) -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        async with self._lanes.channel(Lane.SMALL, self._version1.connect) as channel:
            await channel.send(request)
            while (event := await channel.answer()) is not None:
                if isinstance(event, Listed) and len(found) < _MOST_LISTED:
                    found += _infos(event)
                elif not isinstance(event, Progress):
                    raise RemoteProtocolError(f"{channel.peer} answered with a {type(event).__name__}")
        return found

    def __str__(self) -> str:
        return format_address((self.host, self.port))

    def __repr__(self) -> str:
        return f"<PeerClient of {self}>"


@asynccontextmanager
async def open_peer(
    host: str,
    port: int = DEFAULT_PORT,
    *,
    timeouts: PeerTimeouts | None = None,
    limits: Limits | None = None,
    version: int | None = None,
) -> AsyncIterator[PeerClient]:
    """A client of a plasmastream server, connected, and closed when the block is left.

    Raises:
        PeerError: the server cannot be reached.
    """
    async with PeerClient(host, port, timeouts=timeouts, limits=limits, version=version) as client:
        await client.connect()
        yield client


@attrs.frozen
class _Statuses:
    """What became of the peer requests of a SYNC, by version 1."""

    statuses: tuple[int, ...]


def _ids_of(peer_requests: Sequence[PeerRequest]) -> list[ObjectID]:
    for request in peer_requests:
        check_ids(request.object_ids)
    return [object_id for request in peer_requests for object_id in request.object_ids]


def _check_distinct(object_ids: Sequence[ObjectID], what: str = "a request") -> None:
    check_ids(object_ids)
    if len(set(object_ids)) < len(object_ids):
        ((object_id, _),) = Counter(object_ids).most_common(1)
        raise LocalProtocolError(f"{what} names object {object_id} twice")


def _result(object_id: ObjectID, error: PeerError | RemoteProtocolError | StoreError) -> Result:
    outcome = outcome_of(error)
    return Result(object_id, outcome, "" if outcome.is_success else str(error))


def _results_of_version_1(request: PeerRequest, status: int) -> tuple[Result, ...]:
    if status == Status.ALREADY_PRESENT and len(request.object_ids) > 1:  # which says nothing of the others
        reason = "one of the objects is there already, and by version 1 none was fetched"
        return tuple(Result(object_id, Outcome.REFUSED, reason) for object_id in request.object_ids)
    error = TransferError(describe_status(status), status)
    return tuple(_result(object_id, error) for object_id in request.object_ids)


def _infos(listed: Listed) -> list[ObjectInfo]:
    if not len(listed.object_ids) == len(listed.objects) == len(listed.digests):
        raise RemoteProtocolError("a LISTED has lists of different lengths")
    return [
        ObjectInfo(
            object_id=object_id,
            data_size=described.data_size,
            metadata_size=described.metadata_size,
            ref_count=described.ref_count,
            create_time=described.create_time,
            construct_duration=described.construct_duration,
            digest=b"" if described.construct_duration < 0 else digest,
        )
        for object_id, described, digest in zip(listed.object_ids, listed.objects, listed.digests, strict=True)
    ]
