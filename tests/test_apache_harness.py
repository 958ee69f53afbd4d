"""The harness, proven on the pair it was made for: Apache's store with Apache's client."""

import os
import signal
import time
from pathlib import Path

import pytest

from plasmastream import ObjectID
from tests.apache import ApacheError, ClientFactory, Digest, HarnessError, Notification, StoreFactory

A, B = (ObjectID.from_name(name) for name in "AB")


def test_the_bytes_come_back_to_another_client(
    apache_store: StoreFactory, apache_client: ClientFactory
) -> None:
    path = apache_store().socket_path
    writer, reader = apache_client(path), apache_client(path)
    writer.create(A, 5, b"meta")
    writer.write(A, b"hello")
    writer.write(A, b"p!", offset=3)
    assert not reader.contains(A)
    writer.seal(A)
    writer.create_and_seal(B, b"", b"inline")
    assert reader.contains(A)
    missing = ObjectID.random()
    assert reader.get([A, missing, B]) == [(b"help!", b"meta"), None, (b"", b"inline")]
    assert reader.digest([A, missing]) == [Digest.of(b"help!", b"meta"), None]
    assert len(reader.hash(A)) == 8
    assert reader.hash(A) != reader.hash(B)
    writer.delete([A])
    assert not reader.contains(A)


def test_a_large_object_is_compared_without_shipping_it(
    apache_store: StoreFactory, apache_client: ClientFactory
) -> None:
    size = 5_000_001
    client = apache_client(apache_store().socket_path)
    client.create(A, size, b"m")
    client.fill_random(A, seed=7)
    client.seal(A)
    assert client.digest([A]) == [Digest.of_pattern(7, size, b"m")]
    assert client.digest([A]) != [Digest.of_pattern(8, size, b"m")]


def test_values_and_arrays(apache_store: StoreFactory, apache_client: ClientFactory) -> None:
    client = apache_client(apache_store().socket_path)
    object_id = client.put_object({"a": [1, 2.5, None, "x"]})
    assert client.get_object(object_id) == {"a": [1, 2.5, None, "x"]}
    memory = bytes(range(24))
    assert client.put_numpy(memory, "<i4", (2, 3), A) == A
    assert client.get_numpy(A) == (memory, "<i4", (2, 3))
    with pytest.raises(ApacheError) as caught:
        client.get_object(B)
    assert caught.value.kind == "LookupError"


def test_the_capacity_is_exact_and_errors_have_kinds(
    apache_store: StoreFactory, apache_client: ClientFactory
) -> None:
    client = apache_client(apache_store(1_000_000).socket_path)
    assert client.store_capacity() == 1_000_000
    client.create(A, 600_000)
    with pytest.raises(ApacheError) as full:
        client.create(B, 600_000)
    assert full.value.kind == "PlasmaStoreFull"
    with pytest.raises(ApacheError) as exists:
        client.create(A, 1)
    assert exists.value.kind == "PlasmaObjectExists"


def test_an_object_is_in_use_while_it_is_held(
    apache_store: StoreFactory, apache_client: ClientFactory
) -> None:
    client = apache_client(apache_store(1_000_000).socket_path)
    client.create_and_seal(A, b"a" * 1000, b"m" * 10)
    assert client.hold([A, B]) == [True, False]
    assert client.evict(1) == 0
    assert client.list()[A]["ref_count"] == 1
    assert client.held(A) == b"a" * 1000
    client.drop([A])
    assert client.list()[A]["ref_count"] == 0
    assert client.evict(1) == 1010
    client.create(B, 8)
    client.seal(B, hold=True)
    assert client.list()[B]["ref_count"] == 1


def test_list_tells_sizes_and_states(apache_store: StoreFactory, apache_client: ClientFactory) -> None:
    client = apache_client(apache_store().socket_path)
    before = int(time.time())
    client.create(A, 100, b"four")
    client.create_and_seal(B, b"12")
    entries = client.list()
    assert set(entries) == {A, B}
    assert (entries[A]["data_size"], entries[A]["metadata_size"], entries[A]["state"]) == (100, 4, "created")
    assert (entries[B]["data_size"], entries[B]["state"]) == (2, "sealed")
    assert before <= entries[A]["create_time"] <= time.time() + 1  # Apache's store rounds to the nearest second
    assert "num clients with quota: 0" in client.debug_string()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="abort needs the calling convention of x86-64")
def test_an_aborted_object_is_gone(apache_store: StoreFactory, apache_client: ClientFactory) -> None:
    client = apache_client(apache_store().socket_path)
    client.create(A, 100)
    client.abort(A)
    assert client.list() == {}
    client.create_and_seal(A, b"again")


def test_notifications(apache_store: StoreFactory, apache_client: ClientFactory) -> None:
    path = apache_store().socket_path
    listener, writer = apache_client(path), apache_client(path)
    listener.subscribe()
    first = listener.start("get_next_notification")
    assert not first.done(within=0.05)
    writer.create_and_seal(A, b"abc", b"m")
    assert Notification(*first.result()) == Notification(A, 3, 1)
    writer.delete([A])
    assert listener.get_next_notification() == Notification(A, -1, -1)


def test_a_started_get_waits_for_the_object(apache_store: StoreFactory, apache_client: ClientFactory) -> None:
    path = apache_store().socket_path
    reader, writer = apache_client(path), apache_client(path)
    waiting = reader.start("get", [A], 10_000)
    assert not waiting.done(within=0.05)
    writer.create_and_seal(A, b"abc")
    assert waiting.result() == [(b"abc", b"")]


def test_a_hung_client_is_killed_with_a_clear_message(
    apache_store: StoreFactory, apache_client: ClientFactory
) -> None:
    client = apache_client(apache_store().socket_path)
    client.timeout = 0.2
    with pytest.raises(HarnessError, match=r"has not finished 'get' after 0.2 s, and was killed"):
        client.get([A], timeout_ms=-1)
    assert client.exit_status == -signal.SIGKILL


def test_a_killed_client_fails_its_commands(apache_store: StoreFactory, apache_client: ClientFactory) -> None:
    path = apache_store().socket_path
    client, other = apache_client(path), apache_client(path)
    client.create(A, 100)
    waiting = client.start("get", [B], -1)
    client.kill()
    with pytest.raises(HarnessError, match="died with status -9"):
        waiting.result()
    with pytest.raises(HarnessError, match="is gone"):
        client.contains(A)
    assert other.list() == {}


def test_a_killed_store_is_noticed(apache_store: StoreFactory, apache_client: ClientFactory) -> None:
    store = apache_store()
    client = apache_client(store.socket_path)
    store.kill()
    assert store.exit_status == -signal.SIGKILL
    with pytest.raises(ApacheError) as caught:
        client.contains(A)
    assert caught.value.kind == "OSError"


def test_a_store_ends_cleanly_with_clients_connected(
    apache_store: StoreFactory, apache_client: ClientFactory
) -> None:
    store = apache_store()
    apache_client(store.socket_path)
    assert store.terminate(timeout=5) == 0


def test_a_refused_connection(apache_client: ClientFactory, socket_directory: Path) -> None:
    with pytest.raises(ApacheError) as caught:
        apache_client(socket_directory / "nobody", num_retries=1)
    assert caught.value.kind == "OSError"


def test_a_store_that_cannot_start_says_why(apache_store: StoreFactory) -> None:
    with pytest.raises(HarnessError, match="ended with status"):
        apache_store(10_000, arguments=["-d", "/nonexistent/directory"])
