"""What breaks the peer protocol, or abuses it, ends alone: a healthy client goes on all the time."""

import contextlib
import random
import socket
import struct
import threading
import time
from typing import Self

import pytest

from plasmastream import ObjectID
from plasmastream.peer import TransferKind
from tests.apache import ClientFactory, StoreFactory
from tests.interop.conftest import NodeFactory, OurStoreFactory
from tests.interop.nodes import (
    MIB,
    FakePeer,
    Node,
    RawPeer,
    descriptor_count,
    free_port,
    peer_request,
    put,
    states,
    sync_bytes,
    transfer_bytes,
    wait_until,
)

A, B, C = (ObjectID.from_name(name) for name in "ABC")
HEALTHY = ObjectID.from_name("healthy")
PEER = bytes([2, 4]) + struct.pack("<H", 9) + bytes([127, 0, 0, 1])


class Healthy:
    """A client that asks for an object again and again on one connection, and must be answered every time."""

    def __init__(self, server: Node) -> None:
        put(server.socket_path, {HEALTHY: (b"h" * 5000, b"meta")})
        self._client = RawPeer(server.port, timeout=5)
        self._expected = b"\x00" + struct.pack("<Q", 4 | 5000 << 16) + b"meta" + b"h" * 5000
        self._ended = threading.Event()
        self._answered = 0
        self._slowest = 0.0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            while not self._ended.wait(0.002):
                begin = time.monotonic()
                assert self._client.ask(transfer_bytes([HEALTHY]), len(self._expected)) == self._expected
                self._slowest = max(self._slowest, time.monotonic() - begin)
                self._answered += 1
        except BaseException as error:
            self._failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._answered or self._failure, 5, "a first answer")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)
        self._client.close()
        if kind is None:
            assert self._failure is None, self._failure
            assert self._slowest < 2, f"a healthy client waited for {self._slowest:.2f} s"


def sync_of(*parts: bytes, count: int | None = None) -> bytes:
    return struct.pack("<BH", 1, len(parts) if count is None else count) + b"".join(parts)


def ids_of(*object_ids: bytes) -> bytes:
    return struct.pack("<H", len(object_ids)) + b"".join(object_ids)


AFTER_A_GOOD_ONE = "garbage after a good request"
BROKEN = {
    "type 0": b"\x00",
    "type 4": b"\x04" + bytes(30),
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": bytes.fromhex("16030100f8010000f4"),
    "all ones": b"\xff" * 1000,
    "COPY of an object twice": transfer_bytes([A, B, A]),
    "TAKE of an object twice": transfer_bytes([A, A], 3),
    "COPY of 65,536 times the same": transfer_bytes([])[:1] + bytes(2) + bytes(20 * 65_536),
    "SYNC of nobody": sync_of(),
    "SYNC of 1,025 peers": sync_of(count=1025) + b"".join(PEER + ids_of(A) for _ in range(3)),
    "SYNC of 65,535 peers": sync_of(count=65_535),
    "SYNC with a part that is a SYNC": sync_of(b"\x01" + PEER[1:] + ids_of(A)),
    "SYNC with an address of kind 5": sync_of(b"\x02\x05" + PEER[2:] + ids_of(A)),
    "SYNC with port 0": sync_of(PEER[:2] + bytes(2) + PEER[4:] + ids_of(A)),
    "SYNC of an object twice": sync_of(PEER + ids_of(A, B, A)),
    "SYNC of an object from two peers": sync_of(PEER + ids_of(A), PEER + ids_of(B, A)),
    AFTER_A_GOOD_ONE: transfer_bytes([A]) + b"garbage",
}


def test_what_breaks_the_protocol_ends_that_connection_only(node: NodeFactory) -> None:
    server = node(MIB)
    with Healthy(server):
        descriptors = descriptor_count(server.pid)
        for what, data in BROKEN.items():
            with RawPeer(server.port, timeout=5) as client:
                with contextlib.suppress(ConnectionError):  # it may be closed before all of it is sent
                    client.send(data)
                if what == AFTER_A_GOOD_ONE:
                    assert client.read(1) == b"\x71"
                assert client.is_closed(), what
        wait_until(lambda: descriptor_count(server.pid) == descriptors, 5, "no descriptor is lost")


def test_random_bytes(node: NodeFactory) -> None:
    server = node(MIB, progress=0.3)
    rng = random.Random(8)
    with Healthy(server):
        descriptors = descriptor_count(server.pid)
        for number in range(200):
            with RawPeer(server.port) as client:
                client.send(bytes([rng.choice([1, 2, 3, rng.randrange(256)])]) + rng.randbytes(rng.randrange(3000)))
                if number % 2:
                    client.reset()
        wait_until(lambda: descriptor_count(server.pid) == descriptors, 5, "no descriptor is lost")
    assert set(states(server.socket_path)) == {HEALTHY}


def test_a_sync_that_names_the_server_itself_is_refused(node: NodeFactory) -> None:
    server, other = node(MIB), node(MIB)
    put(other.socket_path, {A: (b"a", b"")})
    with Healthy(server):
        for requests in ([server.request([HEALTHY])], [other.request([A]), server.request([B])]):
            with RawPeer(server.port, timeout=5) as client:
                client.send(sync_bytes(requests))
                assert client.is_closed()
        loopback = b"\x02\x06" + struct.pack("<H", free_port()) + bytes(15) + b"\x01"
        with RawPeer(server.port) as client:  # IPv6 is read; nobody is there
            assert client.ask(sync_of(loopback + ids_of(C))) == b"\x90"
    assert set(states(server.socket_path)) == {HEALTHY}


def test_half_requests_and_idle_connections_are_given_up(node: NodeFactory) -> None:
    server = node(MIB, progress=0.4, idle=1.0)
    halves = [
        b"\x02",
        b"\x03\x01",
        b"\x01\x01\x00\x02\x04",
        transfer_bytes([A])[:-1],
        sync_of(PEER + ids_of(A, B)[:-1]),
        b"\x02\x00\x00" + bytes(20 * 100),  # 65,536 objects, of which 100 follow
    ]
    with Healthy(server):
        descriptors = descriptor_count(server.pid)
        idle = RawPeer(server.port)
        clients = [RawPeer(server.port) for _ in halves]
        begin = time.monotonic()
        for client, half in zip(clients, halves, strict=True):
            client.send(half)
        for client in clients:
            assert client.is_closed()
            client.close()
        assert idle.is_closed()  # which has never asked for anything
        assert 0.3 < time.monotonic() - begin < 1
        idle.close()
        idle = RawPeer(server.port)
        assert idle.ask(transfer_bytes([A])) == b"\x71"
        begin = time.monotonic()
        assert idle.is_closed()
        assert time.monotonic() - begin > 0.9
        idle.close()
        wait_until(lambda: descriptor_count(server.pid) == descriptors, 5, "no descriptor is lost")


def test_a_client_that_does_not_read_is_given_up_and_holds_nothing(
    our_store: OurStoreFactory, apache_client: ClientFactory, node: NodeFactory
) -> None:
    store = our_store(100 * MIB)
    server = node(store, progress=0.5)
    put(store.socket_path, {A: (bytes(60 * MIB), b"")})
    witness = apache_client(store.socket_path)
    with Healthy(server):
        for kind in TransferKind:
            with RawPeer(server.port, receive_buffer=4096) as client:
                client.send(transfer_bytes([A], kind))
                wait_until(lambda: witness.list()[A]["ref_count"] == 1, 5, "the server sends")
                wait_until(lambda: witness.list()[A]["ref_count"] == 0, 5, "the server has given up")
    assert witness.contains(A)


@pytest.mark.parametrize("kind", ["embedded", "ours", "apache"])
def test_a_header_of_more_than_the_store_holds_evicts_nothing(
    kind: str, apache_store: StoreFactory, our_store: OurStoreFactory, node: NodeFactory
) -> None:
    if kind == "embedded":
        server = node(10 * MIB)
    else:
        server = node(our_store(10 * MIB) if kind == "ours" else apache_store(10 * MIB))
    there = {ObjectID.from_name(f"there {number}"): (bytes(MIB), b"") for number in range(8)}
    put(server.socket_path, there)

    sizes = [10 * MIB - 2, 10 * MIB + 1, 1 << 40, 1 << 44]
    left = sizes.copy()

    def serve(sock: socket.socket) -> None:
        sock.recv(43, socket.MSG_WAITALL)
        small = struct.pack("<Q", 100 << 16) + bytes(100)
        sock.sendall(b"\x00" + small + struct.pack("<Q", 3 | left.pop() << 16) + b"abc" + bytes(70_000))
        sock.recv(1)

    with Healthy(server), FakePeer(serve) as peer, RawPeer(server.port) as client:
        for _ in sizes:
            begin = time.monotonic()
            assert client.ask(sync_bytes([peer.request([A, B])])) == b"\x60"
            assert time.monotonic() - begin < 3  # at once, since waiting would not help
            wait_until(lambda: set(states(server.socket_path)) == {HEALTHY, *there}, 5, "all is as it was")


def test_above_the_limit_connections_wait_until_one_ends(node: NodeFactory) -> None:
    server = node(MIB, max_connections=3)
    put(server.socket_path, {A: (b"a", b"")})
    answer = b"\x00" + struct.pack("<Q", 1 << 16) + b"a"
    served = [RawPeer(server.port) for _ in range(3)]
    for client in served:
        assert client.ask(transfer_bytes([A]), len(answer)) == answer
    waiting = [RawPeer(server.port) for _ in range(20)]
    for client in waiting:
        client.send(transfer_bytes([A]))
    waiting[0].sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        waiting[0].read(1)
    assert served[0].ask(transfer_bytes([A]), len(answer)) == answer
    for client in waiting:
        client.sock.settimeout(10)
        served.pop(0).close()
        assert client.read(len(answer)) == answer
        served.append(client)
    for client in served:
        client.close()


def test_a_flood_of_connections(node: NodeFactory) -> None:
    server = node(MIB)
    with Healthy(server):
        descriptors = descriptor_count(server.pid)
        for _ in range(2):
            clients = [RawPeer(server.port) for _ in range(100)]
            for number, client in enumerate(clients):
                if number % 3 == 0:
                    client.send(transfer_bytes([HEALTHY]))
                if number % 3 == 1:
                    client.reset()
            for client in clients:
                client.close()
        wait_until(lambda: descriptor_count(server.pid) == descriptors, 5, "no descriptor is lost")


def test_many_requests_at_once_on_one_connection(node: NodeFactory) -> None:
    """Requests sent without waiting are answered in order, one after the other."""
    source, destination = node(MIB), node(MIB)
    put(source.socket_path, {A: (b"a", b""), B: (b"b", b"")})
    down = peer_request(free_port(), [C])
    with Healthy(destination), RawPeer(destination.port) as client:
        client.send(sync_bytes([source.request([A])]) + transfer_bytes([A]) + sync_bytes([down]) + transfer_bytes([B]))
        assert client.read(1) == b"\x41"
        assert client.read(10) == b"\x00" + struct.pack("<Q", 1 << 16) + b"a"
        assert client.read(2) == b"\x90\x71"
