"""Who holds what, as the store tells it: by the core, through both clients, and of many objects or holders."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from plasmastream import ObjectID, blocking
from plasmastream.store import EmbeddedStore, StoreCore, open_store
from plasmastream.store._inspect import inspect_page, process_at
from plasmastream.store._table import ANONYMOUS, Client, Process
from plasmastream.wire.plasma import (
    MAX_HOLDERS,
    MAX_INSPECTED,
    NO_DIGEST,
    InspectReply,
    ObjectHolder,
    ObjectStatus,
    ObjectUser,
    encode,
)
from tests.apache import short_directory
from tests.store.helpers import name, names, put, served_in_thread

A, B, C = names(3)


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def core(clock: Clock) -> Iterator[StoreCore]:
    core = StoreCore(1_000_000, clock=clock)
    yield core
    core.close()


def client(pid: int, label: str = ANONYMOUS) -> Client:
    return Client(f"process {pid}", label=label, process=Process(pid, 7, f"name {pid}"))


def put_idle(core: StoreCore, *object_ids: ObjectID) -> None:
    writer = Client("writer")
    core.put_many(writer, [(object_id, b"four", b"md", NO_DIGEST) for object_id in object_ids])
    core.disconnect(writer)


def status(core: StoreCore, object_id: ObjectID) -> ObjectStatus:
    (found,) = inspect_page(core, [object_id]).objects
    return found


def test_the_life_of_an_object(core: StoreCore, clock: Clock) -> None:
    writer, reader = client(1), client(2, label="reader")
    core.create(writer, A, 4, 2)
    clock.now += 1
    writing = ObjectHolder(1, 7, "name 1", 1000.0)
    assert status(core, A) == ObjectStatus(
        object_id=A,
        data_size=4,
        metadata_size=2,
        created_at=1000.0,
        last_used_at=1000.0,
        sealed_at=None,
        in_memory=True,
        on_disk=False,
        delete_when_released=False,
        evicted_after=-1,
        holder_count=1,
        holders=(writing,),
    )
    core.seal(A, NO_DIGEST)
    clock.now += 1
    core.get(reader, [A])
    clock.now += 1
    core.get(reader, [A, A])  # a hold counts from the first get, and every get is a use
    found = status(core, A)
    assert (found.sealed_at, found.last_used_at, found.holder_count) == (1001.0, 1003.0, 2)
    assert found.holders == (writing, ObjectHolder(2, 7, "reader", 1002.0))
    clock.now += 1
    core.release(writer, A)
    core.delete(A)
    found = status(core, A)
    assert (found.last_used_at, found.holder_count, found.delete_when_released) == (1004.0, 1, True)
    core.disconnect(reader)
    assert inspect_page(core, [A]) == InspectReply(())


def test_what_waits_for_a_get_is_held_from_the_seal_on(core: StoreCore, clock: Clock) -> None:
    writer, reader = client(1), client(2)
    core.wait_for(reader, [A], lambda: None)
    core.create(writer, A, 1, 0)
    clock.now += 5
    core.seal(A, NO_DIGEST)
    assert status(core, A).holders[1] == ObjectHolder(2, 7, "name 2", 1005.0)


def test_the_order_of_eviction(core: StoreCore, clock: Clock) -> None:
    put_idle(core, A, B, C)
    clock.now += 1
    reader = client(1)
    core.get(reader, [A])
    core.release(reader, A)
    core.get(reader, [B])
    assert [(found.evicted_after, found.last_used_at) for found in inspect_page(core).objects] == [
        (1, 1001.0),
        (-1, 1001.0),
        (0, 1000.0),
    ]


def test_what_counts_in_a_quota(core: StoreCore) -> None:
    owner = client(1)
    assert core.table.grant(owner, 1000)
    core.create(owner, A, 1, 0)
    core.seal(A, NO_DIGEST)
    core.release(owner, A)
    found = status(core, A)
    assert (found.quota_of, found.evicted_after, found.holder_count) == (ObjectUser(1, 7, "name 1"), -1, 0)
    core.disconnect(owner)
    found = status(core, A)
    assert (found.quota_of, found.evicted_after) == (None, 0)


def test_objects_are_told_of_in_the_order_asked(core: StoreCore) -> None:
    put_idle(core, A, B)
    asked = [B, name("missing"), A, B]
    assert [found.object_id for found in inspect_page(core, asked).objects] == [B, A, B]


def test_a_page_goes_on_where_the_last_one_ended(core: StoreCore) -> None:
    """What is there all the time is told of once, whatever comes and goes between two pages."""
    many = names(3 * MAX_INSPECTED - 5)
    put_idle(core, *many)
    first = inspect_page(core)
    assert [found.object_id for found in first.objects] == many[:MAX_INSPECTED]
    for object_id in (*many[:10], many[MAX_INSPECTED - 1], many[MAX_INSPECTED + 3]):
        core.delete(object_id)
    put_idle(core, many[0])
    second = inspect_page(core, cursor=first.next_cursor)
    third = inspect_page(core, cursor=second.next_cursor)
    told = [found.object_id for found in (*second.objects, *third.objects)]
    assert told == [*(i for i in many[MAX_INSPECTED:] if i != many[MAX_INSPECTED + 3]), many[0]]
    assert third.next_cursor == 0
    assert inspect_page(core, cursor=2**64 - 1) == InspectReply(())


def test_a_last_page_that_is_full(core: StoreCore) -> None:
    put_idle(core, *names(MAX_INSPECTED))
    full = inspect_page(core)
    assert len(full.objects) == MAX_INSPECTED
    assert inspect_page(core, cursor=full.next_cursor) == InspectReply(())


def test_of_many_holders_the_first_are_named(core: StoreCore, clock: Clock) -> None:
    put_idle(core, A)
    for pid in range(1, 2 * MAX_HOLDERS):
        core.get(client(pid), [A])
        clock.now += 1
    found = status(core, A)
    assert found.holder_count == 2 * MAX_HOLDERS - 1
    assert [holder.pid for holder in found.holders] == list(range(1, MAX_HOLDERS + 1))


@pytest.mark.parametrize("label", ["x" * 100_000, "\U0001f600" * 1000])
def test_names_are_cut(core: StoreCore, label: str) -> None:
    put_idle(core, A)
    core.get(client(1, label=label), [A])
    assert status(core, A).holders[0].name == label[:64]
    encode(inspect_page(core))


def test_a_client_that_calls_itself_nothing_has_the_name_of_its_process(core: StoreCore) -> None:
    put_idle(core, A)
    core.get(client(1, label=""), [A])
    assert status(core, A).holders[0].name == "name 1"


def test_a_clock_before_1970(core: StoreCore, clock: Clock) -> None:
    clock.now = -5.0
    put_idle(core, A)
    core.get(client(1), [A])
    found = status(core, A)
    times = (found.created_at, found.sealed_at, found.last_used_at, found.holders[0].since)
    assert times == (0.0, 0.0, 0.0, 0.0)
    encode(inspect_page(core))


def test_the_name_of_a_process() -> None:
    comm = Path("/proc/self/comm").read_text().strip()
    assert process_at(os.getpid(), 5) == Process(os.getpid(), 5, comm)
    assert process_at(0, 5) == Process(0, 5, "")


async def test_what_this_process_holds_has_a_name() -> None:
    with EmbeddedStore(1000) as store:
        put(store, A)
        async with store.create(B, 1):
            (lease,) = await store.get([A])
            assert lease is not None
            with lease:
                holders = [found.holders[0] for found in await store.inspect()]
    assert [(holder.pid, holder.user, holder.name) for holder in holders] == [
        (os.getpid(), os.geteuid(), "in-process lease"),
        (os.getpid(), os.geteuid(), "in-process writer"),
    ]


async def test_the_embedded_store_lets_others_run_between_pages() -> None:
    many = names(MAX_INSPECTED + 1)
    with EmbeddedStore(1_000_000) as store:
        put_idle(store.core, *many)
        assert [found.object_id for found in await store.inspect(many)] == many
        assert await store.inspect([]) == []
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.inspect()
        assert scope.cancelled_caught


def test_both_clients_page_through_all() -> None:
    many = names(2 * MAX_INSPECTED + 5)

    async def through_the_socket(path: Path) -> None:
        async with open_store(path) as store:
            assert [found.object_id for found in await store.inspect()] == many
            assert [found.object_id for found in await store.inspect([*many, A])] == [*many, A]
            assert await store.inspect([]) == []
            assert await store.inspect([name("missing")]) == []

    with short_directory() as directory, served_in_thread(directory / "plasma") as store:
        put_idle(store.core, *many)
        trio.run(through_the_socket, directory / "plasma")
        with blocking.open_store(directory / "plasma") as client:
            assert [found.object_id for found in client.inspect()] == many
            assert [found.object_id for found in client.inspect(many)] == many
            assert client.inspect([]) == []
