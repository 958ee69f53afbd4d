"""Version 2 with its connections cut: after retries all is right, little is sent twice, and no TAKE loses anything.

Cuts are at every boundary of messages, and of payloads within them, both ways; and at bytes drawn from a seed inside
payloads. `PLASMASTREAM_FAULTS` multiplies what is drawn, and `PLASMASTREAM_FAULTS_SEED` repeats a failed run.
"""

import random
from collections.abc import Iterator
from functools import partial
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from plasmastream.peer import PeerClient, TransferKind, _fetch
from plasmastream.store import EmbeddedStore, NewObject
from plasmastream.testing import Cut, Direction, FaultProxy, Script, open_fault_proxy
from tests.peer.conversations import (
    CAPACITY,
    CHUNK_SIZE,
    FAULTS,
    FEW,
    LIMITS,
    OBJECTS,
    SEED,
    Conversation,
    Kind,
    converse,
    frames,
    sent_twice,
    spoil_one,
)
from tests.peer.helpers import Objects, contents, fill, objects_of, serving

CHUNKS: Final = objects_of([(40, 5), (60, 0), (2100, 3)], "chunks")
STRIPED: Final = objects_of([(20_000, 3), (50, 0), (7_500, 0)], "striped")

Place = tuple[int, Direction, int]
"""A connection's number, a direction, and how many bytes have passed."""

each_kind = pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)


def boundaries(undisturbed: Conversation) -> Iterator[Place]:
    """Where messages begin and end, and where payloads begin."""
    for direction in Direction:
        for number, octets in enumerate(undisturbed.heard(direction)):
            places = {0}
            for frame in frames(octets, direction):
                places |= {frame.start, frame.payload, frame.end}
            assert max(places) == len(octets)
            for at in sorted(places):
                yield number, direction, at


def bytes_of_payloads(undisturbed: Conversation) -> list[Place]:
    """Where cuts are inside payloads."""
    return [
        (number, direction, at)
        for direction in Direction
        for number, octets in enumerate(undisturbed.heard(direction))
        for frame in frames(octets, direction)
        for at in range(frame.payload + 1, frame.end)
    ]


async def cut_once(kind: Kind, place: Place, *, reset: bool, objects: Objects) -> None:
    """Cut a conversation once, and see that all is well in the end."""
    number, direction, at = place
    try:
        cut = await converse(kind, spoil_one(number, direction, Cut(at, reset=reset)), objects=objects)
        cut.check_healed()
        assert len(cut.triggered) == 1 or kind is Kind.ASKED  # which may end sooner, with less PROGRESS
        # What the client of a SYNC does not wait for is taken back, and fetched anew.
        if kind is not Kind.ASKED:
            assert cut.sent_twice <= CHUNK_SIZE
    except AssertionError as error:
        how = "by a reset" if reset else "in order"
        error.add_note(f"{kind.name}: connection {number} cut after {at} bytes {direction.value}, {how}")
        raise


@each_kind
async def test_a_cut_at_each_boundary_of_messages(kind: Kind, autojump_clock: MockClock) -> None:
    objects = OBJECTS if kind in (Kind.COPY, Kind.TAKE, Kind.PUT) else FEW
    undisturbed = await converse(kind, objects=objects)
    undisturbed.check_healed()
    assert undisturbed.sent_twice == 0 or kind is Kind.ASKED
    for place in boundaries(undisturbed):
        for reset in (False, True):
            await cut_once(kind, place, reset=reset, objects=objects)


@pytest.mark.parametrize("kind", [Kind.COPY, Kind.TAKE, Kind.PUT, Kind.SYNC], ids=lambda kind: kind.name)
async def test_cuts_inside_payloads(kind: Kind, autojump_clock: MockClock) -> None:
    undisturbed = await converse(kind, objects=CHUNKS)
    places = bytes_of_payloads(undisturbed)
    chance = random.Random(f"{kind.name} {SEED}")
    for drawn in range((50 if kind is Kind.SYNC else 200) * FAULTS):
        await cut_once(kind, chance.choice(places), reset=drawn % 2 == 1, objects=CHUNKS)


@pytest.mark.parametrize("kind", [Kind.COPY, Kind.TAKE, Kind.SYNC], ids=lambda kind: kind.name)
async def test_cuts_of_many_connections_that_share_an_object(
    kind: Kind, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fetch, "_SHARE", 4 * CHUNK_SIZE)
    undisturbed = await converse(kind, objects=STRIPED)
    assert undisturbed.sent_twice == 0
    assert len(undisturbed.heard(Direction.TO_CLIENT)) > 3
    for drawn in range(15 * FAULTS):
        seed = f"{kind.name} {SEED} {drawn}"
        try:
            cut = await converse(kind, partial(cut_by_chance, seed), objects=STRIPED)
            cut.check_healed()
            assert cut.sent_twice <= CHUNK_SIZE * len(cut.triggered)
        except AssertionError as error:
            error.add_note(f"cuts drawn by {seed!r}")
            raise


def cut_by_chance(seed: str, number: int) -> Script:
    """Cuts of the first connections, where the answers are."""
    if not 0 < number < 12:  # a greeting that was never answered would make version 1 do
        return Script()
    chance = random.Random(f"{seed} {number}")
    return Script(to_client=[Cut(chance.randrange(6 * CHUNK_SIZE), reset=chance.random() < 0.5)])


# Over TCP


@pytest.mark.parametrize("reset", [False, True], ids=["in order", "by a reset"])
@pytest.mark.parametrize("kind", [Kind.COPY, Kind.TAKE, Kind.PUT], ids=lambda kind: kind.name)
async def test_cuts_over_tcp(kind: Kind, reset: bool) -> None:
    chance = random.Random(f"{kind.name} {reset} {SEED}")
    direction = Direction.TO_SERVER if kind is Kind.PUT else Direction.TO_CLIENT
    async with trio.open_nursery() as nursery:  # all at once: each waits most of the time
        for _ in range(10 * FAULTS):
            faults = [Cut(chance.randrange(5500), reset=reset)]
            nursery.start_soon(cut_over_tcp, kind, direction, faults)


async def cut_over_tcp(kind: Kind, direction: Direction, faults: list[Cut]) -> None:
    """A transfer through a proxy, each of whose first two connections is cut."""
    script = Script(to_server=faults) if direction is Direction.TO_SERVER else Script(to_client=faults)
    with EmbeddedStore(CAPACITY) as source, EmbeddedStore(CAPACITY) as target:
        served = target if kind is Kind.PUT else source
        if kind is not Kind.PUT:
            fill(source, OBJECTS)
        with trio.fail_after(60):
            async with (
                serving(served, limits2=LIMITS) as server,
                open_fault_proxy(*server.address, [script, script], log_limit=1 << 20) as proxy,
            ):
                client = PeerClient(*proxy.address, version=2, limits=LIMITS)
                if kind is Kind.PUT:
                    news = [NewObject(object_id, *parts) for object_id, parts in OBJECTS.items()]
                    results = await client.put(news, timeout=60)
                else:
                    results = await client.fetch(TransferKind[kind.name], list(OBJECTS), target, timeout=60)
                await client.aclose()
                assert [str(result) for result in results if not result.is_success] == []
                assert contents(target) == OBJECTS
                assert contents(source) == (OBJECTS if kind is Kind.COPY else {})
                check_sent_twice(proxy, direction)


def check_sent_twice(proxy: FaultProxy, direction: Direction) -> None:
    """No more than a chunk for each cut."""
    cuts = sum(len(connection.triggered) for connection in proxy.connections)
    to_server = direction is Direction.TO_SERVER
    heard = [bytes((each.to_server if to_server else each.to_client).log) for each in proxy.connections]
    assert 0 <= sent_twice(OBJECTS, heard, direction) <= CHUNK_SIZE * cuts
