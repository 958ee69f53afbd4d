"""Connections to a peer: how many, which are used again, what closed ones cost, and what is remembered of the peer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from plasmastream import LocalProtocolError, PeerError
from plasmastream.peer import Outcome, PeerClient, PeerServer, RefusedError, ServerTimeouts, Transport, UnreachableError
from plasmastream.peer._client import make_hello
from plasmastream.peer._lanes import Introduction, Lane, Lanes, OldPeerError
from plasmastream.store import EmbeddedStore
from plasmastream.testing import memory_transports
from plasmastream.wire.stream.v2 import Hello, Limits, ListObjects, Patience
from tests.peer.helpers import CAPACITY, serving

LIMITS = Limits()


class Peer:
    """A server without a network, which may be told to end connections, or to say nothing."""

    def __init__(self, server: PeerServer, nursery: trio.Nursery) -> None:
        self.server, self.nursery = server, nursery
        self.made = 0
        self.behaviour = "serves"

    async def connect(self, host: str, port: int, *, timeout: float) -> Transport:
        self.made += 1
        await trio.lowlevel.checkpoint()
        ours, theirs = memory_transports()
        match self.behaviour:
            case "serves":
                self.nursery.start_soon(self.server.serve_connection, theirs)
            case "ends":
                theirs.close()
            case "breaks":
                theirs.abort()
        return ours

    def lanes(self, *, may_fall_back: bool = True, hello: Hello | None = None) -> Lanes:
        introduction = Introduction(hello or make_hello(LIMITS), LIMITS, Patience(), 10.0, may_fall_back)
        return Lanes("peer", 2021, self.connect, introduction)


@asynccontextmanager
async def peer(timeouts: ServerTimeouts | None = None) -> AsyncIterator[Peer]:
    with EmbeddedStore(1 << 20) as store:
        async with trio.open_nursery() as nursery:
            yield Peer(PeerServer(store, timeouts=timeouts), nursery)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("lane", Lane)
async def test_a_lane_has_so_many_connections_and_no_more(lane: Lane) -> None:
    async with peer() as there:
        lanes = there.lanes()
        go_on = trio.Event()

        async def use(lane: Lane) -> None:
            async with lanes.channel(lane):
                await go_on.wait()

        async with trio.open_nursery() as nursery:
            for _ in range(lane.value + 3):
                nursery.start_soon(use, lane)
            await wait_all_tasks_blocked()
            assert lanes.in_use == there.made == lane.value
            other = next(each for each in Lane if each is not lane)
            async with lanes.channel(other):  # which has places of its own
                assert there.made == lane.value + 1
            go_on.set()
        assert lanes.in_use == 0
        assert there.made == lane.value + 1  # those who waited went over connections that had become free
        lanes.close()
        assert str(lanes) == "peer:2021"


async def test_a_connection_is_used_again_unless_its_request_broke_off() -> None:
    async with peer() as there:
        lanes = there.lanes()
        for _ in range(3):
            async with lanes.channel(Lane.SMALL) as channel:
                await channel.send(ListObjects())
                while await channel.answer() is not None:
                    pass
        assert there.made == 1
        with pytest.raises(ZeroDivisionError):
            async with lanes.channel(Lane.SMALL):
                raise ZeroDivisionError
        assert lanes.in_use == 0
        async with lanes.channel(Lane.SMALL) as channel:
            await channel.send(ListObjects())  # whose answer nobody takes
        assert there.made == 2
        async with lanes.channel(Lane.SMALL):
            assert there.made == 3
        lanes.close()


async def test_a_connection_that_the_server_has_closed_is_replaced(autojump_clock: MockClock) -> None:
    async with peer(ServerTimeouts(idle=10)) as there:
        lanes = there.lanes()
        async with lanes.channel(Lane.SMALL):
            pass
        await trio.sleep(20)
        async with lanes.channel(Lane.SMALL) as channel:
            assert there.made == 2
            await channel.send(ListObjects())
            while await channel.answer() is not None:
                pass
        lanes.close()


async def test_what_is_closed_while_it_is_used_is_not_kept() -> None:
    async with peer() as there:
        lanes = there.lanes()
        async with lanes.channel(Lane.SMALL):
            lanes.close_idle()
        async with lanes.channel(Lane.SMALL):
            assert there.made == 1  # close_idle() is about what is idle, then
            lanes.close()
        async with lanes.channel(Lane.SMALL):
            assert there.made == 2


@pytest.mark.parametrize("end", ["ends", "breaks"])
async def test_an_old_peer_is_remembered_when_it_has_proven_that_it_is_one(
    end: str, autojump_clock: MockClock
) -> None:
    async with peer() as there:
        lanes = there.lanes()
        there.behaviour = end
        for made in (1, 2, 3):  # which may be chance
            with pytest.raises(OldPeerError, match="peer:2021 speaks version 1"):
                async with lanes.channel(Lane.SMALL):
                    pytest.fail("opened")
            assert there.made == made
            assert not lanes.is_old
        lanes.note_old()
        for seconds, made in ((0, 3), (599, 3), (2, 4)):
            await trio.sleep(seconds)
            with pytest.raises(OldPeerError, match="peer:2021 speaks version 1"):
                async with lanes.channel(Lane.SMALL):
                    pytest.fail("opened")
            assert there.made == made
        there.behaviour = "serves"  # a newer server was started there
        async with lanes.channel(Lane.SMALL):
            pass
        lanes.close()


@pytest.mark.parametrize("end", ["ends", "breaks"])
async def test_who_has_spoken_version_2_is_not_old(end: str) -> None:
    async with peer() as there:
        lanes = there.lanes()
        async with lanes.channel(Lane.SMALL):
            pass
        there.behaviour = end
        for _ in range(2):
            with pytest.raises(PeerError, match="before the greeting") as caught:
                async with lanes.channel(Lane.LARGE):
                    pytest.fail("opened")
            assert not isinstance(caught.value, OldPeerError)
        there.behaviour = "serves"
        async with lanes.channel(Lane.LARGE):
            pass
        lanes.close()


async def test_where_only_version_2_will_do_nobody_is_old() -> None:
    async with peer() as there:
        lanes = there.lanes(may_fall_back=False)
        there.behaviour = "ends"
        for made in (1, 2):
            with pytest.raises(PeerError, match="before the greeting"):
                async with lanes.channel(Lane.SMALL):
                    pytest.fail("opened")
            assert there.made == made


async def test_silence_is_no_answer(autojump_clock: MockClock) -> None:
    async with peer() as there:
        lanes = there.lanes()
        there.behaviour = "says nothing"
        for _ in range(2):
            start = trio.current_time()
            with pytest.raises(UnreachableError):
                async with lanes.channel(Lane.SMALL):
                    pytest.fail("opened")
            assert trio.current_time() - start == pytest.approx(Patience().hello)


async def test_who_meets_itself_is_told() -> None:
    async with peer() as there:
        lanes = there.lanes(hello=there.server._services.hello)
        with pytest.raises(RefusedError, match="is this server itself") as caught:
            async with lanes.channel(Lane.SMALL):
                pytest.fail("opened")
        assert caught.value.outcome == Outcome.REFUSED


async def test_a_client_belongs_to_a_thread_until_it_is_closed() -> None:
    with EmbeddedStore(CAPACITY) as store:
        async with serving(store) as server:
            client = PeerClient(*server.address)

            def use() -> None:
                trio.run(client.list_objects)

            await client.list_objects()
            with pytest.raises(LocalProtocolError, match="belongs to another thread"):
                await trio.to_thread.run_sync(use)
            assert await client.list_objects() == []
            await client.aclose()
            await trio.to_thread.run_sync(use)
            await client.aclose()
