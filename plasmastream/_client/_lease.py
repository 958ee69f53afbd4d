"""What a program has in its hands: a lease on a sealed object, an object being written, an object to be put."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self, TypeAlias

import attrs

from plasmastream._client._watched import WatchedMemory
from plasmastream._object_id import ObjectID
from plasmastream.wire.plasma import NO_DIGEST

Buffer: TypeAlias = bytes | bytearray | memoryview


@attrs.frozen
class FileSlice:
    """Where an object's data lies in a file, so that the kernel can send it from there.

    `fd` belongs to the store and stays open as long as the lease is held; `offset` is in bytes.
    """

    fd: int
    offset: int


class Lease:
    """A hold on a sealed object: as long as it lasts, the object is neither evicted nor deleted.

    `data` and `metadata` are read-only views of the shared memory. The hold lasts until the lease is released, which
    leaving its `with` block does, *and* the last view made from them is gone: a numpy array, a slice, a cast keep the
    object in place for as long as they live, in whatever thread, also after their client was closed. It ends early only
    where the connection breaks, or is given up in the midst of a request. A process that was forked does not share it:
    there, views that were made before are safe only as long as the parent has the hold.
    """

    __slots__ = ("_settle", "data", "file", "metadata", "object_id", "size")

    def __init__(
        self,
        object_id: ObjectID,
        memory: WatchedMemory,
        offset: int,
        data_size: int,
        metadata_size: int,
        file: FileSlice,
        give_back: Callable[[ObjectID], None],
        settle: Callable[[], None],
    ) -> None:
        """Take over a hold.

        Args:
            object_id: the object.
            memory: what it lies in.
            offset: where in it the data begins; the metadata follows.
            data_size: bytes of data.
            metadata_size: bytes of metadata.
            file: where the data lies.
            give_back: told when the hold ends, in any thread, also from a finalizer: may only take note.
            settle: called by `release` to act on what was noted.
        """
        self.object_id = object_id
        self.size = data_size + metadata_size
        self.file = file
        self._settle: Callable[[], None] | None = settle
        views = memory.view(offset, self.size, partial(give_back, object_id))
        self.data = views[:data_size]
        self.metadata = views[data_size:]

    def release(self) -> None:
        """Let go of the object, as far as this lease is concerned. May be called again. Never blocks."""
        if self._settle is None:
            return
        settle, self._settle = self._settle, None
        for view in (self.data, self.metadata):
            with suppress(BufferError):  # somebody still looks through it, and keeps the object
                view.release()
        self.data = self.metadata = _NOTHING
        settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "released" if self._settle is None else f"{self.size:,} bytes"
        return f"<Lease of {self.object_id}, {state}>"


_NOTHING = memoryview(b"")
_NOTHING.release()  # whoever looks into a released lease is told so


class Unsealed:
    """An object that is being written: nobody else can see it before it is sealed.

    `data` is a writable view of the shared memory; the metadata is there already. Do not write after the seal.
    """

    __slots__ = ("data", "is_sealed", "object_id")

    def __init__(self, object_id: ObjectID, data: memoryview) -> None:
        self.object_id = object_id
        self.data = data
        self.is_sealed = False

    def forget_data(self) -> None:
        """Drop the writable view, unless somebody else still looks through it."""
        with suppress(BufferError):
            self.data.release()


@attrs.frozen
class NewObject:
    """An object to be put: see `ObjectStore.put_many`."""

    object_id: ObjectID
    data: Buffer
    metadata: Buffer = b""
    digest: bytes = NO_DIGEST
