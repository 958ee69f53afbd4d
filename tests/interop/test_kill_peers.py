"""kill -9 of either side of a transfer by version 2: it heals when the server is started again, or a client asks again.

The stores live on, in this process, so that everything that is sealed or removed can be looked at. A proxy holds the
transfer in the midst of a payload, before a DROP, or before the answer to one.
"""

import ipaddress
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio

from plasmastream.peer import Limits2, PeerClient, PeerRequest, Result, TransferKind, open_peer
from plasmastream.store import EmbeddedStore, NewObject, serve_store
from plasmastream.testing import Cut, Direction, Fault, FaultProxy, Script, Stall, open_fault_proxy
from tests.interop.nodes import MIB, Node
from tests.peer.conversations import Conversation, Kind, frames, sent_twice
from tests.peer.helpers import Objects, contents, fill, objects_of

CAPACITY = 128 * MIB
SIZES: Final = [(10, 0), (3 * MIB + 7, 30), (5, 5)]
LIMITS: Final = Limits2()
PATIENCE = 60.0
TOKEN = 0.3
"""Seconds for which a server keeps what a client has open that was killed."""

DROP, OUTCOMES = 4, 20  # docs/protocol.md

CLIENT = """
import sys, trio
from plasmastream import ObjectID
from plasmastream.peer import PeerClient, TransferKind
from plasmastream.store import NewObject, open_store

async def main(kind, port, path, *ids):
    ids = [ObjectID.from_hex(object_id) for object_id in ids]
    client = PeerClient("127.0.0.1", int(port), version=2)
    async with open_store(path) as store:
        if kind == "PUT":
            leases = await store.get(ids)
            await client.put([NewObject(lease.object_id, lease.data, lease.metadata) for lease in leases])
        else:
            await client.fetch(TransferKind[kind], ids, store)

trio.run(main, *sys.argv[1:])
"""


@attrs.define
class Case:
    """A transfer, and where it is when somebody is killed."""

    kind: Kind
    number: int
    """Which connection is held."""
    direction: Direction
    at: int

    @property
    def stall(self) -> Stall:
        """What holds it."""
        return Stall(self.at)

    @property
    def scripts(self) -> list[Script]:
        """For a proxy: when it lets go of what it holds, that is lost, as are the kernel's buffers with a machine."""
        faults: list[Fault] = [self.stall, Cut(self.at, reset=True)]
        script = Script(faults) if self.direction is Direction.TO_SERVER else Script([], faults)
        return [Script()] * self.number + [script]


@attrs.define
class Two:
    """Two stores in this process, each with a server beside it in a process of its own."""

    made: Conversation
    paths: tuple[str, str]
    nodes: list[Node] = attrs.Factory(list)
    """Those that run now."""
    started: list[Node] = attrs.Factory(list)
    """All that ever did."""

    def server_of(self, kind: Kind) -> int:
        """Which of the two is asked."""
        return 1 if kind is Kind.PUT else 0

    async def start(self, number: int, port: int = 0) -> None:
        """Start a server, at the port where the last one was."""
        start = partial(Node, self.paths[number], port=port, token=TOKEN)
        self.started.append(await trio.to_thread.run_sync(start))
        self.nodes[number : number + 1] = self.started[-1:]

    def add(self, prefix: str) -> Objects:
        """Put new objects into the source."""
        objects = objects_of(SIZES, prefix)
        self.made.objects.update(objects)
        fill(self.made.source, objects)
        return objects

    async def check(self, case: Case, objects: Objects, results: Sequence[Result]) -> None:
        """All of them have arrived, and a TAKE leaves none."""
        assert [str(result) for result in results if not result.is_success] == []
        assert self.made.wrong == []
        arrived = contents(self.made.target)
        assert {object_id: arrived.get(object_id) for object_id in objects} == objects
        if not case.kind.deletes:
            assert objects.items() <= contents(self.made.source).items()
            return
        # What a server deletes it still holds itself, until its store has heard otherwise.
        with trio.fail_after(PATIENCE):
            while contents(self.made.source).keys() & objects.keys():  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.01)


@asynccontextmanager
async def open_two(directory: Path) -> AsyncIterator[Two]:
    """Two stores and their servers."""
    with EmbeddedStore(CAPACITY) as source, EmbeddedStore(CAPACITY) as target:
        two = Two(Conversation(Kind.TAKE, {}, source, target), (str(directory / "a"), str(directory / "b")))
        two.made.watch()
        async with trio.open_nursery() as nursery:
            for store, path in zip((source, target), two.paths, strict=True):
                await nursery.start(partial(serve_store, store.core, path))
            try:
                for number in range(2):
                    await two.start(number)
                yield two
            finally:
                for node in two.started:
                    node.kill()
                    node.close()
                    print(f"--- {node.name} ({node.pid})\n{node.stderr()}")
            assert not any("Traceback" in node.stderr() for node in two.started)
            nursery.cancel_scope.cancel()


async def ask(two: Two, case: Case, objects: Objects, port: int) -> list[Result]:
    """Carry out a transfer from this process."""
    client = PeerClient("127.0.0.1", port, version=2)
    try:
        if case.kind is Kind.PUT:
            news = [NewObject(object_id, *parts) for object_id, parts in objects.items()]
            return await client.put(news, timeout=PATIENCE)
        return await client.fetch(TransferKind[case.kind.name], list(objects), two.made.target, timeout=PATIENCE)
    finally:
        await client.aclose()


async def find_cases(two: Two) -> list[Case]:
    """Where to hold transfers, as an undisturbed TAKE shows."""
    async with open_fault_proxy("127.0.0.1", two.nodes[0].port, log_limit=MIB) as proxy:
        take = Case(Kind.TAKE, 0, Direction.TO_SERVER, 0)
        objects = two.add("undisturbed")
        results = await ask(two, take, objects, proxy.address[1])
        await two.check(take, objects, results)
        to_server, to_client = proxy.connections[0].to_server, proxy.connections[0].to_client
        (drop,) = [frame for frame in frames(bytes(to_server.log), to_server.direction) if frame.type == DROP]
        (answer,) = [frame for frame in frames(bytes(to_client.log), to_client.direction) if frame.type == OUTCOMES]
    middle = 3 * MIB // 2
    return [
        Case(Kind.COPY, 1, Direction.TO_CLIENT, middle),
        Case(Kind.TAKE, 1, Direction.TO_CLIENT, middle),
        Case(Kind.TAKE, 0, Direction.TO_SERVER, drop.start),
        Case(Kind.TAKE, 0, Direction.TO_CLIENT, answer.start),
        Case(Kind.PUT, 0, Direction.TO_SERVER, middle),
    ]


async def wait_until_held(proxy: FaultProxy, case: Case) -> None:
    """Wait until the transfer has come to where it is held."""
    connection = await proxy.wait_connection(case.number)
    await connection.wait_triggered(case.stall)


async def kill_when_held(two: Two, proxy: FaultProxy, case: Case, number: int) -> None:
    """Kill a server in the midst of a transfer, and start it again."""
    await wait_until_held(proxy, case)
    node = two.nodes[number]
    node.kill()
    proxy.release()
    await two.start(number, node.port)


async def test_a_server_is_killed_and_started_again(socket_directory: Path) -> None:
    async with open_two(socket_directory) as two:
        for case in await find_cases(two):
            objects, number = two.add(str(case)), two.server_of(case.kind)
            with trio.fail_after(PATIENCE):
                async with open_fault_proxy(
                    "127.0.0.1", two.nodes[number].port, case.scripts, log_limit=16 * MIB
                ) as proxy:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(kill_when_held, two, proxy, case, number)
                        results = await ask(two, case, objects, proxy.address[1])
                    await two.check(case, objects, results)
                    if case.kind is not Kind.PUT:  # what was put into a server that is no more went with it
                        heard = [bytes(connection.to_client.log) for connection in proxy.connections]
                        assert 0 <= sent_twice(objects, heard, Direction.TO_CLIENT, LIMITS) <= LIMITS.chunk_size


async def test_a_client_is_killed_and_another_asks_again(socket_directory: Path) -> None:
    async with open_two(socket_directory) as two:
        for case in await find_cases(two):
            objects, node = two.add(str(case)), two.nodes[two.server_of(case.kind)]
            with trio.fail_after(PATIENCE):
                async with open_fault_proxy("127.0.0.1", node.port, case.scripts) as proxy:
                    path = two.paths[0 if case.kind is Kind.PUT else 1]
                    arguments = [case.kind.name, str(proxy.address[1]), path, *(each.hex() for each in objects)]
                    client = await trio.lowlevel.open_process([sys.executable, "-c", CLIENT, *arguments])
                    try:
                        await wait_until_held(proxy, case)
                        assert client.poll() is None
                    finally:
                        client.kill()
                        await client.wait()
                    proxy.release()
                    await two.check(case, objects, await ask(two, case, objects, node.port))


async def test_a_server_that_fetches_is_killed_and_started_again(socket_directory: Path) -> None:
    async with open_two(socket_directory) as two:
        for case in await find_cases(two):
            if case.kind is not Kind.TAKE:
                continue
            objects, source, target = two.add(f"SYNC {case}"), *two.nodes
            with trio.fail_after(PATIENCE):
                async with (
                    open_fault_proxy("127.0.0.1", source.port, case.scripts) as proxy,
                    open_peer("127.0.0.1", target.port, version=2) as client,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(kill_when_held, two, proxy, case, 1)
                    address = ipaddress.IPv4Address("127.0.0.1")
                    request = PeerRequest(TransferKind.TAKE, address, proxy.address[1], tuple(objects))
                    (results,) = await client.sync_each([request], timeout=PATIENCE)
                await two.check(case, objects, results)
