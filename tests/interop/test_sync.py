"""A SYNC between two machines, each with a store and our server beside it: every byte, seen by Apache's clients."""

import itertools
import struct

import pytest

from plasmastream import ObjectID
from plasmastream.peer import TransferKind
from plasmastream.store import NewObject, open_store
from tests.apache import ApacheStore, ClientFactory, Digest, StoreFactory
from tests.interop.conftest import NodeFactory, OurStoreFactory
from tests.interop.nodes import (
    GIB,
    KIB,
    RawPeer,
    StoreProcess,
    pattern_digest,
    run_trio,
    sync_bytes,
    unsealed,
    wait_until,
)

LARGE = ObjectID.from_name("1 GiB")
WITH_METADATA = ObjectID.from_name("60,000 bytes of metadata")
EMPTY = ObjectID.from_name("empty data")
NOTHING = ObjectID.from_name("neither data nor metadata")
SMALL = [ObjectID.from_name(f"small {number}") for number in range(10_000)]
METADATA = bytes(range(250)) * 240

MEMORY = GIB + (64 << 20)


def small_data(number: int) -> bytes:
    return struct.pack("<Q", number) * (KIB // 8)


def put_small(socket_path: str) -> None:
    async def put() -> None:
        objects = [NewObject(object_id, small_data(number)) for number, object_id in enumerate(SMALL)]
        async with open_store(socket_path) as store:
            for lease in await store.put_many(objects):
                lease.release()

    run_trio(put)


@pytest.mark.parametrize(("source_kind", "destination_kind"), list(itertools.product(["apache", "ours"], repeat=2)))
def test_objects_of_all_sizes_arrive_byte_for_byte(
    source_kind: str,
    destination_kind: str,
    apache_store: StoreFactory,
    node: NodeFactory,
    apache_client: ClientFactory,
) -> None:
    source, destination = (
        node(apache_store(MEMORY)) if kind == "apache" else node(MEMORY) for kind in (source_kind, destination_kind)
    )
    writer, reader = apache_client(source.socket_path), apache_client(destination.socket_path)
    writer.create(LARGE, GIB, b"meta")
    filling = writer.start("fill_random", LARGE, 21)
    put_small(source.socket_path)
    assert filling.result(30) is None
    writer.seal(LARGE)
    writer.create_and_seal(WITH_METADATA, b"data" * 25, METADATA)
    writer.create_and_seal(EMPTY, b"", b"only metadata")
    writer.create_and_seal(NOTHING, b"", b"")
    reader.create_and_seal(ObjectID.from_name("there already"), b"x")

    ids = [LARGE, WITH_METADATA, EMPTY, NOTHING, *SMALL]
    with RawPeer(destination.port, timeout=60) as client:
        assert client.ask(sync_bytes([source.request(ids)])) == b"\x41"

    seen = [client.start("digest", ids, 0) for client in (writer, reader)]
    expected = [
        pattern_digest(21, GIB, b"meta"),
        Digest.of(b"data" * 25, METADATA),
        Digest.of(b"", b"only metadata"),
        Digest.of(b""),
        *(Digest.of(small_data(number)) for number in range(len(SMALL))),
    ]
    for found in seen:
        assert found.result(60) == [tuple(digest) for digest in expected]
    assert not unsealed(reader)
    wait_until(lambda: not any(entry["ref_count"] for entry in reader.list().values()), 5, "the server holds nothing")


@pytest.mark.parametrize("kind", ["apache", "ours"])
def test_after_a_take_only_the_destination_has_the_objects(
    kind: str,
    apache_store: StoreFactory,
    our_store: OurStoreFactory,
    node: NodeFactory,
    apache_client: ClientFactory,
) -> None:
    stores: list[ApacheStore | StoreProcess] = [
        apache_store(MEMORY) if kind == "apache" else our_store(MEMORY) for _ in range(2)
    ]
    source, destination = (node(store) for store in stores)
    writer, reader = (apache_client(store.socket_path) for store in stores)
    writer.create(LARGE, 200 << 20)
    writer.fill_random(LARGE, 12)
    writer.seal(LARGE)
    put_small(source.socket_path)
    ids = [*SMALL[:5_000], LARGE, *SMALL[5_000:]]
    with RawPeer(destination.port) as client:
        assert client.ask(sync_bytes([source.request(ids, TransferKind.TAKE)])) == b"\x41"
        # The source learns of it by the end of the connection, which may be a moment behind the answer.
        assert reader.digest([LARGE]) == [pattern_digest(12, 200 << 20)]
        assert len(reader.list()) == len(ids)
    wait_until(lambda: not writer.list(), 5, "the source has deleted what was taken")
    assert not unsealed(reader)


def test_one_sync_from_several_peers_into_one_store(
    apache_store: StoreFactory, node: NodeFactory, apache_client: ClientFactory
) -> None:
    destination_store = apache_store()
    destination = node(destination_store)
    requests = []
    expected = {}
    for number in range(4):
        source = node(50_000_000)
        client = apache_client(source.socket_path)
        object_id = ObjectID.from_name(f"from {number}")
        client.create(object_id, 20_000_000 + number)
        client.fill_random(object_id, number)
        client.seal(object_id)
        expected[object_id] = pattern_digest(number, 20_000_000 + number)
        requests.append(source.request([object_id], TransferKind.TAKE if number % 2 else TransferKind.COPY))
    with RawPeer(destination.port) as raw:
        assert raw.ask(sync_bytes(requests), 4) == b"\x41\x41\x41\x41"
        # The connection goes on: the same again is refused, since it is there.
        assert raw.ask(sync_bytes(requests), 4) == b"\x81\x81\x81\x81"
    reader = apache_client(destination_store.socket_path)
    assert dict(zip(expected, reader.digest(list(expected)), strict=True)) == expected
