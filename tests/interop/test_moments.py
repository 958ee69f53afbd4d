"""kill -9, SIGSTOP and SIGCONT of either server of a transfer by version 2, at moments that a seed draws.

Nothing here depends on what a moment meets: whoever asks again gets all objects, and in time.
"""

import os
import random
import signal
from functools import partial
from pathlib import Path

import attrs
import trio

from plasmastream import PeerError
from plasmastream.peer import PeerClient, PeerRequest, Result, TransferKind
from plasmastream.testing import Direction
from tests.interop.test_kill_peers import PATIENCE, Case, Two, open_two
from tests.peer.conversations import Kind
from tests.peer.helpers import Objects

SOURCE, TARGET = 0, 1


@attrs.frozen
class Moment:
    """What happens to which server, so many seconds from the beginning of the transfer."""

    number: int
    is_kill: bool
    at: float
    seconds: float
    """Until it goes on, where it is stopped."""


async def pass_through(two: Two, moment: Moment) -> None:
    """Let it happen."""
    await trio.sleep(moment.at)
    node = two.nodes[moment.number]
    if moment.is_kill:
        node.kill()
        await two.start(moment.number, node.port)
        return
    os.kill(node.pid, signal.SIGSTOP)
    try:
        await trio.sleep(moment.seconds)
    finally:
        os.kill(node.pid, signal.SIGCONT)


async def insist(two: Two, kind: Kind, objects: Objects) -> list[Result]:
    """Have the target's server fetch objects from the source's, and ask again until it has them all."""
    while True:
        request = PeerRequest(TransferKind[kind.name], "127.0.0.1", two.nodes[SOURCE].port, tuple(objects))
        client = PeerClient("127.0.0.1", two.nodes[TARGET].port, version=2)
        try:
            (results,) = await client.sync_each([request], timeout=PATIENCE)
            if all(result.is_success for result in results):
                return list(results)
        except PeerError:
            pass
        finally:
            await client.aclose()
        await trio.sleep(0.05)


async def test_either_server_is_killed_or_stopped_at_any_moment(socket_directory: Path) -> None:
    rng = random.Random(1)
    draw = partial(rng.uniform, 0, 0.03)
    # Only a server that has spoken version 2 with the other before knows that it is not met by version 1.
    undisturbed = Moment(TARGET, False, 0.0, 0.0)
    stops = [Moment(rng.choice((SOURCE, TARGET)), False, draw(), 10 * draw()) for _ in range(4)]
    kills = [Moment(number, True, draw(), 0.0) for number in (SOURCE, SOURCE, TARGET, TARGET)]
    async with open_two(socket_directory) as two:
        for count, moment in enumerate((undisturbed, *stops, *kills)):
            kind = (Kind.COPY, Kind.TAKE)[count % 2]
            objects = two.add(f"moment {count} ")
            results: list[Result] = []
            with trio.fail_after(2 * PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pass_through, two, moment)
                    results = await insist(two, kind, objects)
            await two.check(Case(kind, 0, Direction.TO_SERVER, 0), objects, results)
