"""Version 2 when somebody is cancelled, at any call of any connection: nothing is lost, and nothing is left."""

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import anyio.lowlevel
import pytest
import trio
from trio.testing import MockClock

from plasmastream.peer import PeerClient, PeerServer, TransferKind, Transport
from plasmastream.peer._transport import connect
from plasmastream.store import EmbeddedStore
from plasmastream.testing import CallFault
from tests.peer.helpers import contents, fill
from tests.peer.world import (
    CAPACITY,
    LIMITS,
    NEAR,
    OBJECTS,
    OPERATIONS,
    TRANSFERS,
    Operation,
    assert_nothing_left,
    assert_nothing_lost,
    open_world,
    points_of,
)
from tests.store.helpers import open_descriptors


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
async def test_a_client_may_be_cancelled_at_any_call(operation: Operation, autojump_clock: MockClock) -> None:
    descriptors = open_descriptors()
    cancelled = 0
    for point in await points_of(operation):
        async with open_world(operation) as world:
            with trio.CancelScope() as scope:
                world.let_happen(point.connection, point.end, CallFault.cancel(point.call, scope))
                assert await operation.ask(world, world.client(), None) == {}
            cancelled += scope.cancelled_caught
            assert_nothing_lost(world, operation)
            if not scope.cancelled_caught:
                operation.check(world)
    assert cancelled > 5
    assert open_descriptors() == descriptors


@pytest.mark.parametrize("operation", TRANSFERS, ids=str)
async def test_what_serves_a_connection_may_be_cancelled_at_any_call(
    operation: Operation, autojump_clock: MockClock
) -> None:
    for point in await points_of(operation):
        async with open_world(operation) as world:

            def cancel(_: object, number: int = point.connection) -> None:
                world.scopes[number - 1].cancel()

            world.let_happen(point.connection, point.end, CallFault(point.call, cancel))
            assert await operation.ask(world, world.client(), 300.0) == {}, point
            operation.check(world)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
async def test_a_server_may_be_cancelled_at_any_call(operation: Operation, autojump_clock: MockClock) -> None:
    for point in await points_of(operation):
        async with open_world(operation) as world:
            world.let_happen(point.connection, point.end, CallFault(point.call, lambda end: world.kill(NEAR)))
            with trio.fail_after(150):
                failures = await operation.ask(world, world.client(), None)
            assert_nothing_lost(world, operation)
            if not failures:
                operation.check(world)


# On asyncio


class Cancelling:
    """Makes connections over TCP whose n-th call, of all, cancels a scope. See `plasmastream.peer.Connect`."""

    def __init__(self, at: int, scope: anyio.CancelScope) -> None:
        self.calls = 0
        self._at = at
        self._scope = scope

    async def __call__(self, host: str, port: int, *, timeout: float) -> Transport:
        """See `connect`."""
        transport = await connect(host, port, timeout=timeout)
        for method in ("receive_into", "send"):
            setattr(transport, method, partial(self._call, getattr(transport, method)))
        return transport

    async def _call(self, method: Callable[..., Awaitable[object]], *arguments: object, **options: object) -> object:
        self.calls += 1
        if self.calls == self._at:
            self._scope.cancel()
            await anyio.lowlevel.checkpoint()
        return await method(*arguments, **options)


@pytest.mark.parametrize("kind", [TransferKind.COPY, TransferKind.TAKE])
def test_a_client_on_asyncio_may_be_cancelled_at_any_call(kind: TransferKind) -> None:
    """The server has a Trio loop of its own, in a thread, which ends only when nothing is held any more."""

    async def fetch(address: tuple[str, int], here: EmbeddedStore, at: int) -> bool:
        with anyio.CancelScope() as scope:
            connecting = Cancelling(at, scope)
            client = PeerClient(*address, limits=LIMITS, connect=connecting, version=2)
            results = await client.fetch(kind, list(OBJECTS), here)
            assert all(result.is_success for result in results)
        await client.aclose()
        assert_nothing_left([client], [], [here])
        assert scope.cancelled_caught == (at <= connecting.calls)
        return scope.cancelled_caught

    descriptors = open_descriptors()
    at, was_cancelled = 1, True
    while was_cancelled:
        with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
            fill(there, OBJECTS)
            with served_in_thread(there) as server:
                was_cancelled = anyio.run(fetch, server.address, here, at, backend="asyncio")
            assert_nothing_left([], [server], [there])
            assert contents(here) | contents(there) == OBJECTS
        at += 1 if at < 5 else 3
    assert at > 10
    assert open_descriptors() == descriptors


@contextmanager
def served_in_thread(store: EmbeddedStore) -> Iterator[PeerServer]:
    """A server on a loop of its own; in the end it is stopped, and waited for."""
    server, started = PeerServer(store, port=0, limits2=LIMITS), threading.Event()
    tokens: list[trio.lowlevel.TrioToken] = []

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve)
            tokens.append(trio.lowlevel.current_trio_token())
            started.set()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert started.wait(20)
    try:
        yield server
    finally:
        tokens[0].run_sync_soon(server.shut_down, 20.0)
        thread.join()
