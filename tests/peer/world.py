"""Machines in memory for tests of version 2: a client, two servers with their stores, connections with faults.

The client talks to `near`, which may fetch from `far` in a SYNC. Connections are numbered from 1 in the order in which
they are made, so that a fault can name the connection, the end, and the call. The time is that of a mock clock. When
a world is left, it waits until all that outlives a call has to be over, and looks whether anything is left.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Literal, TypeAlias

import attrs
import trio

from plasmastream import ObjectID, PlasmastreamError
from plasmastream.peer import (
    Excuse,
    Limits2,
    PeerClient,
    PeerRequest,
    PeerServer,
    Result,
    TransferKind,
    Transport,
    UnreachableError,
)
from plasmastream.store import EmbeddedStore, NewObject
from plasmastream.store._allocator import block_size
from plasmastream.testing import CallFault, MemoryTransport, memory_transports
from plasmastream.testing._memory import Method
from tests.peer.helpers import Objects, assert_nothing_claimed, contents, fill, objects_of
from tests.store.helpers import assert_untouched

LIMITS = Limits2(chunk_size=1000, small_size=100, run_size=200)
CAPACITY = 100_000
NEAR, FAR = "10.0.0.1", "10.0.0.2"
PORT = 2021
ALL_OVER = 500.0
"""Seconds after which a server that heard of nothing has let go: it idles for 300 s, keeps connections to others for up
to 90 s, and tokens for 30 s."""

End: TypeAlias = Literal["client", "server"]
Failures: TypeAlias = dict[ObjectID | None, str]
"""Why an operation failed, by object; None where there is none to name."""

OBJECTS = objects_of([(50, 3), (0, 0), (90, 0), (80, 5), (2500, 0), (1000, 20)])
"""Small ones for two runs, and large ones of several chunks and of one."""
SMALL, LARGE = list(OBJECTS)[:4], list(OBJECTS)[4:]


class World:
    """See the module. Make it by `open_world`."""

    def __init__(self, nursery: trio.Nursery, stores: dict[str, EmbeddedStore], options: dict[str, Any]) -> None:
        self.nursery = nursery
        self.stores = stores
        self.servers = {
            host: PeerServer(store, **{"limits2": LIMITS, "connect": self.connect, **options})
            for host, store in stores.items()
            if host != "client"
        }
        self.connections: list[tuple[MemoryTransport, MemoryTransport]] = []
        self.scopes: list[trio.CancelScope] = []
        """Around what a server does for each connection."""
        self.ended: list[trio.Event] = []
        """Set when a server is done with a connection."""
        self.faults: dict[int, tuple[Sequence[CallFault], Sequence[CallFault]]] = {}
        """What goes wrong with the calls of both ends of a connection, by its number; 0 is any other."""
        self.slow: Slow | None = None
        """Which end of each connection moves a byte a second."""
        self.room = 64 << 10
        self.client_host = "client"
        self.clients: list[PeerClient] = []
        self._served: dict[str, list[trio.CancelScope]] = defaultdict(list)
        self._dead: set[str] = set()

    @property
    def here(self) -> EmbeddedStore:
        """The client's store."""
        return self.stores["client"]

    def client(self, host: str = NEAR, **options: Any) -> PeerClient:
        """A new client of a server."""
        client = PeerClient(host, PORT, **{"limits": LIMITS, "connect": self.connect, "version": 2, **options})
        self.clients.append(client)
        return client

    async def connect(self, host: str, port: int, *, timeout: float) -> Transport:
        """See `plasmastream.peer.Connect`."""
        await trio.lowlevel.checkpoint()
        if host in self._dead:
            raise UnreachableError(f"no connection to {host}:{port}: Connection refused")
        number = len(self.connections) + 1
        faults = self.faults.get(number) or self.faults.get(0) or ((), ())
        ends = memory_transports(*faults, room=self.room)
        ends[0].peer, ends[1].peer = f"{host}:{port}", f"{self.client_host}:{number}"
        scope = trio.CancelScope()
        self.connections.append(ends)
        self.scopes.append(scope)
        self.ended.append(trio.Event())
        self._served[host].append(scope)
        self.nursery.start_soon(self._serve, host, self._slowed("server", ends[1]), scope, self.ended[-1])
        return self._slowed("client", ends[0])

    def _slowed(self, end: End, transport: MemoryTransport) -> Transport:
        slow = self.slow
        return _SlowTransport(transport, slow) if slow is not None and slow.end == end else transport

    async def _serve(self, host: str, transport: Transport, scope: trio.CancelScope, ended: trio.Event) -> None:
        with scope:
            await self.servers[host].serve_connection(transport)
        ended.set()

    def kill(self, host: str) -> None:
        """Cancel all that a server does; it is not there any more."""
        self._dead.add(host)
        for scope in self._served[host]:
            scope.cancel()

    def let_happen(self, connection: int, end: End, fault: CallFault) -> None:
        """Let a fault happen to an end of a connection, or of each of them (0)."""
        self.faults[connection] = ((fault,), ()) if end == "client" else ((), (fault,))

    async def settle(self, seconds: float = ALL_OVER) -> None:
        """Close all clients, wait, and look whether anything is left."""
        for client in self.clients:
            await client.aclose()
        await trio.sleep(seconds)
        assert not self.nursery.child_tasks, f"{len(self.nursery.child_tasks)} connections are served still"
        assert_nothing_left(self.clients, self.servers.values(), self.stores.values())


@asynccontextmanager
async def open_world(
    operation: "Operation | None" = None,
    *,
    near: Objects | None = None,
    far: Objects | None = None,
    capacity: int = CAPACITY,
    store: Callable[[int], EmbeddedStore] = EmbeddedStore,
    **options: Any,
) -> AsyncIterator[World]:
    """A world, settled when the block is left.

    Args:
        operation: for which it is made: what the servers have.
        near: what the near server has, if there is no operation; nothing, by default.
        far: what the far server has.
        capacity: of each store, in bytes.
        store: makes the store of the near server.
        options: of the servers.
    """
    with ExitStack() as stack:
        stores = {
            "client": stack.enter_context(EmbeddedStore(capacity)),
            NEAR: stack.enter_context(store(capacity)),
            FAR: stack.enter_context(EmbeddedStore(capacity)),
        }
        fill(stores[NEAR], operation.near if operation else near or {})
        fill(stores[FAR], operation.far if operation else far or {})
        async with trio.open_nursery() as background, trio.open_nursery() as nursery:
            world = World(nursery, stores, options)
            for server in world.servers.values():
                background.start_soon(server._dispatcher.run)
            yield world
            await world.settle()
            background.cancel_scope.cancel()


@attrs.frozen
class Slow:
    """An end that moves a byte a second in one direction, after so many bytes."""

    end: End
    method: Method
    after: int

    def __str__(self) -> str:
        return f"{self.end} {self.method}"


class _SlowTransport:
    """See `Slow`, and `Transport`."""

    def __init__(self, transport: MemoryTransport, slow: Slow) -> None:
        self._transport = transport
        self._fast: dict[Method, int | None] = {"receive_into": None, "send": None, slow.method: slow.after}
        self.peer = transport.peer
        self.is_quiet = transport.is_quiet
        self.break_on_death = transport.break_on_death
        self.close = transport.close
        self.abort = transport.abort

    async def receive_into(self, buffer: memoryview, *, timeout: float, expected: int = 1) -> int:
        """See `Transport`."""
        fast = self._fast["receive_into"]
        if fast == 0:
            await trio.sleep(1)
        with buffer[: None if fast is None else max(1, fast)] as place:
            nbytes = await self._transport.receive_into(place, timeout=timeout, expected=expected)
        if fast:
            self._fast["receive_into"] = fast - nbytes
        return nbytes

    async def send(
        self,
        pieces: Sequence[bytes | memoryview],
        *,
        timeout: float,
        at_least: int = 1,
        excuse: Excuse | None = None,
    ) -> None:
        """See `Transport`."""
        octets, fast = b"".join(pieces), self._fast["send"]
        if fast is None:
            fast = len(octets)
        else:
            self._fast["send"] = max(0, fast - len(octets))
        await self._transport.send([octets[:fast]], timeout=timeout, at_least=at_least, excuse=excuse)
        for octet in octets[fast:]:
            await trio.sleep(1)
            await self._transport.send([bytes([octet])], timeout=timeout, excuse=excuse)


def assert_nothing_left(
    clients: Iterable[PeerClient], servers: Iterable[PeerServer], stores: Iterable[EmbeddedStore]
) -> None:
    """No pool slot, connection, claim, token, lease, unsealed object or place in a queue is left.

    Clients are closed by then. Tasks and descriptors are for the caller to count: they are not of any of these.
    """
    for client in clients:
        lanes = client._lanes
        assert not lanes.in_use
        assert not any(lanes._idle.values())
        for lane, slots in lanes._slots.items():
            assert slots.value == lane.value
            assert not slots.statistics().tasks_waiting
    for server in servers:
        assert_nothing_claimed(server)
        services = server._services
        assert services.syncs.is_empty
        holds = services.holds
        assert not holds._claims
        assert not holds._objects
        assert not holds._bytes
        assert not server._connections
        assert not server._idle
        dispatcher = server._dispatcher
        assert dispatcher._fetches.value == dispatcher._fetches.max_value
        assert_nothing_left([peer.client for peer in dispatcher._peers.values()], (), ())
    for store in stores:
        store.core.settle()  # what a cancelled call dropped is given back by the next one
        assert_untouched(store)
        assert store.core.heap.used_bytes == sum(block_size(entry.size) for entry in store.core.table)


# What a client can ask for


@attrs.frozen
class Operation:
    """Something to ask, and how to see that it was done.

    Args:
        name: for the names of tests.
        near: what is at the near server before.
        far: what is at the far one.
        ask: asks, and returns what failed, with the reason: nothing, if all went well.
        check: sees that what was asked for is done.
    """

    name: str
    near: Objects
    far: Objects
    ask: Callable[[World, PeerClient, float | None], Awaitable[Failures]]
    check: Callable[[World], None]

    def __str__(self) -> str:
        return self.name


def _failures(results: Iterable[Result]) -> Failures:
    return {result.object_id: str(result) for result in results if not result.is_success}


def _fetch(kind: TransferKind) -> Operation:
    async def ask(world: World, client: PeerClient, timeout: float | None) -> Failures:
        return _failures(await client.fetch(kind, list(OBJECTS), world.here, timeout=timeout))

    def check(world: World) -> None:
        assert contents(world.here) == OBJECTS
        assert contents(world.stores[NEAR]) == ({} if kind is TransferKind.TAKE else OBJECTS)

    return Operation(kind.name, OBJECTS, {}, ask, check)


async def _put(world: World, client: PeerClient, timeout: float | None) -> Failures:
    new = [NewObject(object_id, data, metadata) for object_id, (data, metadata) in OBJECTS.items()]
    return _failures(await client.put(new, timeout=timeout))


def _check_put(world: World) -> None:
    assert contents(world.stores[NEAR]) == OBJECTS


def _sync(kind: TransferKind) -> Operation:
    async def ask(world: World, client: PeerClient, timeout: float | None) -> Failures:
        request = PeerRequest(kind, FAR, PORT, tuple(OBJECTS))
        try:
            (results,) = await client.sync_each([request], timeout=timeout)
        except PlasmastreamError as error:
            return {None: str(error)}
        return _failures(results)

    def check(world: World) -> None:
        assert contents(world.stores[NEAR]) == OBJECTS
        assert contents(world.stores[FAR]) == ({} if kind is TransferKind.TAKE else OBJECTS)

    return Operation(f"SYNC {kind.name}", {}, OBJECTS, ask, check)


def _list(name: str) -> Operation:
    async def ask(world: World, client: PeerClient, timeout: float | None) -> Failures:
        try:
            infos = await (client.list_objects() if name == "LIST" else client.stat(list(OBJECTS)))
        except PlasmastreamError as error:
            return {None: str(error)}
        assert {info.object_id for info in infos} == set(OBJECTS)
        return {}

    return Operation(name, OBJECTS, {}, ask, lambda world: None)


COPY, TAKE = _fetch(TransferKind.COPY), _fetch(TransferKind.TAKE)
PUT = Operation("PUT", {}, {}, _put, _check_put)
SYNC, SYNC_TAKE = _sync(TransferKind.COPY), _sync(TransferKind.TAKE)
STAT, LIST = _list("STAT"), _list("LIST")
TRANSFERS = [COPY, TAKE, PUT, SYNC, SYNC_TAKE]
OPERATIONS = [*TRANSFERS, STAT, LIST]


@attrs.frozen
class Point:
    """The n-th call, from 1, that an end of a connection makes."""

    connection: int
    end: End
    call: int


async def points_of(operation: Operation) -> list[Point]:
    """All calls of all connections when an operation is left in peace."""
    async with open_world(operation) as world:
        assert await operation.ask(world, world.client(), None) == {}
        operation.check(world)
    ends: list[tuple[int, End, MemoryTransport]] = []
    for number, (client, server) in enumerate(world.connections, 1):
        ends += (number, "client", client), (number, "server", server)
    return [
        Point(number, end, call)
        for number, end, transport in ends
        for call in range(1, sum(transport.calls.values()) + 1)
    ]


def assert_nothing_lost(world: World, operation: Operation) -> None:
    """Each object is still somewhere, whole, whoever was to give or take it."""
    found = [contents(store) for store in world.stores.values()]
    for object_id, content in (operation.near | operation.far).items():
        copies = [objects[object_id] for objects in found if object_id in objects]
        assert copies
        assert all(copy == content for copy in copies)
