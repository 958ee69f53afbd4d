"""A server of version 2 that stops, in the midst of transfers: what is under way may end, within the grace."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from plasmastream.peer import Outcome, PeerClient, PeerServer, PeerTimeouts, Result, TransferKind, Transport
from plasmastream.peer._transport import UnreachableError, connect
from plasmastream.store import EmbeddedStore
from tests.peer.helpers import contents, fill, objects_of
from tests.peer.world import assert_nothing_left
from tests.store.helpers import open_descriptors

FOR_EVER = 60.0
"""Seconds after which a test has failed."""

CAPACITY = 64 << 20
OBJECTS = objects_of([(100, 5), (16 << 20, 10), (5, 0)])
"""Small ones, and one that has no room in the buffers of a connection."""


class Midway:
    """A transfer over TCP that has come to the middle of its large objects, where it waits for `go_on`.

    Or to where they are opened, and are about to be read over a further connection.
    """

    def __init__(self, server: PeerServer, *, is_opened_only: bool) -> None:
        self.server = server
        self.is_opened_only = is_opened_only
        self.reached = trio.Event()
        self.go_on = trio.Event()
        self.stopped = trio.Event()
        self.done = trio.Event()
        self.results: list[Result] = []
        self._connections = 0

    async def connect(self, host: str, port: int, *, timeout: float) -> Transport:
        """See `plasmastream.peer.Connect`."""
        self._connections += 1
        if self.is_opened_only and self._connections == 2:
            self.reached.set()
            await self.go_on.wait()
        transport = await connect(host, port, timeout=timeout)
        if not self.is_opened_only and self._connections == 2:  # the first is for small objects
            real, calls = transport.receive_into, 0

            async def receive_into(buffer: memoryview, *, timeout: float, expected: int = 1) -> int:
                nonlocal calls
                calls += 1
                if calls == 4:  # after the greeting, and the beginning of a chunk
                    self.reached.set()
                    await self.go_on.wait()
                return await real(buffer, timeout=timeout, expected=expected)

            transport.receive_into = receive_into  # type: ignore[method-assign]
        return transport

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Let the server serve, and note its end."""
        await self.server.serve(task_status=task_status)
        self.stopped.set()


@asynccontextmanager
async def midway(
    kind: TransferKind, *, is_opened_only: bool = False
) -> AsyncIterator[tuple[Midway, EmbeddedStore, EmbeddedStore]]:
    """A transfer, its destination and its source. Nothing may be left of it in the end."""
    descriptors = open_descriptors()
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, OBJECTS)
        transfer = Midway(PeerServer(there, port=0), is_opened_only=is_opened_only)
        with trio.fail_after(FOR_EVER):
            async with trio.open_nursery() as nursery:
                await nursery.start(transfer.serve)
                host, port = transfer.server.address
                client = PeerClient(host, port, connect=transfer.connect, version=2, timeouts=PeerTimeouts(retry=0))

                async def fetch() -> None:
                    transfer.results = await client.fetch(kind, list(OBJECTS), here)
                    transfer.done.set()

                nursery.start_soon(fetch)
                await transfer.reached.wait()
                yield transfer, here, there
            await client.aclose()
        assert_nothing_left([client], [transfer.server], [here, there])
    assert open_descriptors() == descriptors


@pytest.mark.parametrize("kind", [TransferKind.COPY, TransferKind.TAKE])
async def test_a_transfer_under_way_comes_to_its_end(kind: TransferKind) -> None:
    """The client keeps its connections all the while: the server does not wait for them to the end of the grace."""
    async with midway(kind) as (transfer, here, there):
        transfer.server.shut_down(2 * FOR_EVER)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(UnreachableError):
            await connect(*transfer.server.address, timeout=1)
        assert not transfer.stopped.is_set()
        transfer.go_on.set()
        await transfer.stopped.wait()
        await transfer.done.wait()
        assert [result.outcome for result in transfer.results] == [Outcome.DONE] * len(OBJECTS)
        assert contents(here) == OBJECTS
        assert contents(there) == ({} if kind is TransferKind.TAKE else OBJECTS)


@pytest.mark.parametrize("kind", [TransferKind.COPY, TransferKind.TAKE])
async def test_when_the_grace_is_over_a_transfer_breaks_off(kind: TransferKind) -> None:
    async with midway(kind) as (transfer, here, there):
        transfer.server.shut_down(0.0)
        await transfer.stopped.wait()
        transfer.go_on.set()
        await transfer.done.wait()
        failed = [result for result in transfer.results if not result.is_success]
        assert failed
        assert {result.outcome for result in failed} <= {Outcome.BROKEN_OFF, Outcome.UNREACHABLE, Outcome.NOT_DROPPED}
        assert contents(here) | contents(there) == OBJECTS
        assert {result.object_id for result in failed} <= contents(there).keys()


@pytest.mark.parametrize("kind", [TransferKind.COPY, TransferKind.TAKE])
async def test_a_transfer_that_needs_a_further_connection_is_unreachable(kind: TransferKind) -> None:
    """Nobody listens any more. It ends at once, well before the grace does, and so does the server."""
    async with midway(kind, is_opened_only=True) as (transfer, here, there):
        transfer.server.shut_down(2 * FOR_EVER)
        await trio.testing.wait_all_tasks_blocked()
        assert not transfer.stopped.is_set()
        transfer.go_on.set()
        await transfer.done.wait()
        await transfer.stopped.wait()
        small, large, other = transfer.results
        assert small.is_success
        assert other.is_success
        assert large.outcome == Outcome.UNREACHABLE
        assert contents(here) | contents(there) == OBJECTS
        assert large.object_id in contents(there)
