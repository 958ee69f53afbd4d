"""Notifications: what subscribers are told, in which order, and what happens to those who do not listen."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from plasmastream import ObjectID
from plasmastream.store import EmbeddedStore
from plasmastream.store._subscription import Subscription
from plasmastream.store._table import Client
from plasmastream.wire.plasma import (
    NO_DIGEST,
    ContainsReply,
    ContainsRequest,
    CreateAndSealRequest,
    GetDebugStringReply,
    GetDebugStringRequest,
    GetRequest,
    NotificationParser,
    SetOptionsReply,
    SetOptionsRequest,
    SubscribeRequest,
    encode,
)
from tests.store.helpers import CAPACITY, names, open_descriptors, put
from tests.store.test_server import Raw, conversation, raw_client

A, B, C, D = names(4)


@pytest.fixture
def path(socket_directory: Path) -> Path:
    return socket_directory / "plasma"


class Subscriber:
    """The reading end, and what was read: (id, whether it is a deletion) by message."""

    def __init__(self) -> None:
        self.sock, self.given = socket.socketpair()
        self.sock.setblocking(False)
        self.parser = NotificationParser()

    def read(self) -> list[list[tuple[ObjectID, bool]]]:
        """The messages that are there now."""
        messages = []
        while True:
            try:
                data = self.sock.recv(1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            self.parser.receive_data(data)
        while isinstance(objects := self.parser.next_event(), tuple):
            messages.append([(info.object_id, info.is_deletion) for info in objects])
        return messages

    def is_ended(self) -> bool:
        """Whether the store has closed its end."""
        try:
            return self.sock.recv(1) == b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.sock.close()
        self.given.close()


class Counter:
    """A listener beside the subscription under test."""

    def __init__(self) -> None:
        self.told = 0

    def sealed(self, entries: object) -> None:
        self.told += 1

    def removed(self, entry: object) -> None:
        self.told += 1


@asynccontextmanager
async def subscribed(path: Path) -> AsyncIterator[tuple[Subscriber, EmbeddedStore, Raw]]:
    async with conversation(path) as (client, store):
        put(store, A, b"old")
        store.core.create(Client("writer"), D, 1, 0)
        subscriber = Subscriber()
        subscribe(client, subscriber.given.fileno())
        subscriber.given.close()
        await wait_all_tasks_blocked()
        assert subscriber.read() == [[(A, False)]]
        yield subscriber, store, client
        subscriber.close()


def subscribe(client: Raw, descriptor: int) -> None:
    client.send_bytes(encode(SubscribeRequest()))
    socket.send_fds(client.sock, [b"\x14"], [descriptor])


async def test_changes_are_told_in_order(path: Path) -> None:
    async with subscribed(path) as (subscriber, store, _):
        put(store, B)
        writer = Client("writer")
        store.core.put_many(writer, [(object_id, b"", b"", NO_DIGEST) for object_id in names(3, "batch")])
        store.core.delete(B)
        store.core.seal(D, NO_DIGEST)
        store.core.create(writer, C, 1, 0)
        store.core.abort(writer, C)  # of which nobody is told
        store.core.evict(1)
        assert subscriber.read() == [
            [(B, False)],
            [(object_id, False) for object_id in names(3, "batch")],
            [(B, True)],
            [(D, False)],
            [(A, True)],
        ]


async def test_a_long_batch_is_cut_into_several_messages(path: Path) -> None:
    async with subscribed(path) as (subscriber, store, _):
        many = names(300, "many")
        store.core.put_many(Client("writer"), [(object_id, b"", b"", NO_DIGEST) for object_id in many])
        messages = subscriber.read()
        assert [len(message) for message in messages] == [128, 128, 44]
        assert [object_id for message in messages for object_id, _ in message] == many


async def test_a_slow_subscriber_delays_nobody_and_misses_nothing(path: Path) -> None:
    async with subscribed(path) as (subscriber, store, client):
        expected = []
        for number in range(3000):
            (object_id,) = names(1, f"{number}-")
            put(store, object_id)
            expected.append([(object_id, False)])
        assert await client.call(ContainsRequest(A)) == ContainsReply(A, True)
        received: list[list[tuple[ObjectID, bool]]] = []
        while len(received) < len(expected):
            some = subscriber.read()
            assert some or len(received) == len(expected)
            received += some
            await wait_all_tasks_blocked()
        assert received == expected


async def test_who_does_not_read_at_all_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with EmbeddedStore(CAPACITY) as store:
        subscriber = Subscriber()
        subscription = Subscription(store.core, subscriber.given.detach(), "process 7", max_unread=1000)
        listener = Counter()
        store.core.add_listener(listener)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.run)
            for number in range(3000):
                put(store, names(1, f"{number}-")[0])
        assert "process 7 does not read its notifications" in caplog.text
        assert list(store.core._listeners) == [listener]
        assert listener.told == 3000  # nobody else missed anything
        subscriber.close()


async def test_a_message_larger_than_the_buffer_arrives_in_the_end() -> None:
    with EmbeddedStore(CAPACITY) as store:
        subscriber = Subscriber()
        subscriber.given.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        subscription = Subscription(store.core, subscriber.given.detach(), "process 7")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subscription.run)
            many = names(1000)
            store.core.put_many(Client("writer"), [(object_id, b"", b"", NO_DIGEST) for object_id in many])
            received: list[ObjectID] = []
            while len(received) < 1000:
                received += [object_id for message in subscriber.read() for object_id, _ in message]
                await wait_all_tasks_blocked()
            assert received == many
            nursery.cancel_scope.cancel()
        assert subscriber.is_ended()
        subscriber.close()


async def test_who_stops_listening_is_forgotten(path: Path) -> None:
    async with subscribed(path) as (subscriber, store, client):
        subscriber.sock.close()
        put(store, B)
        put(store, C)
        assert not store.core._listeners
        assert await client.call(ContainsRequest(B)) == ContainsReply(B, True)


async def test_who_subscribes_again_is_told_on_the_new_socket(path: Path) -> None:
    async with subscribed(path) as (subscriber, store, client):
        second = Subscriber()
        subscribe(client, second.given.fileno())
        second.given.close()
        await wait_all_tasks_blocked()
        put(store, B)
        assert subscriber.is_ended()
        assert second.read() == [[(A, False)], [(B, False)]]
        second.close()


async def test_a_hang_up_ends_the_subscription(path: Path) -> None:
    async with subscribed(path) as (subscriber, store, client):
        client.sock.close()
        await wait_all_tasks_blocked()
        assert subscriber.is_ended()
        assert not store.core._listeners


async def test_what_is_no_socket_ends_the_connection(path: Path) -> None:
    async with conversation(path) as (client, store):
        await client.call(ContainsRequest(A))
        reading, writing = os.pipe()
        before = open_descriptors()
        subscribe(client, writing)
        assert await client.is_hung_up()
        await wait_all_tasks_blocked()
        assert len(open_descriptors()) == len(before) - 1  # the connection's
        assert not store.core._listeners
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("kind", ["itself", "another connection", "yet to be connected"])
@pytest.mark.parametrize("waiting", [False, True])
async def test_a_socket_that_leads_to_the_store_ends_the_connection(path: Path, kind: str, waiting: bool) -> None:
    # The store would hold the client's end itself, and never learn that the client is gone.
    async with conversation(path) as (client, store), raw_client(path) as other:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as fresh:
            given = {"itself": client.sock, "another connection": other.sock, "yet to be connected": fresh}[kind]
            assert await client.call(ContainsRequest(A)) == ContainsReply(A, False)
            before = open_descriptors()
            if waiting:
                client.post(GetRequest((A,), -1))
            subscribe(client, given.fileno())
            assert await client.is_hung_up()
            await wait_all_tasks_blocked()
            assert len(open_descriptors()) == len(before) - 1  # the connection's
            assert not store.core._listeners
        assert await other.call(ContainsRequest(A)) == ContainsReply(A, False)


async def test_what_is_created_and_sealed_at_once_is_in_the_quota_too(path: Path) -> None:
    async with conversation(path) as (client, store):
        await client.call(SetOptionsRequest("me", 1000))
        await client.call(CreateAndSealRequest(A, True, b"data", b"", NO_DIGEST))
        assert store.core.evict(CAPACITY) == 0


async def test_options_and_the_debug_string_are_answered(path: Path) -> None:
    async with conversation(path) as (client, _):
        assert await client.call(SetOptionsRequest("me", CAPACITY // 2)) == SetOptionsReply()
        reply = await client.call(SetOptionsRequest("you", 1))
        assert isinstance(reply, SetOptionsReply)
        assert reply.error
        reply = await client.call(GetDebugStringRequest())
        assert isinstance(reply, GetDebugStringReply)
        assert "(you) capacity: 500000" in reply.debug_string


def not_a_unix_stream() -> Iterator[socket.socket]:
    yield socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    yield socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield socket.socket(socket.AF_INET, socket.SOCK_STREAM)


async def test_only_a_unix_stream_socket_is_told(path: Path) -> None:
    """Closing others may block for as long as who gave them away likes."""
    before = open_descriptors()
    for sock in not_a_unix_stream():
        with sock:
            async with conversation(path) as (client, _):
                subscribe(client, sock.fileno())
                assert await client.is_hung_up()
    assert open_descriptors() == before
