"""Where the bytes of a payload go: from the socket into the shared memory, and nowhere else."""

import ctypes
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from plasmastream import ObjectID
from plasmastream.peer import _transport, open_peer
from plasmastream.peer._lanes import Lane
from plasmastream.store import EmbeddedStore, ObjectStore, open_store
from tests.apache import ApacheClient, ApacheStore, ClientFactory, Digest, StoreFactory
from tests.interop.conftest import NodeFactory, OurStoreFactory
from tests.interop.nodes import (
    GIB,
    MIB,
    Node,
    RawPeer,
    StoreProcess,
    pattern_digest,
    peak_private_growth,
    private_bytes,
    sync_bytes,
)

LARGE = ObjectID.from_name("large")
SMALL = ObjectID.from_name("small")
SIZE = 256 * MIB
SCRATCH = 256 << 10


def fill(client: ApacheClient, size: int, seed: int) -> None:
    client.create(LARGE, size, b"m")
    client.fill_random(LARGE, seed)
    client.seal(LARGE)


@pytest.mark.parametrize("kind", ["embedded", "ours", "apache"])
def test_receiving_1_gib_takes_less_than_32_mib_of_own_memory(
    kind: str,
    apache_store: StoreFactory,
    our_store: OurStoreFactory,
    apache_client: ClientFactory,
    node: NodeFactory,
) -> None:
    memory = GIB + 16 * MIB
    store: StoreProcess | ApacheStore | int = memory
    if kind != "embedded":
        store = our_store(memory) if kind == "ours" else apache_store(memory)
    source, destination = node(memory), node(store)
    fill(apache_client(source.socket_path), GIB, 5)
    growths: dict[str, int] = {}

    def transfer() -> bytes:
        with RawPeer(destination.port, timeout=60) as client:
            return client.ask(sync_bytes([source.request([LARGE])]))

    with peak_private_growth(destination.pid) as received, peak_private_growth(source.pid) as sent:
        assert transfer() == b"\x41"
    growths = {"receiver": received[0], "sender": sent[0]}
    print({name: f"{growth / MIB:.1f} MiB" for name, growth in growths.items()})
    assert max(growths.values()) < 32 * MIB
    assert private_bytes(destination.pid) < 200 * MIB
    assert apache_client(destination.socket_path).digest([LARGE]) == [pattern_digest(5, GIB, b"m")]


class Recorder(_transport.TcpTransport):
    """A transport that notes into what kind of memory it has read how many bytes."""

    shared = 0
    private = 0

    async def receive_into(self, buffer: memoryview, *, timeout: float, expected: int = 1) -> int:
        is_shared = _is_shared(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer))
        nbytes = await super().receive_into(buffer, timeout=timeout, expected=expected)
        if is_shared:
            Recorder.shared += nbytes
        else:
            Recorder.private += nbytes
        return nbytes


_shared_maps: list[tuple[int, int]] = []


def _is_shared(address: int, nbytes: int) -> bool:
    """Whether a piece of our memory lies whole in a mapping of a store's file, as the kernel tells."""
    if not any(begin <= address and address + nbytes <= end for begin, end in _shared_maps):
        _shared_maps.clear()
        for line in Path("/proc/self/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if fields[1][3] == "s" and len(fields) > 5 and "plasma" in fields[5]:
                begin, end = (int(number, 16) for number in fields[0].split("-"))
                _shared_maps.append((begin, end))
    return any(begin <= address and address + nbytes <= end for begin, end in _shared_maps)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Recorder]]:
    Recorder.shared = Recorder.private = 0
    _shared_maps.clear()
    monkeypatch.setattr(_transport, "TcpTransport", Recorder)
    yield Recorder
    _shared_maps.clear()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("kind", ["embedded", "ours", "apache"])
async def test_payload_goes_from_the_socket_into_the_mapping(
    kind: str,
    version: int,
    recorder: type[Recorder],
    apache_store: StoreFactory,
    our_store: OurStoreFactory,
    apache_client: ClientFactory,
    node: NodeFactory,
) -> None:
    def prepare() -> tuple[Node, StoreProcess | ApacheStore | None]:
        source = node(SIZE + 16 * MIB)
        fill(apache_client(source.socket_path), SIZE, 6)
        if kind == "embedded":
            return source, None
        return source, (our_store if kind == "ours" else apache_store)(SIZE + 16 * MIB)

    source, external = await trio.to_thread.run_sync(prepare)
    with trio.fail_after(30):
        async with _store(external) as store, open_peer("127.0.0.1", source.port, version=version) as peer:
            tracemalloc.start()
            try:
                tracemalloc.reset_peak()
                before = tracemalloc.get_traced_memory()[0]
                await peer.copy([LARGE], store)
                peak = tracemalloc.get_traced_memory()[1] - before
            finally:
                tracemalloc.stop()
            (lease,) = await store.get([LARGE])
            assert lease is not None
            with lease:
                found = await trio.to_thread.run_sync(Digest.of, lease.data, lease.metadata)
                assert found == pattern_digest(6, SIZE, b"m")
    print(f"{recorder.shared:,} bytes into shared memory, {recorder.private:,} elsewhere, peak {peak:,}")
    if version == 1:
        assert recorder.shared + recorder.private == 1 + 8 + 1 + SIZE
    connections = 1 if version == 1 else Lane.LARGE.value  # each of which has a scratch of its own
    assert recorder.shared >= SIZE - connections * SCRATCH
    assert recorder.private <= connections * SCRATCH
    assert peak < 2 * MIB


@asynccontextmanager
async def _store(external: StoreProcess | ApacheStore | None) -> AsyncIterator[ObjectStore]:
    if external is not None:
        async with open_store(external.socket_path) as client:
            yield client
    else:
        with EmbeddedStore(SIZE + 16 * MIB) as store:
            yield store
