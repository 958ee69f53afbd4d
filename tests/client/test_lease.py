"""A lease gives its hold back once: when it is released or gone, or with the last view of what it showed."""

import gc
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmastream import ObjectID
from plasmastream._client import Lease, Leases, Ticket, WatchedMemory
from tests.store.helpers import name


class Shown:
    """Ten bytes, and no file."""

    fd = -1

    def __init__(self) -> None:
        self.watched = WatchedMemory(mmap.mmap(-1, 10))


class Keeper:
    """Notes what it is told."""

    is_lost = False

    def __init__(self) -> None:
        self.memory = Shown()
        self.given_back: list[Ticket] = []
        self.settled = 0

    def shown(self, index: int) -> Shown:
        """The only memory."""
        assert index == 3
        return self.memory

    def give_back(self, tickets: Sequence[Ticket]) -> None:
        """Take note."""
        self.given_back += tickets

    def released(self) -> None:
        """Take note."""
        self.settled += 1

    def lease(self, ticket: int, size: int = 8) -> Lease:
        """A lease on some of the bytes."""
        return Lease(name(ticket), (3, 1, size, 1 if size else 0), ticket, self)


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    gc.collect()
    gc.disable()
    yield Keeper()
    gc.enable()


def test_a_lease_that_nobody_looks_at(keeper: Keeper) -> None:
    lease = keeper.lease(1)
    assert (lease.object_id, lease.size, lease.file.offset) == (name(1), 9, 1)
    assert repr(lease) == f"<Lease of {name(1)}, 9 bytes>"
    for _ in range(2):
        lease.release()
        assert (keeper.given_back, keeper.settled) == ([1], 1)
    assert repr(lease) == f"<Lease of {name(1)}, released>"
    for view in (lease.data, lease.metadata):
        with pytest.raises(ValueError, match="released"):
            bytes(view)
    del lease
    assert keeper.given_back == [1]


def test_an_empty_object_needs_no_memory() -> None:
    keeper = Keeper()
    with keeper.lease(1, 0) as lease:
        assert (bytes(lease.data), bytes(lease.metadata), lease.file.fd) == (b"", b"", -1)
    assert keeper.given_back == [1]


@given(st.permutations(["lease", "one", "other"]), st.booleans())
def test_the_last_one_ends_the_hold(order: list[str], is_released: bool) -> None:
    keeper = Keeper()
    lease = keeper.lease(1)
    things = {"lease": lease, "one": lease.data[2:], "other": lease.data[:1].cast("b")}
    del lease
    for thing in order:
        assert keeper.given_back == []
        gone = things.pop(thing)
        if is_released and isinstance(gone, Lease):
            gone.release()
        del gone
    assert keeper.given_back == [1]


@pytest.mark.parametrize("act", [lambda lease: lease.data, lambda lease: lease.release()])
def test_many_threads_look_and_release_at_once(act: Callable[[Lease], object]) -> None:
    for ticket in range(200):
        keeper = Keeper()
        lease = keeper.lease(ticket)
        barrier = threading.Barrier(3)
        views: list[memoryview] = []

        def look(lease: Lease = lease, barrier: threading.Barrier = barrier, views: list[memoryview] = views) -> None:
            barrier.wait()
            view = lease.data
            with suppress(ValueError):  # released, or about to be
                views.append(view[:])

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        barrier.wait()
        act(lease)
        for thread in threads:
            thread.join()
        assert bool(keeper.given_back) <= (not views)
        del threads, thread, look, lease
        views.clear()
        assert set(keeper.given_back) == {ticket}


def test_a_list_is_released_as_a_whole(keeper: Keeper) -> None:
    other = Keeper()
    leases: Leases[Lease | None] = Leases([keeper.lease(1), None, keeper.lease(2), keeper.lease(3), other.lease(4)])
    _, _, second, third, _ = leases
    assert second is not None
    assert third is not None
    view = second.data[:]
    second.data.hex()
    third.release()
    with leases as same:
        assert same is leases
    leases.release()
    assert (keeper.given_back, keeper.settled, other.given_back, other.settled) == ([3, 1], 2, [4], 1)
    del view
    assert keeper.given_back == [3, 1, 2]


def test_what_was_not_made_as_a_whole_gives_nothing_back() -> None:
    lease = Lease.__new__(Lease)
    lease.object_id = ObjectID(bytes(20))
    del lease
