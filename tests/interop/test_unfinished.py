"""What a failed or cancelled transfer of version 1 leaves in the store: nothing, so that it can be repeated.

Of version 2, all that arrived whole.
"""

import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

from plasmastream import ObjectID, PeerError, StoreFullError, TransferError
from plasmastream.peer import IncompleteError, Outcome, PeerClient, PeerTimeouts
from plasmastream.store import EmbeddedStore, ObjectStore, open_store
from tests.apache import ApacheStore, StoreFactory
from tests.interop.conftest import NodeFactory, OurStoreFactory
from tests.interop.nodes import MIB, Node, RawPeer, Relay, StoreProcess, put, states, sync_bytes, wait_until
from tests.peer.helpers import open_version_1, version_1

LARGE, MIDDLE = ObjectID.from_name("large"), ObjectID.from_name("middle")
SMALL = [ObjectID.from_name(f"small {number}") for number in range(10)]
IDS = [*SMALL[:5], MIDDLE, *SMALL[5:], LARGE]
BYSTANDER = ObjectID.from_name("bystander")
SIZE = 40 * MIB
MEMORY = SIZE + 10 * MIB
HOLD = 25 * MIB

OpenStore = Callable[[], Any]


# Both event loops and all kinds of store, without every pair of them.
PLACES = [("trio", "embedded"), ("asyncio", "embedded"), ("asyncio", "ours"), ("trio", "apache")]


@pytest.fixture(params=PLACES, ids="-".join)
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The event loop that the test runs on, and the kind of the store."""
    pair: tuple[str, str] = request.param
    return pair


@pytest.fixture
def run(place: tuple[str, str]) -> Callable[[Callable[[], Any]], Any]:
    """Run an async function on the event loop, within 30 seconds."""

    def run_it(function: Callable[[], Any]) -> Any:
        async def bounded() -> Any:
            with anyio.fail_after(30):
                return await function()

        return anyio.run(bounded, backend=place[0])

    return run_it


@pytest.fixture
def source(node: NodeFactory) -> Node:
    source = node(MEMORY)
    put(source.socket_path, {LARGE: (b"l" * SIZE, b"ml"), MIDDLE: (b"m" * MIB, b"mm")})
    put(source.socket_path, {object_id: (object_id * 10, b"s") for object_id in SMALL})
    return source


@pytest.fixture
def open_destination(
    place: tuple[str, str], apache_store: StoreFactory, our_store: OurStoreFactory
) -> OpenStore:
    """A function that opens the store: in this process, or in one of its own."""
    external: StoreProcess | ApacheStore | None = None
    if place[1] != "embedded":
        external = our_store(MEMORY) if place[1] == "ours" else apache_store(MEMORY)

    @asynccontextmanager
    async def open_it() -> AsyncIterator[ObjectStore]:
        if external is not None:
            async with open_store(external.socket_path) as client:
                await client.put(b"not concerned", object_id=BYSTANDER)
                # Held, since Apache's store evicts what it can before it says that it is full.
                (lease,) = await client.get([BYSTANDER])
                assert lease is not None
                yield client
        else:
            with EmbeddedStore(MEMORY) as store:
                async with store.create(BYSTANDER, 3) as unsealed:
                    await unsealed.seal()
                yield store

    return open_it


async def names(store: ObjectStore) -> set[ObjectID]:
    return {info.object_id for info in await store.list_objects()}


async def check_all_arrived(store: ObjectStore) -> None:
    leases = await store.get([LARGE, MIDDLE, *SMALL])
    expected = [(b"l" * SIZE, b"ml"), (b"m" * MIB, b"mm"), *((object_id * 10, b"s") for object_id in SMALL)]
    for lease, (data, metadata) in zip(leases, expected, strict=True):
        assert lease is not None
        with lease:
            assert lease.data == data
            assert lease.metadata == metadata


@pytest.mark.parametrize("verb", ["copy", "take"])
def test_cancelled_in_the_middle(
    verb: str, source: Node, open_destination: OpenStore, run: Callable[[Callable[[], Any]], Any]
) -> None:
    async def scenario() -> None:
        async with open_destination() as store, anyio.create_task_group() as tasks:
            ended = anyio.Event()

            async def transfer(scope: anyio.CancelScope) -> None:
                with scope:
                    async with open_version_1("127.0.0.1", relay.port) as peer:
                        await getattr(peer, verb)(IDS, store)
                ended.set()

            scope = anyio.CancelScope()
            tasks.start_soon(transfer, scope)
            await anyio.to_thread.run_sync(relay.wait_until_held)
            infos = await store.list_objects()
            assert {info.object_id for info in infos if not info.digest} == {LARGE}
            assert {info.object_id for info in infos} == {*IDS, BYSTANDER}
            scope.cancel()
            await ended.wait()
            assert scope.cancelled_caught
            assert await names(store) == {BYSTANDER}
            relay.release()
            async with open_version_1("127.0.0.1", relay.port) as peer:
                await getattr(peer, verb)(IDS, store)
            await check_all_arrived(store)

    with Relay(source.port, HOLD) as relay:
        run(scenario)
    if verb == "take":
        wait_until(lambda: not states(source.socket_path), 5, "what was taken is deleted")
    else:
        assert set(states(source.socket_path)) == set(IDS)


def test_the_peer_dies_in_the_middle(
    source: Node, open_destination: OpenStore, run: Callable[[Callable[[], Any]], Any], node: NodeFactory
) -> None:
    async def scenario() -> None:
        async with open_destination() as store, anyio.create_task_group() as tasks:

            async def kill() -> None:
                await anyio.to_thread.run_sync(relay.wait_until_held)
                await anyio.to_thread.run_sync(source.kill)
                relay.release()

            tasks.start_soon(kill)
            async with open_version_1("127.0.0.1", relay.port) as peer:
                with pytest.raises(PeerError, match=LARGE.hex()):
                    await peer.copy(IDS, store)
            assert await names(store) == {BYSTANDER}

    with Relay(source.port, HOLD) as relay:
        run(scenario)


def test_the_peer_falls_silent_in_the_middle(
    source: Node, open_destination: OpenStore, run: Callable[[Callable[[], Any]], Any]
) -> None:
    async def scenario() -> None:
        async with open_destination() as store:
            peer = version_1("127.0.0.1", relay.port, timeouts=PeerTimeouts(progress=0.3))
            with pytest.raises(PeerError, match=LARGE.hex()):
                await peer.copy(IDS, store)
            assert await names(store) == {BYSTANDER}
            relay.release()
            await peer.copy(IDS, store)
            await check_all_arrived(store)
            await peer.aclose()

    with Relay(source.port, HOLD) as relay:
        run(scenario)


def test_the_store_is_full_in_the_middle(
    source: Node, open_destination: OpenStore, run: Callable[[Callable[[], Any]], Any]
) -> None:
    async def scenario() -> None:
        async with open_destination() as store:
            peer = version_1("127.0.0.1", source.port, timeouts=PeerTimeouts(store=0.1))
            filler = ObjectID.from_name("filler")
            async with store.create(filler, 15 * MIB):
                with pytest.raises(StoreFullError):
                    await peer.copy(IDS, store)
                assert await names(store) == {BYSTANDER, filler}
            await peer.copy(IDS, store)
            await check_all_arrived(store)
            # And one that is missing leaves nothing either.
            await store.delete(IDS)
            with pytest.raises(TransferError):
                await peer.copy([*IDS, filler], store)
            assert await names(store) == {BYSTANDER}
            await peer.aclose()

    run(scenario)


def test_what_arrived_whole_by_version_2_stays(
    source: Node, open_destination: OpenStore, run: Callable[[Callable[[], Any]], Any]
) -> None:
    async def scenario() -> None:
        async with open_destination() as store:
            peer = PeerClient("127.0.0.1", source.port, timeouts=PeerTimeouts(store=0.1, retry=0.5))
            filler = ObjectID.from_name("filler")
            async with store.create(filler, 15 * MIB):
                with pytest.raises(IncompleteError) as caught:
                    await peer.copy(IDS, store)
                outcomes = {result.object_id: result.outcome for result in caught.value.results}
                assert outcomes == {**dict.fromkeys(IDS, Outcome.DONE), LARGE: Outcome.NO_ROOM}
                assert await names(store) == {BYSTANDER, filler, *IDS} - {LARGE}
            with pytest.raises(IncompleteError, match=filler.hex()) as caught:
                await peer.copy([*IDS, filler], store)
            outcomes = {result.object_id: result.outcome for result in caught.value.results}
            present = dict.fromkeys(IDS, Outcome.PRESENT)
            assert outcomes == {**present, LARGE: Outcome.DONE, filler: Outcome.NOT_FOUND}
            await check_all_arrived(store)
            await peer.aclose()

    run(scenario)


def test_the_destination_server_is_ended_in_order_in_the_middle(
    source: Node, our_store: OurStoreFactory, node: NodeFactory
) -> None:
    store = our_store(MEMORY)
    destination = node(store)
    with Relay(source.port, HOLD) as relay, RawPeer(destination.port) as client:
        client.send(sync_bytes([relay.request(IDS)]))
        relay.wait_until_held()
        wait_until(lambda: states(store.socket_path).get(LARGE) is False, 5, "it is being written")
        destination.signal(signal.SIGTERM)
        time.sleep(0.2)
        destination.terminate(5)  # the second signal does not wait for what is under way
        assert client.is_closed()
        wait_until(lambda: not states(store.socket_path), 5, "nothing is left in the store")
