"""What a client or server may try by version 2: it changes, holds up and deletes nothing of others."""

import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial

import anyio
import lz4.block
import pytest
import trio
import zstandard
from trio.testing import MockClock
from xxhash import xxh3_64_intdigest

from plasmastream import ObjectID, PeerError
from plasmastream.peer import (
    Limits2,
    Outcome,
    PeerClient,
    PeerRequest,
    PeerTimeouts,
    Result,
    ServerTimeouts,
    TransferKind,
    Transport,
)
from plasmastream.peer import _put_server as put_server_module
from plasmastream.peer._channel import ClientChannel
from plasmastream.peer._client import make_hello
from plasmastream.peer._holds import Hold
from plasmastream.peer._incoming import Incoming
from plasmastream.peer._services import ServerChannel
from plasmastream.peer._transport import TcpTransport
from plasmastream.store import EmbeddedStore, Lease, Leases, NewObject
from plasmastream.testing import memory_transports
from plasmastream.wire.plasma import ErrorCode
from plasmastream.wire.stream.v2 import (
    MAGIC,
    AnyEvent,
    Close,
    Drop,
    Encoding,
    End,
    Listed,
    Message,
    Open,
    Outcomes,
    Patience,
    Progress,
    Put,
    Range,
    ServerConnection,
    Sizes,
    Stat,
    Want,
)
from plasmastream.wire.stream.v2._frames import CHUNK, FrameType, pack_frame
from tests.peer.helpers import CAPACITY, contents, fill, objects_of, serving
from tests.peer.world import FAR, LIMITS, NEAR, PORT, World, open_world

TOKEN = b"t" * 16
A, B = objects_of([(0, 0), (0, 0)], "attacked")
A_MOMENT = 0.001
"""Seconds of the mock clock, in which everything happens that needs no time."""


class Attacker:
    """A connection that sends what it likes."""

    def __init__(self, channel: ClientChannel) -> None:
        self.channel = channel

    async def ask(self, request: Message) -> AnyEvent:
        """Send a request, and return the first event of the answer."""
        await self.channel.send(request)
        return await self.channel.next_event()

    async def rest(self) -> dict[int, int]:
        """The rest of an answer: outcomes by index."""
        found: dict[int, int] = {}
        while not isinstance(event := await self.channel.next_event(), End):
            assert isinstance(event, Outcomes)
            found |= dict.fromkeys(event.indexes, event.outcome)
        assert event.outcome == Outcome.DONE
        return found

    def chunk(self, offset: int, data: bytes, index: int = 0) -> None:
        """Queue a chunk."""
        self.channel.connection.send_chunk(index, offset, memoryview(data))

    async def send_half(self) -> bytes:
        """Send what is queued but for the last bytes, and return those."""
        octets = b"".join(self.channel.connection.data_to_send())
        half = len(octets) // 2
        await self.channel.transport.send([octets[:half]], timeout=10)
        await trio.sleep(A_MOMENT)
        return octets[half:]


@asynccontextmanager
async def attackers(world: World, number: int, limits: Limits2 = LIMITS) -> AsyncIterator[list[Attacker]]:
    """Connections of one node."""
    hello = make_hello(limits)
    channels: list[ClientChannel] = []
    try:
        for _ in range(number):
            transport = await world.connect(NEAR, PORT, timeout=1)
            channels.append(await ClientChannel.greet(transport, hello, limits, Patience()))
        yield [Attacker(channel) for channel in channels]
    finally:
        for channel in channels:
            channel.abort()


def the_hold(world: World) -> Hold:
    return world.servers[NEAR]._services.holds._holds[TOKEN]


# Two connections that put the same


SIZES = pytest.mark.parametrize("chunk_size", [1000, 200_000], ids=["copied", "read to its place"])


@contextmanager
def broken_off(world: World, number: int) -> Iterator[None]:
    """The server is done with a connection by the end of the block."""
    assert not world.ended[number].is_set()
    yield
    assert world.ended[number].is_set()


async def begin_and_stop_half_way(attacker: Attacker, chunk_size: int) -> bytes:
    """Put an object of two chunks of "a", but for the end of the first; return that."""
    assert isinstance(await attacker.ask(Put(TOKEN, (A,), (Sizes(2 * chunk_size, 0),))), Want)
    attacker.channel.connection.send_object(0, 2 * chunk_size, b"")
    attacker.chunk(0, b"a" * chunk_size)
    return await attacker.send_half()


async def finish(attacker: Attacker, rest: bytes) -> None:
    """Send the rest of a chunk, which nobody takes."""

    async def send() -> None:
        await attacker.channel.transport.send([rest], timeout=10)
        await attacker.channel.next_event()

    with pytest.raises(PeerError):
        await send()
    await trio.sleep(A_MOMENT)


@SIZES
async def test_what_another_connection_seals_does_not_change(chunk_size: int, autojump_clock: MockClock) -> None:
    limits = Limits2(chunk_size=chunk_size, small_size=100, run_size=200)
    async with open_world(capacity=1_000_000, limits2=limits) as world, attackers(world, 2, limits) as (first, second):
        rest = await begin_and_stop_half_way(first, chunk_size)
        with broken_off(world, 0):
            want = await second.ask(Put(TOKEN, (A,), (Sizes(2 * chunk_size, 0),)))
            assert want == Want((Range(0, 0, 2 * chunk_size),))
            second.channel.connection.send_object(0, 2 * chunk_size, b"")
            second.chunk(0, b"b" * chunk_size)
            second.chunk(chunk_size, b"b" * chunk_size)
            await second.channel.send(Progress())
            assert await second.rest() == {0: Outcome.DONE}
            await finish(first, rest)
        assert contents(world.stores[NEAR]) == {A: (b"b" * 2 * chunk_size, b"")}


@SIZES
async def test_what_takes_the_memory_of_what_was_closed_does_not_change(
    chunk_size: int, autojump_clock: MockClock
) -> None:
    limits = Limits2(chunk_size=chunk_size, small_size=100, run_size=200)
    async with (
        open_world(capacity=3 * chunk_size, limits2=limits) as world,  # too little for two of them
        attackers(world, 2, limits) as (first, second),
    ):
        rest = await begin_and_stop_half_way(first, chunk_size)
        with broken_off(world, 0):
            assert await second.ask(Close(TOKEN)) == End()
            other = {B: (b"c" * 2 * chunk_size, b"")}
            fill(world.stores[NEAR], other)
            await finish(first, rest)
        assert contents(world.stores[NEAR]) == other


@SIZES
async def test_a_chunk_of_what_was_closed_is_not_credited_to_what_is_put_anew(
    chunk_size: int, autojump_clock: MockClock
) -> None:
    limits = Limits2(chunk_size=chunk_size, small_size=100, run_size=200)
    async with open_world(capacity=1_000_000, limits2=limits) as world, attackers(world, 3, limits) as ours:
        first, second, third = ours
        rest = await begin_and_stop_half_way(first, chunk_size)
        with broken_off(world, 0):
            assert await second.ask(Close(TOKEN)) == End()
            whole = Want((Range(0, 0, 2 * chunk_size),))
            assert await third.ask(Put(TOKEN, (A,), (Sizes(2 * chunk_size, 0),))) == whole
            third.channel.connection.send_object(0, 2 * chunk_size, b"")
            await third.channel.flush()
            await finish(first, rest)
        assert the_hold(world).incoming[A].nbytes_verified == 0
        assert await third.ask(Progress()) == whole
        assert not contents(world.stores[NEAR])


async def test_what_is_released_is_found_by_nobody_while_it_is_taken_back(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who puts the same again meanwhile must not write to it."""
    abort = Incoming.abort

    async def abort_slowly(incoming: Incoming) -> None:
        await trio.sleep(10)
        await abort(incoming)

    async with open_world() as world, attackers(world, 2) as (first, second), trio.open_nursery() as nursery:
        assert isinstance(await first.ask(Put(TOKEN, (A, B), (Sizes(2000, 0), Sizes(2000, 0)))), Want)
        first.channel.connection.send_object(0, 2000, b"")
        first.channel.connection.send_object(1, 2000, b"")
        await first.channel.flush()
        await trio.sleep(A_MOMENT)
        hold = the_hold(world)
        assert set(hold.incoming) == {A, B}
        with monkeypatch.context() as patch:
            patch.setattr(Incoming, "abort", abort_slowly)
            nursery.start_soon(second.ask, Close(TOKEN))
            await trio.sleep(1)
            assert not hold.incoming
            await trio.sleep(100)


# Many small pieces


async def test_many_holes_cost_others_nothing(autojump_clock: MockClock) -> None:
    count = 16_000
    data = bytes(range(250)) * (2 * count // 250)
    async with open_world(capacity=1_000_000) as world:
        world.room = 8 << 10  # all that a turn of the server can find
        async with attackers(world, 1) as (attacker,):

            async def send(first: int) -> None:
                attacker.channel.connection.send_object(0, len(data), b"")
                for at in range(first, len(data), 2):
                    attacker.chunk(at, data[at : at + 1])
                await attacker.channel.send(Progress())

            assert isinstance(await attacker.ask(Put(TOKEN, (A,), (Sizes(len(data), 0),))), Want)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, 1)
                hold = the_hold(world)
                while A not in hold.incoming or not hold.incoming[A].nbytes_verified:
                    await trio.lowlevel.checkpoint()
                assert await world.client().stat([A])
                assert hold.incoming[A].nbytes_verified < count // 2
            want = await attacker.channel.next_event()
            assert isinstance(want, Want)
            assert want.ranges == tuple(Range(0, at, 1) for at in range(0, len(data), 2))
            await send(0)
            assert await attacker.rest() == {0: Outcome.DONE}
            assert contents(world.stores[NEAR]) == {A: (data, b"")}


@pytest.mark.parametrize("objects", [1, 30])
async def test_what_one_want_does_not_name_the_next_one_does(
    objects: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many it takes, none of it counts as damage."""
    monkeypatch.setattr(put_server_module, "_WANTED_AT_ONCE", 5)
    ids, size = list(objects_of([(0, 0)] * objects, "wanted")), 600 // objects
    async with open_world() as world, attackers(world, 1) as (attacker,):
        put = Put(TOKEN, tuple(ids), tuple(Sizes(200 + size, 0) for _ in ids))
        event = await attacker.ask(put)
        for index in range(objects):
            attacker.channel.connection.send_object(index, 200 + size, b"")
            for at in range(1, 200 + size, 10):
                attacker.chunk(at, b"x", index)
        event = await attacker.ask(Progress())
        wants = 0
        while isinstance(event, Want):
            wants += 1
            assert 0 < len(event.ranges) <= 5
            for wanted in event.ranges:
                attacker.chunk(wanted.offset, b"x" * wanted.length, wanted.what)
            event = await attacker.ask(Progress())
        assert isinstance(event, Outcomes)
        assert event.outcome == Outcome.DONE
        assert len(event.indexes) == objects
        assert wants > 10


async def test_metadata_counts_in_what_one_peer_may_have_under_way(autojump_clock: MockClock) -> None:
    """A quarter of the store, here 25,000 bytes."""
    metadata = bytes(13_000)
    async with open_world() as world, attackers(world, 1) as (attacker,):
        assert isinstance(await attacker.ask(Put(TOKEN, (A, B), (Sizes(1000, len(metadata)),) * 2)), Want)
        attacker.channel.connection.send_object(0, 1000, metadata)
        attacker.channel.connection.send_object(1, 1000, metadata)
        assert await attacker.ask(Progress()) == Want((Range(0, 0, 1000),))
        attacker.chunk(0, bytes(1000))
        await attacker.channel.send(Progress())
        assert await attacker.rest() == {0: Outcome.DONE, 1: Outcome.NO_ROOM}
        assert contents(world.stores[NEAR]) == {A: (bytes(1000), metadata)}


# Payloads that are not what they say


@pytest.mark.parametrize(
    ("encoding", "payload"),
    [
        (Encoding.ZSTD, zstandard.ZstdCompressor().compress(bytes(10 << 20))),
        (Encoding.ZSTD, zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))),
        (Encoding.ZSTD, bytes(100)),
        (Encoding.LZ4, lz4.block.compress(bytes(100_000), store_size=False)),
        (Encoding.LZ4, lz4.block.compress(bytes(999), store_size=False)),
    ],
    ids=["zstd, too much", "zstd, who knows how much", "no zstd", "lz4, too much", "lz4, too little"],
)
async def test_a_payload_that_expands_to_something_else_is_damage(
    encoding: Encoding, payload: bytes, autojump_clock: MockClock
) -> None:
    """It says that it has 1,000 bytes. Three times is enough; nobody else notices."""
    async with open_world(near={B: (b"b", b"")}) as world, attackers(world, 1) as (attacker,):
        want = await attacker.ask(Put(TOKEN, (A,), (Sizes(1000, 0),)))
        for _ in range(3):
            assert want == Want((Range(0, 0, 1000),))
            connection = attacker.channel.connection
            connection.send_object(0, 1000, b"")
            body = CHUNK.pack(0, encoding, 0, 1000, len(payload), xxh3_64_intdigest(bytes(1000)))
            head = pack_frame(FrameType.CHUNK, connection._tag, body)
            await attacker.channel.transport.send([*connection.data_to_send(), head, payload], timeout=10)
            want = await attacker.ask(Progress())
            assert await world.client().stat([B])
        assert want == Outcomes(0, Outcome.DAMAGED, "", (0,))
        assert await attacker.rest() == {}
        assert contents(world.stores[NEAR]) == {B: (b"b", b"")}


# Slow, but fast enough


async def test_who_is_just_fast_enough_is_served_and_holds_up_nobody(autojump_clock: MockClock) -> None:
    """Of a request that comes at 4 KiB a second: it pins no more than has come of it."""
    step, pause = 29 * 4300, 29.0
    ids = tuple(ObjectID.from_name(f"slow {number}") for number in range(50_000))
    async with open_world(near={B: (b"b", b"")}) as world, attackers(world, 1) as (attacker,):
        world.room = 1 << 20
        connection = attacker.channel.connection
        connection.send(Stat((*ids, B)))
        octets = b"".join(connection.data_to_send())
        for at in range(0, len(octets), step):
            await attacker.channel.transport.send([octets[at : at + step]], timeout=10)
            await trio.sleep(pause)
            assert await world.client().stat([B])
        event = await attacker.channel.next_event()
        assert isinstance(event, Listed)
        assert event.object_ids == (B,)
        assert trio.current_time() >= 200


# Silence, and signs of life without an end


@pytest.mark.parametrize("said", [b"", MAGIC[:1], MAGIC, MAGIC + b"\1", b"\2"], ids=repr)
async def test_connections_of_one_peer_that_ask_nothing_leave_room_for_another(said: bytes) -> None:
    async def connect(host: str, port: int, *, timeout: float) -> Transport:
        await trio.lowlevel.checkpoint()
        return TcpTransport(socket.create_connection((host, port), timeout, source_address=("127.0.0.2", 0)))

    with EmbeddedStore(CAPACITY) as store:
        fill(store, objects_of([(100, 0)]))
        patient = ServerTimeouts(greeting=30)
        async with serving(store, max_connections=4, timeouts=patient) as server, AsyncExitStack() as silent:
            for _ in range(4):
                stream = await silent.enter_async_context(await trio.open_tcp_stream(*server.address))
                if said:
                    await stream.send_all(said)
            client = PeerClient(*server.address, connect=connect, timeouts=PeerTimeouts(greeting=25))
            with trio.fail_after(25):  # they might be silent for 30 s, but for the one that is too many
                assert len(await client.list_objects()) == 1
            assert server._connections == {"127.0.0.1": 3, "127.0.0.2": 1}
            await client.aclose()


async def test_dead_peers_do_not_keep_a_live_one_waiting(autojump_clock: MockClock) -> None:
    objects = objects_of([(2500, 0), (50, 0)])
    async with open_world(far=objects) as world, trio.open_nursery() as nursery:
        world.servers[NEAR]._dispatcher._fetches = anyio.Semaphore(2, max_value=2, fast_acquire=True)
        dead = [f"10.0.1.{number}" for number in range(1, 9)]
        world._dead.update(dead)
        requests = [PeerRequest(TransferKind.COPY, host, PORT, (ObjectID.from_name(host),)) for host in dead]
        nursery.start_soon(partial(world.client().sync_each, requests, timeout=100))
        await trio.sleep(1)
        began = trio.current_time()
        (results,) = await world.client().sync_each([PeerRequest(TransferKind.COPY, FAR, PORT, tuple(objects))])
        assert all(result.is_success for result in results)
        assert trio.current_time() - began < 5
        assert contents(world.stores[NEAR]) == objects


async def live_for_ever(transport: Transport) -> None:
    """A server that answers any request with signs of life; a PUT with what it wanted already."""
    patience = Patience()
    connection = ServerConnection(make_hello(LIMITS), trio.current_time(), limits=LIMITS, patience=patience)
    channel = ServerChannel(connection, transport, patience)
    try:
        await transport.receive_into(memoryview(bytearray(len(MAGIC))), timeout=1)
        await channel.next_event()
        connection.greet()
        await channel.flush()
        request = await channel.next_event()
        while True:
            await trio.sleep(1)
            if isinstance(request, Put):
                await channel.send(Want((Range(0, 0, 2500),)))
                while not isinstance(await channel.next_event(), Progress):
                    connection.discard_chunk()
            else:
                await channel.send(Progress())
    except PeerError:
        transport.abort()


@pytest.mark.parametrize("operation", ["COPY", "PUT"])
async def test_a_server_that_only_lives_is_given_up(operation: str, autojump_clock: MockClock) -> None:
    with EmbeddedStore(CAPACITY) as store:
        async with trio.open_nursery() as nursery:

            async def connect(host: str, port: int, *, timeout: float) -> Transport:
                ours, theirs = memory_transports()
                nursery.start_soon(live_for_ever, theirs)
                return ours

            client = PeerClient(NEAR, PORT, connect=connect, limits=LIMITS, version=2, timeouts=PeerTimeouts(retry=6))
            result: Result
            with trio.fail_after(100):
                if operation == "COPY":
                    (result,) = await client.fetch(TransferKind.COPY, [A], store)
                else:
                    (result,) = await client.put([NewObject(A, bytes(2500))])
            assert trio.current_time() >= 10 * 6
            assert not result.is_success
            assert "signs of life, and nothing else" in result.reason
            await client.aclose()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("sizes", [50, 2500])
async def test_a_server_that_says_nothing_of_an_object_is_named(sizes: int, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:

        async def end_all(transport: Transport) -> None:
            connection = ServerConnection(make_hello(LIMITS), trio.current_time(), limits=LIMITS)
            channel = ServerChannel(connection, transport, Patience())
            await transport.receive_into(memoryview(bytearray(len(MAGIC))), timeout=1)
            await channel.next_event()
            connection.greet()
            await channel.flush()
            while isinstance(await channel.next_event(), Put):
                await channel.send(End())
            transport.abort()

        async def connect(host: str, port: int, *, timeout: float) -> Transport:
            ours, theirs = memory_transports()
            ours.peer = f"{host}:{port}"
            nursery.start_soon(end_all, theirs)
            return ours

        client = PeerClient(NEAR, PORT, connect=connect, limits=LIMITS, version=2, timeouts=PeerTimeouts(retry=6))
        (result,) = await client.put([NewObject(A, bytes(sizes))])
        assert result.outcome == Outcome.BROKEN_OFF
        assert "10.0.0.1:2021 ended the PUT, and did not say what became of it" in result.reason
        await client.aclose()


# A store that is not the one it was


class ReplacedStore(EmbeddedStore):
    """A door to a store that may be restarted: then another one is there."""

    other: EmbeddedStore | None = None

    async def get(self, object_ids: Sequence[ObjectID], *, timeout: float | None = 0.0) -> Leases[Lease | None]:
        """See `ObjectStore`."""
        if self.other is not None:
            return await self.other.get(object_ids, timeout=timeout)
        return await super().get(object_ids, timeout=timeout)

    async def delete(self, object_ids: Sequence[ObjectID]) -> list[ErrorCode]:
        """See `ObjectStore`."""
        return await (self.other.delete(object_ids) if self.other is not None else super().delete(object_ids))


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_another_object_of_the_id_that_was_taken_is_not_deleted(
    is_replaced: bool, autojump_clock: MockClock
) -> None:
    objects, others = {A: (b"a" * 50, b"")}, {A: (b"b" * 50, b"")}
    with EmbeddedStore(CAPACITY) as other:
        fill(other, others)
        async with open_world(near=objects, store=ReplacedStore) as world, attackers(world, 1) as (taker,):
            store = world.stores[NEAR]
            assert isinstance(store, ReplacedStore)
            await taker.channel.send(Open(TOKEN, True, 0, (A,)))
            while not isinstance(await taker.channel.next_event(), End):
                pass
            store.other = other if is_replaced else None
            await taker.channel.send(Drop(TOKEN, (A,)))
            assert await taker.rest() == {0: Outcome.EXPIRED if is_replaced else Outcome.DONE}
            assert contents(other) == others
            assert bool(contents(store)) is is_replaced


async def test_an_object_that_is_taken_anew_after_its_drop_is_dropped_anew(autojump_clock: MockClock) -> None:
    """Under the same token, which remembers the first drop, as long as the answer may have been lost."""
    async with open_world(near={A: (b"a" * 50, b"")}) as world, attackers(world, 1) as (taker,):
        store = world.stores[NEAR]
        for content in ({A: (b"b" * 50, b"")}, {}):
            await taker.channel.send(Open(TOKEN, True, 0, (A,)))
            while not isinstance(await taker.channel.next_event(), End):
                pass
            await taker.channel.send(Drop(TOKEN, (A,)))
            assert await taker.rest() == {0: Outcome.DONE}
            assert not contents(store)
            fill(store, content)
            await taker.channel.send(Drop(TOKEN, (A,)))
            assert await taker.rest() == {0: Outcome.DONE}
            assert contents(store) == content
