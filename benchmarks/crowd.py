"""A crowd: clients in this process, each of which asks a node for one small object after the other, by version 2."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import trio

from benchmarks.nodes import HOST, Node
from plasmastream import ObjectID
from plasmastream.peer import PeerClient, open_peer
from plasmastream.store import EmbeddedStore


def delays(
    node: Node, clients: int, ids: Sequence[ObjectID], meanwhile: Callable[[], Awaitable[object]]
) -> list[float]:
    """How long each client waited for each object, in seconds, for as long as something takes.

    Args:
        node: has the objects.
        clients: how many ask at once.
        ids: what they ask for.
        meanwhile: at its end they stop.
    """
    return trio.run(_delays, node, clients, ids, meanwhile)


async def _delays(
    node: Node, clients: int, ids: Sequence[ObjectID], meanwhile: Callable[[], Awaitable[object]]
) -> list[float]:
    over = trio.Event()
    found: list[float] = []
    async with AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(open_peer(str(HOST), node.port)) for _ in range(clients)]
        async with trio.open_nursery() as nursery:
            for index, client in enumerate(crowd):
                first = index % len(ids)
                nursery.start_soon(_ask, client, [*ids[first:], *ids[:first]], over, found)
            await meanwhile()
            over.set()
    return found


async def _ask(client: PeerClient, ids: Sequence[ObjectID], until: trio.Event, found: list[float]) -> None:
    with EmbeddedStore(1 << 20) as store:
        number = 0
        while not until.is_set():
            object_id = ids[number % len(ids)]
            began = trio.current_time()
            await client.copy([object_id], store)
            found.append(trio.current_time() - began)
            await store.delete([object_id])
            number += 1
