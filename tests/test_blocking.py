"""The blocking client: the contract of a store, threads, interrupts, processes, and stores that go away."""

import array
import gc
import os
import pickle
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

import anyio
import anyio.to_thread
import attrs
import pytest

from plasmastream import ObjectExistsError, ObjectID, StoreConnectionError, StoreFullError
from plasmastream._client import copy
from plasmastream.blocking import Lease, Leases, NewObject, StoreClient, UnsealedObject, open_store
from plasmastream.blocking import _client as blocking
from plasmastream.blocking._connection import StoreConnection
from plasmastream.store import EmbeddedStore, ObjectStore
from plasmastream.wire.plasma import NO_DIGEST, ErrorCode, ListRequest, ObjectInfo
from tests.apache import StoreFactory
from tests.interop.nodes import MIB, StoreProcess, peak_private_growth, wait_until
from tests.store.helpers import CAPACITY, assert_untouched, names, open_descriptors, served_in_thread
from tests.store.test_object_store import CHECKS, Check, Door

_T = TypeVar("_T")

A, B, C, D = names(4)


@pytest.fixture(autouse=True)
def _no_descriptor_is_leaked() -> Iterator[None]:
    gc.collect()
    before = open_descriptors()
    yield
    gc.collect()
    wait_until(lambda: open_descriptors() == before, 5, "no descriptor is left")


@pytest.fixture
def process(socket_directory: Path) -> Iterator[StoreProcess]:
    """Our store in a process of its own."""
    with StoreProcess(socket_directory / "plasma", CAPACITY) as store:
        yield store


@pytest.fixture
def path(process: StoreProcess) -> str:
    return process.socket_path


@pytest.fixture
def client(path: str) -> Iterator[StoreClient]:
    with open_store(path) as client:
        yield client


@pytest.fixture
def untraced() -> Iterator[None]:
    """Without coverage's tracer: CPython 3.11 may spin for ever when a signal handler raises beneath one."""
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)


def only(leases: Sequence[Lease | None]) -> Lease:
    (lease,) = leases
    assert lease is not None
    return lease


def await_holders(client: StoreClient, expected: dict[ObjectID, int]) -> None:
    """Wait until so many connections hold each object; a store may hear one connection later than another."""

    def found() -> dict[ObjectID, int]:
        return {info.object_id: info.ref_count for info in client.list_objects()}

    gc.collect()
    client.contains([A])
    with suppress(AssertionError):
        wait_until(lambda: found() == expected, 2, "holders")
    assert found() == expected


@contextmanager
def interrupted(
    after: float, error: type[BaseException] = KeyboardInterrupt, *, within: str | None = None
) -> Iterator[None]:
    """Have a signal handler raise in this thread, in so many seconds, or later: when it is `within` a function."""

    def handle(number: int, frame: FrameType | None) -> None:
        if within is None or (frame is not None and frame.f_code.co_name == within):
            raise error
        signal.setitimer(signal.ITIMER_REAL, 0.001)

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        with pytest.raises(error):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def at_once(within: float = 1.0) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < within


# The contract


@attrs.frozen
class _Unsealed:
    """An object being written, as the checks expect it."""

    real: UnsealedObject

    @property
    def data(self) -> memoryview:
        return self.real.data

    @property
    def is_sealed(self) -> bool:
        return self.real.is_sealed

    async def seal(self, digest: bytes | None = None) -> None:
        await anyio.to_thread.run_sync(self.real.seal, digest)


@attrs.frozen
class InThreads:
    """A blocking client as an `ObjectStore`: each call in a worker thread, not always the same."""

    client: StoreClient

    @property
    def capacity(self) -> int:
        return self.client.capacity

    @asynccontextmanager
    async def create(self, *arguments: Any, **options: Any) -> AsyncIterator[_Unsealed]:
        block = self.client.create(*arguments, **options)
        unsealed = await anyio.to_thread.run_sync(block.__enter__)
        try:
            yield _Unsealed(unsealed)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(block.__exit__, None, None, None)

    async def put_many(self, objects: Sequence[NewObject], **options: float) -> Leases[Lease]:
        return await self._run(self.client.put_many, objects, **options)

    async def get(self, object_ids: Sequence[ObjectID], **options: float | None) -> Leases[Lease | None]:
        return await self._run(self.client.get, object_ids, **options)

    async def contains(self, object_ids: Sequence[ObjectID]) -> list[bool]:
        return await self._run(self.client.contains, object_ids)

    async def delete(self, object_ids: Sequence[ObjectID]) -> list[ErrorCode]:
        return await self._run(self.client.delete, object_ids)

    async def list_objects(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectInfo]:
        return await self._run(self.client.list_objects, object_ids)

    async def evict(self, nbytes: int) -> int:
        return await self._run(self.client.evict, nbytes)

    async def _run(self, call: Callable[..., _T], *arguments: object, **options: float | None) -> _T:
        return await anyio.to_thread.run_sync(partial(call, *arguments, **options))


CANCELS_A_WAIT = {  # which a thread does not know
    "test_waiting_for_room_can_be_cancelled",
    "test_a_waiting_get_that_is_cancelled_leaves_nothing",
    "test_calls_pass_a_checkpoint",
}
LOOKS_INTO_THE_STORE = {
    "test_leaving_the_block_unsealed_aborts",
    "test_a_waiting_get_keeps_what_came_already",
}
APACHE_DIFFERS = {"test_an_id_that_is_taken_is_refused"}  # dies of a second seal

BLOCKING_CHECKS = [check for check in CHECKS if check.__name__ not in CANCELS_A_WAIT]


@pytest.mark.parametrize("where", ["thread", "process", "apache"])
@pytest.mark.parametrize("check", BLOCKING_CHECKS, ids=lambda check: check.__name__.removeprefix("test_"))
def test_contract(check: Check, where: str, socket_directory: Path, request: pytest.FixtureRequest) -> None:
    name = getattr(check, "__name__", "")
    if where != "thread" and name in LOOKS_INTO_THE_STORE:
        pytest.skip("looks into the store")
    if where == "apache" and name in APACHE_DIFFERS:
        pytest.skip("Apache's store differs")

    async def run(client: StoreClient, core: EmbeddedStore) -> None:
        with anyio.fail_after(20):
            await check(Door(cast("ObjectStore", InThreads(client)), core))

    core = cast("EmbeddedStore", None)
    with ExitStack() as stack:
        if where == "thread":
            core = stack.enter_context(served_in_thread(socket_directory / "plasma"))
            path = str(socket_directory / "plasma")
        elif where == "process":
            path = stack.enter_context(StoreProcess(socket_directory / "plasma", CAPACITY)).socket_path
        else:
            factory: StoreFactory = request.getfixturevalue("apache_store")
            path = factory(CAPACITY).socket_path
        client = stack.enter_context(open_store(path))
        anyio.run(run, client, core, backend="trio")
        wait_until(lambda: not any(info.ref_count for info in client.list_objects()), 5, "nothing is held")
        if where == "thread":
            assert_untouched(core)


# Opening, closing, pickling


def test_nobody_there_is_told_after_the_timeout(socket_directory: Path) -> None:
    start = time.monotonic()
    with pytest.raises(StoreConnectionError, match=f"no store answers at {socket_directory}"):
        open_store(socket_directory / "plasma", connect_timeout=0.2)
    assert 0.2 <= time.monotonic() - start < 1


def test_a_store_that_starts_later_is_found(socket_directory: Path) -> None:
    with ThreadPoolExecutor() as pool:
        opening = pool.submit(open_store, socket_directory / "plasma", connect_timeout=10)
        time.sleep(0.05)
        with StoreProcess(socket_directory / "plasma", CAPACITY), opening.result() as client:
            assert (client.path, client.capacity) == (str(socket_directory / "plasma"), CAPACITY)


def test_a_store_that_misbehaves_from_the_start(socket_directory: Path) -> None:
    path = str(socket_directory / "plasma")
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor() as pool:
        listener.bind(path)
        listener.listen()
        for answer, why in ((b"", "closed the connection"), (b"\xff" * 24, "broke the protocol")):
            opening = pool.submit(open_store, path)
            with listener.accept()[0] as sock:
                sock.recv(100)
                sock.send(answer)
            with pytest.raises(StoreConnectionError, match=f"{path} {why}"):
                opening.result()


def test_a_closed_client_says_so(path: str) -> None:
    with open_store(path) as client:
        client.put(b"a", object_id=A)
        lease = only(client.get([A]))
    client.close()
    for call in (client.list_objects, lambda: client.get([B], timeout=1), client.__enter__):
        with pytest.raises(StoreConnectionError, match="is closed"):
            call()
    assert repr(client) == f"<StoreClient of {path}, closed>"
    assert bytes(lease.data) == b"a"
    lease.release()


def test_a_view_that_is_forgotten_is_a_release(client: StoreClient) -> None:
    client.put(bytes(10), object_id=A)
    view = only(client.get([A])).data[2:4]
    await_holders(client, {A: 1})
    assert view.readonly
    del view
    await_holders(client, {A: 0})


def test_anything_that_shows_its_memory_can_be_put(client: StoreClient) -> None:
    numbers = array.array("i", range(6))
    grid = memoryview(numbers).cast("B").cast("i", [2, 3])
    for value, expected in (
        (numbers, numbers.tobytes()),
        (grid, numbers.tobytes()),
        (memoryview(numbers)[::2], array.array("i", [0, 2, 4]).tobytes()),
        (array.array("d"), b""),
    ):
        with only(client.get([client.put(value)])) as lease:
            assert bytes(lease.data) == expected


def test_one_id_is_no_list_of_ids(client: StoreClient) -> None:
    for ids in (A, str(A), [str(A)], [1], iter([A])):
        for method in (client.get, client.contains, client.delete, client.inspect):
            with pytest.raises(TypeError, match="a list of ObjectID is needed, not "):
                method(cast("Sequence[ObjectID]", ids))


def test_one_object_of_many_is_named_plainly(client: StoreClient) -> None:
    client.put(b"data", object_id=A)
    with pytest.raises(ObjectExistsError, match=f"^object {A}: exists already"):
        client.put_many([NewObject(A, b"data")])
    with pytest.raises(ObjectExistsError, match=f"^one of 2 objects, from {A} on: exists already"):
        client.put_many([NewObject(A, b"data"), NewObject(B, b"data")])


def test_a_pickled_client_is_its_address(path: str) -> None:
    with open_store(path, connect_timeout=0.1, reply_timeout=3) as client:
        client.put(b"a", object_id=A)
        frozen = pickle.dumps(client)
    other: StoreClient = pickle.loads(frozen)
    assert repr(other) == f"<StoreClient of {path}>"
    assert other.capacity == CAPACITY
    other.close()
    with pickle.loads(frozen) as other:
        assert other._reply_timeout == 3
        assert other.contains([A]) == [True]
    with pytest.raises(StoreConnectionError, match="is closed"):
        other.contains([A])
    os.unlink(path)
    with pytest.raises(StoreConnectionError, match="no store answers"):
        pickle.loads(frozen).list_objects()


# What outlives the client


@pytest.fixture(params=["ours", "apache"])
def watcher(request: pytest.FixtureRequest) -> Iterator[StoreClient]:
    """Another client of a store, ours or Apache's."""
    if request.param == "ours":
        path: str = request.getfixturevalue("path")
    else:
        factory: StoreFactory = request.getfixturevalue("apache_store")
        path = factory(CAPACITY).socket_path
    with open_store(path) as watcher:
        yield watcher


def sockets() -> int:
    return sum("socket:" in text for text in open_descriptors())


def fill(client: StoreClient) -> None:
    """Have the store evict all that it may, and write over the place."""
    for _ in range(20):
        client.put(b"\xff" * (CAPACITY // 8))


@contextmanager
def without_collector() -> Iterator[None]:
    """What ends in here does so by counting references."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_views_outlive_lease_and_client(watcher: StoreClient) -> None:
    with open_store(watcher.path) as client:
        client.put(array.array("d", range(100)), object_id=A)
        with only(client.get([A])) as lease:
            numbers = lease.data.cast("d")[10:20]
        await_holders(watcher, {A: 1})
        assert client.evict(1) == 0
    del client
    fill(watcher)
    assert numbers.tolist() == list(range(10, 20))
    assert watcher.delete([A]) == [ErrorCode.OBJECT_IN_USE]


def test_the_last_view_takes_the_connection_with_it(watcher: StoreClient) -> None:
    watcher.put(b"a", object_id=A)
    with without_collector():
        before = sockets()
        with open_store(watcher.path) as client:
            lease = only(client.get([A]))
            view, session = lease.data[:], weakref.ref(client._session)
        client_gone = weakref.ref(client)
        del client
        assert client_gone() is None
        assert sockets() == before + 1
        await_holders(watcher, {A: 1})
        del lease
        assert bytes(view) == b"a"
        assert sockets() == before + 1
        del view
        assert (session(), sockets()) == (None, before)
    await_holders(watcher, {A: 0})


def test_what_ends_after_the_client_is_told_at_once(watcher: StoreClient) -> None:
    for object_id in (A, B, C):
        watcher.put(object_id, object_id=object_id)
    with open_store(watcher.path) as client:
        first, second, third = (only(client.get([object_id])) for object_id in (A, B, C))
    await_holders(watcher, {A: 1, B: 1, C: 1})
    first.release()
    await_holders(watcher, {A: 0, B: 1, C: 1})
    del second
    await_holders(watcher, {A: 0, B: 0, C: 1})
    fill(watcher)
    assert bytes(third.data) == C
    client.close()
    client.close()
    first.release()
    assert bytes(third.data) == C
    assert watcher.contains([A, B, C]) == [False, False, True]
    third.release()
    wait_until(lambda: all(not info.ref_count for info in watcher.list_objects()), 5, "nothing is held")


def test_a_client_without_leases_leaves_nothing_open(path: str) -> None:
    with without_collector():
        before = sockets()
        with open_store(path) as client:
            client.put(b"a", object_id=A)
            only(client.get([A])).release()
        assert sockets() == before


def test_what_is_unsealed_ends_with_its_block_and_the_rest_goes_on(watcher: StoreClient) -> None:
    """Not with the client: somebody may still write, and the store would give the memory to others."""
    with open_store(watcher.path) as client:
        client.put(b"a", object_id=A)
        view = only(client.get([A])).data[:]
        unsealed, sealed = client.create(B, 10), client.create(C, 10)
        unsealed.__enter__()
        sealed.__enter__().seal()
    await_holders(watcher, {A: 1, B: 1, C: 1})
    unsealed.__exit__(None, None, None)
    await_holders(watcher, {A: 1, C: 1})
    watcher.put(b"b", object_id=B)
    sealed.__exit__(None, None, None)
    await_holders(watcher, {A: 1, B: 0, C: 0})
    assert bytes(view) == b"a"
    del view
    await_holders(watcher, {A: 0, B: 0, C: 0})


def test_an_object_cannot_be_sealed_after_the_client_was_closed(path: str) -> None:
    with open_store(path) as watcher, open_store(path) as client:
        client.put(b"a", object_id=A)
        lease = only(client.get([A]))
        with client.create(B, 1) as unsealed:
            client.close()
            with pytest.raises(StoreConnectionError, match="is closed"):
                unsealed.seal()
        await_holders(watcher, {A: 1})
        lease.release()


def test_too_many_unsealed_objects_to_abort_end_the_connection(path: str) -> None:
    many = names(65, "many")
    with open_store(path) as watcher:
        with ExitStack() as blocks:
            with open_store(path) as client:
                client.put(b"a", object_id=A)
                lease = only(client.get([A]))
                for object_id in many:
                    blocks.enter_context(client.create(object_id, 1))
            await_holders(watcher, {A: 1, **dict.fromkeys(many, 1)})
        await_holders(watcher, {A: 0})
        lease.release()


@pytest.mark.parametrize("end", ["closed", "interrupted"])
@pytest.mark.parametrize("is_leased", [False, True])
def test_memory_that_is_written_is_not_given_to_others(watcher: StoreClient, end: str, is_leased: bool) -> None:
    """Whoever ends the connection meanwhile: the object goes when its block is left, and not sooner."""
    with open_store(watcher.path) as client:
        client.put(b"a", object_id=A)
        leases = client.get([A]) if is_leased else Leases()
        with client.create(B, CAPACITY // 2) as unsealed:
            if end == "closed":
                client.close()
            else:
                assert client._session is not None
                client._session.connection.fail_interrupted(KeyboardInterrupt())
            with pytest.raises(StoreFullError):
                watcher.put(bytes(CAPACITY * 3 // 4))
            unsealed.data[:] = b"x" * len(unsealed.data)
            with pytest.raises(StoreConnectionError, match="is closed" if end == "closed" else "KeyboardInterrupt"):
                unsealed.seal()
        wait_until(lambda: B not in {info.object_id for info in watcher.list_objects()}, 5, "it is aborted")
        watcher.put(bytes(CAPACITY * 3 // 4))
        leases.release()


def test_a_store_does_not_wait_for_a_connection_that_is_kept_for_a_writer(watcher: StoreClient) -> None:
    """Apache's has one thread, and would wait for ever until somebody reads its answer."""
    watcher.put_many([NewObject(object_id, b"x") for object_id in names(5000, "many")]).release()
    with open_store(watcher.path) as client, client.create(B, 1):
        assert client._session is not None
        connection = client._session.connection
        connection.ask([ListRequest()])
        while not connection.flush_nowait():
            pass
        connection.fail_interrupted(KeyboardInterrupt())
        assert watcher.contains([B]) == [False]
        assert len(watcher.list_objects()) == 5001
    wait_until(lambda: B not in {info.object_id for info in watcher.list_objects()}, 5, "it is aborted")


def test_threads_that_create_the_same_object_keep_their_memory(path: str) -> None:
    """One that aborts it says so of its own, and not of what another thread has created since."""

    def create(client: StoreClient) -> None:
        for _ in range(300):
            with suppress(ObjectExistsError), client.create(B, 1):
                assert client._session is not None
                assert B in client._session.connection.unsealed

    with open_store(path) as client, ThreadPoolExecutor(4) as pool:
        for creating in [pool.submit(create, client) for _ in range(4)]:
            creating.result(60)


def test_views_end_in_many_threads_after_the_client(path: str) -> None:
    many = names(200, "many")
    with open_store(path) as watcher:
        with open_store(path) as client:
            leases = client.put_many([NewObject(object_id, object_id) for object_id in many])
        kept = leases.pop(0)

        def drop() -> None:
            with suppress(IndexError):
                while True:
                    leases.pop()

        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(drop) for _ in range(8)]:
                future.result(20)
        await_holders(watcher, {object_id: int(object_id == many[0]) for object_id in many})
        assert bytes(kept.data) == many[0]
        kept.release()


def test_a_release_that_is_interrupted_is_made_up_for_by_the_last_view(path: str) -> None:
    with open_store(path) as watcher, without_collector():
        before = sockets()
        with open_store(path) as client:
            leases = client.put_many([NewObject(A, b"a"), NewObject(B, b"b")])
            assert client._session is not None
            session = client._session
        assert session._lingering is not None
        session._lingering.turn.acquire()  # as one leaves it who is interrupted
        del session, client
        for _ in range(2):
            assert sockets() == before + 1
            leases.pop().release()
        assert sockets() == before
        await_holders(watcher, {A: 0, B: 0})


def test_views_outlive_the_store_too(socket_directory: Path) -> None:
    path = socket_directory / "plasma"
    with StoreProcess(path, CAPACITY) as store, open_store(path) as client:
        client.put(b"a", object_id=A)
        client.put(b"b", object_id=B)
        first, second = only(client.get([A])), only(client.get([B]))
        client.close()
        store.kill()
    with StoreProcess(path, CAPACITY), open_store(path) as client:
        client.put(b"new", object_id=A)
        own = only(client.get([A]))
        assert (bytes(first.data), bytes(second.data)) == (b"a", b"b")
        before = sockets()
        first.release()
        second.release()
        assert sockets() == before - 1
        await_holders(client, {A: 1})
        own.release()


# Many at once


@pytest.mark.parametrize("how", ["released", "left", "dropped", "after the client", "dropped after the client"])
def test_many_are_given_back_at_once(how: str, watcher: StoreClient) -> None:
    # What is said one by one after the client must fit into the socket.
    many = names(100 if how == "dropped after the client" else 1500, "many")
    with open_store(watcher.path) as client:
        leases = client.put_many([NewObject(object_id, object_id) for object_id in many])
        with client.get(many[:3]) as first, without_collector():
            view = leases[7].data[1:]
            leases[8].release()
            if "after" in how:
                client.close()
            if how == "left":
                with leases:
                    assert [bytes(lease.data) for lease in leases[:2]] == many[:2]
            elif "dropped" in how:
                del leases
            else:
                leases.release()
                leases.release()
                with pytest.raises(ValueError, match="released"):
                    bytes(leases[9].data)
            held = dict.fromkeys(many[:3], 1) | {many[7]: 1}
            if how == "dropped":
                client.contains([A])
            wait_until(lambda: holders(watcher) == held, 5, "all but four are let go")
            assert [bytes(lease.data) for lease in first if lease] == many[:3]
        assert bytes(view) == many[7][1:]
        del view
        client.close()
    wait_until(lambda: holders(watcher) == {}, 5, "the others are let go")


def holders(watcher: StoreClient) -> dict[ObjectID, int]:
    """How many connections hold each object, of those that are held."""
    return {info.object_id: info.ref_count for info in watcher.list_objects() if info.ref_count}


def test_objects_that_are_asked_for_twice_and_some_that_are_missing(watcher: StoreClient) -> None:
    many = names(5000, "many")
    with open_store(watcher.path) as client:
        client.put_many([NewObject(object_id, object_id) for object_id in many if object_id != many[4500]]).release()
        asked = [*many, C, *many[4000:4100]]
        leases = client.get(asked)
        assert [None if lease is None else bytes(lease.data) for lease in leases] == [
            None if object_id in (many[4500], C) else object_id for object_id in asked
        ]
        del leases[:4050]
        client.contains([A])
        wait_until(lambda: set(holders(watcher)) == {*many[4000:]} - {many[4500]}, 5, "those of which no lease is left")
        leases.release()
        wait_until(lambda: holders(watcher) == {}, 5, "all are let go")


# Mistakes and batches


def test_a_mistake_of_the_caller_costs_no_lease(client: StoreClient) -> None:
    client.put(b"a", object_id=A)
    with only(client.get([A])) as lease:
        for mistake in (lambda: client.get([7]), lambda: client.evict("much"), lambda: client.put(7)):  # type: ignore[list-item, arg-type]
            with pytest.raises(Exception):  # noqa: B017, PT011
                mistake()
        with pytest.raises(ObjectExistsError):
            client.put(b"", object_id=A)
        assert bytes(lease.data) == b"a"
        await_holders(client, {A: 1})


def test_put_many_sends_batches_and_takes_all_back(client: StoreClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "_BATCH_OBJECTS", 3)
    monkeypatch.setattr(blocking, "_BATCH_BYTES", 100)
    client.put(b"", object_id=D)
    many = names(10, "many")
    new = [NewObject(object_id, bytes(60 if index > 6 else 1)) for index, object_id in enumerate(many)]
    with pytest.raises(ObjectExistsError):
        client.put_many([*new, NewObject(D, b"")])
    await_holders(client, {D: 0})
    leases = client.put_many(new)
    assert [lease.object_id for lease in leases] == many
    del leases
    await_holders(client, dict.fromkeys([*many, D], 0))


def test_put_many_that_is_interrupted_anywhere_leaves_nothing(
    client: StoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = [NewObject(A, b"1"), NewObject(B, bytes(400_000)), NewObject(C, b"2"), NewObject(D, b"", bytes(400_000))]
    left = 0

    def interrupting(real: Callable[..., object]) -> Callable[..., object]:
        def work(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return real(*arguments)

        return work

    monkeypatch.setattr(StoreConnection, "call", interrupting(StoreConnection.call))
    monkeypatch.setattr(blocking, "copy", interrupting(copy))
    for turn in range(1, 2 * 2 + 2 * 3 + 1):  # two calls for what is small; two and the copy for what is large
        left = turn
        with pytest.raises(KeyboardInterrupt):
            client.put_many(new)
        wait_until(lambda: client.list_objects() == [], 5, "all is taken back")
    client.put_many(new).release()
    await_holders(client, dict.fromkeys((A, B, C, D), 0))


@pytest.mark.parametrize("size", [64 * MIB, MIB])
def test_large_objects_do_not_pass_through_the_stores_own_memory(size: int, socket_directory: Path) -> None:
    count = 64 * MIB // size
    with StoreProcess(socket_directory / "plasma", 100 * MIB) as store, open_store(store.socket_path) as client:
        new = [NewObject(object_id, bytes(size)) for object_id in names(count)]
        with peak_private_growth(store.pid) as growth:
            client.put_many(new).release()
        assert growth[0] < 16 * MIB


def test_an_object_that_is_evicted_as_soon_as_it_is_put(client: StoreClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "get", lambda ids: [None for _ in ids])
    with pytest.raises(StoreFullError, match="evicted"):
        client.put_many([NewObject(A, b"a")])
    assert client.list_objects() == []


# Threads


def test_many_threads_at_once(path: str) -> None:
    many = names(6, "many")

    def work(client: StoreClient, number: int) -> int:
        done = 0
        for turn in range(60):
            asked = [many[(number + turn) % 6], many[(number * turn) % 6], many[turn % 6]]
            leases = client.get(asked)
            assert [bytes(lease.data) for lease in leases if lease] == asked
            own = client.put(b"x" * number, b"m")
            (waited,) = client.get([own], timeout=5)
            assert waited is not None
            views = [lease.data[1:] for lease in leases if lease]
            for lease in leases:
                assert lease is not None
                lease.release()
            assert [bytes(view) for view in views] == [object_id[1:] for object_id in asked]
            if turn % 2:
                waited.release()
            assert client.delete([own])[0] in (ErrorCode.OK, ErrorCode.OBJECT_IN_USE)
            done += 1
        return done

    with open_store(path) as client, ThreadPoolExecutor(8) as pool:
        for object_id in many:
            client.put(object_id, object_id=object_id)
        futures = [pool.submit(work, client, number) for number in range(8)]
        assert [future.result(60) for future in futures] == [60] * 8
        del futures
        await_holders(client, dict.fromkeys(many, 0))


def test_who_waits_stands_in_nobodys_way(client: StoreClient) -> None:
    with ThreadPoolExecutor() as pool:
        waits = [pool.submit(client.get, [A, B], timeout=timeout) for timeout in (None, 100, None)]
        wait_until(lambda: len(client._waiting) == 3, 5, "three wait")
        with at_once():
            for _ in range(100):
                assert client.contains([A]) == [False]
            client.put(b"a", object_id=A)
        assert not any(future.done() for future in waits)
        client.put(b"b", object_id=B)
        for future in waits:
            leases = future.result(5)
            assert [bytes(lease.data) for lease in leases if lease] == [b"a", b"b"]
        del waits, future, leases
    assert len(client._waiters) == 3
    await_holders(client, {A: 0, B: 0})
    assert client.get([C], timeout=0.01) == [None]
    assert len(client._waiters) == 3


def test_a_get_that_waits_in_vain(client: StoreClient) -> None:
    start = time.monotonic()
    assert client.get([A], timeout=0.2) == [None]
    assert 0.2 <= time.monotonic() - start < 1


def test_closing_the_client_ends_who_waits(path: str) -> None:
    with open_store(path) as client, ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.get, [A], timeout=None)
        wait_until(lambda: client._waiting, 5, "it waits")
        time.sleep(0.05)
        client.close()
        with pytest.raises(StoreConnectionError, match="is closed"):
            waiting.result(5)


def test_a_release_while_another_thread_asks_is_told_after_it(
    client: StoreClient, process: StoreProcess, path: str
) -> None:
    client.put(b"a", object_id=A)
    lease = only(client.get([A]))
    with ThreadPoolExecutor() as pool, open_store(path) as watcher:
        process.signal(signal.SIGSTOP)
        asking = pool.submit(client.list_objects)
        wait_until(client._lock.locked, 5, "it asks")
        with at_once():
            lease.release()
        process.signal(signal.SIGCONT)
        asking.result(5)
        await_holders(watcher, {A: 0})


# Interrupts


@pytest.mark.usefixtures("untraced")
def test_an_interrupt_calls_off_a_wait_and_no_lease(client: StoreClient, path: str) -> None:
    client.put(b"a", object_id=A)
    lease = only(client.get([A]))
    session = client._session
    for error in (KeyboardInterrupt, ZeroDivisionError):
        with at_once(), interrupted(0.1, error):
            client.get([A, B], timeout=None)
    assert client._session is session
    assert bytes(lease.data) == b"a"
    assert client._waiting == set()
    with open_store(path) as watcher:
        await_holders(watcher, {A: 1})
        assert watcher.delete([A]) == [ErrorCode.OBJECT_IN_USE]
        watcher.put(b"b", object_id=B)
    lease.release()
    await_holders(client, {B: 0})


@pytest.mark.usefixtures("untraced")
def test_an_interrupt_calls_off_waiting_for_room(client: StoreClient) -> None:
    def wait() -> None:
        with client.create(B, 1, timeout=100):
            pytest.fail("created")

    with client.create(A, CAPACITY) as unsealed:
        with interrupted(0.1, within="_when_there_is_room"):  # and not in the midst of a request
            wait()
        unsealed.seal(NO_DIGEST)
    await_holders(client, {A: 0})


@pytest.mark.usefixtures("untraced")
def test_an_interrupt_within_a_create_block_aborts(client: StoreClient) -> None:
    with interrupted(0.1), client.create(A, 1):
        time.sleep(10)
    assert client.list_objects() == []


@pytest.mark.usefixtures("untraced")
def test_an_interrupt_in_the_midst_of_a_request_gives_the_connection_up(
    client: StoreClient, process: StoreProcess
) -> None:
    client.put(b"a", object_id=A)
    lease = only(client.get([A]))
    assert client._session is not None
    connection = client._session.connection
    process.signal(signal.SIGSTOP)
    with at_once(), interrupted(0.1):
        client.list_objects()
    process.signal(signal.SIGCONT)
    assert str(connection.broken).endswith("was left in the midst of a request, by a KeyboardInterrupt")
    assert bytes(lease.data) == b"a"
    await_holders(client, {A: 0})
    lease.release()


@pytest.mark.usefixtures("untraced")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # a socket that is interrupted before anybody has it
def test_interrupts_at_any_time_leave_nothing(path: str) -> None:
    """Whenever they come: the client goes on, and the store holds nothing for nobody."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            # The interpreter swallows what finalizers raise, and what is called when garbage is collected.
            if frame.f_code.co_name in ("_fire", "__del__", "gc_callback"):
                signal.setitimer(signal.ITIMER_REAL, 1e-4)
                return
            frame = frame.f_back
        raise ZeroDivisionError

    def work(client: StoreClient, time_to_interrupt: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, time_to_interrupt)
        for _ in range(10_000):
            own = ObjectID.random()  # what a connection that was given up still wants is nobody's business
            with client.create(own, 10) as unsealed:
                unsealed.seal()
            client.get([A, own, C], timeout=0.001)
            client.delete([own])

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with open_store(path) as client, open_store(path) as watcher:
            watcher.put(b"a", object_id=A)
            for turn in range(200):
                with pytest.raises(ZeroDivisionError):
                    work(client, 2e-5 * turn + 1e-6)
                assert bytes(only(client.get([A])).data) == b"a"
            gc.collect()
            assert client.contains([A]) == [True]
            wait_until(lambda: not any(info.ref_count for info in client.list_objects()), 5, "nothing is held")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# A store that goes away


def methods(client: StoreClient) -> dict[str, Callable[[], object]]:
    def create() -> None:
        with client.create(A, 1):
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
def test_a_killed_store_is_named_at_once_and_found_again(method: str, socket_directory: Path) -> None:
    path = socket_directory / "plasma"
    with ExitStack() as stack:
        with StoreProcess(path, CAPACITY) as store:
            client = stack.enter_context(open_store(path, connect_timeout=0.1))
            client.put(b"old", object_id=D)
            old = only(client.get([D]))
            store.kill()
            for _ in range(2):
                with at_once(), pytest.raises(StoreConnectionError, match=str(path)):
                    methods(client)[method]()
        with StoreProcess(path, CAPACITY):
            assert client.contains([D]) == [False]
            assert bytes(old.data) == b"old"
            old.release()
            client.put(b"new", object_id=D)
            with only(client.get([D])) as new:
                assert bytes(new.data) == b"new"
            client.close()


def test_a_store_that_is_killed_ends_who_waits(client: StoreClient, process: StoreProcess) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.get, [A], timeout=None)
        wait_until(lambda: client._waiting, 5, "it waits")
        time.sleep(0.05)
        process.kill()
        with pytest.raises(StoreConnectionError, match="connection"):
            waiting.result(5)


@pytest.mark.parametrize("method", METHODS)
def test_a_silent_store_is_given_up(method: str, process: StoreProcess) -> None:
    with open_store(process.socket_path, reply_timeout=0.2) as client:
        process.signal(signal.SIGSTOP)
        try:
            with at_once(), pytest.raises(StoreConnectionError, match=r"did not answer within 0\.2 s"):
                methods(client)[method]()
        finally:
            process.signal(signal.SIGCONT)
        assert client.contains([C]) == [False]  # over a new connection; what was asked before may yet be done


def test_a_waiting_get_gives_up_after_its_timeout_and_the_replys(process: StoreProcess) -> None:
    with open_store(process.socket_path, reply_timeout=0.2) as client, ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.get, [A], timeout=0.3)
        wait_until(lambda: client._waiting, 5, "it waits")
        time.sleep(0.05)
        process.signal(signal.SIGSTOP)
        try:
            with pytest.raises(StoreConnectionError, match=r"did not answer within 0\.5 s"):
                waiting.result(5)
        finally:
            process.signal(signal.SIGCONT)


def test_blocks_that_are_left_after_the_store_went(client: StoreClient, process: StoreProcess) -> None:
    with client.create(A, 1) as first, client.create(B, 1) as second:
        second.seal()
        process.kill()
        with pytest.raises(StoreConnectionError):
            first.seal()
    assert (first.is_sealed, second.is_sealed) == (False, True)


# Forks


def in_a_child(check: Callable[[], None]) -> None:
    """Run a check after a fork; the child ends without a word to what it has from the parent."""
    child = os.fork()
    if not child:
        status = 1
        try:
            check()
            gc.collect()
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_a_child_connects_anew_and_leaves_the_parents_holds_alone(client: StoreClient, path: str) -> None:
    client.put(b"a", object_id=A)
    client.get([C], timeout=0.001)  # leaves an idle waiter
    lease = only(client.get([A]))
    view = lease.data[:]

    def check() -> None:
        nonlocal lease, view
        assert client._session is None
        assert not any("socket" in text for text in open_descriptors() if int(text.split()[0]) > 2)
        assert bytes(lease.data) == b"a"
        with client:
            own = only(client.get([A]))
            assert bytes(own.data) == b"a"
            client.put(b"from the child", object_id=B)
            lease.release()
            del view, lease
        del own

    in_a_child(check)
    assert bytes(view) == b"a"
    await_holders(client, {A: 1, B: 0})
    assert client.evict(CAPACITY) == len(b"from the child")
    view.release()
    lease.release()
    await_holders(client, {A: 0})


def test_a_child_leaves_alone_what_outlives_the_parents_client(path: str) -> None:
    with open_store(path) as watcher:
        with open_store(path) as client:
            client.put(b"a", object_id=A)
            client.put(b"b", object_id=B)
            lease, view = only(client.get([A])), only(client.get([B])).data[:]

        def check() -> None:
            nonlocal lease, view
            assert not any("socket" in text for text in open_descriptors() if int(text.split()[0]) > 2)
            assert (bytes(lease.data), bytes(view)) == (b"a", b"b")
            lease.release()
            del view, lease
            assert watcher.delete([A]) == [ErrorCode.OBJECT_IN_USE]

        in_a_child(check)
        await_holders(watcher, {A: 1, B: 1})
        fill(watcher)
        assert (bytes(lease.data), bytes(view)) == (b"a", b"b")
        view.release()
        lease.release()
        wait_until(lambda: not any(info.ref_count for info in watcher.list_objects()), 5, "nothing is held")


def test_a_child_cannot_touch_what_the_parent_writes(client: StoreClient) -> None:
    def check() -> None:
        with pytest.raises(StoreConnectionError, match="before a fork, by the parent"):
            unsealed.seal()
        unsealed.data[:1] = b"!"

    with client.create(A, 1) as unsealed:
        in_a_child(check)
        in_a_child(lambda: block_left(unsealed))
        unsealed.seal()
    await_holders(client, {A: 0})


def block_left(unsealed: UnsealedObject) -> None:
    """As if the child had run on to the end of the parent's block."""
    with pytest.raises(StoreConnectionError):
        unsealed.seal()


def test_a_fork_while_other_threads_are_busy(client: StoreClient) -> None:
    client.put(b"a", object_id=A)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            only(client.get([A])).release()

    with ThreadPoolExecutor() as pool:
        busy = [pool.submit(work) for _ in range(3)]
        waiting = pool.submit(client.get, [B], timeout=None)
        try:
            for _ in range(10):
                in_a_child(lambda: only(client.get([A])).release())
        finally:
            stop.set()
            client.put(b"b", object_id=B)
        for future in busy:
            future.result(5)
        only(waiting.result(5)).release()
    await_holders(client, {A: 0, B: 0})
