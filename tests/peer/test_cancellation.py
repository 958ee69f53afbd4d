"""Version 2 when somebody is cancelled, at any call of any connection: nothing is lost, and nothing is left."""


import pytest
import trio
from trio.testing import MockClock

from plasmastream.testing import CallFault
from tests.peer.world import NEAR, OPERATIONS, TRANSFERS, Operation, assert_nothing_lost, open_world, points_of
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
