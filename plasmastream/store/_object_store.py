"""`ObjectStore`: what a door to the world needs from a store, and no more. The one seam of the house.

It is implemented twice: by `EmbeddedStore`, in this process, without a socket; and by `StoreClient`, over the Unix
socket of any Plasma store, Apache's own included. Code above the store imports this module of it, and nothing else.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from plasmastream._client import Buffer as Buffer
from plasmastream._client import FileSlice as FileSlice
from plasmastream._client import Lease as Lease
from plasmastream._client import Leases as Leases
from plasmastream._client import NewObject as NewObject
from plasmastream._client import Unsealed
from plasmastream._client import check_ids as check_ids
from plasmastream._object_id import ObjectID
from plasmastream.store._finishing import notice_cancel
from plasmastream.wire.plasma import ErrorCode, ObjectInfo, ObjectStatus


class UnsealedObject(Unsealed):
    """An object that is being written: nobody else can see it before `seal`.

    `data` is a writable view of the shared memory; the metadata is there already. Do not write after `seal`.
    """

    __slots__ = ("_seal", "check_store")

    def __init__(
        self,
        object_id: ObjectID,
        data: memoryview,
        seal: Callable[[bytes | None], Awaitable[None]],
        check_store: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(object_id, data)
        self._seal = seal
        self.check_store = check_store
        """Raises StoreConnectionError where the store is known to be gone; asks nobody."""

    async def seal(self, digest: bytes | None = None) -> None:
        """Make the object immutable and visible to all.

        Args:
            digest: its 8-byte digest; computed from the bytes where none is given, which reads them all. Nothing
                verifies it, so that `NO_DIGEST` is a fair answer where speed counts.

        Raises:
            StoreError: the store refused, or is gone; the object is not sealed.
        """
        await self._seal(digest)
        self.is_sealed = True
        self.forget_data()
        await notice_cancel()  # which may have been put off until the store had answered


class ObjectStore(Protocol):
    """A store, as a door sees it. All methods may raise StoreConnectionError when the store is gone."""

    @property
    def capacity(self) -> int:
        """Bytes of data and metadata that all objects together may have."""
        ...

    def create(
        self, object_id: ObjectID, data_size: int, metadata: Buffer = b"", *, timeout: float = 0.0
    ) -> AbstractAsyncContextManager[UnsealedObject]:
        """Make an object of `data_size` bytes, to be written and sealed within the `async with` block.

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
        ...

    async def put_many(self, objects: Sequence[NewObject], *, timeout: float = 0.0) -> Leases[Lease]:
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
        """
        ...

    async def get(
        self, object_ids: Sequence[ObjectID], *, timeout: float | None = 0.0
    ) -> Leases[Lease | None]:
        """Hold many objects in one call.

        Args:
            object_ids: any number; may repeat.
            timeout: how long to wait for those that are not there, in seconds; 0 asks for what is there now,
                None waits for ever.

        Returns:
            In the order asked: a lease each, or None for what could not be read in time. A list, which can be released
            as a whole.
        """
        ...

    async def contains(self, object_ids: Sequence[ObjectID]) -> list[bool]:
        """Tell of each object whether it can be read."""
        ...

    async def delete(self, object_ids: Sequence[ObjectID]) -> list[ErrorCode]:
        """Delete objects; those in use go when the last lease does.

        Returns:
            In the order asked: OK, OBJECT_NOT_FOUND, or (remembered) OBJECT_NOT_SEALED, OBJECT_IN_USE.
        """
        ...

    async def list_objects(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectInfo]:
        """Describe objects, also unsealed ones (whose digest is empty): every one where none is named.

        Returns:
            Of those that are there, in the order asked, or in that of their creation.
        """
        ...

    async def inspect(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectStatus]:
        """Tell who holds objects, and all else that is known of them: of all where none is named.

        Returns:
            Of those that are there, in the order asked, or in that of their creation.

        Raises:
            NotSupportedError: the store is Apache's, which does not tell.
        """
        ...

    async def evict(self, nbytes: int) -> int:
        """Evict the longest unused objects until `nbytes` bytes are free or none is left; returns bytes freed."""
        ...
