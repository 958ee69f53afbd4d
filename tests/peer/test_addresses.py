"""IPv6 from end to end, and IPv4 where a socket speaks both."""

import socket

import trio

from plasmastream.peer import Outcome, PeerClient, PeerRequest, TransferKind, parse_address
from plasmastream.peer._transport import format_address
from plasmastream.store import EmbeddedStore, NewObject
from tests.peer.helpers import CAPACITY, contents, fill, objects_of, serving

OBJECTS = objects_of([(10, 3), (200_000, 0)])
OTHERS = objects_of([(20, 0), (300_000, 5)], "other")


async def test_objects_travel_over_ipv6() -> None:
    """By COPY, PUT and SYNC, with addresses as they are written."""
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as near, EmbeddedStore(CAPACITY) as far:
        fill(near, OBJECTS)
        async with serving(near, host="::1") as server, serving(far, host="::1") as other:
            written = format_address(server.address)
            assert written == f"[::1]:{server.address[1]}"
            client = PeerClient(*parse_address(written))
            await client.copy(list(OBJECTS), here)
            assert contents(here) == OBJECTS
            new = [NewObject(object_id, *parts) for object_id, parts in OTHERS.items()]
            assert [result.outcome for result in await client.put(new)] == [Outcome.DONE] * len(new)
            assert contents(near) == OBJECTS | OTHERS
            assert list(server._connections) == ["[::1]"]
            await client.aclose()
            asking = PeerClient(*other.address)
            await asking.sync([PeerRequest(TransferKind.TAKE, "::1", server.address[1], tuple(OTHERS))])
            assert contents(far) == OTHERS
            assert contents(near) == OBJECTS
            ((result,),) = await asking.sync_each([PeerRequest(TransferKind.COPY, *other.address, tuple(OBJECTS)[:1])])
            assert (result.outcome, "itself" in result.reason) == (Outcome.REFUSED, True)
            await asking.aclose()


async def test_a_server_of_both_families_knows_an_ipv4_peer_by_its_address() -> None:
    with EmbeddedStore(CAPACITY) as store:
        async with serving(store, host="::") as server:
            for family, host, peer in ((socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")):
                client = PeerClient(host, server.address[1], version=2)
                assert await client.list_objects() == []
                assert list(server._connections) == [peer], family
                await client.aclose()
                with trio.fail_after(10):
                    while server._connections:  # noqa: ASYNC110 - nobody tells
                        await trio.sleep(0.001)
