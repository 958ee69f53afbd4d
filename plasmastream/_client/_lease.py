"""What a program has in its hands: a lease on a sealed object, an object being written, an object to be put."""

from contextlib import suppress
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


Place: TypeAlias = tuple[Shown | None, int, int, int]
"""Where an object lies: in what, from which offset on, bytes of data, and of metadata, which follow.

An empty object may be in no memory that is mapped here.
"""


class Keeper(Protocol):
    """Who holds objects for leases."""

    def give_back(self, end: "End") -> None:
        """A hold ends. In any thread, also from a finalizer: may only take note. The same end may be told again."""
        ...

    def released(self) -> None:
        """Act on what was noted, where that is safe."""
        ...


class End:
    """The end of one hold on an object. A keeper acts on it once, however often it is told."""

    __slots__ = ("is_over", "is_told", "object_id")

    def __init__(self, object_id: ObjectID) -> None:
        self.object_id = object_id
        self.is_told = False
        """For whoever tells the keeper: whether that was done."""
        self.is_over = False
        """For the keeper: whether it has acted on it."""


class _EndOfViews(End):
    """An end that comes when this is called. A keeper that has it has no way back to itself, and no cycle arises."""

    __slots__ = ("_keeper", "counts")

    def __init__(self, object_id: ObjectID, keeper: Keeper) -> None:
        super().__init__(object_id)
        self._keeper: Keeper | None = keeper
        self.counts = False
        """Whether the hold ends with the views: not before anybody may have seen them."""

    def __call__(self) -> None:
        keeper, self._keeper = self._keeper, None
        if self.counts and keeper is not None:
            keeper.give_back(self)


class _Look:
    """Views of an object; the hold ends when they, and all that was made from them, are gone."""

    __slots__ = ("data", "end", "metadata")

    def __init__(self, object_id: ObjectID, place: Place, keeper: Keeper) -> None:
        shown, offset, data_size, metadata_size = place
        self.end = _EndOfViews(object_id, keeper)
        memory = shown.watched if shown is not None and data_size + metadata_size else _NO_MEMORY
        views = memory.view(offset, data_size + metadata_size, self.end)
        self.data = views[:data_size]
        self.metadata = views[data_size:]

    def close(self) -> bool:
        """Close the views, as far as nobody looks through them, and tell whether that is new."""
        if self.data is _NOTHING:
            return False
        for view in (self.data, self.metadata):
            with suppress(BufferError):  # somebody still looks through it, and keeps the object
                view.release()
        self.data = self.metadata = _NOTHING
        return True


class Lease:
    """A hold on a sealed object: as long as it lasts, the object is neither evicted nor deleted.

    `data` and `metadata` are read-only views of the shared memory. The hold lasts until the lease is released, which
    leaving its `with` block does, *and* the last view made from them is gone: a numpy array, a slice, a cast keep the
    object in place for as long as they live, in whatever thread, also after their client was closed. It ends early only
    where the connection breaks, or is given up in the midst of a request. A process that was forked does not share it:
    there, views that were made before are safe only as long as the parent has the hold.
    """

    # What is claimed first, by whatever thread, says how the hold ends: a look, with its views, or an end, at once.
    __slots__ = ("_claims", "_keeper", "_place", "object_id")

    def __init__(self, object_id: ObjectID, place: Place, keeper: Keeper) -> None:
        """Take over a hold of `keeper` on the object at a place."""
        self.object_id = object_id
        self._place = place
        self._keeper = keeper
        self._claims: list[_Look | End] = []

    @property
    def data(self) -> memoryview:
        """The object's data, read-only."""
        look = self._look()
        return _NOTHING if look is None else look.data

    @property
    def metadata(self) -> memoryview:
        """The object's metadata, read-only."""
        look = self._look()
        return _NOTHING if look is None else look.metadata

    @property
    def size(self) -> int:
        """Bytes of data and metadata."""
        return self._place[2] + self._place[3]

    @property
    def file(self) -> FileSlice:
        """Where the data lies in its file."""
        shown, offset, _, _ = self._place
        return FileSlice(shown.fd, offset) if shown is not None and self.size else FileSlice(-1, 0)

    def release(self) -> None:
        """Let go of the object, as far as this lease is concerned. May be called again. Never blocks."""
        if self._let_go():
            self._keeper.released()

    def _look(self) -> _Look | None:
        """The views; None after the end."""
        claims = self._claims
        if not claims:
            claims.append(_Look(self.object_id, self._place, self._keeper))
        first = claims[0]
        if isinstance(first, End):
            return None
        first.end.counts = True
        return first

    def _let_go(self) -> bool:
        """As `release`, but the keeper only takes note; tells whether there was anything to let go."""
        claims = self._claims
        if not claims:
            claims.append(End(self.object_id))
        first = claims[0]
        if isinstance(first, _Look):
            first.end.counts = True
            return first.close()
        if first.is_told:
            return False
        self._keeper.give_back(first)
        first.is_told = True  # only now, so that nothing is lost by an interrupt
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        claims = getattr(self, "_claims", None)
        if claims is None:  # its making was interrupted
            return
        if not claims:
            self._keeper.give_back(End(self.object_id))
        elif isinstance(claims[0], _Look):
            claims[0].end.counts = True  # and the views go with it
        elif not claims[0].is_told:
            self._keeper.give_back(claims[0])

    def __repr__(self) -> str:
        is_over = bool(self._claims) and (isinstance(self._claims[0], End) or self._claims[0].data is _NOTHING)
        return f"<Lease of {self.object_id}, {'released' if is_over else f'{self.size:,} bytes'}>"


_LeaseT = TypeVar("_LeaseT", bound=Lease | None)


class Leases(list[_LeaseT]):
    """A list of leases, and None for what is not there, that can be released together: much faster than one by one.

    Leaving its `with` block does so.
    """

    __slots__ = ()

    def release(self) -> None:
        """Release all that are in it now. May be called again. Never blocks."""
        keepers = {lease._keeper for lease in self if lease is not None and lease._let_go()}
        for keeper in keepers:
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
