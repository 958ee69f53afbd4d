"""What one client may take, and that long requests leave room for others between their slices."""

import socket
from collections.abc import Iterable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from plasmastream import ObjectID
from plasmastream.store import ConnectionLimits, EmbeddedStore, _server, _turns, serve_store
from plasmastream.store._transport import UnixTransport
from plasmastream.wire.plasma import (
    NO_DIGEST,
    ContainsReply,
    ContainsRequest,
    CreateAndSealBatchReply,
    CreateAndSealBatchRequest,
    CreateReply,
    CreateRequest,
    DeleteReply,
    DeleteRequest,
    ErrorCode,
    GetReply,
    GetRequest,
    ListReply,
    ListRequest,
    Outgoing,
    RefreshLRUReply,
    RefreshLRURequest,
    ReleaseRequest,
    SealReply,
    SealRequest,
    SubscribeRequest,
    encode,
)
from tests.store.helpers import assert_untouched, names, put, served
from tests.store.test_server import Raw, raw_client

A, B, C, D, E = names(5)
MANY = tuple(names(1500, "many"))


@pytest.fixture
def path(socket_directory: Path) -> Path:
    return socket_directory / "plasma"


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let others in after each single object."""
    monkeypatch.setattr(_turns, "_SLICE", -1.0)
    monkeypatch.setattr(_server, "FILLED_TOGETHER", 1)


def batch(object_ids: tuple[ObjectID, ...]) -> CreateAndSealBatchRequest:
    many = len(object_ids)
    return CreateAndSealBatchRequest(object_ids, True, (b"x",) * many, (b"",) * many, (NO_DIGEST,) * many)


async def created(client: Raw, object_id: ObjectID, nbytes: int = 10) -> ErrorCode:
    reply = await client.call(CreateRequest(object_id, True, nbytes, 0))
    assert isinstance(reply, CreateReply)
    return reply.error


async def found(client: Raw, *object_ids: ObjectID, timeout_ms: int = 0) -> list[bool]:
    reply = await client.call(GetRequest(object_ids, timeout_ms))
    assert isinstance(reply, GetReply)
    return [not spec.is_missing for spec in reply.specs]


def holders(store: EmbeddedStore) -> int:
    """How many holds there are."""
    return sum(len(entry.holders) for entry in store.core.table)


# What one client may take


@pytest.mark.parametrize("field", ["held", "unsealed_bytes", "reply_timeout"])
def test_a_limit_is_positive(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        ConnectionLimits(**{field: 0})


async def test_who_holds_too_much_gets_no_more(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(path, limits=ConnectionLimits(held=2)) as store, raw_client(path) as client:
        for object_id in (A, B, C):
            put(store, object_id)
        assert await found(client, A, B) == [True, True]
        assert await found(client, B, C, A, timeout_ms=-1) == [True, False, True]  # at once
        assert await created(client, D) is ErrorCode.OUT_OF_MEMORY
        assert caplog.text.count("3 objects held would be over its limit of 2") == 1
        async with raw_client(path) as other:
            assert await found(other, A, C) == [True, True]
        client.post(ReleaseRequest(A))
        assert await found(client, B, C, C) == [True, True, True]


async def test_what_is_not_sealed_is_limited(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = ConnectionLimits(unsealed=2, unsealed_bytes=100)
    async with served(path, limits=limits) as store, raw_client(path) as client, raw_client(path) as other:
        put(store, D)
        assert await created(client, A, 91) is ErrorCode.OK
        assert await created(client, B, 10) is ErrorCode.OUT_OF_MEMORY
        assert "101 bytes of unsealed objects would be over its limit of 100" in caplog.text
        assert await created(client, B, 9) is ErrorCode.OK
        assert await created(client, C, 0) is ErrorCode.OUT_OF_MEMORY
        assert "3 unsealed objects would be over its limit of 2" in caplog.text
        assert await created(other, C) is ErrorCode.OK
        # Whoever seals it, it is not unsealed any more; nor is what was aborted by a hang-up.
        assert await other.call(SealRequest(A, NO_DIGEST)) == SealReply(A)
        assert await created(client, E, 91) is ErrorCode.OK
        client.sock.close()
        await wait_all_tasks_blocked()
        assert {entry.object_id for entry in store.core.table} == {A, C, D}


async def test_a_request_that_is_too_large_ends_the_connection(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(path, limits=ConnectionLimits(request_bytes=1000)), raw_client(path) as client:
        assert await client.call(batch((A,))) == CreateAndSealBatchReply()
        client.send_bytes(encode(batch(MANY))[:24])
        assert await client.is_hung_up()
    assert "its connection is closed" in caplog.text


async def ask_without_reading(client: Raw, store: EmbeddedStore) -> None:
    for object_id in MANY[:900]:  # a list of more is encoded in a thread, for which a mock clock does not wait
        put(store, object_id)
    assert await found(client, MANY[0]) == [True]
    client.send_bytes(encode(ListRequest()) * 20)
    await wait_all_tasks_blocked()
    assert holders(store)


async def test_who_does_not_read_its_replies_is_dropped_in_the_end(
    path: Path, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with served(path, limits=ConnectionLimits(reply_timeout=5)) as store, raw_client(path) as client:
        await ask_without_reading(client, store)
        await trio.sleep(4.9)
        assert not caplog.text
        await trio.sleep(0.2)
        assert "read nothing of its replies for 5 s" in caplog.text
        assert_untouched(store)


async def test_while_much_is_unread_nothing_is_answered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unread: list[int] = []
    queue = UnixTransport.queue

    def watched(self: UnixTransport, pieces: Iterable[Outgoing[int]]) -> None:
        unread.append(self.queued_bytes)
        queue(self, pieces)

    monkeypatch.setattr(UnixTransport, "queue", watched)
    async with served(path, limits=ConnectionLimits(unread_replies=1000)) as store, raw_client(path) as client:
        await ask_without_reading(client, store)
    assert len(unread) < 20
    assert max(unread) <= 1000


async def test_who_reads_its_replies_slowly_is_not_dropped(
    path: Path, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with served(path, limits=ConnectionLimits(reply_timeout=5)) as store, raw_client(path) as client:
        await ask_without_reading(client, store)
        for _ in range(5):
            await trio.sleep(4)
            client.sock.recv(100_000)
        assert not caplog.text


async def test_who_does_not_read_its_notifications_is_told_no_more(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(path, limits=ConnectionLimits(unread_notifications=1000)) as store, raw_client(path) as client:
        ours, theirs = socket.socketpair()
        client.send_bytes(encode(SubscribeRequest()))
        socket.send_fds(client.sock, [b"\x14"], [theirs.fileno()])
        theirs.close()
        await wait_all_tasks_blocked()
        for object_id in MANY:
            put(store, object_id)
        assert "does not read its notifications" in caplog.text
        assert await client.call(ContainsRequest(A)) == ContainsReply(A, False)
        ours.close()


# Long requests


async def test_long_requests_are_answered_like_short_ones(path: Path, short_slices: None) -> None:
    async with served(path) as store, raw_client(path) as client, raw_client(path) as other:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        assert await client.call(batch(MANY)) == CreateAndSealBatchReply()
        assert await found(client, *MANY[::-1]) == [True] * len(MANY)
        assert await found(client, *MANY, A, timeout_ms=1) == [True] * len(MANY) + [False]
        listed = await other.call(ListRequest())
        assert isinstance(listed, ListReply)
        assert [(info.object_id, info.ref_count) for info in listed.objects] == [(i, 1) for i in MANY]
        in_use = await other.call(DeleteRequest(MANY[:3]))
        assert in_use == DeleteReply(MANY[:3], (ErrorCode.OBJECT_IN_USE,) * 3)
        client.sock.close()
        await wait_all_tasks_blocked()
        assert_untouched(store)
        assert await other.call(RefreshLRURequest(MANY[3:10])) == RefreshLRUReply()
        assert list(store.core.table.idle)[-7:] == list(MANY[3:10])
        gone = await other.call(DeleteRequest(MANY))
        codes = (ErrorCode.OBJECT_NOT_FOUND,) * 3 + (ErrorCode.OK,) * (len(MANY) - 3)
        assert gone == DeleteReply(MANY, codes)


async def test_others_are_served_between_two_slices(path: Path, short_slices: None) -> None:
    async with served(path) as store, raw_client(path) as client, raw_client(path) as other:
        client.post(batch(MANY[:500]))
        while not store.core.table.find(MANY[0]):
            await trio.lowlevel.checkpoint()
        assert await other.call(ContainsRequest(MANY[0])) == ContainsReply(MANY[0], False)
        assert not store.core.table.find(MANY[499])
        assert await client.reply() == CreateAndSealBatchReply()


async def test_a_batch_that_fails_leaves_nothing(path: Path, short_slices: None) -> None:
    async with served(path) as store, raw_client(path) as client:
        put(store, MANY[300])
        before = store.core.table.allocated
        assert await client.call(batch(MANY[:301])) == CreateAndSealBatchReply(ErrorCode.OBJECT_EXISTS)
        assert (len(store.core.table), store.core.table.allocated) == (1, before)
        assert_untouched(store)


async def test_a_batch_of_which_somebody_else_seals_one(path: Path, short_slices: None) -> None:
    async with served(path) as store, raw_client(path) as client, raw_client(path) as other:
        client.post(batch(MANY[:300]))
        while not store.core.table.find(MANY[0]):
            await trio.lowlevel.checkpoint()
        assert await other.call(SealRequest(MANY[0], NO_DIGEST)) == SealReply(MANY[0])
        assert await client.reply() == CreateAndSealBatchReply()
        assert_untouched(store)
        assert len(store.core.table) == 300


@pytest.mark.parametrize("end", ["hang up", "stop the server"])
async def test_an_end_amid_a_long_get_leaves_nothing_held(path: Path, end: str, short_slices: None) -> None:
    with EmbeddedStore(1_000_000) as store:
        for object_id in MANY:
            put(store, object_id)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_store, store.core, str(path))
            async with raw_client(path) as client:
                client.post(GetRequest(MANY, 0))
                while not holders(store):
                    await trio.lowlevel.checkpoint()
                if end == "hang up":
                    client.sock.close()
                    while holders(store):
                        await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert_untouched(store)
