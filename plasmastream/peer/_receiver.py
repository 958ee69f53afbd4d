"""The other direction: objects from a peer, straight from the socket into the memory of a store."""

from collections.abc import Callable

import anyio

from plasmastream._errors import PeerError, StoreError, TransferError
from plasmastream._object_id import ObjectID
from plasmastream.peer._transport import Transport
from plasmastream.peer._turns import release_all
from plasmastream.store._object_store import Lease, Leases, NewObject, ObjectStore
from plasmastream.wire.plasma import NO_DIGEST
from plasmastream.wire.stream import (
    NEED_DATA,
    AnswerBegun,
    AnswerComplete,
    AnswerRefused,
    ClientConnection,
    ObjectReceived,
    PayloadFinished,
    PayloadStarted,
    describe_status,
)

Progress = Callable[[int, int], None]
"""Called with (objects, bytes) that have arrived since the last call."""

_UNDO_TIMEOUT = 5.0


class Receiver:
    """Receives one answer to a COPY or TAKE into a store, all of it or nothing.

    Every object that has arrived is held until the end, so that a full store says so instead of evicting the first
    objects of a request for the sake of its last ones. Where the request fails, by whatever cause, the half-received
    object is aborted and those that had arrived are deleted: the same request can be made again.

    Args:
        connection: the protocol's state; a transfer was requested on it.
        transport: the connection.
        store: where the objects go.
        what: the objects, in words.
        progress_timeout: how long the peer may stand still, in seconds.
        store_timeout: how long to wait for room in a full store, in seconds.
        on_progress: told what arrives.
    """

    def __init__(
        self,
        connection: ClientConnection,
        transport: Transport,
        store: ObjectStore,
        *,
        what: str = "the objects",
        progress_timeout: float,
        store_timeout: float,
        on_progress: Progress | None = None,
    ) -> None:
        self._connection = connection
        self._transport = transport
        self._store = store
        self._what = what
        self._progress_timeout = progress_timeout
        self._store_timeout = store_timeout
        self._report: Progress = on_progress or (lambda objects, nbytes: None)
        self._batch: list[NewObject] = []
        self._arrived: list[ObjectID] = []
        self._leases: Leases[Lease] = Leases()

    async def run(self) -> None:
        """Receive the answer to its end.

        Raises:
            TransferError: the peer refused.
            PeerError: the connection broke, or the peer stood still.
            RemoteProtocolError: the peer broke the protocol, or announced what is larger than allowed.
            StoreError: the store refused an object, or is gone.
        """
        try:
            await self._receive()
        except BaseException:
            await self._undo()
            raise
        finally:
            await release_all(self._leases)

    async def _receive(self) -> None:
        while True:
            event = self._connection.next_event()
            match event:
                case ObjectReceived():
                    self._batch.append(NewObject(event.object_id, event.data, event.metadata))
                case PayloadStarted():
                    await self._put_batch()
                    await self._receive_payload(event)
                case AnswerComplete():
                    await self._put_batch()
                    return
                case AnswerRefused():
                    raise TransferError(
                        f"{self._transport.peer} refused {self._what}: {describe_status(event.status)}", event.status
                    )
                case AnswerBegun():
                    pass
                case _:
                    assert event is NEED_DATA
                    # What is here is put away while more arrives; a batch is as large as one read brought.
                    await self._put_batch()
                    await self._read()

    async def _receive_payload(self, started: PayloadStarted) -> None:
        async with self._store.create(
            started.object_id, started.data_size, started.metadata, timeout=self._store_timeout
        ) as unsealed:
            self._connection.supply_buffer(unsealed.data)
            reported = -len(started.metadata)
            try:
                while not isinstance(self._connection.next_event(), PayloadFinished):
                    # Not what a read brought: that may begin, or end, with something else.
                    received = self._connection.bytes_received
                    self._report(0, received - reported)
                    reported = received
                    await self._read()
            except BaseException:
                self._connection.discard_payload()  # the memory is about to be given back
                raise
            self._report(0, started.data_size - reported)
            await unsealed.seal(NO_DIGEST)
            self._arrived.append(started.object_id)
            (lease,) = await self._store.get([started.object_id])
            if lease is None:
                raise StoreError(f"object {started.object_id} was removed from the store as soon as it was sealed")
            self._leases.append(lease)
        self._report(1, 0)

    async def _put_batch(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            self._leases += await self._store.put_many(batch, timeout=self._store_timeout)
            self._arrived += [new.object_id for new in batch]
            self._report(len(batch), sum(len(new.data) + len(new.metadata) for new in batch))

    async def _read(self) -> int:
        try:
            with self._connection.get_buffer() as buffer:
                nbytes = await self._transport.receive_into(
                    buffer, timeout=self._progress_timeout, expected=self._connection.payload_expected
                )
        except PeerError as error:
            raise type(error)(f"{error} {self._connection.describe_progress()}") from error
        if not nbytes:  # the same to the caller as a reset, of which chance decides when a peer dies
            raise PeerError(f"{self._transport.peer} ended the connection {self._connection.describe_progress()}")
        self._connection.advance(nbytes)
        return nbytes

    async def _undo(self) -> None:
        """Delete what had arrived; the leases are still held, so it goes with them."""
        with anyio.move_on_after(_UNDO_TIMEOUT, shield=True):
            try:
                await self._store.delete(self._arrived)
            except StoreError:
                return  # a store that is gone has nothing to delete
