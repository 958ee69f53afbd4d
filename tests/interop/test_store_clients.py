"""Apache's own client against our store in a process of its own: what a program that used Apache's store relies on."""

import random
import signal
import struct
import time

import pytest

from plasmastream import ObjectID
from tests.apache import ApacheClient, ApacheError, ClientFactory, Digest
from tests.interop.conftest import OurStoreFactory
from tests.interop.nodes import MIB, unsealed, wait_until

A, B, C, MISSING = (ObjectID.from_name(name) for name in ("A", "B", "C", "missing"))


def name(number: int) -> ObjectID:
    return ObjectID.from_name(f"object {number}")


def kind_of_error(client: ApacheClient, command: str, *arguments: object) -> str:
    with pytest.raises(ApacheError) as caught:
        client.start(command, *arguments).result()
    return caught.value.kind


@pytest.fixture
def path(our_store: OurStoreFactory) -> str:
    return our_store(100_000_000).socket_path


def test_numpy_arrays_and_values(path: str, apache_client: ClientFactory) -> None:
    writer, reader = apache_client(path), apache_client(path)
    for dtype, shape in (("<f8", (100, 30)), ("<i4", (7,)), ("|u1", (3, 4, 5)), ("<f4", (1000, 1000)), ("<i8", ())):
        size = int(dtype[2:])
        for length in shape:
            size *= length
        memory = random.Random(size).randbytes(size)
        object_id = writer.put_numpy(memory, dtype, shape)
        assert reader.get_numpy(object_id) == (memory, dtype, shape)
    value = {"list": [1, 2.5, None], "text": "ä", "bytes": b"\0\1", "nested": {"tuple": (1, 2)}}
    assert reader.get_object(writer.put_object(value)) == value
    assert kind_of_error(reader, "get_object", MISSING, 0) == "LookupError"


def test_create_seal_get_contains_and_hash(path: str, apache_client: ClientFactory) -> None:
    writer, reader = apache_client(path), apache_client(path)
    assert writer.store_capacity() == 100_000_000
    writer.create(A, 3_000_003, b"metadata")
    writer.fill_random(A, 1)
    assert not reader.contains(A)
    assert reader.get([A]) == [None]
    assert writer.get([A]) == [None]
    assert writer.get([A], 1) == [None]
    writer.seal(A)
    assert reader.contains(A)
    assert reader.digest([A, MISSING, A]) == [
        Digest.of_pattern(1, 3_000_003, b"metadata"),
        None,
        Digest.of_pattern(1, 3_000_003, b"metadata"),
    ]
    assert reader.hash(A) == writer.hash(A)
    assert kind_of_error(reader, "hash", MISSING) == "PlasmaObjectNotFound"
    assert kind_of_error(reader, "create", A, 1, b"") == "PlasmaObjectExists"
    assert kind_of_error(reader, "create_and_seal", A, b"", b"") == "PlasmaObjectExists"
    writer.create(B, 5, b"")
    assert kind_of_error(reader, "create", B, 1, b"") == "PlasmaObjectExists"
    assert kind_of_error(reader, "seal", C, False) == "PlasmaObjectNotFound"


@pytest.mark.parametrize("timeout_ms", [10, 1000, -1])
def test_get_waits_for_another_process_to_seal(path: str, apache_client: ClientFactory, timeout_ms: int) -> None:
    writer, reader = apache_client(path), apache_client(path)
    writer.create_and_seal(C, b"there already")
    assert reader.get([MISSING], 0) == [None]
    writer.create(A, 4)
    writer.write(A, b"data")
    waiting = reader.start("get", [C, A, B], timeout_ms)
    assert not waiting.done(within=0.005)
    if timeout_ms == 10:
        assert waiting.result() == [(b"there already", b""), None, None]
        return
    writer.seal(A)
    assert not waiting.done(within=0.2)
    writer.create_and_seal(B, b"last")
    assert waiting.done(within=0.5)
    assert waiting.result() == [(b"there already", b""), (b"data", b""), (b"last", b"")]


def test_timeouts_are_kept(path: str, apache_client: ClientFactory) -> None:
    client = apache_client(path)
    for timeout_ms, least, most in ((0, 0.0, 0.1), (10, 0.009, 0.15), (100, 0.099, 0.3)):
        begin = time.monotonic()
        assert client.get([MISSING] * 2, timeout_ms) == [None, None]
        assert least <= time.monotonic() - begin < most


def test_delete_now_and_later(path: str, apache_client: ClientFactory) -> None:
    first, second = apache_client(path), apache_client(path)
    first.create_and_seal(A, b"a")
    first.delete([A, MISSING])
    assert not first.contains(A)
    first.create_and_seal(A, b"again")
    assert second.hold([A]) == [True]
    assert first.hold([A]) == [True]
    second.delete([A])
    assert first.contains(A)
    second.drop([A])
    assert first.get([A]) == [(b"again", b"")]
    assert second.contains(A)
    first.drop([A])
    wait_until(lambda: not second.contains(A), 5, "it goes with its last holder")
    assert first.list() == {}
    # A mark on an unsealed object that is aborted does not hit its successor (a fault of the original).
    first.create(B, 1)
    second.delete([B])
    first.abort(B)
    first.create_and_seal(B, b"b")
    assert second.get([B]) == [(b"b", b"")]
    assert second.contains(B)


def test_list_tells_states_sizes_and_holders(path: str, apache_client: ClientFactory) -> None:
    first, second = apache_client(path), apache_client(path)
    first.create(A, 10, b"meta")
    first.create_and_seal(B, b"bb", b"m")
    begin = time.time()
    listed = second.list()
    assert {object_id: entry["state"] for object_id, entry in listed.items()} == {A: "created", B: "sealed"}
    assert (listed[A]["data_size"], listed[A]["metadata_size"]) == (10, 4)
    assert (listed[B]["data_size"], listed[B]["metadata_size"]) == (2, 1)
    assert [listed[object_id]["ref_count"] for object_id in (A, B)] == [1, 0]
    assert abs(listed[A]["create_time"] - begin) < 3
    assert first.hold([B]) == [True]
    assert second.hold([B, B]) == [True, True]
    assert second.list()[B]["ref_count"] == 2
    second.drop([B])
    assert second.list()[B]["ref_count"] == 2
    second.drop([B])
    # A release has no reply, so another client's next request may overtake it; not so its own.
    assert second.list()[B]["ref_count"] == 1
    time.sleep(max(0.0, begin + 2.1 - time.time()))
    first.write(A, b"x" * 10)
    first.seal(A)
    wait_until(lambda: second.list()[A]["ref_count"] == 0, 5, "the release of another client")
    entry = second.list()[A]
    assert entry["state"] == "sealed"
    assert 2 <= entry["construct_duration"] <= 3


def test_abort(path: str, apache_client: ClientFactory) -> None:
    first, second = apache_client(path), apache_client(path)
    first.create(A, 90_000_000)
    waiting = second.start("get", [A], 400)
    first.abort(A)
    assert waiting.result() == [None]
    assert second.list() == {}
    second.create(A, 90_000_000)
    second.abort(A)


def test_evict_takes_the_oldest_first_and_spares_what_is_held(path: str, apache_client: ClientFactory) -> None:
    client = apache_client(path)
    for number in range(10):
        client.create_and_seal(name(number), b"x" * 900, b"m" * 100)
    assert client.get([name(0)])[0]  # now the most recent one
    assert client.hold([name(2)]) == [True]
    client.create(A, 1000)
    assert client.evict(0) == 0
    assert client.evict(-1) == 0
    assert client.evict(1) == 1000
    assert client.evict(1001) == 2000
    assert set(client.list()) == {A, name(0), name(2), *map(name, range(5, 10))}
    client.drop([name(2)])
    assert client.evict(1_000_000) == 7000
    assert set(client.list()) == {A}


def test_the_least_recently_used_go_first_under_pressure(
    our_store: OurStoreFactory, apache_client: ClientFactory
) -> None:
    client = apache_client(our_store(1_000_000).socket_path)
    for number in range(10):
        client.create_and_seal(name(number), bytes(100_000))
    assert client.hold([name(1)]) == [True]
    assert client.get([name(0)])[0]
    assert client.contains(name(2))  # which is no use
    client.create_and_seal(A, b"x")  # takes a fifth of the capacity
    assert set(client.list()) == {A, name(0), name(1), *map(name, range(4, 10))}
    client.create_and_seal(B, bytes(250_000))
    assert set(client.list()) == {A, B, name(0), name(1), *map(name, range(6, 10))}
    client.create_and_seal(C, bytes(900_000))
    assert set(client.list()) == {C, name(1)}
    # What cannot be, evicts nothing, however often it is tried.
    for _ in range(3):
        assert kind_of_error(client, "create", MISSING, 900_001, b"") == "PlasmaStoreFull"
        assert kind_of_error(client, "create", MISSING, 2_000_000, b"") == "PlasmaStoreFull"
        assert set(client.list()) == {C, name(1)}


def test_create_and_seal_of_any_size(path: str, apache_client: ClientFactory) -> None:
    writer, reader = apache_client(path), apache_client(path)
    content = random.Random(3).randbytes(20 * MIB)
    for size in (0, 1, 2, 7, 8, 63, 64, 65, 999, 4096, 65_536, 1_000_000, 10 * MIB, 20 * MIB):
        writer.create_and_seal(A, content[:size], content[-size % 1000 :][: min(size, 1000)])
        expected = Digest.of(content[:size], content[-size % 1000 :][: min(size, 1000)])
        assert reader.digest([A]) == [expected]
        reader.delete([A])  # after its own release, which has no reply
    # Five times the capacity in frames of 20 MB, half of it metadata.
    for number in range(25):
        writer.create_and_seal(name(number), content[: 10 * MIB], content[10 * MIB :])
    assert reader.digest([name(24)]) == [Digest.of(content[: 10 * MIB], content[10 * MIB :])]


def test_metadata_of_any_length(path: str, apache_client: ClientFactory) -> None:
    writer, reader = apache_client(path), apache_client(path)
    content = bytes(range(256)) * 4
    handles = []
    for length in range(1000):
        handles.append(writer.start("create", name(length), length, content[:length]))
        handles.append(writer.start("seal", name(length), False))
    for handle in handles:
        handle.result()
    ids = [name(length) for length in range(1000)]
    assert [found and found[1] for found in reader.get(ids)] == [content[:length] for length in range(1000)]
    assert reader.get(ids)[:2] == [(b"", b""), (b"\0", b"\0")]


def test_a_thousand_unsealed_objects_and_their_duplicates(path: str, apache_client: ClientFactory) -> None:
    first, second = apache_client(path), apache_client(path)
    created = [first.start("create", name(number), number, b"") for number in range(1000)]
    for handle in created:
        handle.result()
    refused = [client.start("create", name(number), 1, b"") for number in range(1000) for client in (first, second)]
    for handle in refused:
        with pytest.raises(ApacheError) as caught:
            handle.result()
        assert caught.value.kind == "PlasmaObjectExists"
    assert len(unsealed(second)) == 1000
    first.kill()
    wait_until(lambda: second.list() == {}, 5, "unsealed objects go with their creator")


def test_an_object_of_exactly_the_capacity(path: str, apache_client: ClientFactory) -> None:
    capacity = 100_000_000
    writer, reader = apache_client(path), apache_client(path)
    rng = random.Random(4)
    for round_number in range(2):
        for number in range(100):
            object_id = name(1000 * round_number + number)
            writer.create(object_id, int(5_000_000 ** rng.random()) if number % 4 else 5_000_000)
            writer.seal(object_id)
        for attempt in range(2):
            whole = name(10 + attempt)
            writer.delete([whole])
            writer.create(whole, capacity - 5, b"meta!")
            writer.fill_random(whole, attempt)
            writer.seal(whole)
            assert reader.digest([whole]) == [Digest.of_pattern(attempt, capacity - 5, b"meta!")]
            listed = reader.list()  # the reply shows that the reader's release has come, too
            assert set(listed) == {whole}
            assert listed[whole]["ref_count"] == 0
    for _ in range(3):
        assert kind_of_error(writer, "create", A, capacity + 1, b"") == "PlasmaStoreFull"
        assert kind_of_error(writer, "create", A, capacity, b"1") == "PlasmaStoreFull"
    assert set(reader.list()) == {whole}
    assert kind_of_error(writer, "create", A, -1, b"") == "PlasmaStoreFull"


@pytest.mark.parametrize("percent", [50, 70, 80])
def test_what_is_held_bounds_what_fits(path: str, apache_client: ClientFactory, percent: int) -> None:
    client = apache_client(path)
    held = [name(number) for number in range(percent)]
    for object_id in held:
        client.create(object_id, 1_000_000)
        client.seal(object_id, hold=True)
    for number in range(100, 200 - percent):
        client.create(name(number), 1_000_000)
        client.seal(name(number))
    free = (100 - percent) * 1_000_000
    assert kind_of_error(client, "create", A, free - 500, bytes(501)) == "PlasmaStoreFull"
    client.create(A, free - 500, bytes(500))
    assert set(client.list()) == {A, *held}
    client.create(B, 0)  # a full store takes an empty object
    client.seal(B)
    assert kind_of_error(client, "create", C, 1, b"") == "PlasmaStoreFull"


def test_a_killed_client_is_cleaned_up_after(path: str, apache_client: ClientFactory) -> None:
    witness, victim, waiter = (apache_client(path) for _ in range(3))
    witness.create_and_seal(A, b"a" * 1000)
    witness.create_and_seal(B, b"b")
    assert victim.hold([A, B]) == [True, True]
    victim.create(C, 50_000_000)
    witness.delete([B])  # as soon as the victim lets go
    waiting = waiter.start("get", [C, MISSING], -1)
    assert not waiting.done(within=0.1)
    listed = witness.list()
    assert (listed[A]["ref_count"], listed[B]["ref_count"], listed[C]["state"]) == (1, 1, "created")
    victim.signal(signal.SIGKILL)
    wait_until(lambda: set(witness.list()) == {A}, 5, "what the victim wrote and held is let go")
    assert witness.list()[A]["ref_count"] == 0
    # The waiting one goes on waiting; another client makes the objects anew.
    assert not waiting.done(within=0.1)
    witness.create(C, 8)
    witness.write(C, b"from new")
    witness.seal(C)
    witness.create_and_seal(MISSING, b"m")
    assert waiting.result() == [(b"from new", b""), (b"m", b"")]


def test_a_client_killed_while_it_waits_hurts_nobody(path: str, apache_client: ClientFactory) -> None:
    witness, victim, other = (apache_client(path) for _ in range(3))
    victim.start("get", [A, B], -1)
    waiting = other.start("get", [B, A], 20_000)
    assert not waiting.done(within=0.2)
    witness.create_and_seal(A, b"a")
    wait_until(lambda: witness.list()[A]["ref_count"] == 2, 5, "both hold what is there by now")
    victim.signal(signal.SIGKILL)
    wait_until(lambda: witness.list()[A]["ref_count"] == 1, 5, "the victim holds nothing any more")
    witness.create_and_seal(B, b"b")
    assert waiting.result() == [(b"b", b""), (b"a", b"")]
    wait_until(lambda: not any(entry["ref_count"] for entry in witness.list().values()), 5, "all is let go")


def test_many_objects_in_one_get(path: str, apache_client: ClientFactory) -> None:
    writer, reader = apache_client(path), apache_client(path)
    handles = [
        writer.start("create_and_seal", name(number), struct.pack("<I", number), b"") for number in range(0, 2000, 2)
    ]
    for handle in handles:
        handle.result()
    for timeout_ms in (0, 10, 100):
        found = reader.get([name(number) for number in range(2000)], timeout_ms)
        assert found == [None if number % 2 else (struct.pack("<I", number), b"") for number in range(2000)]
    writer.delete([name(number) for number in range(2000)])
    wait_until(lambda: not reader.list(), 5, "all are deleted")


def test_buffers_outlive_disconnect_and_store(our_store: OurStoreFactory, apache_client: ClientFactory) -> None:
    store = our_store()
    client = apache_client(store.socket_path)
    client.create_and_seal(A, b"still here")
    assert client.hold([A]) == [True]
    client.disconnect()
    store.kill()
    assert client.held(A) == b"still here"
