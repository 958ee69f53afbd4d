"""Quotas and the debug string, by the rows of plasma-ipc 8.3 and 8.4."""

from collections.abc import Iterator

import pytest

from plasmastream import StoreFullError
from plasmastream.store import StoreCore
from plasmastream.store._debug import debug_string
from plasmastream.store._table import Client
from plasmastream.wire.plasma import NO_DIGEST
from tests.store.helpers import names

A, B, C, D = names(4)
CAPACITY = 1000


@pytest.fixture
def core() -> Iterator[StoreCore]:
    core = StoreCore(CAPACITY)
    yield core
    core.close()


@pytest.fixture
def alice(core: StoreCore) -> Client:
    client = Client("alice")
    assert core.table.grant(client, 300)
    return client


def put(core: StoreCore, client: Client, object_id: bytes, size: int, *, keep: bool = False) -> None:
    (entry,) = core.put_many(client, [(object_id, bytes(size), b"", NO_DIGEST)])  # type: ignore[list-item]
    if not keep:
        core.release(client, entry.object_id)


def present(core: StoreCore) -> set[bytes]:
    return {entry.object_id for entry in core.table}


def test_what_is_given_is_given_once_and_leaves_enough_to_everybody(core: StoreCore) -> None:
    first, second, third = (Client(str(number)) for number in range(3))
    assert core.table.grant(first, 500)
    assert not core.table.grant(first, 1)
    assert not core.table.grant(second, 201)
    assert core.table.grant(second, 200)
    assert not core.table.grant(third, 1)
    assert not core.table.grant(third, -1)
    core.disconnect(first)
    assert core.table.grant(third, 500)


def test_owned_objects_are_safe_from_others(core: StoreCore, alice: Client) -> None:
    other = Client("other")
    put(core, alice, A, 300)
    put(core, other, B, 600)
    assert core.evict(CAPACITY) == 600
    put(core, other, B, 700)
    with pytest.raises(StoreFullError):
        core.create(other, C, 701, 0)
    assert present(core) == {A, B}
    core.create(other, C, 700, 0)
    assert present(core) == {A, C}


def test_the_oldest_own_objects_make_room_in_the_quota(core: StoreCore, alice: Client) -> None:
    for object_id in (A, B, C):
        put(core, alice, object_id, 100)
    core.table.refresh([A, D])
    core.create(alice, D, 100, 0)
    assert present(core) == {A, C, D}
    with pytest.raises(StoreFullError, match="quota of 300 bytes"):
        core.create(alice, B, 301, 0)
    with pytest.raises(StoreFullError, match="300 are taken"):
        core.create(alice, B, 1, 0, evict=False)
    assert present(core) == {A, C, D}


def test_own_objects_in_use_go_over_to_everybody(core: StoreCore, alice: Client) -> None:
    put(core, alice, A, 200, keep=True)
    core.create(alice, B, 300, 0)
    assert present(core) == {A, B}
    core.release(alice, A)
    assert list(core.table.idle) == [A]
    assert core.evict(1) == 200


def test_a_disconnect_hands_idle_objects_to_everybody_in_reverse(core: StoreCore, alice: Client) -> None:
    for object_id in (A, B):
        put(core, alice, object_id, 50)
    put(core, alice, C, 50, keep=True)
    assert list(core.table.idle) == []
    core.disconnect(alice)
    assert list(core.table.idle) == [B, A, C]
    assert core.table.unassigned == CAPACITY


def test_a_quota_does_not_make_memory(core: StoreCore, alice: Client) -> None:
    other = Client("other")
    core.create(other, A, 900, 0)
    with pytest.raises(StoreFullError):
        core.create(alice, B, 101, 0)
    put(core, alice, B, 100)
    assert core.delete(B).name == "OK"
    assert core.table.allocated == 900


def test_others_make_room_for_who_has_a_quota(core: StoreCore, alice: Client) -> None:
    other = Client("other")
    put(core, other, A, 900)
    core.create(alice, B, 200, 0)
    assert present(core) == {B}


def test_the_debug_string_has_the_lines_of_the_original(core: StoreCore, alice: Client) -> None:
    alice.label = "cl"
    other = Client("other")
    assert core.table.grant(Client("empty"), 0)
    put(core, alice, A, 150)
    put(core, alice, B, 100, keep=True)
    put(core, other, C, 70)
    core.evict(70)
    put(core, other, C, 70)
    assert debug_string(core).split("\n") == [
        "num clients with quota: 2",
        "quota map size: 2",
        "pinned quota map size: 1",
        "allocated bytes: 320",
        "allocation limit: 1000",
        "pinned bytes: 100",
        "(global lru) capacity: 700",
        "(global lru) used: 37%",
        "(global lru) num objects: 1",
        "(global lru) num evictions: 1",
        "(global lru) bytes evicted: 70",
        "(cl) capacity: 300",
        "(cl) used: 83.3333%",
        "(cl) num objects: 2",
        "(cl) num evictions: 0",
        "(cl) bytes evicted: 0",
        "(anonymous_client) capacity: 0",
        "(anonymous_client) used: 0%",
        "(anonymous_client) num objects: 0",
        "(anonymous_client) num evictions: 0",
        "(anonymous_client) bytes evicted: 0",
    ]
