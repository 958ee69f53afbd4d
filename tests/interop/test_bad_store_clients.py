"""What breaks the local protocol ends alone: Apache's client goes on all the time, and no descriptor is lost."""

import array
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from plasmastream import ObjectID
from tests.apache import ApacheClient, ClientFactory
from tests.interop.conftest import OurStoreFactory
from tests.interop.nodes import StoreProcess, descriptor_count, wait_until

A, B = ObjectID.from_name("A"), ObjectID.from_name("B")
CONNECT = bytes.fromhex("080000000400040004000000")
CONNECT_REPLY_SIZE = 24 + 24
REPLY_TYPES = [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 26, 29, 31, 33, 35]


def frame(kind: int, body: bytes, *, version: int = 0, length: int | None = None) -> bytes:
    return struct.pack("<qqq", version, kind, len(body) if length is None else length) + body


def named(object_id: bytes, *, length: int | None = None) -> bytes:
    """The body of a request that has nothing but an id, as plasma-ipc.md, appendix A, shows it."""
    start = bytes.fromhex("0c00000000000600080004000600000004000000")
    return start + struct.pack("<I", len(object_id) if length is None else length) + object_id + bytes(4)


class RawClient:
    """A socket to the store, with a deadline for each call."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(path)

    def is_closed(self) -> bool:
        with suppress(ConnectionError):
            while self.sock.recv(4096):
                pass
        return True

    def close(self) -> None:
        self.sock.close()


@contextmanager
def healthy(client: ApacheClient) -> Iterator[None]:
    """A client that works on all the time; none of its steps may fail, or take long."""
    ended = threading.Event()
    slowest = [0.0]
    failures: list[BaseException] = []
    rounds = [0]

    def run() -> None:
        try:
            while not ended.is_set():
                object_id = ObjectID.random()
                begin = time.monotonic()
                client.create_and_seal(object_id, b"data" * 100, b"meta")
                assert client.get([object_id]) == [(b"data" * 100, b"meta")]
                client.delete([object_id])
                assert not client.contains(object_id)
                slowest[0] = max(slowest[0], time.monotonic() - begin)
                rounds[0] += 1
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
        ended.set()
        thread.join(10)
        assert not failures
        assert rounds[0]
        assert slowest[0] < 2
    finally:
        ended.set()
        thread.join(10)


@pytest.fixture
def store(our_store: OurStoreFactory, apache_client: ClientFactory) -> Iterator[StoreProcess]:
    """Our store, with a healthy client at work on it, and its descriptors counted at the end."""
    store = our_store(10_000_000)
    client = apache_client(store.socket_path)
    with healthy(client):
        before = descriptor_count(store.pid)
        yield store
        wait_until(lambda: descriptor_count(store.pid) == before, 5, "no descriptor is lost")
    assert client.list() == {}


def send_and_expect_end(store: StoreProcess, data: bytes, what: str) -> None:
    client = RawClient(store.socket_path)
    client.sock.sendall(frame(19, CONNECT))
    assert len(client.sock.recv(CONNECT_REPLY_SIZE, socket.MSG_WAITALL)) == CONNECT_REPLY_SIZE
    with suppress(ConnectionError):
        client.sock.sendall(data)
    try:
        assert client.is_closed()
    except TimeoutError:
        pytest.fail(f"still connected after {what}")
    client.close()


def test_frames_that_are_wrong(store: StoreProcess) -> None:
    for version in (1, -1, 2**62):
        send_and_expect_end(store, frame(19, CONNECT, version=version), f"version {version}")
    for length in (-1, -(2**63), 2**31, 1 << 33, 2**62):
        send_and_expect_end(store, frame(19, CONNECT, length=length), f"length {length}")
    for kind in (-1, 24, 36, 99, 2**62, *REPLY_TYPES):
        send_and_expect_end(store, frame(kind, CONNECT), f"type {kind}")
    send_and_expect_end(store, frame(0, b""), "a disconnect")


def test_bodies_that_are_wrong(store: StoreProcess) -> None:
    named_ones = [5, 11, 15]
    for kind in (1, 3, *named_ones, 7, 9, 13, 28, 32, 34):
        send_and_expect_end(store, frame(kind, b""), f"an empty body of type {kind}")
        send_and_expect_end(store, frame(kind, bytes(8)), f"eight zero bytes of type {kind}")
        send_and_expect_end(store, frame(kind, b"\xff\xff\xff\x7f" * 4), f"a wild offset of type {kind}")
    for kind in named_ones:
        for length in (0, 1, 19, 21):
            send_and_expect_end(store, frame(kind, named(bytes(length))), f"an id of {length} bytes, type {kind}")
        for length in (24, 1000, 2**31 - 1, 2**32 - 1):
            data = frame(kind, named(bytes(20), length=length))
            send_and_expect_end(store, data, f"an id that claims {length} bytes, type {kind}")


def test_random_bodies(store: StoreProcess) -> None:
    """Some are right by chance, and are answered; whatever they are, everybody else goes on."""
    rng = random.Random(9)
    good = named(A)
    for kind in [*range(1, 36), *range(1, 36)]:
        client = RawClient(store.socket_path)
        try:
            for _ in range(10):
                body = bytearray(good if rng.random() < 0.7 else rng.randbytes(rng.randrange(100)))
                for _ in range(rng.randrange(4)):
                    if body:
                        body[rng.randrange(len(body))] = rng.randrange(256)
                client.sock.sendall(frame(kind, bytes(body)))
        except ConnectionError:
            pass
        client.close()


def test_half_frames(store: StoreProcess) -> None:
    whole = frame(15, named(A))
    clients = []
    for cut in (1, 4, 8, 23, 24, 25, 50, len(whole) - 1):
        client = RawClient(store.socket_path)
        client.sock.sendall(whole[:cut])
        clients.append(client)
    big = RawClient(store.socket_path)  # announces as much as is allowed, and sends none of it
    big.sock.sendall(frame(3, b"", length=10_000_000))
    clients.append(big)
    time.sleep(0.3)
    for client in clients:
        client.close()


def test_a_client_that_does_not_read_its_replies(store: StoreProcess) -> None:
    client = RawClient(store.socket_path)
    client.sock.setblocking(False)
    request = frame(15, named(A)) * 100
    sent = 0
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            sent += client.sock.send(request)
        except BlockingIOError:
            break
    assert sent < 50_000_000, "the store goes on reading from a client that does not read"
    time.sleep(0.3)
    client.close()


def test_releases_aborts_and_seals_of_what_is_not_there(store: StoreProcess) -> None:
    """They kill the original; here they are passed over or answered, and the connection goes on."""
    client = RawClient(store.socket_path)
    client.sock.sendall(frame(11, named(A)) * 3 + frame(15, named(A)))
    assert struct.unpack_from("<q", client.sock.recv(4096), 8) == (16,)
    client.sock.sendall(frame(5, named(A)) + frame(15, named(A)))
    assert struct.unpack_from("<q", client.sock.recv(4096), 8)[0] in (6, 16)
    client.close()


@pytest.mark.parametrize("count", [1, 2, 16, 200])
def test_descriptors_where_none_belong(store: StoreProcess, count: int) -> None:
    before = descriptor_count(store.pid)
    reader, writer = os.pipe()
    rights = array.array("i", [reader] * count)
    for place in (0, 1, 24, 30):
        data = frame(15, named(A))
        client = RawClient(store.socket_path)
        if place:
            client.sock.sendall(data[:place])
        try:
            client.sock.sendmsg([data[place:]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            assert client.is_closed()
        except ConnectionError:
            pass
        except TimeoutError:
            pytest.fail(f"{count} descriptors at {place} were taken")
        client.close()
    os.close(reader)
    os.close(writer)
    wait_until(lambda: descriptor_count(store.pid) <= before, 5, "no descriptor is kept")


def test_a_flood_of_connections(store: StoreProcess) -> None:
    for _ in range(3):
        clients = [RawClient(store.socket_path) for _ in range(200)]
        for number, client in enumerate(clients):
            if number % 2:
                client.sock.sendall(frame(19, CONNECT))
        for client in clients:
            client.close()
