"""Who interrupts a transfer and begins it anew, as another client, finds nothing of the old one in his way."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from plasmastream.peer import PeerClient
from plasmastream.store import NewObject
from plasmastream.testing import CallFault
from tests.peer.helpers import contents, objects_of
from tests.peer.world import NEAR, World, open_world

LARGE = objects_of([(40_000, 10)])
"""More than a quarter of the store, which is what one peer may have held."""

Ask = Callable[[World, PeerClient], Awaitable[object]]


async def copy(world: World, client: PeerClient) -> None:
    """Copy it."""
    await client.copy(list(LARGE), world.here)


async def take(world: World, client: PeerClient) -> None:
    """Take it."""
    await client.take(list(LARGE), world.here)


async def put(world: World, client: PeerClient) -> None:
    """Put it."""
    results = await client.put([NewObject(object_id, data, meta) for object_id, (data, meta) in LARGE.items()])
    assert all(result.is_success for result in results), results


@pytest.mark.parametrize(
    ("first", "second"), [(copy, copy), (take, copy), (take, take), (copy, take), (put, put)], ids=str
)
async def test_what_was_interrupted_is_not_in_the_way(first: Ask, second: Ask, autojump_clock: MockClock) -> None:
    async with open_world(near={} if first is put else LARGE) as world:
        connection = 1 if first is put else 2  # large objects go over connections of their own
        world.let_happen(connection, "client", CallFault.stall(20))
        with trio.move_on_after(1) as interrupt:
            await first(world, world.client())
        assert interrupt.cancelled_caught
        began = trio.current_time()
        await second(world, world.client())
        assert trio.current_time() - began < 1
        assert contents(world.stores[NEAR] if first is put else world.here) == LARGE
        assert len(world.connections) <= (4 if first is put else 6)  # it went well at once
