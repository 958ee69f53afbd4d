"""TAKEs that rely on each other's copies, or on one that will not stay: no DROP follows where none does."""

import pytest
import trio

from plasmastream import PeerError
from plasmastream.peer import Outcome, PeerClient, PeerRequest, PeerServer, TransferKind, open_peer
from plasmastream.store import EmbeddedStore
from tests.peer.helpers import CAPACITY, Objects, connect_watched, contents, fill, objects_of, serving

SIZES = [(100, 0), (300_000, 5)] * 5


async def take_by(asked: PeerServer, source: PeerServer, objects: Objects) -> None:
    """Have one server take objects from another."""
    async with open_peer(*asked.address) as client:
        await client.sync_each([PeerRequest(TransferKind.TAKE, *source.address, tuple(objects))])


async def take_into(store: EmbeddedStore, source: PeerServer, objects: Objects) -> None:
    """Take objects into a store, past the server beside it."""
    async with open_peer(*source.address) as client:
        await client.fetch(TransferKind.TAKE, list(objects), store)


async def test_what_two_nodes_take_from_each_other_stays_at_one_of_them() -> None:
    objects = objects_of(SIZES)
    with EmbeddedStore(CAPACITY) as first, EmbeddedStore(CAPACITY) as second:
        fill(first, objects)
        fill(second, objects)
        async with serving(first) as one, serving(second) as other, trio.open_nursery() as nursery:
            nursery.start_soon(take_by, one, other, objects)
            nursery.start_soon(take_by, other, one, objects)
        assert {**contents(first), **contents(second)} == objects


async def test_what_goes_round_in_a_ring_is_not_lost() -> None:
    objects = objects_of(SIZES)
    with EmbeddedStore(CAPACITY) as a, EmbeddedStore(CAPACITY) as b, EmbeddedStore(CAPACITY) as c:
        fill(a, objects)
        async with serving(a) as first, serving(b) as second, serving(c) as third:
            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    for asked, source in ((first, second), (second, third), (third, first)):
                        nursery.start_soon(take_by, asked, source, objects)
                assert {**contents(a), **contents(b), **contents(c)} == objects


@pytest.mark.parametrize("repetition", range(5))
async def test_clients_of_both_stores_take_at_once(repetition: int) -> None:
    """Not through a server, which would know of its own TAKEs."""
    objects = objects_of(SIZES)
    with EmbeddedStore(CAPACITY) as first, EmbeddedStore(CAPACITY) as second:
        fill(first, objects)
        async with serving(first) as one, serving(second) as other:
            fill(second, objects)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take_into, second, one, objects)
                nursery.start_soon(take_into, first, other, objects)
        assert {**contents(first), **contents(second)} == objects


async def test_a_take_from_the_own_store_leaves_what_is_there() -> None:
    objects = objects_of(SIZES)
    with EmbeddedStore(CAPACITY) as store:
        fill(store, objects)
        async with serving(store) as server, open_peer(*server.address) as client:
            results = await client.fetch(TransferKind.TAKE, list(objects), store)
            assert {result.outcome for result in results} == {Outcome.NOT_DROPPED}
            assert all("others hold it" in result.reason for result in results)
        assert contents(store) == objects


async def test_a_copy_that_is_about_to_go_is_no_reason_to_delete() -> None:
    objects = objects_of(SIZES)
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(here, objects)
        fill(there, objects)
        leases = await here.get(list(objects))
        await here.delete(list(objects))
        async with serving(there) as server, open_peer(*server.address) as client:
            results = await client.fetch(TransferKind.TAKE, list(objects), here)
            assert {result.outcome for result in results} == {Outcome.NOT_DROPPED}
            assert all("about to be deleted" in result.reason for result in results)
        for lease in leases:
            assert lease is not None
            lease.release()
        assert contents(there) == objects


async def test_what_is_deleted_here_before_the_drop_stays_at_the_source() -> None:
    objects = objects_of(SIZES)
    drops: list[str] = []
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, objects)

        def delete_what_arrived(arrived: int, nbytes: int) -> None:
            for object_id in objects:
                here.core.delete(object_id)

        async with serving(there) as server:
            client = PeerClient(*server.address, version=2, connect=connect_watched(lambda: drops.append("one")))
            async with client:
                results = await client.fetch(
                    TransferKind.TAKE, list(objects), here, on_progress=delete_what_arrived
                )
            assert {result.outcome for result in results} == {Outcome.NOT_DROPPED}
            assert all("about to be deleted" in result.reason for result in results)
        assert not drops
        assert contents(there) == objects
        assert contents(here) == {}


@pytest.mark.parametrize("number", [0, len(SIZES) - 1])
async def test_a_drop_is_not_repeated_of_what_was_deleted_here_since(number: int) -> None:
    objects = objects_of(SIZES)
    deleted = list(objects)[number]
    drops: list[str] = []
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, objects)

        def delete_one_and_break() -> None:
            drops.append("one")
            if len(drops) == 1:
                here.core.delete(deleted)
                raise PeerError("the connection broke")

        async with serving(there) as server:
            async with PeerClient(*server.address, version=2, connect=connect_watched(delete_one_and_break)) as client:
                results = await client.fetch(TransferKind.TAKE, list(objects), here)
            outcomes = {result.object_id: result.outcome for result in results}
            assert outcomes.pop(deleted) == Outcome.NOT_DROPPED
            assert set(outcomes.values()) == {Outcome.DONE}
        assert len(drops) == 2
        assert contents(there) == {deleted: objects.pop(deleted)}
        assert contents(here) == objects


async def test_what_somebody_else_wrote_meanwhile_is_compared() -> None:
    objects = objects_of([(1_000_000, 0)])
    (object_id,) = objects
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, objects)
        async with serving(there) as server, open_peer(*server.address) as client, trio.open_nursery() as nursery:
            written = trio.Event()

            async def write() -> None:
                async with here.create(object_id, 1_000_000) as unsealed:
                    written.set()
                    await trio.sleep(0.3)
                    await unsealed.seal()

            nursery.start_soon(write)
            await written.wait()
            (result,) = await client.fetch(TransferKind.TAKE, [object_id], here, timeout=10)
            assert result.outcome == Outcome.DIFFERENT
        assert contents(there) == objects
        assert contents(here) != objects
