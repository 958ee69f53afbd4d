"""`StoreClient` where it differs from a store in the same process: connections that break, wait, or are cancelled."""

import array
import ctypes
import errno
import gc
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import cast
from weakref import WeakSet

import anyio
import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from plasmastream import ObjectExistsError, ObjectID, StoreConnectionError, StoreError, StoreFullError, blocking
from plasmastream._client import _requests, check, octets
from plasmastream.store import EmbeddedStore, Lease, Leases, NewObject, StoreClient, open_store
from plasmastream.store import _client as client_module
from plasmastream.store import _session as session_module
from plasmastream.store._transport import UnixTransport
from plasmastream.wire.plasma import (
    NO_DIGEST,
    ConnectReply,
    ConnectRequest,
    ErrorCode,
    Message,
    ServerConnection,
    Signal,
)
from tests.apache import StoreFactory
from tests.interop.nodes import wait_until
from tests.store.helpers import (
    CAPACITY,
    CallCounter,
    assert_untouched,
    name,
    names,
    open_descriptors,
    put,
    served,
    served_in_thread,
)

A, B, C, D = names(4)


@pytest.fixture
def path(socket_directory: Path) -> Path:
    return socket_directory / "plasma"


@pytest.fixture(autouse=True)
def _no_descriptor_is_leaked() -> Iterator[None]:
    gc.collect()
    before = {text.split()[1] for text in open_descriptors() if "plasmastream" in text}
    sockets = sum("socket:" in text for text in open_descriptors())
    yield
    gc.collect()
    assert {text.split()[1] for text in open_descriptors() if "plasmastream" in text} == before
    assert sum("socket:" in text for text in open_descriptors()) == sockets


@asynccontextmanager
async def client_of_a_store(path: Path) -> AsyncIterator[tuple[StoreClient, EmbeddedStore]]:
    async with served(path) as store, open_store(path) as client:
        yield client, store


# Opening


async def test_nobody_there_is_told_after_the_timeout(path: Path, autojump_clock: MockClock) -> None:
    start = trio.current_time()
    with pytest.raises(StoreConnectionError, match=f"no store answers at {path}"):
        async with open_store(path, connect_timeout=5):
            pytest.fail("opened")
    assert 5 <= trio.current_time() - start < 6


async def test_a_store_that_starts_later_is_found(path: Path, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:

        async def start_later() -> None:
            await trio.sleep(1)
            async with served(path):
                await trio.sleep_forever()

        nursery.start_soon(start_later)
        async with open_store(path, connect_timeout=5) as client:
            assert client.capacity == 1_000_000
            assert client.path == str(path)
        nursery.cancel_scope.cancel()


async def test_opening_can_be_cancelled(path: Path, autojump_clock: MockClock) -> None:
    with trio.move_on_after(1) as scope:
        async with open_store(path, connect_timeout=1000):
            pytest.fail("opened")
    assert scope.cancelled_caught


async def test_every_call_is_a_checkpoint_though_the_answer_comes_at_once(path: Path) -> None:
    async with client_of_a_store(path) as (client, store):
        put(store, A, b"a")
        put(store, B, b"b")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: client.get([A]),
            lambda: client.get([B]),
            lambda: client.get([]),
            lambda: client.get([C], timeout=1e-3),
            lambda: client.contains([A]),
            lambda: client.put(b"c", object_id=C),
            lambda: client.put_many([NewObject(D, b"d")]),
            lambda: client.delete([C]),
            client.list_objects,
            client.inspect,
            lambda: client.evict(0),
        ]
        with await client.get([A]):
            for call in calls:
                with assert_checkpoints():
                    await call()


async def test_a_path_that_is_none_is_the_callers_mistake() -> None:
    with pytest.raises(TypeError):
        async with open_store(7):  # type: ignore[arg-type]
            pytest.fail("opened")


async def test_the_client_puts_whole_objects(path: Path) -> None:
    async with client_of_a_store(path) as (client, store):
        assert await client.put(b"data", b"meta", object_id=A) == A
        other = await client.put(memoryview(b"\0" * 16).cast("d"))  # type: ignore[arg-type]
        empty = await client.put(b"")
        with pytest.raises(ObjectExistsError):
            await client.put(b"", object_id=A)
        sizes = {entry.object_id: (entry.data_size, entry.metadata_size) for entry in store.core.table}
        assert sizes == {A: (4, 4), other: (16, 0), empty: (0, 0)}


async def test_large_objects_are_hashed_in_a_thread(path: Path) -> None:
    async with served(path, 8 << 20), open_store(path) as client:
        await client.put(bytes(2 << 20), object_id=A)
        (info,) = await client.list_objects()
        assert info.digest not in (NO_DIGEST, b"")


async def test_embedded_stores_hash_large_objects_in_a_thread_too() -> None:
    with EmbeddedStore(8 << 20) as store:
        async with store.create(A, 2 << 20) as unsealed:
            await unsealed.seal()
        (info,) = await store.list_objects()
        assert info.digest not in (NO_DIGEST, b"")


async def test_prefault_touches_the_whole_store(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedStore(20 << 20) as store:
        await store.prefault()
        monkeypatch.setattr(store.core.heap.segment, "prefault", lambda offset, nbytes: 0)
        await store.prefault()  # comes back where the kernel cannot do it


# Leases and what is told to the store


class _Amid(trio.abc.Instrument):
    """Does something as soon as a client waits for an answer: to look for that from a task may be too late."""

    def __init__(self, client: StoreClient, act: Callable[[], None]) -> None:
        self._client = client
        self._act = act
        self.has_acted = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        session = self._client._session
        if not self.has_acted and session is not None and session.connection.is_busy:
            self._act()  # what it raises is logged
            self.has_acted = True


@contextmanager
def amid_an_exchange(client: StoreClient, act: Callable[[], None]) -> Iterator[None]:
    """A block in which a client asks for something; when it has, and before it has an answer, `act` is called."""
    amid = _Amid(client, act)
    trio.lowlevel.add_instrument(amid)
    yield
    trio.lowlevel.remove_instrument(amid)  # gone already, where it raised: that is an error here, too
    assert amid.has_acted


async def test_a_release_during_an_exchange_is_deferred(path: Path) -> None:
    async with client_of_a_store(path) as (client, store):
        put(store, A, b"a")
        put(store, B, b"b")
        (lease,) = await client.get([A])
        assert lease is not None

        def release() -> None:
            lease.release()
            assert client._session is not None
            assert client._session._let_go == [A]

        with amid_an_exchange(client, release):
            await client.list_objects()
        await wait_all_tasks_blocked()
        assert_untouched(store)


async def test_what_is_released_while_it_is_got_again_is_still_held(path: Path) -> None:
    """One task lets go of an object while another gets it together with one that is new: both leases are real."""
    async with client_of_a_store(path) as (client, store):
        put(store, A, b"a")
        put(store, B, b"b")
        (lease,) = await client.get([A])
        assert lease is not None
        with amid_an_exchange(client, lease.release):
            got = await client.get([A, B])
        assert None not in got
        assert await client.evict(10) == 0
        for each in got:
            assert each is not None
            each.release()
        await wait_all_tasks_blocked()
        assert_untouched(store)


async def test_many_tasks_with_leases_of_the_same_objects(path: Path) -> None:
    async with client_of_a_store(path) as (client, store):
        many = names(5)
        for object_id in many:
            put(store, object_id, object_id)

        async def work(number: int) -> None:
            for turn in range(20):
                asked = [many[(number + turn) % 5], many[(number * turn) % 5], many[turn % 5]]
                leases = await client.get(asked)
                assert [bytes(lease.data) for lease in leases if lease] == asked
                await trio.lowlevel.checkpoint()
                for lease in leases:
                    assert lease is not None
                    lease.release()

        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(work, number)
        await wait_all_tasks_blocked()
        assert_untouched(store)


async def test_put_many_sends_batches_and_takes_all_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_BATCH_OBJECTS", 3)
    monkeypatch.setattr(client_module, "_BATCH_BYTES", 100)
    async with client_of_a_store(path) as (client, store):
        put(store, name("taken"), b"")
        many = names(10)
        new = [NewObject(object_id, bytes(60 if index > 6 else 1)) for index, object_id in enumerate(many)]
        with pytest.raises(ObjectExistsError):
            await client.put_many([*new, NewObject(name("taken"), b"")])
        await wait_all_tasks_blocked()
        assert {entry.object_id for entry in store.core.table} == {name("taken")}
        leases = await client.put_many(new)
        assert [lease.object_id for lease in leases] == many
        for lease in leases:
            lease.release()


async def test_an_object_that_is_evicted_as_soon_as_it_is_put(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with client_of_a_store(path) as (client, store):
        real = client.get

        async def late(*arguments: object, **options: object) -> object:
            store.core.evict(1)
            return await real([A, B])

        monkeypatch.setattr(client, "get", late)
        new = [NewObject(A, b"a"), NewObject(B, b"b")]
        with pytest.raises(StoreFullError, match="evicted"):
            await client.put_many(new)
        await wait_all_tasks_blocked()
        assert len(store.core.table) == 0


async def test_an_object_that_somebody_else_sealed_is_left_to_the_store(path: Path) -> None:
    async with client_of_a_store(path) as (client, store):
        async with client.create(A, 1) as unsealed:
            store.core.seal(A, NO_DIGEST)
            with pytest.raises(ObjectExistsError):
                await unsealed.seal()
        assert await client.contains([A]) == [True]


# Waiting


async def test_the_connection_for_waiting_is_used_again(path: Path) -> None:
    async with client_of_a_store(path) as (client, store):
        for object_id in (A, B, C):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.get, [object_id])
                await wait_all_tasks_blocked()

                async def wait(object_id: object = object_id) -> None:
                    (lease,) = await client.get([object_id], timeout=None)  # type: ignore[list-item]
                    assert lease is not None
                    lease.release()

                nursery.start_soon(wait)
                await wait_all_tasks_blocked()
                put(store, object_id, b"x")
            assert len(client._waiters) == 1
        await wait_all_tasks_blocked()
        assert_untouched(store)


async def test_a_get_that_waits_in_vain(path: Path, autojump_clock: MockClock) -> None:
    async with client_of_a_store(path) as (client, store):
        start = trio.current_time()
        assert await client.get([A], timeout=3) == [None]
        assert 3 <= trio.current_time() - start < 3.1
        assert await client.get([A], timeout=0.0001) == [None]
        assert_untouched(store)


async def test_closing_the_client_ends_who_waits(path: Path) -> None:
    async with served(path) as store, trio.open_nursery() as nursery:
        caught = []

        async def wait(client: StoreClient) -> None:
            with pytest.raises(StoreConnectionError) as error:
                await client.get([A], timeout=None)
            caught.append(str(error.value))

        async with open_store(path) as client:
            nursery.start_soon(wait, client)
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert caught == [f"this client of the store at {path} is closed"]
        assert_untouched(store)


async def test_a_closed_client_says_so(path: Path) -> None:
    async with served(path) as store:
        put(store, A, b"a")
        async with open_store(path) as client:
            (lease,) = await client.get([A])
            assert lease is not None
        with pytest.raises(StoreConnectionError, match="is closed"):
            await client.get([A])
        assert bytes(lease.data) == b"a"
        lease.release()
        await wait_all_tasks_blocked()
        assert_untouched(store)


@pytest.mark.parametrize("end", ["closed", "broken"])
@pytest.mark.parametrize("is_leased", [False, True])
async def test_memory_that_is_written_is_not_given_to_others(path: Path, end: str, is_leased: bool) -> None:
    """Whoever ends the connection meanwhile: the object goes when its block is left, and not sooner."""
    large = NewObject(C, bytes(CAPACITY * 3 // 4))
    async with served(path) as store, AsyncExitStack() as block:
        put(store, A, b"a")
        async with open_store(path) as client:
            leases = await client.get([A] if is_leased else [])
            unsealed = await block.enter_async_context(client.create(B, CAPACITY // 2))
            if end == "broken":
                assert client._session is not None
                client._session.connection.fail("did not answer")
        await wait_all_tasks_blocked()
        with pytest.raises(StoreFullError):
            await store.put_many([large])
        with pytest.raises(StoreConnectionError, match="is closed" if end == "closed" else "did not answer"):
            await unsealed.seal()
        await block.aclose()
        await wait_all_tasks_blocked()
        (await store.put_many([large])).release()
        assert await store.contains([B, C]) == [False, True]
        leases.release()
        await wait_all_tasks_blocked()
        assert_untouched(store)


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
@pytest.mark.parametrize("whose", ["ours", "apache"])
def test_views_outlive_the_client_and_its_loop(loop: str, whose: str, request: pytest.FixtureRequest) -> None:
    def socket_path() -> str:
        if whose == "apache":
            factory: StoreFactory = request.getfixturevalue("apache_store")
            return factory(CAPACITY).socket_path
        path: Path = request.getfixturevalue("path")
        stack.enter_context(served_in_thread(path))
        return str(path)

    async def get() -> tuple[Lease, Lease, memoryview]:
        async with open_store(at) as client:
            for object_id in (A, B, C):
                await client.put(object_id, object_id=object_id)
            first, second, third = await client.get([A, B, C])
            assert first is not None
            assert second is not None
            assert third is not None
            clients.add(client)
            unsealed = client.create(D, 10)
            await unsealed.__aenter__()
        await unsealed.__aexit__(None, None, None)
        assert client._session is None
        fill()
        assert (bytes(first.data), bytes(second.data), bytes(third.data)) == (A, B, C)
        return first, second, third.data[:]

    def fill() -> None:
        for _ in range(20):
            watcher.put(b"\xff" * (CAPACITY // 8))

    def held() -> set[ObjectID]:
        return {info.object_id for info in watcher.list_objects() if info.ref_count}

    with ExitStack() as stack:
        at = socket_path()
        watcher = stack.enter_context(blocking.open_store(at))
        clients: WeakSet[StoreClient] = WeakSet()
        first, second, view = anyio.run(get, backend=loop)
        gc.collect()
        gc.disable()
        stack.callback(gc.enable)
        wait_until(lambda: held() == {A, B, C}, 5, "D is aborted")
        assert not clients
        sockets = sum("socket:" in text for text in open_descriptors())
        first.release()
        wait_until(lambda: held() == {B, C}, 5, "A is let go")
        del second
        wait_until(lambda: held() == {C}, 5, "B is let go")
        fill()
        assert bytes(view) == C
        del view
        wait_until(lambda: held() == set(), 5, "C is let go")
        if whose == "apache":  # ours has its end of it in this process, too
            assert sum("socket:" in text for text in open_descriptors()) == sockets - 1


async def test_a_client_that_is_closed_in_the_midst_of_a_request_holds_nothing(path: Path) -> None:
    async with served(path) as store:
        put(store, A, b"a")
        async with open_store(path) as client:
            (lease,) = await client.get([A])
            assert lease is not None
            with amid_an_exchange(client, client._close), pytest.raises(StoreConnectionError, match="is closed"):
                await client.list_objects()
        await wait_all_tasks_blocked()
        assert bytes(lease.data) == b"a"
        assert_untouched(store)
        lease.release()


async def test_a_block_that_is_left_after_the_client_was_closed(path: Path) -> None:
    async with served(path) as store:
        async with open_store(path) as client:
            first, second = client.create(A, 1), client.create(B, 1)
            await first.__aenter__()
            await (await second.__aenter__()).seal()
        await first.__aexit__(None, None, None)
        await second.__aexit__(None, None, None)
        await wait_all_tasks_blocked()
        assert_untouched(store)


# A store that goes away


async def serve_until(path: Path, task_status: trio.TaskStatus[trio.Event]) -> None:
    """Serve a store until the event is set that this starts with."""
    stop = trio.Event()
    async with served(path):
        task_status.started(stop)
        await stop.wait()


def methods(client: StoreClient) -> dict[str, Callable[[], Awaitable[object]]]:
    async def create() -> None:
        async with client.create(A, 1):
            pytest.fail("created")

    return {
        "create": create,
        "put": lambda: client.put(b"x"),
        "put_many": lambda: client.put_many([NewObject(A, b"x")]),
        "get": lambda: client.get([A]),
        "waiting get": lambda: client.get([A], timeout=None),
        "contains": lambda: client.contains([A]),
        "contains many": lambda: client.contains(names(20)),
        "delete": lambda: client.delete([A]),
        "list": lambda: client.list_objects(),
        "evict": lambda: client.evict(1),
    }


METHODS = ["create", "put", "put_many", "get", "waiting get", "contains", "contains many", "delete", "list", "evict"]


@pytest.mark.parametrize("method", METHODS)
async def test_a_store_that_vanished_is_named_by_each_method(
    method: str, path: Path, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        stop = await nursery.start(serve_until, path)
        async with open_store(path) as client:
            stop.set()
            await wait_all_tasks_blocked()
            with trio.fail_after(100):
                for _ in range(2):
                    with pytest.raises(StoreConnectionError, match=str(path)):
                        await methods(client)[method]()


async def test_a_store_that_comes_back_is_used_again(path: Path) -> None:
    async with trio.open_nursery() as nursery:
        stop = await nursery.start(serve_until, path)
        async with open_store(path) as client:
            await client.put(b"old", object_id=A)
            (old,) = await client.get([A])
            assert old is not None
            stop.set()
            await wait_all_tasks_blocked()
            async with served(path):
                with pytest.raises(StoreConnectionError):
                    await client.contains([A])
                assert await client.contains([A]) == [False]
                assert bytes(old.data) == b"old"
                old.release()
                await client.put(b"new", object_id=A)
                (new,) = await client.get([A])
                assert new is not None
                assert bytes(new.data) == b"new"
                new.release()


@asynccontextmanager
async def fake_store(path: Path, answer: Callable[[socket.socket, Message], None]) -> AsyncIterator[None]:
    """A store that answers a Connect as it should, and anything else in a way of its own."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)

    async def converse(sock: socket.socket) -> None:
        wire: ServerConnection[int] = ServerConnection()
        with sock:
            while True:
                event = wire.next_event()
                if isinstance(event, ConnectRequest):
                    wire.send(ConnectReply(1000))
                    sock.send(b"".join(piece.data for piece in wire.data_to_send()))
                elif isinstance(event, Message):
                    answer(sock, event)
                elif event is Signal.CONNECTION_CLOSED:
                    return
                else:
                    await trio.lowlevel.wait_readable(sock)
                    data = sock.recv(65536)
                    if data:
                        wire.receive_data(data)
                    else:
                        wire.receive_eof()

    async def accept(nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            sock = listener.accept()[0]
            sock.setblocking(False)
            nursery.start_soon(converse, sock)

    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, nursery)
            yield
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("method", [method for method in METHODS if method != "waiting get"])
async def test_a_silent_store_is_given_up(method: str, path: Path, autojump_clock: MockClock) -> None:
    async with fake_store(path, lambda sock, request: None), open_store(path, reply_timeout=7) as client:
        start = trio.current_time()
        with pytest.raises(StoreConnectionError, match="did not answer within 7 s"):
            await methods(client)[method]()
        assert trio.current_time() - start == pytest.approx(7, abs=0.1)


async def test_a_waiting_get_gives_up_after_its_timeout_and_the_replys(
    path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_of_a_store(path) as (client, _):
        connections = session_module.StoreConnection

        async def never(
            _: object, asked: object, kind: object, waiting: partial[AbstractContextManager[None]], **how: bool
        ) -> None:
            with waiting():
                await trio.sleep_forever()

        monkeypatch.setattr(connections, "_exchange", never)
        monkeypatch.setattr(client, "_get_now", lambda ids: answer(Leases([None for _ in ids])))
        start = trio.current_time()
        with pytest.raises(StoreConnectionError, match="does not answer a get"):
            await client.get([A], timeout=2)
        assert trio.current_time() - start == pytest.approx(32, abs=0.1)


async def answer(value: Leases[None]) -> Leases[None]:
    await trio.lowlevel.checkpoint()
    return value


@pytest.mark.parametrize(
    ("behave", "why"),
    [
        (lambda sock, request: sock.send(b"\xff" * 24), "broke the protocol"),
        (lambda sock, request: sock.shutdown(socket.SHUT_RDWR), "closed the connection"),
        (lambda sock, request: (sock.send(bytes(8)), sock.shutdown(socket.SHUT_RDWR)), "broke the protocol"),
    ],
)
async def test_a_store_that_misbehaves_is_named(
    behave: Callable[[socket.socket, Message], None], why: str, path: Path
) -> None:
    async with fake_store(path, behave), open_store(path) as client:
        with pytest.raises(StoreConnectionError, match=why):
            await client.contains([A])


async def test_a_store_that_misbehaves_from_the_start(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, hang_up)
            with pytest.raises(StoreConnectionError):
                async with open_store(path):
                    pytest.fail("opened")


async def test_a_store_that_vanishes_while_a_lease_is_released(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with client_of_a_store(path) as (client, store):
        put(store, A, b"a")
        (lease,) = await client.get([A])
        assert lease is not None
        with monkeypatch.context() as patch:

            def broken(self: object) -> bool:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

            patch.setattr(UnixTransport, "flush_nowait", broken)
            lease.release()
        (lease,) = await client.get([A])  # over a new connection
        assert lease is not None
        lease.release()


async def test_releases_that_the_socket_does_not_take_at_once_follow(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_of_a_store(path) as (client, store):
        put(store, A, b"a")
        (lease,) = await client.get([A])
        assert lease is not None
        with monkeypatch.context() as patch:
            patch.setattr(UnixTransport, "flush_nowait", lambda self: False)
            lease.release()
        await wait_all_tasks_blocked()
        assert_untouched(store)


@pytest.mark.parametrize("how", ["stall", "break"])
async def test_a_store_that_takes_no_releases_is_given_up(
    how: str, path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def flush(self: UnixTransport) -> None:
        if how == "break":
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        await trio.sleep_forever()

    async with client_of_a_store(path) as (client, store):
        put(store, A, b"a")
        (lease,) = await client.get([A])
        assert lease is not None
        with monkeypatch.context() as patch:
            patch.setattr(UnixTransport, "flush_nowait", lambda self: False)
            patch.setattr(UnixTransport, "flush", flush)
            lease.release()
            await trio.sleep(31)
        assert_untouched(store)
        assert await client.contains([A]) == [True]  # over a new connection


async def test_a_waiter_that_cannot_release_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = session_module.StoreConnection.call

    async def call(self: session_module.StoreConnection, request: Message, kind: type[Message]) -> object:
        if isinstance(request, ConnectRequest):
            raise self.fail("is gone")
        return await real(self, request, kind)

    async with client_of_a_store(path) as (client, store):
        monkeypatch.setattr(session_module.StoreConnection, "call", call)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                (lease,) = await client.get([A], timeout=None)
                assert lease is not None
                lease.release()

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            put(store, A, b"a")
        assert client._waiters == []
        await wait_all_tasks_blocked()
        assert_untouched(store)


async def test_the_block_of_a_client_passes_on_errors_as_they_are(path: Path) -> None:
    async with served(path):
        with pytest.raises(ZeroDivisionError):
            async with open_store(path):
                raise ZeroDivisionError


def test_codes_become_errors() -> None:
    check(ErrorCode.OK, "it")
    for code, error in (
        (ErrorCode.OBJECT_EXISTS, "exists"),
        (ErrorCode.OBJECT_NOT_FOUND, "not in the store"),
        (ErrorCode.OUT_OF_MEMORY, "no room"),
        (ErrorCode.OBJECT_IN_USE, "OBJECT_IN_USE"),
    ):
        with pytest.raises(StoreError, match=f"^it: .*{error}"):
            check(code, "it")


def test_buffers_of_python_objects_are_refused() -> None:
    class Pair(ctypes.Structure):
        _fields_ = (("Other", ctypes.c_int), ("O", ctypes.c_int))

    class Mixed(ctypes.Structure):
        _fields_ = (("number", ctypes.c_int), ("object", ctypes.py_object))

    assert octets(array.array("d", [1.0])) == array.array("d", [1.0]).tobytes()
    assert "O" in memoryview((Pair * 2)()).format
    assert len(octets(memoryview((Pair * 4)())[::2])) == 2 * ctypes.sizeof(Pair)
    for buffer in ((ctypes.py_object * 2)(), (Mixed * 2)()):
        with pytest.raises(TypeError, match="pickle"):
            octets(buffer)


async def test_one_id_is_no_list_of_ids(path: Path) -> None:
    async with served(path), open_store(path) as client:
        for ids in (A, str(A), [str(A)], [1], iter([A])):
            for method in (client.get, client.contains, client.delete, client.inspect):
                with pytest.raises(TypeError, match="a list of ObjectID is needed, not "):
                    await method(cast("Sequence[ObjectID]", ids))


# Cancellation at every point


async def create_and_seal(client: StoreClient, store: EmbeddedStore) -> None:
    async with client.create(C, 10, b"m") as unsealed:
        await trio.lowlevel.checkpoint()
        await unsealed.seal()


async def create_and_leave(client: StoreClient, store: EmbeddedStore) -> None:
    async with client.create(C, 10):
        await trio.lowlevel.checkpoint()


async def put_many(client: StoreClient, store: EmbeddedStore) -> None:
    for lease in await client.put_many([NewObject(object_id, bytes(400)) for object_id in names(8, "many")]):
        lease.release()


async def put_many_large(client: StoreClient, store: EmbeddedStore) -> None:
    sizes = (400, 900, 400, 400, 501, 900, 900, 400)  # which are sent, written at once, and written in a thread
    new = [NewObject(object_id, bytes(size)) for object_id, size in zip(names(8, "many"), sizes, strict=True)]
    (await client.put_many(new)).release()


async def get_some(client: StoreClient, store: EmbeddedStore) -> None:
    for lease in await client.get([A, B, D]):
        if lease is not None:
            lease.release()


async def wait_for_some(client: StoreClient, store: EmbeddedStore) -> None:
    async with trio.open_nursery() as nursery:

        async def put_soon() -> None:
            while not store.core._pending:
                await trio.lowlevel.checkpoint()
            put(store, D, b"d")

        nursery.start_soon(put_soon)
        for lease in await client.get([A, D], timeout=None):
            assert lease is not None
            lease.release()


async def ask_for_many(client: StoreClient, store: EmbeddedStore) -> None:
    await client.contains([A, B, *names(20, "absent")])


async def the_rest(client: StoreClient, store: EmbeddedStore) -> None:
    await client.contains([A])
    await client.list_objects()
    await client.delete([A])
    await client.evict(1)


@pytest.mark.parametrize(
    "operation",
    [create_and_seal, create_and_leave, put_many, put_many_large, get_some, wait_for_some, ask_for_many, the_rest],
)
async def test_a_cancel_at_any_point_leaves_nothing(
    operation: Callable[[StoreClient, EmbeddedStore], Awaitable[None]], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_BATCH_BYTES", 1000)
    monkeypatch.setattr(_requests, "_IN_PLACE", 500)
    monkeypatch.setattr(client_module, "_DIGEST_IN_THREAD", 600)
    counters: list[CallCounter] = []

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            for counter in counters:
                counter()
            return real(*arguments)

        return call

    monkeypatch.setattr(UnixTransport, "receive_nowait", counted(UnixTransport.receive_nowait))
    monkeypatch.setattr(UnixTransport, "flush_nowait", counted(UnixTransport.flush_nowait))
    turns = 0
    reached = True
    while reached:
        turns += 1
        async with client_of_a_store(path) as (client, store):
            put(store, A, b"a")
            put(store, B, b"b")
            with trio.fail_after(5), trio.CancelScope() as scope:
                counters.append(CallCounter(turns, scope))
                await operation(client, store)
            reached = counters.pop().reached
            await wait_all_tasks_blocked()
            assert_untouched(store)
            assert await client.contains([A, name("absent")]) in ([True, False], [False, False])
            many = [entry for entry in store.core.table if entry.object_id in names(8, "many")]
            assert len(many) in (0, 8)
    assert turns > 2
