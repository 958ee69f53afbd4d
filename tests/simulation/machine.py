"""A machine: a store, and a program beside it that may be killed and started again. The store stays.

A killed program does nothing more: its connections end as the kernel ends them, its tasks are cancelled, and what they
still ask of the store fails, as it would if they were in a process that is gone. Only its holds are let go.

Stores may be slow, and full for a while. They evict nothing: what is evicted is lost by right.
"""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeAlias

import attrs
import trio

from plasmastream import ObjectID, StoreError, StoreFullError
from plasmastream.peer import PeerClient, PeerServer, Transport
from plasmastream.peer._version1 import Version1Client
from plasmastream.store import EmbeddedStore, Lease, Leases, NewObject, ObjectStore, UnsealedObject
from plasmastream.store._object_store import Buffer
from plasmastream.wire.plasma import ErrorCode, ObjectInfo, ObjectStatus
from tests.simulation.chance import log_uniform
from tests.simulation.network import Network, Tap

PORT = 2021

AnyClient: TypeAlias = Version1Client | PeerClient
"""A client of any version."""


@attrs.frozen
class Slowness:
    """How slow a store is: which share of the calls takes long, and what draws them."""

    share: float
    chance: random.Random

    async def __call__(self) -> None:
        """Let time pass, perhaps."""
        if self.share and self.chance.random() < self.share:
            await trio.sleep(log_uniform(self.chance, 0.001, 8))


class Door:
    """A program's way to its store, closed by its death. See `ObjectStore`."""

    def __init__(self, store: EmbeddedStore, slowness: Slowness) -> None:
        self.is_closed = False
        self._store = store
        self._slowness = slowness

    async def _open(self) -> EmbeddedStore:
        await self._slowness()
        if self.is_closed:
            raise StoreError("the program that asks is dead")
        return self._store

    @property
    def capacity(self) -> int:
        """See `ObjectStore`."""
        return self._store.capacity

    @asynccontextmanager
    async def create(
        self, object_id: ObjectID, data_size: int, metadata: Buffer = b"", *, timeout: float = 0.0
    ) -> AsyncIterator[UnsealedObject]:
        """See `ObjectStore`."""
        store = await self._open()
        async with store.create(object_id, data_size, metadata, timeout=timeout) as unsealed:

            async def seal(digest: bytes | None) -> None:
                await self._open()
                await unsealed.seal(digest)

            yield UnsealedObject(object_id, unsealed.data, seal)

    async def put_many(self, objects: Sequence[NewObject], *, timeout: float = 0.0) -> Leases[Lease]:
        """See `ObjectStore`."""
        return await (await self._open()).put_many(objects, timeout=timeout)

    async def get(self, object_ids: Sequence[ObjectID], *, timeout: float | None = 0.0) -> Leases[Lease | None]:
        """See `ObjectStore`."""
        return await (await self._open()).get(object_ids, timeout=timeout)

    async def contains(self, object_ids: Sequence[ObjectID]) -> list[bool]:
        """See `ObjectStore`."""
        return await (await self._open()).contains(object_ids)

    async def delete(self, object_ids: Sequence[ObjectID]) -> list[ErrorCode]:
        """See `ObjectStore`."""
        return await (await self._open()).delete(object_ids)

    async def list_objects(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectInfo]:
        """See `ObjectStore`."""
        return await (await self._open()).list_objects(object_ids)

    async def inspect(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectStatus]:
        """See `ObjectStore`."""
        return await (await self._open()).inspect(object_ids)

    async def evict(self, nbytes: int) -> int:
        """See `ObjectStore`."""
        return await (await self._open()).evict(nbytes)


class Programs(Protocol):
    """What runs on machines: one version of the peer room."""

    def server(self, program: "Program") -> PeerServer:
        """A server beside the program's store."""
        ...

    def client(self, program: "Program", host: str, port: int) -> AnyClient:
        """A client of the server at an address."""
        ...


class Program:
    """One life of what runs on a machine: tasks in a nursery, connections, a door to the store."""

    def __init__(self, machine: "Machine", nursery: trio.Nursery, daemons: trio.Nursery) -> None:
        self.machine = machine
        self.name = machine.name
        self.host = machine.host
        self.nursery = nursery
        """Of what ends when its work is done."""
        self.daemons = daemons
        """Of what runs as long as the program."""
        self.door = Door(machine.store, machine.slowness)
        self.store: ObjectStore = self.door
        self.transports: set[Tap] = set()
        self.death = trio.Event()
        self.server = machine.programs.server(self)
        self._clients: dict[str, AnyClient] = {}

    async def connect(self, host: str, port: int, *, timeout: float) -> Transport:
        """See `plasmastream.peer.Connect`."""
        return await self.machine.network.connect(self, host, port, timeout)

    def accept(self, transport: Tap) -> None:
        """Serve a new connection."""
        self.nursery.start_soon(self.server.serve_connection, transport)

    def client_of(self, host: str, *, shared: bool) -> AnyClient:
        """A client of another machine: a new one, or the one that all share."""
        if not shared:
            return self.machine.programs.client(self, host, PORT)
        if host not in self._clients:
            self._clients[host] = self.machine.programs.client(self, host, PORT)
        return self._clients[host]

    async def close_clients(self) -> None:
        """Close what is shared."""
        for client in self._clients.values():
            await client.aclose()

    def die(self) -> None:
        """Be killed."""
        self.door.is_closed = True
        for transport in sorted(self.transports, key=lambda tap: tap.name):
            transport.die()
        self.nursery.cancel_scope.cancel()
        self.daemons.cancel_scope.cancel()
        self.death.set()


class Machine:
    """A store at an address, and the program beside it, if it runs now."""

    def __init__(
        self,
        name: str,
        host: str,
        store: EmbeddedStore,
        network: Network,
        programs: Programs,
        slowness: Slowness,
    ) -> None:
        self.name = name
        self.host = host
        self.store = store
        self.network = network
        self.programs = programs
        self.slowness = slowness
        self.program: Program | None = None
        self.kills = 0
        self._down_for = 0.0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the program, and start it again after each death; until cancelled."""
        while True:
            async with trio.open_nursery() as daemons, trio.open_nursery() as nursery:
                program = self.program = self.network.listeners[self.host, PORT] = Program(self, nursery, daemons)
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await program.death.wait()
            await trio.sleep(self._down_for)
            self.network.trace.note(f"{self.name} starts again")

    async def fill_up(self, seconds: float) -> None:
        """Leave no room in the store for so many seconds."""
        core = self.store.core
        room = core.capacity - sum(entry.size for entry in core.table)
        self.network.trace.note(f"the store of {self.name} is full, for {seconds:g} s")
        try:
            async with self.store.create(ObjectID.from_name(f"somebody's {seconds}"), max(0, room - 64)):
                await trio.sleep(seconds)
        except StoreFullError:
            return  # it is

    def unplug(self, down_for: float) -> None:
        """Keep the machine from all others for so many seconds."""
        if self.program is not None:
            self.network.unplug(self.program, down_for)

    def kill(self, down_for: float) -> None:
        """Kill the program; after so many seconds it is started again."""
        if self.program is not None:
            self.network.trace.note(f"{self.name} is killed, for {down_for:g} s")
            self.kills += 1
            self._down_for = down_for
            del self.network.listeners[self.host, PORT]
            program, self.program = self.program, None
            program.die()
