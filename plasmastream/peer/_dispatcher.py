"""SYNC: fetch objects from several peers at once, each request to a peer with an outcome of its own."""

import logging
import math
import resource
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

import anyio
import attrs
import trio

from plasmastream._errors import (
    ObjectExistsError,
    PeerError,
    PlasmastreamError,
    RemoteProtocolError,
    StoreError,
    TransferError,
)
from plasmastream._object_id import ObjectID
from plasmastream.peer._budget import Budget
from plasmastream.peer._client import PeerClient
from plasmastream.peer._fetch import Report
from plasmastream.peer._results import Result
from plasmastream.peer._timeouts import PeerTimeouts
from plasmastream.peer._transport import Connect
from plasmastream.peer._version1 import Version1Client
from plasmastream.store._object_store import ObjectStore
from plasmastream.wire.stream import PeerRequest, Status, TransferKind
from plasmastream.wire.stream.v2 import Encoding, Fetch, Hello, Limits, Outcome

_log = logging.getLogger(__name__)

_MAX_FETCHES = 256
_MAX_CONNECTED, _MAX_PEERS = 64, 1024
_IDLE = 60.0
_COMPRESSIONS = {int(encoding): encoding.name.lower() for encoding in (Encoding.ZSTD, Encoding.LZ4)}


class Claims:
    """Objects that something is being done with, each claimed once at most.

    A claim is given back by who made it, and by nobody else: a request that is refused clears no one's marks.
    """

    def __init__(self) -> None:
        self._claimed: dict[ObjectID, trio.Event] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is claimed."""
        return not self._claimed

    def overlap(self, object_ids: Iterable[ObjectID]) -> bool:
        """Whether any of these objects is claimed."""
        return not self._claimed.keys().isdisjoint(object_ids)

    def unclaimed(self, object_ids: Iterable[ObjectID]) -> list[ObjectID]:
        """Those of these objects that are not claimed."""
        return [object_id for object_id in object_ids if object_id not in self._claimed]

    async def wait(self, object_ids: Iterable[ObjectID]) -> None:
        """Wait until one of the claims to these objects has been given back."""
        for object_id in object_ids:
            if object_id in self._claimed:
                await self._claimed[object_id].wait()
                return

    def claim(self, object_ids: Sequence[ObjectID]) -> "_Claim":
        """Claim objects of which none is claimed, for the time of a `with` block."""
        return _Claim(self._claimed, object_ids)


@attrs.frozen
class _Claim:
    _claimed: dict[ObjectID, trio.Event]
    _object_ids: Sequence[ObjectID]
    _over: trio.Event = attrs.Factory(trio.Event)

    def __enter__(self) -> None:
        for object_id in self._object_ids:
            self._claimed[object_id] = self._over

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for object_id in self._object_ids:
            del self._claimed[object_id]
        self._over.set()


class Dispatcher:
    """Carries out the peer requests of SYNCs into one store.

    Args:
        store: where the objects go.
        timeouts: how patient to be with peers.
        hello: what this server says of itself.
        limits: what is asked for and accepted, in version 2.
        connect: makes connections to peers.
        version: what to speak with them in SYNCs of version 2: see `PeerClient`.
    """

    def __init__(
        self,
        store: ObjectStore,
        timeouts: PeerTimeouts,
        hello: Hello,
        limits: Limits,
        connect: Connect,
        version: int | None = None,
    ) -> None:
        self._store = store
        self._timeouts = timeouts
        self._hello = hello
        self._limits = limits
        self._connect = connect
        self._version = version
        self._receiving = Claims()
        self.is_claimed: Callable[[ObjectID], bool] = lambda object_id: False
        """Whether a client of this server is taking an object from it."""
        most = _max_fetches()
        self._fetches = anyio.Semaphore(most, max_value=most, fast_acquire=True)
        self._peers: dict[tuple[str, int], _Peer] = {}

    async def sync(self, peer_requests: Sequence[PeerRequest]) -> list[int]:
        """Carry out all peer requests of version 1 at once, as far as descriptors allow.

        Returns:
            When the last one is done: a status byte for each, in order. Nothing that goes wrong with one raises, or
            touches another.
        """
        statuses: list[int] = [Status.PEER_REQUEST_CRASHED] * len(peer_requests)

        async def carry_out(index: int, request: PeerRequest) -> None:
            try:
                statuses[index] = await self._fetch_by_version_1(request)
            except Exception:  # which is what the status is for
                _log.exception("a peer request ended by an error that nobody expected; please report it")

        if len(peer_requests) == 1:
            await carry_out(0, peer_requests[0])
            return statuses
        async with trio.open_nursery() as nursery:
            for index, request in enumerate(peer_requests):
                nursery.start_soon(carry_out, index, request)
        return statuses

    async def fetch(
        self, request: Fetch, *, timeout: float | None, encoding: int, budget: Budget, report: Report
    ) -> list[Result]:
        """Carry out a peer request of version 2. What another one is fetching is waited for, not fetched twice.

        Args:
            request: what to fetch from whom.
            timeout: for all of it, in seconds; None as long as anything moves.
            encoding: what payloads may be encoded with.
            budget: bytes under way at once.
            report: told what arrives.

        Returns:
            What became of each object, in order.

        Raises:
            PlasmastreamError: none of them could be asked for.
        """
        results: dict[ObjectID, Result] = {}
        left: Sequence[ObjectID] = request.object_ids
        deadline = math.inf if timeout is None else trio.current_time() + timeout
        while left:
            ours = self._receiving.unclaimed(left)
            if not ours:
                with trio.CancelScope(deadline=deadline) as waiting:
                    await self._receiving.wait(left)
                if waiting.cancelled_caught:
                    break
                continue
            with self._receiving.claim(ours):
                patience = None if timeout is None else max(0.0, deadline - trio.current_time())
                fetched = await self._fetch(request, ours, patience, encoding, budget, report)
            if len(fetched) == len(request.object_ids):
                return fetched
            results |= {result.object_id: result for result in fetched}
            left = [object_id for object_id in left if object_id not in results]
        late = Outcome.OUT_OF_TIME, "another request was fetching it until the time was over"
        return [results.get(object_id) or Result(object_id, *late) for object_id in request.object_ids]

    async def _fetch(
        self,
        request: Fetch,
        object_ids: Sequence[ObjectID],
        timeout: float | None,
        encoding: int,
        budget: Budget,
        report: Report,
    ) -> list[Result]:
        kind = TransferKind.TAKE if request.take else TransferKind.COPY
        compression = _COMPRESSIONS.get(encoding)
        address = request.host, request.port
        peer = self._peer(address)
        peer.users += 1
        try:
            results = await peer.client.fetch(
                kind,
                object_ids,
                self._store,
                timeout=timeout,
                compression=compression if compression in self._hello.features else None,
                budget=budget,
                is_claimed=self.is_claimed,
                turn=lambda: self._fetches,
                on_progress=report,
            )
        finally:
            peer.users -= 1
            peer.used_at = trio.current_time()
            self._peers[address] = self._peers.pop(address)  # the last one used is the last one
            if len(self._peers) > _MAX_CONNECTED:
                self._close_idle(_MAX_CONNECTED)
        failed = [result for result in results if not result.is_success]
        if failed:
            count = len(results)
            _log.warning("%s of %d of %d objects from %s: %s", kind.name, len(failed), count, peer.client, failed[0])
        return results

    def _peer(self, address: tuple[str, int]) -> "_Peer":
        """A peer, whose connections are kept for the next request."""
        peer = self._peers.get(address)
        if peer is None:
            client = PeerClient(
                *address,
                timeouts=self._timeouts,
                limits=self._limits,
                connect=self._connect,
                version=self._version,
                hello=self._hello,
            )
            peer = self._peers[address] = _Peer(client)
        return peer

    def _close_idle(self, most: int) -> None:
        """Close connections to peers that nobody has used for a while, and to all but the last so many.

        What is known of a peer stays longer: who has spoken version 2 must not be taken for one that does not know it.
        """
        before = trio.current_time() - _IDLE
        for number, (address, peer) in enumerate(reversed(tuple(self._peers.items()))):
            if not peer.users and (number >= most or peer.used_at <= before):
                peer.client.close_idle()
                if number >= _MAX_PEERS:
                    del self._peers[address]

    async def run(self) -> None:
        """Close connections to peers when they have not been used for a while, and all of them in the end."""
        try:
            while True:
                await trio.sleep(_IDLE / 2)
                self._close_idle(_MAX_CONNECTED)
        finally:
            self.close()

    def close(self) -> None:
        """Close all connections to peers that no request is using."""
        self._close_idle(0)

    async def _fetch_by_version_1(self, request: PeerRequest) -> int:
        if self._receiving.overlap(request.object_ids):
            return Status.ALREADY_RECEIVING
        with self._receiving.claim(request.object_ids):
            client = Version1Client(
                str(request.address), request.port, timeouts=self._timeouts, connect=self._connect
            )
            try:
                if any(await self._store.contains(request.object_ids)):
                    return Status.ALREADY_PRESENT
                fetch = client.take if request.kind is TransferKind.TAKE else client.copy
                async with self._fetches:
                    await fetch(request.object_ids, self._store)
                return Status.SUCCESS
            except PlasmastreamError as error:
                _log.warning("%s of %d objects from %s: %s", request.kind.name, len(request.object_ids), client, error)
                return _status_of(error)
            finally:
                client.disconnect()


@attrs.define(eq=False)
class _Peer:
    client: PeerClient
    users: int = 0
    used_at: float = 0.0


def _max_fetches() -> int:
    """How many peers to fetch from at once: never so many that the store's own clients find no descriptor left."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(4, min(_MAX_FETCHES, soft // 4 if soft > 0 else _MAX_FETCHES))


def _status_of(error: PlasmastreamError) -> int:
    match error:
        case TransferError():
            # The peer's own store is, seen from here, the peer's.
            return Status.PEER_STORE_ERROR if error.status == Status.STORE_ERROR else error.status
        case RemoteProtocolError(status=int(status)):
            return status
        case PeerError() | RemoteProtocolError():
            return Status.PEER_FAILED
        case ObjectExistsError():
            return Status.ALREADY_PRESENT
        case StoreError():
            return Status.STORE_ERROR
        case _:
            return Status.PEER_REQUEST_CRASHED
