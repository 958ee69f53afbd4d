"""What a program has in its hands: a lease on a sealed object, an object being written, an object to be put."""

import os
from collections.abc import Sequence
from contextlib import suppress
from threading import RLock
from types import TracebackType
from typing import Protocol, Self, TypeAlias, TypeVar

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


class Shown(Protocol):
    """Memory that a store shows, mapped here, and the file that it is."""

    fd: int
    watched: WatchedMemory


# Very many of these are made at once, and nothing that the garbage collector would have to look at again and again.
Place: TypeAlias = tuple[int, int, int, int]
"""Where an object lies: in which memory, from which offset on, bytes of data, and of metadata, which follow."""
Ticket: TypeAlias = int | bytes
"""By what its keeper knows the hold of a lease."""


class Keeper(Protocol):
    """Who holds objects for leases."""

    @property
    def is_lost(self) -> bool:
        """Whether all holds have ended, because the connection to the store broke."""
        ...

    def shown(self, index: int) -> Shown:
        """The memory that a place names, of an object that is not empty."""
        ...

    def give_back(self, tickets: Sequence[Ticket]) -> None:
        """Holds end. In any thread, also from a finalizer: may only take note. What is told again has no effect."""
        ...

    def released(self) -> None:
        """Act on what was noted, where that is safe."""
        ...


class _End:
    """The end of a hold when all views are gone."""

    __slots__ = ("_keeper", "_ticket", "counts")

    def __init__(self, keeper: Keeper, ticket: Ticket) -> None:
        self._keeper = keeper
        self._ticket = ticket
        self.counts = False
        """Whether the hold ends with the views: not before anybody may have seen them."""

    def __call__(self) -> None:
        if self.counts:
            self._keeper.give_back((self._ticket,))


class _Look:
    """Views of an object; its hold ends when they, and all that was made from them, are gone."""

    __slots__ = ("data", "end", "metadata")

    def __init__(self, memory: WatchedMemory, place: Place, end: _End) -> None:
        _, offset, data_size, metadata_size = place
        self.end = end
        views = memory.view(offset, data_size + metadata_size, end)
        self.data = views[:data_size]
        self.metadata = views[data_size:]

    def close(self) -> None:
        """Close the views, as far as nobody looks through them."""
        self.end.counts = True
        for view in (self.data, self.metadata):
            with suppress(BufferError):  # somebody still looks through it, and keeps the object
                view.release()
        self.data = self.metadata = _NOTHING


class Lease:
    """A hold on a sealed object: as long as it lasts, the object is neither evicted nor deleted.

    `data` and `metadata` are read-only views of the shared memory. The hold lasts until the lease is released, which
    leaving its `with` block does, *and* the last view made from them is gone: a numpy array, a slice, a cast keep the
    object in place for as long as they live, in whatever thread, also after their client was closed. It ends early only
    where the connection breaks, or is given up in the midst of a request. A process that was forked does not share it:
    there, views that were made before are safe only as long as the parent has the hold.
    """

    __slots__ = ("_keeper", "_look", "_place", "_ticket", "object_id")

    def __init__(self, object_id: ObjectID, place: Place, ticket: Ticket, keeper: Keeper) -> None:
        """Take over a hold of `keeper` on the object at a place."""
        self.object_id = object_id
        self._place = place
        self._ticket = ticket
        self._keeper = keeper
        self._look: _Look | None = None

    @property
    def data(self) -> memoryview:
        """The object's data, read-only."""
        look = self._look or self._begin_look()
        look.end.counts = True
        return look.data

    @property
    def metadata(self) -> memoryview:
        """The object's metadata, read-only."""
        look = self._look or self._begin_look()
        look.end.counts = True
        return look.metadata

    @property
    def data_size(self) -> int:
        """Bytes of data."""
        return self._place[2]

    @property
    def metadata_size(self) -> int:
        """Bytes of metadata."""
        return self._place[3]

    @property
    def size(self) -> int:
        """Bytes of data and metadata."""
        return self._place[2] + self._place[3]

    def copied(self) -> tuple[bytes, bytes]:
        """The object's data and its metadata, copied: of a small object, that costs far less than views of it.

        Raises:
            ValueError: the lease was released.
        """
        index, offset, data_size, metadata_size = self._place
        with _changing:
            if self._look is _OVER:
                raise ValueError(f"the lease of object {self.object_id} was released")
            if not self.size:
                return b"", b""
            memory, middle = self._keeper.shown(index).watched, offset + data_size
            return memory.copied(offset, middle), memory.copied(middle, middle + metadata_size)

    @property
    def file(self) -> FileSlice:
        """Where the data lies in its file."""
        if not self.size or self._look is _OVER:
            return FileSlice(-1, 0)
        return FileSlice(self._keeper.shown(self._place[0]).fd, self._place[1])

    @property
    def is_held(self) -> bool:
        """Whether the hold lasts. That the store is gone, or is another one by now, shows after the next call to it."""
        return self._look is not _OVER and not self._keeper.is_lost

    def release(self) -> None:
        """Let go of the object, as far as this lease is concerned. May be called again. Never blocks."""
        if self._look is _OVER:
            return
        with _changing:
            if self._look is None:
                self._keeper.give_back((self._ticket,))
            else:
                self._look.close()
            self._look = _OVER
        keeper, self._keeper = self._keeper, _NOBODY  # whose memory is not to last because of us
        keeper.released()

    def _begin_look(self) -> _Look:
        with _changing:
            if self._look is None:
                memory = self._keeper.shown(self._place[0]).watched if self.size else _NO_MEMORY
                self._look = _Look(memory, self._place, _End(self._keeper, self._ticket))
            return self._look

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        try:
            look = self._look
        except AttributeError:
            return  # its making was interrupted
        if look is None:
            self._keeper.give_back((self._ticket,))
        else:
            look.end.counts = True  # and the views go with it

    def __repr__(self) -> str:
        return f"<Lease of {self.object_id}, {'released' if self._look is _OVER else f'{self.size:,} bytes'}>"


_LeaseT = TypeVar("_LeaseT", bound=Lease | None)


class Leases(list[_LeaseT]):
    """A list of leases, and None for what is not there, that can be released together: much faster than one by one.

    Leaving its `with` block does so.
    """

    __slots__ = ()

    def release(self) -> None:
        """Release all that are in it now. May be called again. Never blocks."""
        tickets: dict[Keeper, list[Ticket]] = {}
        with _changing:
            over = [lease for lease in self if lease is not None and lease._look is not _OVER]
            for lease in over:
                given_back = tickets.setdefault(lease._keeper, [])
                if lease._look is None:
                    given_back.append(lease._ticket)
                else:
                    lease._look.close()
            for keeper, given_back in tickets.items():
                keeper.give_back(given_back)
            for lease in over:
                lease._look, lease._keeper = _OVER, _NOBODY
        for keeper in tickets:
            keeper.released()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_NO_MEMORY = WatchedMemory()
_NOTHING = memoryview(b"")
_NOTHING.release()  # whoever looks into a released lease is told so


class _Nobody:
    """Holds nothing, and is told of nothing."""

    is_lost = True

    def shown(self, index: int) -> Shown:
        raise IndexError(index)

    def give_back(self, tickets: Sequence[Ticket]) -> None:
        pass

    def released(self) -> None:
        pass


_NOBODY = _Nobody()
_OVER = _Look(_NO_MEMORY, (0, 0, 0, 0), _End(_NOBODY, 0))
"""What a lease looks at that was released."""
_OVER.data = _OVER.metadata = _NOTHING

_changing = RLock()
"""Held while a lease begins or ends to look, for microseconds: of two threads, one is the first."""


def _renew_lock() -> None:
    global _changing
    _changing = RLock()


os.register_at_fork(after_in_child=_renew_lock)


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
