"""kill -9 in the middle of transfers of 1 GiB: whoever survives serves on, and nothing half-done is left anywhere.

A relay between the two servers holds the transfer once so many bytes have passed, so that it is the middle.
"""

import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from plasmastream import ObjectID
from plasmastream.peer import TransferKind
from tests.apache import ApacheClient, ApacheStore, ClientFactory, StoreFactory
from tests.interop.conftest import NodeFactory, OurStoreFactory
from tests.interop.nodes import (
    GIB,
    MIB,
    FakePeer,
    RawPeer,
    Relay,
    StoreProcess,
    pattern_digest,
    put,
    read,
    states,
    sync_bytes,
    transfer_bytes,
    unsealed,
    wait_until,
    wait_until_clean,
)

LARGE = ObjectID.from_name("1 GiB")
SMALL = [ObjectID.from_name(f"small {number}") for number in range(20)]
BYSTANDER = ObjectID.from_name("bystander")
TAKE = TransferKind.TAKE
MEMORY = GIB + 64 * MIB
MIDDLE = 400 * MIB
SEED = 21


class Two:
    """Two stores of a kind in processes of their own, an object of 1 GiB and small ones in the source's."""

    def __init__(
        self,
        kind: str,
        apache_store: StoreFactory,
        our_store: OurStoreFactory,
        apache_client: ClientFactory,
        size: int = GIB,
    ) -> None:
        self._connect = apache_client
        memory = size + 64 * MIB
        self.source: ApacheStore | StoreProcess
        self.destination: ApacheStore | StoreProcess
        self.source, self.destination = (
            apache_store(memory) if kind == "apache" else our_store(memory) for _ in range(2)
        )
        self.size = size
        self.writer, self.reader = apache_client(self.source.socket_path), apache_client(self.destination.socket_path)
        self.writer.create(LARGE, size, b"meta")
        self.writer.fill_random(LARGE, SEED)
        self.writer.seal(LARGE)
        for object_id in SMALL:
            self.writer.create_and_seal(object_id, object_id * 50)
        self.reader.create_and_seal(BYSTANDER, b"not concerned")
        self.ids = [*SMALL[:10], LARGE, *SMALL[10:]]

    def wait_until_in_the_middle(self, relay: Relay) -> None:
        """Wait for the hold, and see in the destination's store that the large object has begun and not ended."""
        relay.wait_until_held()
        assert MIDDLE <= relay.passed < self.size
        wait_until(lambda: unsealed(self.reader) == [LARGE], 5, "the large object is being written")
        assert not self.reader.contains(LARGE)

    def check_source_has_all(self) -> None:
        assert self.writer.digest([LARGE]) == [pattern_digest(SEED, self.size, b"meta")]
        assert self.writer.get(SMALL) == [(object_id * 50, b"") for object_id in SMALL]

    def check_destination_has_all(self) -> None:
        assert self.reader.digest([LARGE]) == [pattern_digest(SEED, self.size, b"meta")]
        assert self.reader.get([*SMALL, BYSTANDER]) == [
            *((object_id * 50, b"") for object_id in SMALL),
            (b"not concerned", b""),
        ]
        assert not unsealed(self.reader)


@pytest.fixture(params=["apache", "ours"])
def two(
    request: pytest.FixtureRequest,
    apache_store: StoreFactory,
    our_store: OurStoreFactory,
    apache_client: ClientFactory,
) -> Two:
    return Two(request.param, apache_store, our_store, apache_client)


@pytest.fixture(params=["apache", "ours"])
def small_two(
    request: pytest.FixtureRequest,
    apache_store: StoreFactory,
    our_store: OurStoreFactory,
    apache_client: ClientFactory,
) -> Two:
    return Two(request.param, apache_store, our_store, apache_client, size=MIDDLE + 32 * MIB)


def test_the_source_server_is_killed(two: Two, node: NodeFactory) -> None:
    source, destination = node(two.source), node(two.destination)
    with Relay(source.port, MIDDLE) as relay, RawPeer(destination.port) as client:
        client.send(sync_bytes([relay.request(two.ids)]))
        two.wait_until_in_the_middle(relay)
        source.kill()
        relay.release()
        assert client.read(1) == b"\x90"
        wait_until_clean(two.reader, without=two.ids)
        assert list(two.reader.list()) == [BYSTANDER]
        # Both stores are as before, the destination serves on, and a new source server delivers all of it.
        again = node(two.source)
        assert client.ask(sync_bytes([again.request(two.ids)])) == b"\x41"
    two.check_destination_has_all()
    two.check_source_has_all()


def test_the_destination_server_is_killed(two: Two, node: NodeFactory) -> None:
    source, destination = node(two.source), node(two.destination)
    with Relay(source.port, MIDDLE) as relay, RawPeer(destination.port) as client:
        client.send(sync_bytes([relay.request(two.ids)]))
        two.wait_until_in_the_middle(relay)
        destination.kill()
        assert client.is_closed()
        relay.release()
        # What had arrived whole and was not reported yet is whole; nothing that is half is left.
        wait_until_clean(two.reader, without=[LARGE])
        for object_id, found in zip(SMALL, two.reader.get(SMALL), strict=True):
            assert found in (None, (object_id * 50, b""))
        two.reader.delete(SMALL)
    wait_until(lambda: all(not entry["ref_count"] for entry in two.writer.list().values()), 5, "the source lets go")
    again = node(two.destination)
    with RawPeer(again.port) as client:
        assert client.ask(sync_bytes([source.request(two.ids)])) == b"\x41"
    two.check_destination_has_all()
    two.check_source_has_all()


def test_the_client_goes_away_and_the_transfer_goes_on(two: Two, node: NodeFactory) -> None:
    source, destination = node(two.source), node(two.destination)
    with Relay(source.port, MIDDLE) as relay:
        client = RawPeer(destination.port)
        client.send(sync_bytes([relay.request(two.ids)]))
        two.wait_until_in_the_middle(relay)
        if isinstance(two.source, ApacheStore):
            client.close()
        else:
            client.reset()
        time.sleep(0.2)
        assert unsealed(two.reader) == [LARGE]
        relay.release()
        wait_until(lambda: two.reader.contains(LARGE), 10, "the transfer has gone on to its end")
        wait_until(lambda: all(map(two.reader.contains, SMALL)), 5, "all of it")
    two.check_destination_has_all()
    with RawPeer(destination.port) as client:
        assert client.ask(sync_bytes([source.request(two.ids)])) == b"\x81"


def test_the_client_process_is_killed_and_the_transfer_goes_on(small_two: Two, node: NodeFactory) -> None:
    two = small_two
    source, destination = node(two.source), node(two.destination)
    with Relay(source.port, MIDDLE) as relay:
        script = (
            "import sys, trio, plasmastream.peer as p\n"
            "from ipaddress import IPv4Address\n"
            "from plasmastream import ObjectID\n"
            "to, source = int(sys.argv[1]), int(sys.argv[2])\n"
            "ids = tuple(map(ObjectID.from_hex, sys.argv[3:]))\n"
            "async def main():\n"
            "    async with p.open_peer('127.0.0.1', to, version=1) as peer:\n"
            "        await peer.sync([p.PeerRequest(p.TransferKind.TAKE, IPv4Address('127.0.0.1'), source, ids)])\n"
            "trio.run(main)\n"
        )
        ports = [str(destination.port), str(relay.port)]
        command = [sys.executable, "-c", script, *ports, *(object_id.hex() for object_id in two.ids)]
        with subprocess.Popen(command) as process:
            two.wait_until_in_the_middle(relay)
            assert process.poll() is None
            process.kill()
        relay.release()
        wait_until(lambda: two.reader.contains(LARGE), 10, "the transfer has gone on to its end")
        wait_until(lambda: not two.writer.list(), 5, "what was taken is deleted at the source")
    two.check_destination_has_all()


def test_the_store_of_the_destination_is_killed(small_two: Two, node: NodeFactory) -> None:
    two = small_two
    kind = TransferKind.COPY if isinstance(two.source, ApacheStore) else TAKE
    source, destination = node(two.source), node(two.destination, store_connect=0.1)
    with Relay(source.port, MIDDLE) as relay, RawPeer(destination.port) as client:
        client.send(sync_bytes([relay.request(two.ids, kind)]))
        two.wait_until_in_the_middle(relay)
        two.destination.kill()
        relay.release()
        assert client.read(1) == b"\x60"
        assert client.ask(sync_bytes([source.request(SMALL)])) == b"\x60"
        two.check_source_has_all()
        with ApacheStore(two.destination.socket_path, two.size + MIB), ApacheClient(
            two.destination.socket_path
        ) as reader:
            assert client.ask(sync_bytes([source.request(two.ids)])) == b"\x41"
            assert reader.digest([LARGE]) == [pattern_digest(SEED, two.size, b"meta")]
            assert not unsealed(reader)


def test_the_store_of_the_source_is_killed(small_two: Two, node: NodeFactory) -> None:
    """What is being sent is held as memory, so it arrives whole; the next request is told of the loss."""
    two = small_two
    source, destination = node(two.source, store_connect=0.1), node(two.destination)
    with Relay(source.port, MIDDLE) as relay, RawPeer(destination.port) as client:
        client.send(sync_bytes([relay.request(two.ids)]))
        two.wait_until_in_the_middle(relay)
        two.source.kill()
        relay.release()
        assert client.read(1) == b"\x41"
        two.check_destination_has_all()
        two.reader.delete(two.ids)
        assert client.ask(sync_bytes([source.request(two.ids)])) == b"\x61"
        wait_until_clean(two.reader, without=two.ids)


def test_take_and_the_destination_is_killed_in_the_middle(small_two: Two, node: NodeFactory) -> None:
    two = small_two
    source, destination = node(two.source), node(two.destination)
    with Relay(source.port, MIDDLE) as relay, RawPeer(destination.port) as client:
        client.send(sync_bytes([relay.request(two.ids, TAKE)]))
        two.wait_until_in_the_middle(relay)
        destination.kill()
        assert client.is_closed()
        relay.release()
    wait_until_clean(two.reader, without=[LARGE])
    wait_until(lambda: all(not entry["ref_count"] for entry in two.writer.list().values()), 5, "the source lets go")
    time.sleep(0.2)
    two.check_source_has_all()
    two.reader.delete(SMALL)
    again = node(two.destination)
    with RawPeer(again.port) as client:
        assert client.ask(sync_bytes([source.request(two.ids, TAKE)])) == b"\x41"
        two.check_destination_has_all()
        wait_until(lambda: not two.writer.list(), 5, "what was taken is deleted at the source")
        assert client.ask(sync_bytes([source.request(SMALL[:1])])) == b"\x81"
    assert not two.writer.list()


def test_take_and_the_destination_is_killed_with_all_bytes_there_but_unsealed(
    node: NodeFactory, our_store: OurStoreFactory
) -> None:
    """Stopped while the last bytes are on their way, killed once they are in its socket: the kernel resets."""
    size = 8 * MIB
    source_store, destination_store = our_store(2 * size), our_store(2 * size)
    source, destination = node(source_store), node(destination_store)
    put(source_store.socket_path, {LARGE: (b"x" * size, b"")})
    # All but the last ten bytes pass; then the destination is stopped, and the rest passes into its socket.
    with Relay(source.port, 1 + 8 + size - 10) as relay, RawPeer(destination.port) as client:
        client.send(sync_bytes([relay.request([LARGE], TAKE)]))
        relay.wait_until_held()
        wait_until(lambda: states(destination_store.socket_path) == {LARGE: False}, 5, "it is being written")
        destination.signal(signal.SIGSTOP)
        relay.release()
        wait_until(lambda: relay.passed == 1 + 8 + size, 5, "the last byte has been passed on")
        time.sleep(0.1)
        destination.kill()
        wait_until(lambda: not states(destination_store.socket_path), 5, "the destination's store is clean")
        time.sleep(0.3)
    assert states(source_store.socket_path) == {LARGE: True}
    with RawPeer(source.port) as client:
        assert client.ask(transfer_bytes([LARGE], TAKE), 1 + 8 + size)[:1] == b"\x00"
    wait_until(lambda: not states(source_store.socket_path), 5, "what was taken is deleted")


def test_take_by_a_client_that_reads_everything_and_breaks_the_connection(node: NodeFactory) -> None:
    source = node(20 * MIB)
    put(source.socket_path, {LARGE: (b"x" * 10 * MIB, b""), SMALL[0]: (b"y", b"")})
    for _ in range(3):
        client = RawPeer(source.port)
        assert len(client.ask(transfer_bytes([LARGE, SMALL[0]], TAKE), 18 + 10 * MIB)) == 18 + 10 * MIB
        client.reset()
        time.sleep(0.1)
        assert states(source.socket_path) == {LARGE: True, SMALL[0]: True}
    # Nor does half a request count as a confirmation.
    client = RawPeer(source.port)
    assert len(client.ask(transfer_bytes([LARGE, SMALL[0]], TAKE), 18 + 10 * MIB)) == 18 + 10 * MIB
    client.send(transfer_bytes([LARGE])[:10])
    client.close()
    time.sleep(0.2)
    assert states(source.socket_path) == {LARGE: True, SMALL[0]: True}


@pytest.mark.parametrize("version", [1, 2])
def test_take_of_our_client_is_killed_after_the_last_byte(version: int, node: NodeFactory) -> None:
    """Of version 1, it arms the reset before it asks: a process that dies before it has sealed never confirms."""
    source = node(20 * MIB)
    put(source.socket_path, {LARGE: (b"x" * 5 * MIB, b"")})
    script = (
        "import os, signal, sys, trio\n"
        "from plasmastream import ObjectID\n"
        "from plasmastream.peer import open_peer\n"
        "from plasmastream.store import EmbeddedStore, UnsealedObject\n"
        "async def die(self, digest=None):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "UnsealedObject.seal = die\n"
        "async def main():\n"
        "    with EmbeddedStore(10 << 20) as store:\n"
        "        async with open_peer('127.0.0.1', int(sys.argv[1]), version=int(sys.argv[3])) as peer:\n"
        "            await peer.take([ObjectID.from_hex(sys.argv[2])], store)\n"
        "trio.run(main)\n"
    )
    command = [sys.executable, "-c", script, str(source.port), LARGE.hex(), str(version)]
    done = subprocess.run(command, timeout=20)
    assert done.returncode == -9
    time.sleep(0.3)
    assert states(source.socket_path) == {LARGE: True}
    wait_until(lambda: read(source.socket_path, [LARGE]) == [(b"x" * 5 * MIB, b"")], 5, "it is there, whole")


def test_a_peer_that_dies_between_objects_leaves_none_of_them(node: NodeFactory) -> None:
    destination = node(10 * MIB)
    ids = SMALL[:3]
    sent = threading.Event()

    def serve(sock: socket.socket) -> None:
        sock.recv(3 + 60, socket.MSG_WAITALL)
        sock.sendall(b"\x00" + 2 * (struct.pack("<Q", MIB << 16) + bytes(MIB)))
        sent.set()
        wait_until(lambda: states(destination.socket_path) == {ids[0]: True, ids[1]: True}, 5, "two are sealed")

    with FakePeer(serve) as peer, RawPeer(destination.port) as client:
        assert client.ask(sync_bytes([peer.request(ids)])) == b"\x90"
        assert sent.is_set()
    assert states(destination.socket_path) == {}
