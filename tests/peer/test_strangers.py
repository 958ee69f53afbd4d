"""Who answers without being a source: what speaks another protocol, and a server that says "done" and sends nothing."""

from collections.abc import Awaitable, Callable
from itertools import combinations

import pytest
import trio
from trio.testing import MockClock

from plasmastream import PeerError, RemoteProtocolError
from plasmastream.peer import Outcome, PeerClient, Result, TransferKind, Transport
from plasmastream.peer._client import make_hello
from plasmastream.peer._services import ServerChannel
from plasmastream.store import EmbeddedStore
from plasmastream.testing import memory_transports
from plasmastream.wire.stream.v2 import MAGIC, End, FrameType, Message, Open, Outcomes, Patience, Read, ServerConnection
from plasmastream.wire.stream.v2._frames import HEAD, pack_frame, resembles_answer
from tests.peer.helpers import CAPACITY, contents, objects_of
from tests.peer.world import LIMITS, PORT

HERE = "10.0.0.9"
(A,) = objects_of([(0, 0)], "strange")

each_kind = pytest.mark.parametrize("kind", TransferKind)

Serve = Callable[[Transport], Awaitable[None]]
Answer = Callable[[ServerChannel, Message], None]
"""Queues what comes before the END of an answer."""


async def fetch_from(serve: Serve, kind: TransferKind) -> Result:
    """Ask for an object where every connection is served like this. No attempt follows that takes time."""
    with EmbeddedStore(CAPACITY) as store:
        async with trio.open_nursery() as nursery:

            async def connect(host: str, port: int, *, timeout: float) -> Transport:
                ours, theirs = memory_transports()
                nursery.start_soon(serve, theirs)
                return ours

            client = PeerClient(HERE, PORT, connect=connect, limits=LIMITS, version=2)
            began = trio.current_time()
            (result,) = await client.fetch(kind, [A], store, timeout=100)
            assert trio.current_time() - began < 0.1
            await client.aclose()
            nursery.cancel_scope.cancel()
        assert contents(store) == {}
    return result


def source(answer: Answer) -> Serve:
    """A server of version 2 that answers like this."""

    async def serve(transport: Transport) -> None:
        connection = ServerConnection(make_hello(LIMITS), trio.current_time(), limits=LIMITS)
        channel = ServerChannel(connection, transport, Patience())
        try:
            await transport.receive_into(memoryview(bytearray(len(MAGIC))), timeout=1)
            await channel.next_event()
            connection.greet()
            await channel.flush()
            while isinstance(request := await channel.next_event(), Message):
                answer(channel, request)
                await channel.send(End())
        except (PeerError, RemoteProtocolError):
            transport.abort()

    return serve


@each_kind
@pytest.mark.parametrize("outcome", [Outcome.DONE, Outcome.PRESENT])
@pytest.mark.parametrize("asked", [Open, Read])
async def test_a_word_of_success_is_none(
    kind: TransferKind, outcome: Outcome, asked: type[Message], autojump_clock: MockClock
) -> None:
    def answer(channel: ServerChannel, request: Message) -> None:
        if isinstance(request, asked):
            channel.connection.send(Outcomes(0, outcome, "", (0,)))
        elif isinstance(request, Open):
            channel.connection.send_object(0, 2500, b"", 1)

    result = await fetch_from(source(answer), kind)
    assert result.outcome == Outcome.REFUSED
    assert f"says {outcome.name}" in result.reason
    assert HERE in result.reason


@each_kind
async def test_what_is_not_answered_for_was_not_damaged(kind: TransferKind, autojump_clock: MockClock) -> None:
    result = await fetch_from(source(lambda channel, request: None), kind)
    assert result.outcome == Outcome.REFUSED
    assert "did not answer for it" in result.reason


@each_kind
@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"-ERR what?\r\n",
        bytes.fromhex("15030100020246"),  # TLS
        bytes.fromhex("000012040000000000000300000080"),  # HTTP/2
        bytes.fromhex("4a0000000a382e302e333600"),  # MySQL
    ],
    ids=["HTTP", "SSH", "Redis", "TLS", "HTTP/2", "MySQL"],
)
async def test_another_protocol_is_named_at_once(kind: TransferKind, said: bytes, autojump_clock: MockClock) -> None:
    async def serve(transport: Transport) -> None:
        await transport.receive_into(memoryview(bytearray(1000)), timeout=1)
        await transport.send([said], timeout=1)
        transport.close()

    result = await fetch_from(serve, kind)
    assert result.outcome == Outcome.REFUSED
    assert "does not answer in the protocol of plasmastream: is this the right port?" in result.reason


@pytest.mark.parametrize("frame_type", [FrameType.HELLO, FrameType.END])
def test_an_answer_with_two_bits_flipped_is_no_stranger(frame_type: FrameType) -> None:
    head = int.from_bytes(pack_frame(frame_type, 0, bytes(300))[: HEAD.size], "little")
    for first, second in combinations(range(8 * HEAD.size), 2):
        spoilt = (head ^ (1 << first | 1 << second)).to_bytes(HEAD.size, "little")
        assert resembles_answer(spoilt)
        assert resembles_answer(spoilt[:7])
