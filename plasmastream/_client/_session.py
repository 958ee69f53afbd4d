"""All that belongs to one connection to a store: what is held over it, and the memory that the store has shown."""

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice, repeat
from typing import Generic, TypeVar

from plasmastream._client._connection import Connection
from plasmastream._client._lease import Lease, Leases, Place, Ticket
from plasmastream._client._lingering import Lingering
from plasmastream._client._requests import AT_ONCE
from plasmastream._client._socket import UnixSocket, close_descriptors
from plasmastream._client._watched import WatchedMemory
from plasmastream._errors import StoreError
from plasmastream._object_id import ObjectID
from plasmastream._os_errors import reason_of
from plasmastream.wire.plasma import AbortRequest, Message, ObjectSpec, Specs

_ConnectionT = TypeVar("_ConnectionT", bound=Connection[UnixSocket])


def _nobody() -> None:
    """Told where nobody needs to know."""


class Mapping:
    """A segment of the store in this process: mapped for reading, and on demand a second time for writing."""

    def __init__(self, fd: int, length: int) -> None:
        self.fd = fd
        self._length = length
        try:
            readable = mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ)
        except BaseException:
            self.close()
            raise
        self.readable = memoryview(readable)
        self.watched = WatchedMemory(readable)
        self._writable: memoryview | None = None

    @property
    def writable(self) -> memoryview:
        """All of it, to be written.

        Raises:
            StoreError: this process cannot map it once more.
        """
        if self._writable is None:
            try:
                self._writable = memoryview(mmap.mmap(self.fd, self._length, mmap.MAP_SHARED))
            except OSError as error:
                raise StoreError(f"the store's memory cannot be mapped for writing: {reason_of(error)}") from error
        return self._writable

    def close(self) -> None:
        """Close the file. May be called again."""
        if self.fd >= 0:
            os.close(self.fd)  # the maps go when the last view of them does
            self.fd = -1

    def __del__(self) -> None:
        self.close()  # where the last view went after the client did, nobody else will


class Session(Generic[_ConnectionT]):
    """A connection, what is held over it, and the memory behind that.

    What is held outlives the client: each view, and each lease that was not released, keeps the session alive.

    Args:
        connection: a new connection.
        on_unsent: called when the kernel did not take all releases at once: the rest goes with the next request.
        on_release: called with this when a lease is released, to `settle` it where that is safe; `settle` itself,
            where none is given.
    """

    def __init__(
        self,
        connection: _ConnectionT,
        on_unsent: Callable[[], None] = _nobody,
        on_release: "Callable[[Session[_ConnectionT]], None] | None" = None,
    ) -> None:
        self.connection = connection
        self.mappings: dict[int, Mapping] = {}
        self._on_unsent = on_unsent
        self._on_release = on_release
        self._places: dict[ObjectID, Place] = {}  # of what the store holds for us
        self._counts: dict[ObjectID, int] = {}  # of our leases on each of them
        self._tickets: dict[Ticket, ObjectID] = {}  # what each lease is on
        self._next_tickets = count()
        self._given_back: deque[Ticket] = deque()
        self._let_go: list[ObjectID] = []
        self._given_up: deque[ObjectID] = deque()  # by who was writing when this was closed
        self._lingering: Lingering | None = None  # where it was closed and something is still held

    @property
    def is_lost(self) -> bool:
        """Whether the store has let go of all, because the connection broke."""
        return bool(self.connection.broken) and self._lingering is None

    def unknown(self, object_ids: Iterable[ObjectID]) -> tuple[ObjectID, ...]:
        """Those that the store does not hold for us, each once."""
        distinct = dict.fromkeys(object_ids)
        if self._places.keys().isdisjoint(distinct):
            return tuple(distinct)
        return tuple([object_id for object_id in distinct if object_id not in self._places])

    def take_in(self, object_ids: Sequence[ObjectID], specs: Sequence[ObjectSpec]) -> None:
        """Note what the store holds for us from now on, if it is not missing; no lease is counted yet."""
        if type(specs) is not Specs:  # which is asked more cheaply than whether it is an instance of a Sequence
            for object_id, spec in zip(object_ids, specs, strict=True):
                place = _place(spec)
                if place is not None:
                    self._counts[object_id] = 0
                    self._places[object_id] = place
            return
        start = 0
        for places in _places(specs):
            found = dict(zip(object_ids[start : start + len(places)], places, strict=True))
            start += len(places)
            if None in places:
                found = {object_id: place for object_id, place in found.items() if place is not None}
            self._counts.update(dict.fromkeys(found, 0))
            self._places.update(found)  # type: ignore[arg-type]

    def hold(self, object_id: ObjectID) -> Ticket:
        """Count one more lease on an object that the store holds for us; `give_back` takes the ticket."""
        ticket = next(self._next_tickets)
        self._counts[object_id] += 1
        self._tickets[ticket] = object_id
        return ticket

    def leases(self, object_ids: Sequence[ObjectID]) -> Leases[Lease | None]:
        """A lease on each object that the store holds for us; None for any other."""
        places = list(map(self._places.get, object_ids))
        if len(places) == 1 or None in places:  # of one, the rest would take longer
            return Leases([self._lease(object_id) for object_id in object_ids])
        tickets = list(islice(self._next_tickets, len(places)))
        leases: Leases[Lease | None] = Leases(map(Lease, object_ids, places, tickets, repeat(self)))  # type: ignore[arg-type]
        counts = self._counts
        for object_id in object_ids:
            counts[object_id] += 1
        self._tickets.update(zip(tickets, object_ids, strict=True))
        return leases

    def forget_unleased(self, object_ids: Iterable[ObjectID]) -> None:
        """Let go of those for which no lease was counted: what comes after `take_in` was broken off."""
        for object_id in object_ids:
            if self._counts.get(object_id) == 0:
                self.give_back((self.hold(object_id),))

    def shown(self, index: int) -> Mapping:
        """A segment, of which something is held."""
        return self.mappings[index]

    def give_back(self, tickets: Sequence[Ticket]) -> None:
        """Remember leases that have ended. For finalizers: may be called in any thread, in the midst of anything."""
        self._given_back.extend(tickets)
        if self._lingering is not None:
            self._settle_lingering(self._lingering)  # there is no next call that would

    def released(self) -> None:
        """Act on the leases that have ended, as `on_release` does."""
        on_release = self._on_release  # which another thread may be about to forget
        if on_release is None:
            self.settle()
        else:
            on_release(self)

    @property
    def has_notes(self) -> bool:
        """Whether leases have ended that somebody must `settle`; who lingers does so alone."""
        return bool(self._given_back) and self._lingering is None

    def settle(self) -> None:
        """Act on the leases that have ended, and tell the store what nobody here holds any more.

        It is not told while a request is under way: a get that is just being answered may take the same object again,
        and the store would see the release behind it. Then it is told before the next request, at the latest. What is
        interrupted between two bytes cannot go on: the connection is given up.
        """
        try:
            if self._lingering is not None:
                self._settle_lingering(self._lingering)
                return
            if not (self._given_back or self._let_go or self.connection.broken):
                return
            self._take_notes()
            if not self._let_go or self.connection.is_busy or self.connection.broken:
                return  # without a connection the store has let go by itself
            self.connection.post(self._take_releases())
            if not self.connection.flush_nowait():
                self._on_unsent()
        except BaseException as error:
            self.connection.fail_interrupted(error, "a release")
            raise

    def map(self, indices: Sequence[int], sizes: Sequence[int], descriptors: dict[int, int]) -> None:
        """Map the segments that came with a reply; the descriptors are owned by this from now on.

        Raises:
            StoreConnectionError: this process cannot map one. The store shows a segment once, so the connection ends.
        """
        if not descriptors:
            return
        for index, size in zip(indices, sizes, strict=True):
            descriptor = descriptors.pop(index, None)
            if descriptor is not None:
                # The advertised size has 8 bytes more than may be mapped: docs/plasma-ipc.md, "Descriptors".
                try:
                    self.mappings[index] = Mapping(descriptor, size - 8)
                except OSError as error:
                    close_descriptors(descriptors.values())
                    raise self.connection.fail(f"has memory that cannot be mapped: {reason_of(error)}") from error

    def end_writing(self, object_id: ObjectID) -> None:
        """Say that nobody writes any more what was not sealed; who closed this has left it to the writer to abort."""
        self.connection.end_writing(object_id)
        if self._lingering is not None:
            self._given_up.append(object_id)
            self._settle_lingering(self._lingering)

    def close(self) -> None:
        """End all but the holds that leases and views still need; each of these ends with the last of its views.

        What is unsealed is aborted, when nobody writes it any more. In the midst of a request, or where it is broken,
        the connection closes, and the holds end; memory stays readable as long as somebody looks at it. May be
        called again.
        """
        self._take_notes()
        # More answers than that would not find room, since nobody reads them.
        socket = self.connection.hand_over() if self._places and len(self.connection.unsealed) <= AT_ONCE else None
        if socket is None:
            self.connection.close()
            self._close_unused()
            return
        lingering = Lingering(socket)
        lingering.tell(self._take_releases())
        self._lingering = lingering
        self._on_unsent, self._on_release = _nobody, None  # the client need not live as long
        self.settle()

    def _settle_lingering(self, lingering: Lingering) -> None:
        """As `settle`, in any thread, in the midst of anything: whoever has the turn acts on the notes of all."""
        while (self._given_back or self._given_up) and lingering.turn.acquire(blocking=False):
            self._take_notes()
            requests = self._take_releases()
            while self._given_up:
                requests.append(AbortRequest(self._given_up.popleft()))
            if self._places or self.connection.unsealed:
                lingering.tell(requests)
            else:
                lingering.close()
            # In no `finally`: who was interrupted between two bytes has said the last word, and the end of the last
            # view closes the socket.
            lingering.turn.release()

    def _take_notes(self) -> None:
        given_back, find, counts = self._given_back, self._tickets.pop, self._counts
        while given_back:
            object_id = find(given_back.popleft(), None)
            if object_id is None:  # told a second time
                continue
            left = counts[object_id] = counts[object_id] - 1
            if not left:
                del counts[object_id], self._places[object_id]
                self._let_go.append(object_id)
        if self.connection.broken:
            self._close_unused()

    def _take_releases(self) -> list[Message]:
        let_go, self._let_go = self._let_go, []
        return self.connection.releases([object_id for object_id in let_go if object_id not in self._places])

    def _close_unused(self) -> None:
        """After the end of the connection, close the files as soon as no lease can name them any more."""
        if not self._places:
            for mapping in self.mappings.values():
                mapping.close()
            self.mappings.clear()

    def _lease(self, object_id: ObjectID) -> Lease | None:
        place = self._places.get(object_id)
        return None if place is None else Lease(object_id, place, self.hold(object_id), self)


def _places(specs: Specs) -> Iterator[Sequence[Place | None]]:
    """Where objects lie, some thousands at a time; None for those that are missing."""
    for some in specs.pieces():
        columns = some.columns()
        if columns.has_missing or len(columns.segments) > 1:
            yield [_place(spec) for spec in some]
        else:
            (segment,) = columns.segments
            sizes = columns.data_sizes, columns.metadata_sizes
            yield list(zip(repeat(segment, len(some)), columns.data_offsets, *sizes, strict=True))


def _place(spec: ObjectSpec) -> Place | None:
    if spec.is_missing:
        return None
    return spec.segment_index, spec.data_offset, spec.data_size, spec.metadata_size
