"""Every status byte of version 1 by its real cause, read from raw sockets."""

import socket
import struct
import threading
import time

import pytest
import trio

from plasmastream import ObjectID
from plasmastream.peer import TransferKind
from plasmastream.store import open_store
from tests.apache import ApacheStore, ClientFactory, StoreFactory
from tests.interop.conftest import NodeFactory, OurStoreFactory
from tests.interop.nodes import (
    MIB,
    FakePeer,
    Node,
    RawPeer,
    free_port,
    peer_request,
    put,
    read,
    run_trio,
    states,
    sync_bytes,
    transfer_bytes,
    wait_until,
)

A, B, C, D, MISSING = (ObjectID.from_name(name) for name in ("A", "B", "C", "D", "missing"))
TAKE = TransferKind.TAKE


def ask(node: Node, data: bytes, nbytes: int = 1) -> bytes:
    with RawPeer(node.port) as client:
        return client.ask(data, nbytes)


def read_request(sock: socket.socket, nbytes: int = 23) -> None:
    """Read the COPY or TAKE of one object."""
    assert len(sock.recv(nbytes, socket.MSG_WAITALL)) == nbytes


def test_00_begins_and_41_ends_in_success(node: NodeFactory) -> None:
    source, destination = node(MIB), node(MIB)
    put(source.socket_path, {A: (b"abc", b"m"), B: (b"", b"")})
    expected = b"\x00" + struct.pack("<Q", 1 | 3 << 16) + b"mabc" + bytes(8)
    assert ask(source, transfer_bytes([A, B]), len(expected)) == expected
    reversed_order = b"\x00" + bytes(8) + struct.pack("<Q", 1 | 3 << 16) + b"mabc"
    assert ask(source, transfer_bytes([B, A]), len(expected)) == reversed_order
    assert ask(destination, sync_bytes([source.request([A, B])])) == b"\x41"
    assert read(destination.socket_path, [A, B]) == [(b"abc", b"m"), (b"", b"")]


def test_50_metadata_that_the_header_cannot_hold(
    apache_store: StoreFactory, apache_client: ClientFactory, node: NodeFactory
) -> None:
    store = apache_store()
    source, destination = node(store), node(MIB)
    client = apache_client(store.socket_path)
    client.create_and_seal(A, b"x", b"m" * 65_535)
    client.create_and_seal(B, b"x", b"m" * 65_536)
    client.create_and_seal(C, b"x", b"m" * 100_000)
    assert ask(source, transfer_bytes([A, B])) == b"\x50"
    assert ask(source, transfer_bytes([C], TAKE)) == b"\x50"
    requests = [source.request([object_id]) for object_id in (A, B, C)]
    assert ask(destination, sync_bytes(requests), 3) == b"\x41\x50\x50"
    assert states(destination.socket_path) == {A: True}
    assert client.contains(C)


def test_51_data_of_more_than_16_tib(apache_store: StoreFactory, node: NodeFactory) -> None:
    # The memory is a sparse file, of which no page is ever touched.
    store = apache_store(3 << 43)

    async def create() -> None:
        async with open_store(store.socket_path) as client, client.create(A, 2**44 + 1) as unsealed:
            await unsealed.seal(bytes(8))

    run_trio(create)
    source, destination = node(store), node(MIB)
    assert ask(source, transfer_bytes([A])) == b"\x51"
    assert ask(destination, sync_bytes([source.request([A])])) == b"\x51"
    assert states(destination.socket_path) == {}


def test_51_announced_by_a_peer(node: NodeFactory) -> None:
    destination = node(MIB)
    outcomes = {2**44 + 1: b"\x51", 2**48 - 1: b"\x51", 2**44: b"\x60"}
    sizes = list(outcomes)

    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"\x00" + struct.pack("<Q", sizes.pop(0) << 16) + b"x" * 1000)
        sock.recv(1)

    with FakePeer(serve) as peer:
        for status in outcomes.values():
            assert ask(destination, sync_bytes([peer.request([A])])) == status
    assert states(destination.socket_path) == {}


def test_52_and_all_else_that_a_peer_answers_is_passed_on(node: NodeFactory) -> None:
    """52 is what the first implementation answers for empty data; unknown bytes are passed on unchanged."""
    destination = node(MIB)
    outcomes = {b"\x52": b"\x52", b"\x60": b"\x61", b"\x70": b"\x70", b"\x99": b"\x99", b"\xff": b"\xff"}
    answers = list(outcomes)

    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answers.pop(0))
        sock.recv(1)

    with FakePeer(serve) as peer:
        for status in outcomes.values():
            assert ask(destination, sync_bytes([peer.request([A])])) == status


@pytest.mark.parametrize("kind", ["apache", "ours"])
def test_60_and_61_when_the_store_of_the_source_is_killed(
    kind: str, apache_store: StoreFactory, our_store: OurStoreFactory, node: NodeFactory
) -> None:
    store = apache_store() if kind == "apache" else our_store()
    put(store.socket_path, {A: (b"abc", b"")})
    source, destination = node(store, store_connect=0.1), node(MIB)
    with RawPeer(source.port) as client:
        assert client.ask(transfer_bytes([A]), 12)[:1] == b"\x00"
        store.kill()
        assert client.ask(transfer_bytes([A])) == b"\x60"
        assert client.ask(transfer_bytes([A], TAKE)) == b"\x60"
        assert ask(destination, sync_bytes([source.request([A])])) == b"\x61"
        assert ask(source, sync_bytes([destination.request([B])])) == b"\x60"
        # The servers live, and once there is a store again all goes on.
        with ApacheStore(store.socket_path, MIB):
            put(store.socket_path, {A: (b"new", b"")})
            assert ask(destination, sync_bytes([source.request([A])])) == b"\x41"
            assert client.ask(transfer_bytes([A]), 12) == b"\x00" + struct.pack("<Q", 3 << 16) + b"new"


@pytest.mark.parametrize("kind", ["apache", "ours"])
def test_60_when_the_destination_is_full_of_held_objects(
    kind: str, apache_store: StoreFactory, our_store: OurStoreFactory, apache_client: ClientFactory, node: NodeFactory
) -> None:
    store = apache_store(10 * MIB) if kind == "apache" else our_store(10 * MIB)
    source, destination = node(20 * MIB), node(store, store_wait=0.3)
    put(source.socket_path, {A: (b"a" * 3 * MIB, b""), B: (b"b" * 1000, b"")})
    many = {ObjectID.from_name(f"many {number}"): (b"x" * 15_000, b"") for number in range(200)}
    put(source.socket_path, many)
    holder = apache_client(store.socket_path)
    holder.create_and_seal(C, b"c" * 8 * MIB)
    assert holder.hold([C]) == [True]
    for ids in ([B, A], list(many), [*list(many)[:50], A, *list(many)[50:]]):
        assert ask(destination, sync_bytes([source.request(ids)])) == b"\x60"
        wait_until(lambda: list(holder.list()) == [C], 5, "nothing else is left")
    # Room comes while the transfer waits for it.
    holder.drop([C])
    assert ask(destination, sync_bytes([source.request([B, A]), source.request(list(many))]), 2) == b"\x41\x41"


def test_70_while_a_take_is_under_way(node: NodeFactory) -> None:
    source, destination = node(100 * MIB), node(100 * MIB)
    put(source.socket_path, {A: (b"a" * 60 * MIB, b""), B: (b"b", b"")})
    slow = RawPeer(source.port, receive_buffer=4096)
    slow.send(transfer_bytes([A, B], TAKE))
    assert slow.read(1) == b"\x00"
    for _ in range(2):  # a refused request does not clear the marks of the one under way
        assert ask(source, transfer_bytes([A])) == b"\x70"
        assert ask(source, transfer_bytes([B], TAKE)) == b"\x70"
        assert ask(destination, sync_bytes([source.request([B])])) == b"\x70"
    slow.reset()
    wait_until(lambda: ask(source, transfer_bytes([B])) == b"\x00", 5, "the broken TAKE has ended")
    assert states(source.socket_path) == {A: True, B: True}
    # To its clean end: the source deletes.
    with RawPeer(source.port) as client:
        assert len(client.ask(transfer_bytes([A, B], TAKE), 1 + 8 + 60 * MIB + 8 + 1)) == 18 + 60 * MIB
    wait_until(lambda: not states(source.socket_path), 5, "what was taken is deleted")
    assert ask(source, transfer_bytes([A])) == b"\x71"


def test_a_take_ends_in_order_with_the_next_request_too(node: NodeFactory) -> None:
    source = node(MIB)
    put(source.socket_path, {A: (b"a", b""), B: (b"b", b"")})
    with RawPeer(source.port) as client:
        assert client.ask(transfer_bytes([A], TAKE), 10)[:1] == b"\x00"
        assert client.ask(transfer_bytes([B]), 10)[-1:] == b"b"
        wait_until(lambda: set(states(source.socket_path)) == {B}, 5, "what was taken is deleted")
        assert client.ask(transfer_bytes([A])) == b"\x71"


def test_71_when_any_object_is_missing_and_nothing_is_sent(node: NodeFactory) -> None:
    source, destination = node(MIB), node(MIB)
    put(source.socket_path, {A: (b"a", b"")})
    for kind in (TransferKind.COPY, TAKE):
        with RawPeer(source.port, timeout=0.3) as client:
            assert client.ask(transfer_bytes([A, MISSING], kind)) == b"\x71"
            with pytest.raises(TimeoutError):
                client.read(1)
        assert ask(destination, sync_bytes([source.request([MISSING, A], kind)])) == b"\x71"
    assert states(source.socket_path) == {A: True}
    assert states(destination.socket_path) == {}


def test_80_while_another_request_receives_the_object(node: NodeFactory) -> None:
    source, destination = node(MIB), node(MIB)
    put(source.socket_path, {A: (b"abcd", b""), B: (b"b", b"")})
    go_on, begun = threading.Event(), threading.Event()

    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"\x00" + struct.pack("<Q", 4 << 16) + b"ab")
        begun.set()
        go_on.wait(20)
        sock.sendall(b"cd")
        sock.recv(1)

    with FakePeer(serve) as peer, RawPeer(destination.port) as first:
        first.send(sync_bytes([peer.request([A])]))
        assert begun.wait(5)
        for _ in range(2):  # a refused request does not clear the marks of the one under way
            assert ask(destination, sync_bytes([source.request([B, A])])) == b"\x80"
        assert states(destination.socket_path).get(A, False) is False
        go_on.set()
        assert first.read(1) == b"\x41"
    assert read(destination.socket_path, [A, B]) == [(b"abcd", b""), None]


def test_81_when_the_object_is_there_already(node: NodeFactory) -> None:
    source, destination = node(MIB), node(MIB)
    put(source.socket_path, {A: (b"theirs", b""), B: (b"b", b"")})
    put(destination.socket_path, {A: (b"ours", b"")})
    for ids in ([A], [B, A]):
        assert ask(destination, sync_bytes([source.request(ids, TAKE)])) == b"\x81"
    # Before connecting: the peer need not even exist.
    assert ask(destination, sync_bytes([peer_request(free_port(), [A])])) == b"\x81"
    assert read(destination.socket_path, [A, B]) == [(b"ours", b""), None]
    assert set(states(source.socket_path)) == {A, B}


def test_81_for_an_object_that_somebody_is_writing(node: NodeFactory) -> None:
    source, destination = node(MIB), node(MIB)
    put(source.socket_path, {A: (b"theirs", b"")})

    async def try_while_it_is_written() -> bytes:
        async with open_store(destination.socket_path) as store, store.create(A, 4) as unsealed:
            answer = await trio.to_thread.run_sync(ask, destination, sync_bytes([source.request([A])]))
            unsealed.data[:] = b"ours"
            await unsealed.seal()
            return answer

    assert run_trio(try_while_it_is_written) == b"\x81"
    assert read(destination.socket_path, [A]) == [(b"ours", b"")]


def _say_nothing(sock: socket.socket) -> None:
    read_request(sock)
    sock.recv(1)


def _go_silent_midway(sock: socket.socket) -> None:
    read_request(sock)
    sock.sendall(b"\x00" + struct.pack("<Q", 500_000 << 16) + b"x" * 300_000)
    sock.recv(1)


def _go_silent_in_a_header(sock: socket.socket) -> None:
    read_request(sock)
    sock.sendall(b"\x00\x01\x00\x05")
    sock.recv(1)


def _end_midway(sock: socket.socket) -> None:
    read_request(sock)
    sock.sendall(b"\x00" + struct.pack("<Q", 500_000 << 16) + b"x" * 300_000)


def _end_without_an_answer(sock: socket.socket) -> None:
    read_request(sock)


def _reset_midway(sock: socket.socket) -> None:
    _end_midway(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _end_at_once(sock: socket.socket) -> None:
    sock.close()


def test_90_when_the_peer_breaks_off_or_falls_silent(node: NodeFactory) -> None:
    destination = node(MIB, progress=0.4)
    silent = [_say_nothing, _go_silent_midway, _go_silent_in_a_header]
    for serve in [*silent, _end_midway, _end_without_an_answer, _reset_midway, _end_at_once]:
        with FakePeer(serve) as peer:
            begin = time.monotonic()
            assert ask(destination, sync_bytes([peer.request([A])])) == b"\x90", serve.__name__
            assert (time.monotonic() - begin > 0.35) == (serve in silent), serve.__name__
        assert states(destination.socket_path) == {}


def test_four_peer_requests_have_an_outcome_each(node: NodeFactory) -> None:
    """And the same on one connection again, in another order, which is the order of the answer."""
    first, second, destination = node(50 * MIB), node(MIB), node(100 * MIB)
    put(first.socket_path, {A: (b"a" * 20 * MIB, b""), B: (b"b", b"")})
    put(second.socket_path, {D: (b"d" * 1000, b"meta")})
    missing, down = second.request([MISSING]), peer_request(free_port(), [C])
    with RawPeer(destination.port) as client:
        assert client.ask(sync_bytes([first.request([A]), missing, down, second.request([D])]), 4) == bytes.fromhex(
            "41719041"
        )
        assert client.ask(sync_bytes([down, first.request([B]), second.request([D]), missing]), 4) == bytes.fromhex(
            "90418171"
        )
    assert read(destination.socket_path, [B, D]) == [(b"b", b""), (b"d" * 1000, b"meta")]
    assert set(states(destination.socket_path)) == {A, B, D}
