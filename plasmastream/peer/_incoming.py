"""Objects on their way into a store: what has been verified of each, and what is missing."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack

import anyio
from xxhash import xxh3_64_intdigest

from plasmastream._errors import ObjectExistsError, StoreConnectionError, StoreError, StoreFullError
from plasmastream._object_id import ObjectID
from plasmastream.peer._results import outcome_of
from plasmastream.peer._turns import parts
from plasmastream.store._object_store import Lease, NewObject, ObjectStore, UnsealedObject
from plasmastream.wire.plasma import NO_DIGEST
from plasmastream.wire.stream.v2 import Outcome, Sizes, describe_outcome

_PUT_AT_ONCE = 128
"""Small objects that a store takes before it has its next turn."""


class Ranges:
    """Ranges of bytes from 0 on, disjoint and in order."""

    def __init__(self, *ranges: tuple[int, int]) -> None:
        self._starts = [start for start, end in ranges if start < end]
        self._ends = [end for start, end in ranges if start < end]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(tuple(zip(self._starts, self._ends, strict=True)))

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def nbytes(self) -> int:
        """Bytes in all of them."""
        return sum(self._ends) - sum(self._starts)

    def remove(self, start: int, end: int) -> None:
        """Take out the bytes from `start` up to `end`."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if first < last:
            kept = [(self._starts[first], start), (end, self._ends[last - 1])]
            self._replace(first, last, [(low, high) for low, high in kept if low < high])

    def add(self, start: int, end: int) -> None:
        """Put in the bytes from `start` up to `end`."""
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._replace(first, last, [(start, end)])

    def covers(self, start: int, end: int) -> bool:
        """Whether all bytes from `start` up to `end` are here."""
        found = bisect_right(self._starts, start) - 1
        return found >= 0 and end <= self._ends[found]

    def overlap(self, start: int, end: int) -> bool:
        """Whether any byte from `start` up to `end` is here."""
        return bisect_right(self._ends, start) < bisect_left(self._starts, end)

    def _replace(self, first: int, last: int, ranges: Sequence[tuple[int, int]]) -> None:
        self._starts[first:last] = [start for start, _ in ranges]
        self._ends[first:last] = [end for _, end in ranges]


class Incoming:
    """A large object on its way into a store: created by `begin`, visible to others from `seal` on, gone after `abort`.

    Args:
        object_id: its name.
        data_size: bytes of its data.
        metadata: its metadata.
    """

    def __init__(self, object_id: ObjectID, data_size: int, metadata: bytes) -> None:
        self.object_id = object_id
        self.data_size = data_size
        self.metadata = metadata
        self.missing = Ranges((0, data_size))
        """What has not been verified yet."""
        self._unsealed: UnsealedObject | None = None
        self._stack = AsyncExitStack()
        self._beginning = anyio.Lock(fast_acquire=True)

    @property
    def sizes(self) -> Sizes:
        """Bytes of its data, and of its metadata."""
        return Sizes(self.data_size, len(self.metadata))

    @property
    def size(self) -> int:
        """Bytes of data and metadata."""
        return self.data_size + len(self.metadata)

    @property
    def has_begun(self) -> bool:
        """Whether there is memory for it."""
        return self._unsealed is not None

    @property
    def nbytes_verified(self) -> int:
        """Bytes of its data that are here and right."""
        return self.data_size - self.missing.nbytes

    def place(self, start: int, end: int) -> memoryview:
        """Where the bytes from `start` up to `end` go; to be let go of before `seal` and `abort`."""
        assert self._unsealed is not None
        return self._unsealed.data[start:end]

    def agrees(self, start: int, end: int, checksum: int) -> bool:
        """Whether what is here of these bytes has that checksum."""
        with self.place(start, end) as place:
            return xxh3_64_intdigest(place) == checksum

    async def begin(self, store: ObjectStore, timeout: float) -> None:
        """Make the object in the store, if that is not done; `timeout` is how long to wait for room, in seconds.

        Raises:
            ObjectExistsError: there is one of this id, sealed or not.
            StoreError: it does not fit, or the store is gone.
        """
        async with self._beginning:
            if self._unsealed is None:
                self._unsealed = await self._stack.enter_async_context(
                    store.create(self.object_id, self.data_size, self.metadata, timeout=timeout)
                )

    def check_store(self) -> None:
        """See whether it can be sealed still, without asking the store.

        Raises:
            StoreConnectionError: the store is known to be gone.
        """
        assert self._unsealed is not None
        self._unsealed.check_store()

    async def seal(self, store: ObjectStore) -> Lease:
        """Let others see it, and hold it. Nothing may be missing.

        Raises:
            StoreError: the store refused, or is gone.
        """
        assert self._unsealed is not None
        assert not self.missing
        await self._unsealed.seal(NO_DIGEST)
        (lease,) = await store.get([self.object_id])
        if lease is None:
            raise StoreError(f"object {self.object_id} was removed from the store as soon as it was sealed")
        try:
            await self._stack.aclose()
        except BaseException:
            lease.release()
            raise
        return lease

    async def abort(self) -> None:
        """Take back what is not sealed: it never was. May be called again."""
        self._unsealed = None
        self.missing = Ranges((0, self.data_size))
        await self._stack.aclose()


def outcome_of_failed_put(error: StoreError, size: int, store: ObjectStore) -> Outcome:
    """The outcome of an object of `size` bytes that a store did not take."""
    if isinstance(error, StoreFullError) and size > store.capacity:
        return Outcome.TOO_LARGE
    return outcome_of(error)


async def put_small(
    store: ObjectStore, objects: Sequence[NewObject], timeout: float
) -> list[tuple[Lease | None, Outcome, str]]:
    """Put objects that arrived together, each with an outcome of its own.

    Args:
        store: where they go.
        objects: what to put.
        timeout: how long to wait for room, in seconds.

    Returns:
        For each: a lease if it is sealed now or was there already (DONE, PRESENT); the outcome; a reason.

    Raises:
        StoreConnectionError: the store is gone.
    """
    if len(objects) <= _PUT_AT_ONCE:
        return await _put_small(store, objects, timeout)
    found: list[tuple[Lease | None, Outcome, str]] = []
    for part in parts(objects, _PUT_AT_ONCE):
        outcomes = await _put_small(store, part, timeout)
        if any(outcome is Outcome.NO_ROOM for _, outcome, _ in outcomes):
            timeout = 0.0  # one has waited for all
        found += outcomes
    return found


async def _put_small(
    store: ObjectStore, objects: Sequence[NewObject], timeout: float
) -> list[tuple[Lease | None, Outcome, str]]:
    try:
        return [(lease, Outcome.DONE, "") for lease in await store.put_many(objects, timeout=timeout)]
    except StoreConnectionError:
        raise
    except StoreError as error:
        if len(objects) == 1 and not isinstance(error, ObjectExistsError):
            size = len(objects[0].data) + len(objects[0].metadata)
            return [(None, outcome_of_failed_put(error, size, store), str(error))]
        if isinstance(error, StoreFullError):
            timeout = 0.0  # all have waited, or have no room together
    # One of them does not fit in: find out which, so that the others do not suffer for it.
    found: list[tuple[Lease | None, Outcome, str]] = []
    for new in objects:
        try:
            (lease,) = await store.put_many([new], timeout=timeout)
            found.append((lease, Outcome.DONE, ""))
        except ObjectExistsError:
            (present,) = await store.get([new.object_id])
            if present is not None:
                found.append((present, Outcome.PRESENT, ""))
            else:
                found.append((None, Outcome.BEING_WRITTEN, describe_outcome(Outcome.BEING_WRITTEN)))
        except StoreConnectionError:
            raise
        except StoreError as error:
            size = len(new.data) + len(new.metadata)
            found.append((None, outcome_of_failed_put(error, size, store), str(error)))
            timeout = 0.0  # one has waited for all
    return found

