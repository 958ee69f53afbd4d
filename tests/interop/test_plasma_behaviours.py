"""What Apache's own tests expect of notifications, quotas and crowded gets, asked by Apache's client.

Each runs against Apache's store as well, which shows that the expectation is the right one.
"""

from collections.abc import Callable

import pytest

from plasmastream import ObjectID
from tests.apache import ApacheClient, ApacheError, ClientFactory, Notification, StoreFactory
from tests.interop.conftest import OurStoreFactory
from tests.interop.nodes import MIB, wait_until

CAPACITY = 10_000_000

Connect = Callable[[], ApacheClient]


def name(number: object) -> ObjectID:
    return ObjectID.from_name(f"object {number}")


@pytest.fixture(params=["ours", "Apache's"])
def connect(
    request: pytest.FixtureRequest,
    our_store: OurStoreFactory,
    apache_store: StoreFactory,
    apache_client: ClientFactory,
) -> Connect:
    path = (our_store if request.param == "ours" else apache_store)(CAPACITY).socket_path
    return lambda: apache_client(path)


def take(client: ApacheClient, count: int) -> list[Notification]:
    handles = [client.start("get_next_notification") for _ in range(count)]
    return [Notification(*handle.result()) for handle in handles]


def figures(client: ApacheClient) -> dict[str, str]:
    pairs = (line.rpartition(": ") for line in client.debug_string().splitlines())
    return {what: figure for what, _, figure in pairs}


def put(client: ApacheClient, object_id: ObjectID, size: int, *, hold: bool = False) -> None:
    client.create(object_id, size)
    client.seal(object_id, hold=hold)


# Notifications


def test_notifications_that_nobody_reads_yet_keep_their_order(connect: Connect) -> None:
    listener, writer = connect(), connect()
    listener.subscribe()
    assert listener.contains(name(0)) is False  # so the store has read the subscription
    sizes = [(7919 * number % 1000, number % 3) for number in range(2000)]
    handles = [
        writer.start("create_and_seal", name(number), bytes(data_size), bytes(metadata_size))
        for number, (data_size, metadata_size) in enumerate(sizes)
    ]
    for handle in handles:
        handle.result()
    assert take(listener, 2000) == [Notification(name(number), *size) for number, size in enumerate(sizes)]


def test_a_new_subscriber_is_told_what_is_there_and_what_goes(connect: Connect) -> None:
    client, other = connect(), connect()
    other.create_and_seal(name("a"), b"12345", b"67")
    put(other, name("b"), 10, hold=True)
    other.create(name("unsealed"), 10)
    client.subscribe()
    assert sorted(take(client, 2)) == sorted([Notification(name("a"), 5, 2), Notification(name("b"), 10, 0)])
    other.abort(name("unsealed"))
    client.delete([name("b")])  # as soon as nobody holds it
    client.delete([name("a")])
    assert take(client, 1) == [Notification(name("a"), -1, -1)]
    other.drop([name("b")])
    assert take(client, 1) == [Notification(name("b"), -1, -1)]


def test_evictions_are_told_in_their_order_empty_objects_too(connect: Connect) -> None:
    client = connect()
    client.subscribe()
    ids = [name(number) for number in range(11)]
    for object_id in ids:
        client.create_and_seal(object_id, b"" if object_id in ids[:9] else b"x")
    take(client, 11)
    assert client.evict(1) == 1
    assert take(client, 10) == [Notification(object_id, -1, -1) for object_id in ids[:10]]
    assert set(client.list()) == {ids[10]}


# Quotas


def test_a_quota_holds_and_is_safe_from_others(connect: Connect) -> None:
    owner, other = connect(), connect()
    owner.set_client_options("owner", 5 * MIB)
    put(owner, name("mine"), 3 * MIB)
    put(other, name("theirs"), 3 * MIB)
    assert other.evict(CAPACITY) == 3 * MIB  # not what is in a quota
    put(other, name("theirs"), 3 * MIB)
    put(owner, name("mine too"), 3 * MIB)
    assert set(other.list()) == {name("mine too"), name("theirs")}
    for number in range(3):  # under pressure, everybody's share makes room
        put(other, name(number), 3 * MIB)
    assert name("mine too") in other.list()
    with pytest.raises(ApacheError) as caught:
        owner.create(name("large"), 5 * MIB + 1)
    assert caught.value.kind == "PlasmaStoreFull"


def test_quotas_leave_30_per_cent_to_everybody(connect: Connect) -> None:
    first, second, third = connect(), connect(), connect()
    first.set_client_options("first", 4_000_000)
    second.set_client_options("second", 2_500_000)
    with pytest.raises(ApacheError):
        third.set_client_options("third", 600_000)
    with pytest.raises(ApacheError):
        first.set_client_options("again", 1)
    third.set_client_options("third", 500_000)
    assert figures(third)["num clients with quota"] == "3"
    first.disconnect()
    wait_until(lambda: figures(third)["num clients with quota"] == "2", 5, "its quota is everybody's again")
    assert figures(third)["(global lru) capacity"] == "7000000"


def test_what_is_in_use_leaves_its_quota_and_deletes_empty_it(connect: Connect) -> None:
    client = connect()
    client.set_client_options("owner", 5 * MIB)
    put(client, name("used"), 3 * MIB, hold=True)
    assert (figures(client)["quota map size"], figures(client)["pinned quota map size"]) == ("1", "1")
    put(client, name("next"), 3 * MIB)
    assert set(client.list()) == {name("used"), name("next")}
    assert figures(client)["quota map size"] == "1"
    client.drop([name("used")])
    assert client.evict(1) == 3 * MIB
    assert set(client.list()) == {name("next")}
    client.delete([name("next")])
    assert (figures(client)["quota map size"], figures(client)["pinned quota map size"]) == ("0", "0")


def test_the_objects_of_a_quota_outlive_their_owner(connect: Connect) -> None:
    owner, other = connect(), connect()
    owner.set_client_options("owner", 5 * MIB)
    put(owner, name("mine"), 4 * MIB)
    assert figures(other)["(owner) num objects"] == "1"
    owner.disconnect()
    wait_until(lambda: figures(other)["num clients with quota"] == "0", 5, "the owner is gone")
    assert figures(other)["(global lru) used"] == "41.943%"
    assert other.evict(1) == 4 * MIB


# Life and death of one id


def test_an_id_lives_many_lives(connect: Connect) -> None:
    client = connect()
    for size in range(50):
        client.create(name("a"), size)
        client.abort(name("a"))
        put(client, name("a"), size, hold=True)
        client.delete([name("a"), name("unknown")])
        client.drop([name("a")])
    assert client.list() == {}


def test_batches_of_60_all_half_or_none_there(connect: Connect) -> None:
    client = connect()
    for number in range(60):
        client.create_and_seal(name(number), b"%d" % number)
    there = [(b"%d" % number, b"") for number in range(60)]
    for timeout_ms in (0, 10, 100, 500):
        assert client.get([name(number) for number in range(60)], timeout_ms) == there
        mixed = client.get([name(number if number % 2 else -number - 1) for number in range(60)], timeout_ms)
        assert mixed == [one if number % 2 else None for number, one in enumerate(there)]
        assert client.get([name(-number - 1) for number in range(60)], timeout_ms) == [None] * 60
