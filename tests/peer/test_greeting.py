"""How a connection of version 2 begins: what a server answers, and what a client makes of what it hears instead."""

import pytest
import trio
from trio.testing import MockClock

from plasmastream import PeerError
from plasmastream.peer import Outcome, PeerClient
from plasmastream.peer._client import make_hello
from plasmastream.store import EmbeddedStore
from plasmastream.testing import Flip, Script, open_fault_proxy
from plasmastream.wire.stream.v2 import ClientConnection, Hello, Limits
from plasmastream.wire.stream.v2 import End as Ended
from tests.peer.helpers import MIXED, contents, fill, objects_of, serving
from tests.peer.world import End, Slow, open_world

CAPACITY = 8 << 20


def greeting() -> bytes:
    """The magic and a HELLO."""
    connection = ClientConnection(make_hello(Limits()), 0.0)
    connection.greet()
    return b"".join(connection.data_to_send())


async def answer_to(said: bytes, address: tuple[str, int]) -> object:
    """The first event of a server's answer to what a client says at first."""
    client = ClientConnection(make_hello(Limits()), 0.0)
    client.greet()
    with trio.fail_after(5), trio.socket.socket() as sock:
        await sock.connect(address)
        await sock.send(said)
        while data := await sock.recv(1000):
            with client.get_buffer() as buffer:
                buffer[: len(data)] = data
            client.advance(len(data), 0.0)
            event = client.next_event()
            if isinstance(event, Hello | Ended):
                return event
    return None


@pytest.fixture
def clock() -> MockClock:
    """Jumps where nothing has moved for a moment; not at once, since bytes in a socket are seen by nobody."""
    return MockClock(autojump_threshold=0.05)


async def test_a_greeting_with_any_bit_flipped_is_answered_as_damaged() -> None:
    """Silence would make the client go on by version 1, without checksums."""
    whole = greeting()
    with EmbeddedStore(CAPACITY) as store:
        async with serving(store) as server:
            assert isinstance(await answer_to(whole, server.address), Hello)
            # Of the magic and the head of the frame every bit, of its body one of each byte.
            for bit in (*range(24 * 8), *range(24 * 8, 8 * len(whole), 9)):
                spoilt = bytearray(whole)
                spoilt[bit // 8] ^= 1 << bit % 8
                answer = await answer_to(bytes(spoilt), server.address)
                assert isinstance(answer, Ended), bit
                assert answer.outcome == Outcome.DAMAGED


@pytest.mark.parametrize("after", [3, 8, 10, 20, 30])
@pytest.mark.parametrize("end", ["client", "server"])
async def test_a_greeting_has_a_time_as_a_whole(end: End, after: int, autojump_clock: MockClock) -> None:
    """A byte a second is not enough, from whomever."""
    async with open_world() as world:
        world.slow = Slow(end, "send", after)
        with pytest.raises(PeerError, match="before the greeting" if end == "client" else "no whole greeting for 5 s"):
            await world.client().list_objects()
        with trio.fail_after(1):
            await world.ended[0].wait()
        assert 5 <= trio.current_time() <= 7


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
async def test_a_client_tries_a_damaged_greeting_again(
    direction: str, caplog: pytest.LogCaptureFixture, clock: MockClock
) -> None:
    caplog.set_level("INFO")
    objects = objects_of(MIXED)
    scripts = [Script(**{direction: [Flip(at, at % 8)]}) for at in (0, 3, 8, 20, 30)]
    with EmbeddedStore(CAPACITY) as here, EmbeddedStore(CAPACITY) as there:
        fill(there, objects)
        async with (
            serving(there) as server,
            open_fault_proxy(*server.address, [*scripts, *[Script()] * 9]) as proxy,
        ):
            client = PeerClient(*proxy.address)
            await client.copy(list(objects), here)
            await client.aclose()
            assert len(proxy.connections) > len(scripts)
        assert contents(here) == objects
    assert "version 1" not in caplog.text
