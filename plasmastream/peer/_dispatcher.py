"""SYNC: fetch objects from several peers at once, each request to a peer with an outcome of its own."""

import logging
import resource
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

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
from plasmastream.peer._client import PeerClient, PeerTimeouts
from plasmastream.peer._transport import Connect, connect
from plasmastream.store._object_store import ObjectStore
from plasmastream.wire.stream import PeerRequest, Status, TransferKind

_log = logging.getLogger(__name__)

_MAX_FETCHES = 256


class Claims:
    """Objects that something is being done with, each claimed once at most.

    A claim is given back by who made it, and by nobody else: a request that is refused clears no one's marks.
    """

    def __init__(self) -> None:
        self._claimed: set[ObjectID] = set()

    def overlap(self, object_ids: Iterable[ObjectID]) -> bool:
        """Whether any of these objects is claimed."""
        return not self._claimed.isdisjoint(object_ids)

    @contextmanager
    def claim(self, object_ids: Sequence[ObjectID]) -> Iterator[None]:
        """Claim objects of which none is claimed, for the time of a `with` block."""
        self._claimed.update(object_ids)
        try:
            yield
        finally:
            self._claimed.difference_update(object_ids)


class Dispatcher:
    """Carries out the peer requests of SYNCs into one store."""

    def __init__(self, store: ObjectStore, timeouts: PeerTimeouts, connect: Connect = connect) -> None:
        self._store = store
        self._timeouts = timeouts
        self._connect = connect
        self._receiving = Claims()
        self._fetches = trio.CapacityLimiter(_max_fetches())

    async def sync(self, peer_requests: Sequence[PeerRequest]) -> list[int]:
        """Carry out all peer requests at once, as far as descriptors allow.

        Returns:
            When the last one is done: a status byte for each, in order. Nothing that goes wrong with one raises, or
            touches another.
        """
        statuses: list[int] = [Status.PEER_REQUEST_CRASHED] * len(peer_requests)

        async def carry_out(index: int, request: PeerRequest) -> None:
            try:
                statuses[index] = await self._fetch(request)
            except Exception:  # which is what the status is for
                _log.exception("a peer request ended by an error that nobody expected; please report it")

        async with trio.open_nursery() as nursery:
            for index, request in enumerate(peer_requests):
                nursery.start_soon(carry_out, index, request)
        return statuses

    async def _fetch(self, request: PeerRequest) -> int:
        if self._receiving.overlap(request.object_ids):
            return Status.ALREADY_RECEIVING
        with self._receiving.claim(request.object_ids):
            client = PeerClient(str(request.address), request.port, timeouts=self._timeouts, connect=self._connect)
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
                await client.aclose()


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
