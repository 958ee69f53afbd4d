"""Version 2 of the protocol in a simulated world: objects with outcomes of their own, verified, tried again."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

from plasmastream import ObjectID
from plasmastream.peer import (
    Limits2,
    Outcome,
    PeerClient,
    PeerRequest,
    PeerServer,
    PeerTimeouts,
    Result,
    ServerTimeouts,
    _fetch,
)
from plasmastream.store import NewObject
from plasmastream.wire.stream.v2 import known_encodings
from tests.peer.helpers import contents
from tests.simulation.machine import PORT, Machine, Program
from tests.simulation.operations import Done, Operation, Promises

_PATIENT = PeerTimeouts(retry=400)
"""Longer than all trouble lasts."""


class Version2:
    """Version 2, in small measures: chunks of some hundred bytes, so that there are many of them.

    In some worlds nobody insists on it. There a fault before the first answer looks like a server of version 1, which
    is then spoken with, and whose promises are all that holds.
    """

    def __init__(self, chance: random.Random) -> None:
        self._insists = chance.random() < 0.85
        self._compression = chance.choice([None, None, None, *known_encodings()])
        self._limits = {
            name: Limits2(
                chunk_size=chance.choice([1_000, 4_096, 10_000, 1 << 20]),
                small_size=chance.choice([0, 100, 4_096, 65_536]),
                run_size=chance.choice([1, 1_000, 30_000]),
            )
            for name in ("client", "north", "south")
        }
        insists = self._insists
        chunk_size = max(limits.chunk_size for limits in self._limits.values())
        self.promises = Promises(insists, insists, insists, insists, chunk_size if insists else None)

        # Otherwise only what is much larger would be divided, over connections and into requests.
        self._share = chance.choice([7_000, 64 << 20])
        self._at_once = chance.choice([3, 4_096])

    @contextmanager
    def conditions(self) -> Iterator[None]:
        """See `Version`."""
        share = mock.patch.object(_fetch, "_SHARE", self._share)
        with share, mock.patch.object(_fetch, "_OPEN_AT_ONCE", self._at_once):
            yield

    @property
    def _version(self) -> int | None:
        return 2 if self._insists else None

    def server(self, program: Program) -> PeerServer:
        """See `Programs`."""
        server = PeerServer(
            program.store,
            timeouts=ServerTimeouts(fetching=_PATIENT),
            limits2=self._limits[program.name],
            connect=program.connect,
            fetch_version=self._version,
        )
        # What `PeerServer.serve` does besides listening.
        server._background = program.nursery
        program.daemons.start_soon(server._dispatcher.run)
        return server

    def client(self, program: Program, host: str, port: int) -> PeerClient:
        """See `Programs`."""
        return PeerClient(
            host,
            port,
            timeouts=_PATIENT,
            limits=self._limits[program.name],
            connect=program.connect,
            version=self._version,
        )

    async def perform(self, operation: Operation, program: Program) -> Done:
        """See `Version`."""
        is_sync = program.machine not in (operation.source, operation.target)
        is_put = program.machine is operation.source
        server = operation.target if is_sync or is_put else operation.source
        client = program.client_of(server.host, shared=operation.shares_client)
        assert isinstance(client, PeerClient)
        try:
            if is_sync:
                results = await self._sync(client, operation)
            elif is_put:
                results = await self._put(client, operation)
            else:
                results = await client.fetch(
                    operation.kind,
                    operation.object_ids,
                    program.store,
                    timeout=operation.timeout,
                    compression=self._compression,
                )
        finally:
            if not operation.shares_client:
                await client.aclose()
        for result in results:
            if not result.is_success:
                program.machine.network.trace.note(str(result))
        return Done(
            [result.object_id for result in results if result.is_success],
            [result.object_id for result in results if result.outcome == Outcome.DAMAGED],
        )

    async def _put(self, client: PeerClient, operation: Operation) -> Sequence[Result]:
        there = contents(operation.source.store)
        objects = [NewObject(object_id, *there[object_id]) for object_id in operation.object_ids]
        return await client.put(objects, timeout=operation.timeout, compression=self._compression)

    async def _sync(self, client: PeerClient, operation: Operation) -> Sequence[Result]:
        requests = [PeerRequest(operation.kind, operation.source.host, PORT, part) for part in operation.parts]
        # Version 1 has no other way to notice that the answer does not come.
        timeout = operation.timeout if self._insists else operation.timeout or 300
        results = await client.sync_each(
            requests, timeout=timeout, detach=operation.detaches, compression=self._compression
        )
        return sum(results, ())

    def in_chunks(self, size: int, source: Machine) -> bool:
        """See `Version`."""
        return size > self._limits[source.name].small_size

    def left_over(self, program: Program) -> Iterator[str]:
        """See `Version`."""
        server = program.server
        if len(server._services.holds):
            yield f"{len(server._services.holds)} tokens"
        if server._connections:
            yield f"a count of connections: {server._connections}"
        for name, admission in (("requests", server._services.admission), ("SYNCs", server._services.syncs)):
            if not admission.is_empty:
                yield f"{name} at work or waiting"
        claimed: set[ObjectID] = {*server._taking._claimed, *server._dispatcher._receiving._claimed}
        if claimed:
            yield f"claims to {len(claimed)} objects"
        for peer in server._dispatcher._peers.values():
            if peer.users or peer.client._lanes.has_any:
                yield f"connections to {peer.client}"
        fetches = server._dispatcher._fetches
        if fetches.value != fetches.max_value:
            yield f"{fetches.value} places of {fetches.max_value} for fetches"
