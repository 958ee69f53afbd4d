# ruff: noqa: ASYNC240  (a test may look at a file)
"""`serve_store`, asked over a plain socket: what it does when clients are slow, rude, or gone."""

import errno
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from plasmastream import ObjectID, StoreError
from plasmastream.store import EmbeddedStore, open_store, serve_store
from plasmastream.store._segment import Segment
from plasmastream.store._transport import UnixTransport
from plasmastream.wire.plasma import (
    NO_DIGEST,
    AbortReply,
    AbortRequest,
    ClientConnection,
    ConnectReply,
    ConnectRequest,
    ContainsReply,
    ContainsRequest,
    CreateAndSealBatchReply,
    CreateAndSealBatchRequest,
    CreateAndSealReply,
    CreateAndSealRequest,
    CreateReply,
    CreateRequest,
    DeleteReply,
    DeleteRequest,
    DisconnectClient,
    ErrorCode,
    EvictReply,
    EvictRequest,
    Extension,
    GetReply,
    GetRequest,
    ListReply,
    ListRequest,
    Message,
    Outgoing,
    RefreshLRUReply,
    RefreshLRURequest,
    ReleaseRequest,
    Reply,
    SealReply,
    SealRequest,
    encode,
)
from tests.store.helpers import CAPACITY, assert_untouched, names, open_descriptors, put, served

A, B, C, D = names(4)


@pytest.fixture
def path(socket_directory: Path) -> Path:
    return socket_directory / "plasma"


class Raw:
    """A client of which every byte is under the test's control."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.wire: ClientConnection[int] = ClientConnection()

    def send_bytes(self, data: bytes) -> None:
        self.sock.send(data)

    def post(self, request: Message) -> None:
        self.wire.send(request)
        self.send_bytes(b"".join(piece.data for piece in self.wire.data_to_send()))

    async def reply(self) -> Message:
        with trio.fail_after(5):
            while True:
                event = self.wire.next_event()
                if isinstance(event, Reply):
                    for descriptor in event.descriptors.values():
                        os.close(descriptor)
                    return event.message
                await trio.lowlevel.wait_readable(self.sock)
                data, descriptors, _, _ = socket.recv_fds(self.sock, 65536, 1)
                if not data:
                    raise EOFError
                self.wire.receive_data(data, descriptors)

    async def call(self, request: Message) -> Message:
        self.post(request)
        return await self.reply()

    async def is_hung_up(self) -> bool:
        with trio.move_on_after(5):
            await trio.lowlevel.wait_readable(self.sock)
            return self.sock.recv(1) == b""
        return False


@asynccontextmanager
async def raw_client(path: Path) -> AsyncIterator[Raw]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(path))
        sock.setblocking(False)
        yield Raw(sock)


@asynccontextmanager
async def conversation(path: Path) -> AsyncIterator[tuple[Raw, EmbeddedStore]]:
    async with served(path) as store, raw_client(path) as client:
        yield client, store


def fill(store: EmbeddedStore, object_id: ObjectID, data: bytes = b"x") -> None:
    put(store, object_id, data)


# The socket


async def test_only_the_same_user_may_connect(path: Path) -> None:
    async with served(path):
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
    assert not path.exists()


async def test_a_socket_where_a_store_answers_is_left_alone(path: Path) -> None:
    async with served(path) as store:
        with pytest.raises(StoreError, match=f"already being served at {path}"):
            await serve_store(store.core, str(path))
        async with open_store(path) as client:
            assert await client.contains([A]) == [False]


async def test_a_socket_whose_queue_is_full_is_alive(path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as first,
        socket.socket(socket.AF_UNIX) as second,
        EmbeddedStore(100) as store,
    ):
        listener.bind(str(path))
        listener.listen(0)
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(str(path))
        with pytest.raises(StoreError, match="already being served"):
            await serve_store(store.core, str(path))


async def test_a_dead_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    async with served(path), open_store(path) as client:
        assert await client.contains([A]) == [False]


async def test_a_file_that_is_no_socket_is_not_touched(path: Path) -> None:
    path.write_text("precious")
    with EmbeddedStore(100) as store, pytest.raises(StoreError, match="cannot be made"):
        await serve_store(store.core, str(path))
    assert path.read_text() == "precious"


@pytest.mark.parametrize("wrong", ["missing/plasma", "x" * 200])
async def test_a_place_where_no_socket_can_be(wrong: str, socket_directory: Path) -> None:
    with EmbeddedStore(100) as store, pytest.raises(StoreError, match="cannot be made"):
        await serve_store(store.core, str(socket_directory / wrong))


async def test_a_socket_that_somebody_else_put_there_stays(path: Path) -> None:
    async with served(path):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


async def test_a_socket_that_is_gone_is_not_missed(path: Path) -> None:
    async with served(path):
        path.unlink()


async def test_at_the_limit_of_connections_the_next_one_waits(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with EmbeddedStore(100) as store:
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                await serve_store(store.core, str(path), max_connections=1, task_status=task_status)

            await nursery.start(serve)
            async with raw_client(path) as second, raw_client(path) as first:
                # Whichever was accepted is served; the other one's request lies in its socket.
                first.post(ConnectRequest())
                second.post(ConnectRequest())
                assert await second.reply() == ConnectReply(100, Extension.INSPECT | Extension.RELEASE_MANY)
                await wait_all_tasks_blocked()
                with pytest.raises(BlockingIOError):
                    first.sock.recv(1)
                second.sock.close()
                assert await first.reply() == ConnectReply(100, Extension.INSPECT | Extension.RELEASE_MANY)
            nursery.cancel_scope.cancel()
    assert f"the store at {path} is at its limit of connections, 1" in caplog.text


async def test_a_lack_of_descriptors_passes(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    real = socket.socket.accept
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]

    def accept(self: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise failures.pop()
        return real(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    async with served(path), open_store(path) as client:
        assert await client.contains([A]) == [False]
    assert "Too many open files" in caplog.text


# The conversation


async def test_every_request_has_its_reply(path: Path) -> None:
    async with conversation(path) as (client, store):
        assert await client.call(ConnectRequest()) == ConnectReply(CAPACITY, Extension.INSPECT | Extension.RELEASE_MANY)
        reply = await client.call(CreateRequest(A, True, 5, 2))
        assert isinstance(reply, CreateReply)
        assert (reply.error, reply.spec.data_size, reply.spec.metadata_size) == (ErrorCode.OK, 5, 2)
        assert reply.spec.metadata_offset == reply.spec.data_offset + 5
        assert await client.call(SealRequest(A, NO_DIGEST)) == SealReply(A)
        assert await client.call(SealRequest(A, NO_DIGEST)) == SealReply(A, ErrorCode.OBJECT_EXISTS)
        assert await client.call(SealRequest(B, NO_DIGEST)) == SealReply(B, ErrorCode.OBJECT_NOT_FOUND)
        assert await client.call(ContainsRequest(A)) == ContainsReply(A, True)
        assert await client.call(ContainsRequest(B)) == ContainsReply(B, False)
        assert await client.call(AbortRequest(B)) == AbortReply(B)
        assert await client.call(DeleteRequest((A, B))) == DeleteReply(
            (A, B), (ErrorCode.OBJECT_IN_USE, ErrorCode.OBJECT_NOT_FOUND)
        )
        client.post(ReleaseRequest(A))
        client.post(ReleaseRequest(A))
        assert await client.call(ListRequest()) == ListReply(())
        assert await client.call(CreateAndSealRequest(A, True, b"d", b"m", NO_DIGEST)) == CreateAndSealReply()
        assert await client.call(CreateAndSealRequest(A, True, b"d", b"m", NO_DIGEST)) == CreateAndSealReply(
            ErrorCode.OBJECT_EXISTS
        )
        batch = CreateAndSealBatchRequest((B, C), True, (b"b", b"c"), (b"", b""), (NO_DIGEST, NO_DIGEST))
        assert await client.call(batch) == CreateAndSealBatchReply()
        assert await client.call(RefreshLRURequest((A,))) == RefreshLRUReply()
        assert list(store.core.table.idle) == [B, C, A]
        assert await client.call(EvictRequest(1)) == EvictReply(1)
        assert await client.call(EvictRequest(2**64 - 1)) == EvictReply(0)


async def test_a_refused_create_says_why(path: Path) -> None:
    async with conversation(path) as (client, _):
        for request, code in (
            (CreateRequest(A, True, 5, 2, device_num=1), ErrorCode.OUT_OF_MEMORY),
            (CreateRequest(A, True, CAPACITY + 1, 0), ErrorCode.OUT_OF_MEMORY),
            (CreateRequest(A, True, 2**64 - 1, 0), ErrorCode.OUT_OF_MEMORY),
        ):
            reply = await client.call(request)
            assert isinstance(reply, CreateReply)
            assert reply.error is code


async def test_half_a_message_delays_nobody_else(path: Path) -> None:
    async with conversation(path) as (client, _):
        frame = encode(ConnectRequest())
        for octet in frame[:-1]:
            client.send_bytes(bytes([octet]))
            await wait_all_tasks_blocked()
        async with open_store(path) as other:
            assert await other.contains([A]) == [False]
        client.wire.send(ConnectRequest())
        client.wire.data_to_send()
        client.send_bytes(frame[-1:])
        assert await client.reply() == ConnectReply(CAPACITY, Extension.INSPECT | Extension.RELEASE_MANY)


async def test_who_does_not_read_its_replies_delays_nobody_else(path: Path) -> None:
    async with conversation(path) as (client, store):
        many = names(2000)
        for object_id in many:
            fill(store, object_id)
        request = encode(ListRequest())
        with suppress(BlockingIOError):
            while True:
                client.send_bytes(request)
                await trio.lowlevel.checkpoint()
        async with open_store(path) as other:
            assert await other.contains([A]) == [True]
        client.sock.close()
        await wait_all_tasks_blocked()
        assert_untouched(store)


async def test_two_pipelined_gets_are_answered_in_order(path: Path) -> None:
    async with conversation(path) as (client, store):
        client.send_bytes(encode(GetRequest((A,), -1)) + encode(GetRequest((B,), -1)))
        await wait_all_tasks_blocked()
        fill(store, B)
        await wait_all_tasks_blocked()
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)
        fill(store, A)
        for object_id in (A, B):
            client.wire.send(GetRequest((object_id,), -1))
            client.wire.data_to_send()
            reply = await client.reply()
            assert isinstance(reply, GetReply)
            assert reply.object_ids == (object_id,)


async def test_much_may_be_sent_behind_a_get_that_waits(path: Path) -> None:
    """More than what is read ahead: the rest stays in the socket, and all of it is answered in the end."""
    async with conversation(path) as (client, store):
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        get, release = GetRequest((A,), -1), encode(ReleaseRequest(B))
        client.wire.send(get)
        client.wire.data_to_send()
        client.send_bytes(encode(get) + release * (100_000 // len(release)))
        await wait_all_tasks_blocked()
        fill(store, A)
        assert isinstance(await client.reply(), GetReply)
        assert await client.call(ContainsRequest(A)) == ContainsReply(A, True)


@pytest.mark.parametrize(("timeout_ms", "seconds"), [(1500, 1.5), (-7, 0.0), (0, 0.0)])
async def test_a_get_waits_as_long_as_it_is_told(
    timeout_ms: int, seconds: float, path: Path, autojump_clock: MockClock
) -> None:
    async with conversation(path) as (client, store):
        fill(store, A)
        start = trio.current_time()
        reply = await client.call(GetRequest((A, B, A), timeout_ms))
        assert trio.current_time() - start == pytest.approx(seconds, abs=0.001)
        assert isinstance(reply, GetReply)
        assert [spec.is_missing for spec in reply.specs] == [False, True, False]
        assert len(reply.store_fds) == 1


async def test_a_get_of_nothing_or_of_what_is_missing_shows_no_segment(path: Path) -> None:
    async with conversation(path) as (client, _):
        for ids in ((), (A,)):
            reply = await client.call(GetRequest(ids, 0))
            assert isinstance(reply, GetReply)
            assert (reply.object_ids, reply.store_fds) == (ids, ())


async def test_a_hang_up_ends_a_get_that_waits(path: Path) -> None:
    async with conversation(path) as (client, store):
        fill(store, A)
        client.post(GetRequest((A, B), -1))
        await wait_all_tasks_blocked()
        client.sock.close()
        await wait_all_tasks_blocked()
        assert_untouched(store)


@pytest.mark.parametrize("nbytes", [100, 200_000])
async def test_a_hang_up_behind_what_was_sent_ends_a_get_that_waits(
    nbytes: int, path: Path, autojump_clock: MockClock
) -> None:
    """The end of the stream stands behind more than is read ahead; an unsealed object goes all the same."""
    async with conversation(path) as (client, store):
        await client.call(CreateRequest(A, True, 100, 0))
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        release = encode(ReleaseRequest(B))
        client.send_bytes(encode(GetRequest((B,), -1)) + release * (nbytes // len(release)))
        await wait_all_tasks_blocked()
        client.sock.close()
        with trio.fail_after(2):
            while len(store.core.table):  # noqa: ASYNC110  (the server polls for it, too)
                await trio.sleep(0.1)
        assert_untouched(store)


async def test_a_reset_ends_a_get_that_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with conversation(path) as (client, store):
        client.post(GetRequest((B,), -1))
        await wait_all_tasks_blocked()

        def reset(self: UnixTransport, into: memoryview) -> tuple[int, list[int]]:
            raise ConnectionResetError(errno.ECONNRESET, "reset")

        monkeypatch.setattr(UnixTransport, "receive_nowait", reset)
        client.post(ReleaseRequest(A))
        await wait_all_tasks_blocked()
        assert_untouched(store)


async def test_a_client_that_hangs_up_loses_what_it_held(path: Path) -> None:
    async with conversation(path) as (client, store):
        fill(store, A)
        await client.call(GetRequest((A,), 0))
        await client.call(CreateRequest(B, True, 5, 2))
        client.send_bytes(encode(DisconnectClient()))
        assert await client.is_hung_up()
        assert_untouched(store)
        assert {entry.object_id for entry in store.core.table} == {A}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff" * 24, "version"),
        (bytes(8) + (14).to_bytes(8, "little") + bytes(8), "14"),
        (encode(ContainsRequest(A))[:-30] + bytes(30), ""),
    ],
)
async def test_a_client_that_breaks_the_protocol_is_named_in_the_log_and_hung_up_on(
    data: bytes, why: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with conversation(path) as (client, store):
        await client.call(CreateRequest(A, True, 5, 2))
        client.send_bytes(data)
        assert await client.is_hung_up()
        assert_untouched(store)
        async with open_store(path) as other:
            assert await other.contains([A]) == [False]
    assert f"process {os.getpid()}" in caplog.text
    assert why in caplog.text


async def test_a_descriptor_that_nobody_asked_for_is_closed(path: Path) -> None:
    async with conversation(path) as (client, _):
        await client.call(ConnectRequest())
        before = open_descriptors()
        with Segment(4096, "surprise") as segment:
            socket.send_fds(client.sock, [b"\0"], [segment.fd])
            assert await client.is_hung_up()
        await wait_all_tasks_blocked()
        assert not [text for text in open_descriptors() - before if "surprise" in text]


async def test_too_many_descriptors_in_one_message_are_closed(path: Path) -> None:
    async with conversation(path) as (client, _):
        await client.call(ConnectRequest())
        with Segment(4096, "surprise") as segment:
            socket.send_fds(client.sock, [b"\0"], [segment.fd] * 5)
            assert await client.is_hung_up()
        await wait_all_tasks_blocked()
        assert not [text for text in open_descriptors() if "surprise" in text]


async def test_a_busy_client_lets_others_run(path: Path) -> None:
    async with conversation(path) as (client, _), open_store(path) as other:
        for _ in range(100):
            await client.call(ContainsRequest(A))
        assert await other.contains([A]) == [False]


async def test_a_server_that_is_cancelled_hangs_up(path: Path) -> None:
    with EmbeddedStore(CAPACITY) as store:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_store, store.core, str(path))
            async with raw_client(path) as waiting, raw_client(path) as idle:
                waiting.post(GetRequest((A,), -1))
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    assert await waiting.is_hung_up()
                    assert await idle.is_hung_up()
        assert_untouched(store)
        assert not path.exists()


# The transport below


async def test_short_sends_go_on_where_they_stopped_and_a_descriptor_goes_once() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs, Segment(4096) as segment:
        theirs.setblocking(False)
        transport = UnixTransport(ours)
        data = os.urandom(3 << 20)
        transport.queue([Outgoing(data), Outgoing(b"\x14\x15", segment.fd), Outgoing(b"end")])
        assert transport.queued_bytes == len(data) + 5
        received = bytearray()
        found: list[int] = []

        async def read() -> None:
            while not received.endswith(b"\x14\x15end"):
                await trio.lowlevel.wait_readable(theirs)
                some, descriptors, _, _ = socket.recv_fds(theirs, 100_000, 4)
                received.extend(some)
                found.extend(descriptors)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.flush)
            nursery.start_soon(read)
        assert received == data + b"\x14\x15end"
        assert len(found) == 1
        os.close(found[0])
        assert transport.queued_bytes == 0
        transport.close()
        transport.close()
        assert transport.fileno() == -1


async def test_whoever_sends_many_requests_at_once_lets_others_run_in_between(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one read has brought, a thousand small requests, is no reason to keep another client waiting."""
    steps = [0]

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            steps.append(0)

    async with conversation(path) as (client, store):
        await wait_all_tasks_blocked()
        find = store.core.table.find_sealed

        def counted(object_id: ObjectID) -> object:
            steps[-1] += 1
            return find(object_id)

        monkeypatch.setattr(store.core.table, "find_sealed", counted)
        instrument = Steps()
        trio.lowlevel.add_instrument(instrument)
        client.send_bytes(500 * encode(ContainsRequest(A)))
        await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(instrument)
    assert sum(steps) == 500
    assert max(steps) <= 32
