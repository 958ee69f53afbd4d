"""What interrupts a request of `StoreClient` in spite of its shield: asyncio's own cancels, and what signals raise.

Whoever asks next, over the same client, gets the answer to what was asked, and nobody finds wrong bytes.
"""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from plasmastream import ObjectID, StoreConnectionError
from plasmastream._client import copy, copy_and_digest
from plasmastream.store import EmbeddedStore, NewObject, StoreClient, open_store
from plasmastream.store import _client as client_module
from plasmastream.store._finishing import finish
from plasmastream.wire.plasma import ContainsRequest, DeleteReply
from tests.store.helpers import assert_untouched, names, open_descriptors, put, served, served_in_thread

A, B, C, D, ABSENT = names(5, "interrupts")
MANY = names(30, "many interrupts")
SIZES = (10, 1_200_000, 400_000, 20)
MIXED = {object_id: b"m" * size for object_id, size in zip(names(4, "mixed"), SIZES, strict=True)}
LARGE = 1_200_000
TURNS = range(24)

Work: TypeAlias = Coroutine[Any, Any, None]


@pytest.fixture
def path(socket_directory: Path) -> Path:
    return socket_directory / "plasma"


@pytest.fixture
def store(path: Path) -> Iterator[EmbeddedStore]:
    gc.collect()
    before = open_descriptors()
    with served_in_thread(path, 20_000_000) as store:
        yield store
    gc.collect()
    assert open_descriptors() == before


async def get(client: StoreClient) -> None:
    with await client.get([A]) as (lease,):
        assert lease is None or bytes(lease.data) == b"a" * 10


async def get_absent(client: StoreClient) -> None:
    (await client.get([A, ABSENT], timeout=0.01)).release()


async def create(client: StoreClient) -> None:
    async with client.create(C, 10, b"m") as unsealed:
        unsealed.data[:] = b"c" * 10
        await unsealed.seal()


async def create_and_leave(client: StoreClient) -> None:
    async with client.create(C, 10):
        pass


async def put_small(client: StoreClient) -> None:
    await client.put(b"c" * 10, object_id=C)


async def put_large(client: StoreClient) -> None:
    await client.put(b"c" * LARGE, object_id=C)


async def put_many(client: StoreClient) -> None:
    (await client.put_many([NewObject(object_id, b"c" * 10) for object_id in MANY])).release()


async def put_many_large(client: StoreClient) -> None:
    (await client.put_many([NewObject(*each) for each in MIXED.items()])).release()


async def contains(client: StoreClient) -> None:
    assert (await client.contains([B, ABSENT, *MANY]))[:2] == [True, False]


async def delete(client: StoreClient) -> None:
    await client.delete([A])


async def the_rest(client: StoreClient) -> None:
    assert {found.object_id for found in await client.list_objects([B, ABSENT])} == {B}
    await client.inspect([B])
    await client.evict(0)


OPERATIONS = [
    get,
    get_absent,
    create,
    create_and_leave,
    put_small,
    put_large,
    put_many,
    put_many_large,
    contains,
    delete,
    the_rest,
]


def after(turns: int, call: Callable[[], object]) -> None:
    """Call something when the running loop has turned so many times."""
    if turns:
        asyncio.get_running_loop().call_soon(after, turns - 1, call)
    else:
        call()


async def cancelled(work: Callable[[], Work], turns: int) -> None:
    task = asyncio.ensure_future(work())
    after(turns, task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def timed_out(work: Callable[[], Work], turns: int) -> None:
    try:
        async with asyncio.timeout(None) as limit:
            is_within = True

            def expire() -> None:
                if is_within:
                    limit.reschedule(asyncio.get_running_loop().time())

            after(turns, expire)
            try:
                await work()
            finally:
                is_within = False
    except TimeoutError:
        pass
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    await asyncio.sleep(0)  # nothing is left that would cancel this


async def in_a_group(work: Callable[[], Work], turns: int) -> None:
    async def fail() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        raise ZeroDivisionError

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(work())
            group.create_task(fail())

    # In a task of its own, since a group of Python 3.11 leaves marks on the one that it is in.
    (result,) = await asyncio.gather(asyncio.ensure_future(run()), return_exceptions=True)
    assert isinstance(result, ExceptionGroup)
    assert [type(error) for error in result.exceptions] == [ZeroDivisionError]


async def check(client: StoreClient, store: EmbeddedStore) -> None:
    """The client answers rightly, what is sealed is whole, and nothing is left over; then all is as it was at first."""
    with await client.get([ABSENT, B]) as (none, lease):
        assert none is None
        assert lease is not None
        assert (lease.object_id, bytes(lease.data)) == (B, b"b" * 20)
    await client.put(b"d" * 30, object_id=D)
    async with open_store(client.path) as other:
        with await other.get([A, B, C, D, *MANY, *MIXED]) as leases:
            found = {lease.object_id: bytes(lease.data) for lease in leases if lease}
        await other.contains([B])  # the releases have been heard
    assert found.pop(B) == b"b" * 20
    assert found.pop(D) == b"d" * 30
    assert found.pop(A, b"a" * 10) == b"a" * 10
    assert found.pop(C, b"c" * 10) in (b"c" * 10, b"c" * LARGE)
    assert {object_id: found.pop(object_id) for object_id in MIXED if object_id in found} in ({}, MIXED)
    assert list(found.values()) in ([], [b"c" * 10] * len(MANY))
    await client.delete([A, C, D, *MANY, *MIXED])
    assert await client.contains([A, B, C, D]) == [False, True, False, False]
    async with asyncio.timeout(20):
        while store.core._pending:  # noqa: ASYNC110 - till the store has seen a get that was called off hang up
            await asyncio.sleep(1e-3)
    assert_untouched(store)
    await client.put(b"a" * 10, object_id=A)


@pytest.mark.parametrize("cancel", [cancelled, timed_out, in_a_group])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_cancel_of_asyncios_own_at_any_turn(
    operation: Callable[[StoreClient], Work],
    cancel: Callable[[Callable[[], Work], int], Work],
    path: Path,
    store: EmbeddedStore,
) -> None:
    put(store, A, b"a" * 10)
    put(store, B, b"b" * 20)

    async def main() -> None:
        async with open_store(path) as client:
            session = client._session
            for turns in TURNS:
                await cancel(lambda: operation(client), turns)
                await check(client, store)
            assert client._session is session  # no cancel has cost the connection

    asyncio.run(main())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_cancel_of_asyncios_own_before_any_call_of_the_kernel(
    operation: Callable[[StoreClient], Work],
    path: Path,
    store: EmbeddedStore,
) -> None:
    put(store, A, b"a" * 10)
    put(store, B, b"b" * 20)
    victims: list[asyncio.Task[None]] = []
    countdown = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal countdown
            if asyncio.current_task() in victims:
                countdown -= 1
                if countdown == 0:
                    victims.pop().cancel()
            return real(*arguments)

        return call

    async def main() -> None:
        nonlocal countdown
        async with open_store(path) as client:
            session = client._session
            assert session is not None
            transport = session.connection._transport
            for method in ("flush_nowait", "receive_nowait"):
                setattr(transport, method, counted(getattr(transport, method)))
            for number in range(1, 16):
                countdown = number
                task = asyncio.ensure_future(operation(client))
                victims[:] = [task]
                await asyncio.wait([task])
                assert task.cancelled() or task.exception() is None
                await check(client, store)
            assert client._session is session

    asyncio.run(main())


def test_a_task_that_is_cancelled_already_asks_nothing(path: Path, store: EmbeddedStore) -> None:
    async def main() -> None:
        async with open_store(path) as client:
            assert client._session is not None
            connection = client._session.connection

            async def work(operation: Callable[[StoreClient], Work]) -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await operation(client)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(connection, "ask", lambda requests: pytest.fail("asked"))
                for operation in OPERATIONS:
                    with pytest.raises(asyncio.CancelledError):
                        await asyncio.ensure_future(work(operation))
            assert await client.contains([A]) == [False]
            assert client._session.connection is connection

    asyncio.run(main())


def test_who_has_caught_a_cancel_can_go_on(path: Path, store: EmbeddedStore) -> None:
    put(store, A, b"a" * 10)

    async def main() -> None:
        async with open_store(path) as client:

            async def stubborn() -> list[bool]:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await client.contains([A])
                await put_small(client)
                return await client.contains([A, C])

            assert await asyncio.ensure_future(stubborn()) == [True, True]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("operation", "real", "written"), [(put_large, copy_and_digest, {C}), (put_many_large, copy, {*list(MIXED)[:2]})]
)
def test_memory_is_not_taken_from_a_thread_that_writes_it(
    operation: Callable[[StoreClient], Work],
    real: Callable[..., bytes | None],
    written: set[ObjectID],
    path: Path,
    store: EmbeddedStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    ended: list[bytes | None] = []

    def wait_and_copy(*arguments: object) -> bytes | None:
        begun.set()
        assert go_on.wait(20)
        ended.append(real(*arguments))
        return ended[0]

    monkeypatch.setattr(client_module, real.__name__, wait_and_copy)

    async def main() -> None:
        async with open_store(path) as client:
            task = asyncio.ensure_future(operation(client))
            assert await asyncio.to_thread(begun.wait, 20)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert not task.done()
            assert {entry.object_id for entry in store.core.table} == written
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert ended
            assert not any(await client.contains([*written]))
            assert_untouched(store)

    asyncio.run(main())


def test_what_is_finished_fails_as_it_would_alone() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await finish(fail())

    asyncio.run(main())


@pytest.mark.parametrize("method", ["flush_nowait", "receive_nowait"])
@pytest.mark.parametrize("is_done", [False, True])
async def test_what_a_signal_handler_raises_ends_the_connection(
    method: str, is_done: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(path) as store, open_store(path) as client:
        put(store, A, b"a" * 10)
        put(store, B, b"b" * 20)
        (held,) = await client.get([B])
        session = client._session
        assert session is not None
        transport = session.connection._transport
        real: Callable[..., object] = getattr(transport, method)

        def interrupted(*arguments: object) -> object:
            if is_done:
                real(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(transport, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                await client.get([A])
        assert str(session.connection.broken).endswith("was left in the midst of a request, by a KeyboardInterrupt")
        assert held is not None
        assert session.is_lost
        with await client.get([B, A]) as leases:
            assert [bytes(lease.data) for lease in leases if lease] == [b"b" * 20, b"a" * 10]


async def test_a_reply_that_nobody_took_is_given_to_nobody_else(path: Path) -> None:
    async with served(path) as store, open_store(path) as client:
        put(store, A, b"a" * 10)
        assert client._session is not None
        client._session.connection.post((ContainsRequest(A),))
        with pytest.raises(StoreConnectionError, match="was left in the midst of a request"):
            await client.contains([B])
        assert await client.contains([B, A]) == [False, True]


async def test_a_reply_of_another_kind_is_an_error(path: Path) -> None:
    async with served(path), open_store(path) as client:
        assert client._session is not None
        connection = client._session.connection
        connection.post((ContainsRequest(A),))
        await connection.flush()
        connection.take_in(*await connection._transport.receive(connection._wire.get_buffer()))
        with pytest.raises(StoreConnectionError, match="sent a CONTAINS_REPLY where a DeleteReply was due"):
            connection.take_replies(DeleteReply, 1)
        assert connection.broken
