"""A pair of which one side knows version 1 alone: our client falls back by itself, our server answers both."""

import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from plasmastream import ObjectID, PeerError
from plasmastream.peer import (
    IncompleteError,
    Outcome,
    PeerClient,
    PeerRequest,
    PeerServer,
    Status,
    TransferKind,
    Transport,
    UnreachableError,
    open_peer,
)
from plasmastream.store import EmbeddedStore, NewObject
from plasmastream.testing import Cut, Script, memory_transports, open_fault_proxy
from plasmastream.wire.stream import (
    IS_NOT_OLD,
    IS_OLD,
    NEED_DATA,
    QUESTION,
    ConnectionClosed,
    SyncRequested,
    TransferRequested,
)
from plasmastream.wire.stream import ServerConnection as Version1Connection
from plasmastream.wire.stream._frames import pack_sync
from plasmastream.wire.stream.v2 import MAGIC
from tests.peer.helpers import (
    CAPACITY,
    MIXED,
    Objects,
    answer_with,
    contents,
    fill,
    objects_of,
    open_version_1,
    serving,
)
from tests.store.helpers import assert_untouched, name


@attrs.define
class OldServer:
    """A server of version 1, on sockets, as docs/peer-protocol.md describes it: of version 2 it has never heard."""

    objects: Objects
    address: tuple[str, int] = ("", 0)
    connections: int = 0
    refused: int = 0
    """Connections that began with something unknown, and were closed without a word."""
    synced: list[PeerRequest] = attrs.Factory(list)

    async def serve(self, sock: trio.socket.SocketType) -> None:
        """One connection to its end."""
        self.connections += 1
        with sock:
            connection = Version1Connection()
            taken: Sequence[ObjectID] = ()
            while True:
                data = await sock.recv(65_536)
                if data[:1] not in (b"", b"\x01", b"\x02", b"\x03") and not connection.owes_answer:
                    self.refused += 1
                    return
                if data:
                    connection.receive_data(data)
                else:
                    connection.receive_eof()
                while (event := connection.next_event()) is not NEED_DATA:
                    for object_id in taken:  # the client has read the answer
                        del self.objects[object_id]
                    taken = ()
                    match event:
                        case ConnectionClosed():
                            return
                        case TransferRequested(object_ids=ids) if not self.objects.keys() >= set(ids):
                            connection.refuse(Status.NOT_FOUND)
                        case TransferRequested(kind=kind, object_ids=ids):
                            connection.begin()
                            for object_id in ids:
                                content, metadata = self.objects[object_id]
                                connection.send_object(metadata, content)
                            taken = ids if kind is TransferKind.TAKE else ()
                        case SyncRequested(peer_requests=requests):
                            self.synced += requests
                            connection.answer_sync([Status.SUCCESS] * len(requests))
                    for piece in connection.data_to_send():
                        await trio.SocketStream(sock).send_all(piece)


@asynccontextmanager
async def old_server(objects: Objects) -> AsyncIterator[OldServer]:
    server = OldServer(dict(objects))
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen()
    server.address = listener.getsockname()
    with listener:
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                while True:
                    sock, _ = await listener.accept()
                    nursery.start_soon(server.serve, sock)

            nursery.start_soon(accept)
            yield server
            nursery.cancel_scope.cancel()


def peer_request(address: tuple[str, int], object_ids: Sequence[ObjectID], kind: TransferKind) -> PeerRequest:
    return PeerRequest(kind, ipaddress.ip_address(address[0]), address[1], tuple(object_ids))


def fallbacks(caplog: pytest.LogCaptureFixture) -> int:
    """How often the log says that version 1 is spoken."""
    return sum("version 1 is spoken" in record.getMessage() for record in caplog.records)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


# Our client, an old server


async def test_copy_take_and_sync_fall_back_and_say_so_once(log: pytest.LogCaptureFixture) -> None:
    first, second = objects_of(MIXED, "a"), objects_of(MIXED, "b")
    elsewhere = peer_request(("192.0.2.1", 2021), [name("elsewhere")], TransferKind.COPY)
    with EmbeddedStore(CAPACITY) as here:
        async with old_server({**first, **second}) as server:
            async with open_peer(*server.address) as client:
                assert server.refused == 1  # which cost one connection, and no more than that
                await client.copy(list(first), here)
                assert contents(here) == first
                await client.take(list(second), here)
                assert contents(here) == {**first, **second}
                assert await client.sync([elsewhere]) == (Status.SUCCESS,)
                ((result,),) = await client.sync_each([elsewhere])
                assert (result.object_id, result.outcome) == (name("elsewhere"), Outcome.DONE)
                assert server.synced == [elsewhere, elsewhere]
            with trio.fail_after(5):
                while server.objects != first:  # noqa: ASYNC110
                    await trio.sleep(0.005)
            assert server.refused == 1
        assert_untouched(here)
    assert fallbacks(log) == 1


@pytest.mark.parametrize("loses", ["copy", "take"])
async def test_the_first_request_falls_back_as_well(loses: str, log: pytest.LogCaptureFixture) -> None:
    objects = objects_of(MIXED)
    with EmbeddedStore(CAPACITY) as here:
        async with old_server(objects) as server:
            client = PeerClient(*server.address)
            await getattr(client, loses)(list(objects), here)
            await client.aclose()
            assert (server.connections, server.refused) == (2, 1)
        assert contents(here) == objects
    assert fallbacks(log) == 1


async def test_an_end_by_reset_is_a_reason_too(log: pytest.LogCaptureFixture) -> None:
    """A server that closes with something unread breaks the connection, as the first implementation may."""
    objects = objects_of([(5, 0)])
    (object_id,) = objects
    with socket.create_server(("127.0.0.1", 0)) as listener, EmbeddedStore(CAPACITY) as here:

        def serve() -> None:
            offer, _ = listener.accept()
            offer.close()  # with the greeting unread, or before it comes
            accepted, _ = listener.accept()
            with accepted:
                asked = QUESTION + b"\x02\x01\x00" + object_id  # at once: the proof takes no time
                assert accepted.recv(len(asked), socket.MSG_WAITALL) == asked
                accepted.sendall(IS_OLD + answer_with(objects))
                assert accepted.recv(1) == b""

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, serve)
            client = PeerClient(*listener.getsockname())
            await client.copy(list(objects), here)
            await client.aclose()
        assert contents(here) == objects
    assert fallbacks(log) == 1


async def test_it_is_remembered_for_ten_minutes(log: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    async with old_server({}) as server:
        client = PeerClient(*server.address)
        await client.connect()
        for seconds, refused in ((0, 1), (599, 1), (2, 2), (598, 2)):
            await trio.sleep(seconds)
            await client.aclose()
            await client.connect()
            assert server.refused == refused
        await client.aclose()
    assert fallbacks(log) == 1


async def test_what_version_1_refuses_has_outcomes_all_the_same() -> None:
    objects = objects_of(MIXED)
    with EmbeddedStore(CAPACITY) as here:
        async with old_server(objects) as server:
            client = PeerClient(*server.address)
            with pytest.raises(IncompleteError) as caught:
                await client.copy([*objects, name("missing")], here)
            assert caught.value.status == Status.NOT_FOUND
            assert [result.outcome for result in caught.value.results] == [Outcome.NOT_FOUND] * (len(objects) + 1)
            assert contents(here) == {}  # all or none
            for call in (
                lambda: client.put([NewObject(name("x"), b"x")]),
                lambda: client.stat([name("x")]),
                client.list_objects,
            ):
                with pytest.raises(PeerError, match="speaks version 1"):
                    await call()
            await client.aclose()


# A bad network is no old server


@attrs.define
class _Frontier:
    """What stands before a server, and ends the first connections without a word, as forwarders and networks do."""

    address: tuple[str, int]
    connections: int = 0


@asynccontextmanager
async def frontier(backend: tuple[str, int] | None, ends: Collection[int]) -> AsyncIterator[_Frontier]:
    """Connections of these numbers end at once, by turns in order and by a reset; others lead to `backend`."""
    scripts = {number: Script(to_client=[Cut(0, reset=bool(number % 2))]) for number in ends}
    async with AsyncExitStack() as stack:
        if backend is None:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            backend = listener.getsockname()
            listener.close()
        proxy = await stack.enter_async_context(
            open_fault_proxy(backend[0], backend[1], lambda number: scripts.get(number, Script()))
        )
        yield _Frontier(proxy.address)


@pytest.mark.parametrize("kind", TransferKind)
@pytest.mark.parametrize("ends", [[0], [0, 1], [0, 1, 2]])
async def test_connections_that_end_without_a_word_do_not_lead_to_version_1(
    kind: TransferKind, ends: Collection[int], log: pytest.LogCaptureFixture
) -> None:
    objects = objects_of(MIXED)
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, objects)
        async with (
            serving(there) as server,
            frontier(server.address, ends) as front,
            PeerClient(*front.address) as client,
        ):
            results = await client.fetch(kind, list(objects), here, timeout=30)
            assert {result.outcome for result in results} == {Outcome.DONE}
            assert len(await client.list_objects()) == (0 if kind is TransferKind.TAKE else len(objects))
        assert contents(here) == objects
    assert fallbacks(log) == 0


async def test_puts_and_syncs_go_on_where_connections_end_without_a_word() -> None:
    objects = objects_of(MIXED)
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, objects)
        async with serving(there) as source, serving(here) as server:
            for ends in ([0], [0, 1]):
                put = [NewObject(name(f"put {ends}"), b"x")]
                wanted = [peer_request(source.address, list(objects), TransferKind.COPY)]
                async with frontier(server.address, ends) as front, PeerClient(*front.address) as client:
                    (result,) = await client.put(put, timeout=30)
                    assert result.is_success
                async with frontier(server.address, ends) as front, PeerClient(*front.address) as client:
                    ((result, *_),) = await client.sync_each(wanted, timeout=30)
                    assert result.is_success
        assert contents(here).items() >= objects.items()


async def test_a_forwarder_without_a_server_behind_it_is_no_old_server() -> None:
    with EmbeddedStore(CAPACITY) as here:
        async with frontier(None, ()) as front, PeerClient(*front.address) as client:
            for timeout in (None, 0.5):
                # Where the time is limited, it may be over before the first answer that is none.
                outcomes = (Outcome.UNREACHABLE, *([Outcome.OUT_OF_TIME] if timeout else []))
                (result,) = await client.fetch(TransferKind.TAKE, [name("x")], here, timeout=timeout)
                assert result.outcome in outcomes, result
                with pytest.raises(UnreachableError):
                    await client.sync([peer_request(("192.0.2.1", 2021), [name("x")], TransferKind.COPY)])
                (result,) = await client.put([NewObject(name("x"), b"x")], timeout=timeout)
                assert result.outcome in outcomes, result
                with pytest.raises(UnreachableError):
                    await client.stat([name("x")])


async def test_who_is_asked_whether_it_is_old_says_so() -> None:
    """And carries out nothing else of that connection."""
    objects = objects_of([(5, 2)])
    with EmbeddedStore(CAPACITY) as there:
        fill(there, objects)
        async with serving(there) as server:
            with trio.fail_after(5), trio.socket.socket() as sock:
                    await sock.connect(server.address)
                    await sock.send(QUESTION)
                    assert await sock.recv(1) == bytes([IS_NOT_OLD])
                    assert await sock.recv(1) == bytes([IS_NOT_OLD])
                    await sock.send(b"\x03\x01\x00" + b"".join(objects))
                    assert await sock.recv(100) == bytes([IS_NOT_OLD])
                    await sock.send(pack_sync([peer_request(server.address, list(objects), TransferKind.TAKE)]))
                    assert await sock.recv(100) == b""
        assert contents(there) == objects


async def test_no_flipped_bit_makes_a_server_look_old(autojump_clock: MockClock) -> None:
    """Neither in the question, behind which a TAKE follows at once, nor in its answer."""
    objects = objects_of([(5, 2)])
    once = len(QUESTION) // 2
    heads = [*range(8 * 3), *range(8 * once, 8 * (once + 3))]  # all of these, and some of the ids
    to_server = [(*divmod(bit, 8), True) for bit in (*heads, *range(0, 8 * len(QUESTION), 19))]
    for at, bit, is_to_server in (*to_server, *((*divmod(bit, 8), False) for bit in range(16))):
        await take_past_a_flip(objects, at, bit, is_to_server=is_to_server)


async def take_past_a_flip(
    objects: dict[ObjectID, tuple[bytes, bytes]], at: int, bit: int, *, is_to_server: bool
) -> None:
    """Take objects over connections: the first ends at once, as with an old server, and the second is spoilt."""
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, objects)
        server = PeerServer(there)
        async with trio.open_nursery() as nursery:
            made = 0

            async def connect(host: str, port: int, *, timeout: float) -> Transport:
                nonlocal made
                made += 1
                ours, theirs = memory_transports()
                if made == 1:
                    theirs.close()
                    return ours
                if made == 2:
                    end = ours if is_to_server else theirs
                    spoil(end, at, bit)
                nursery.start_soon(server.serve_connection, theirs)
                return ours

            client = PeerClient("peer", 2021, connect=connect)
            (result,) = await client.fetch(TransferKind.TAKE, list(objects), here, timeout=60)
            assert result.is_success, (at, bit, is_to_server)
            assert not client._lanes.is_old
            await client.aclose()
            nursery.cancel_scope.cancel()
        assert contents(here) == objects
        assert contents(there) == {}


def spoil(end: Transport, at: int, bit: int) -> None:
    """Flip a bit of what is sent there next."""
    send = end.send

    async def send_spoilt(pieces: Sequence[bytes | memoryview], **options: Any) -> None:
        nonlocal at
        whole = bytearray(b"".join(pieces))
        if 0 <= at < len(whole):
            whole[at] ^= 1 << bit
        at -= len(whole)
        await send([bytes(whole)], **options)

    end.send = send_spoilt  # type: ignore[method-assign]  # of this one connection


async def test_a_client_that_insists_does_not_fall_back(log: pytest.LogCaptureFixture) -> None:
    async with old_server({}) as server:
        with pytest.raises(PeerError, match="before the greeting"):
            async with open_peer(*server.address, version=2):
                pytest.fail("opened")
        assert server.refused == server.connections == 1
    assert fallbacks(log) == 0


# A server of ours between a client and an old server


@pytest.mark.parametrize("kind", TransferKind)
async def test_a_sync_of_version_2_fetches_from_an_old_server(
    kind: TransferKind, log: pytest.LogCaptureFixture
) -> None:
    old, new = objects_of(MIXED, "old"), objects_of(MIXED, "new")
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, new)
        async with old_server(old) as source, serving(there) as other, serving(here) as server:
            async with open_peer(*server.address, version=2) as client:
                wanted = [
                    peer_request(source.address, list(old), kind),
                    peer_request(other.address, list(new), kind),
                    peer_request(source.address, [name("missing")], kind),
                ]
                results = await client.sync_each(wanted)
                assert [{result.outcome for result in each} for each in results] == [
                    {Outcome.DONE},
                    {Outcome.DONE},
                    {Outcome.NOT_FOUND},
                ]
            with trio.fail_after(5):
                while kind is TransferKind.TAKE and (source.objects or contents(there)):  # noqa: ASYNC110
                    await trio.sleep(0.005)
        assert contents(here) == {**old, **new}
    assert fallbacks(log) == 1


# An old client, our server


async def test_an_old_client_sees_a_server_of_version_1() -> None:
    first, second, third = objects_of(MIXED, "a"), objects_of(MIXED, "b"), objects_of(MIXED, "c")
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, {**first, **second})
        async with old_server(third) as source, serving(there) as server, open_version_1(*server.address) as client:
            await client.copy(list(first), here)
            await client.take(list(second), here)
            assert contents(here) == {**first, **second}
            wanted = [peer_request(source.address, list(third), TransferKind.COPY)]
            assert await client.sync(wanted) == (Status.SUCCESS,)
            assert await client.sync(wanted) == (Status.ALREADY_PRESENT,)
            assert source.refused == 0  # a SYNC of version 1 is carried out by version 1
        assert contents(there).items() >= {**first, **third}.items()


async def test_raw_bytes_of_both_versions_at_one_port() -> None:
    objects = objects_of([(5, 2), (70_000, 0)])
    request = b"\x02\x02\x00" + b"".join(objects)
    with EmbeddedStore(CAPACITY) as there:
        fill(there, objects)
        async with serving(there) as server:
            for said, heard in ((request, answer_with(objects)), (MAGIC[:7], b""), (request, answer_with(objects))):
                with trio.fail_after(5), trio.socket.socket() as sock:
                    await sock.connect(server.address)
                    await sock.send(said)
                    answer = b""
                    while len(answer) < len(heard):
                        answer += await sock.recv(100_000)
                    assert answer == heard
        assert_untouched(there)
