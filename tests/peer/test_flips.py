"""Bits that flip on their way: version 2 notices each, says so, mends it, and never seals anything wrong.

In `make test` a few of the bits have their turn, all of them with a large `PLASMASTREAM_FAULTS`, which multiplies what
is drawn, too; `PLASMASTREAM_FAULTS_SEED` repeats a failed run.
"""

import random
from collections.abc import Iterable, Iterator

import pytest
from trio.testing import MockClock

from plasmastream.testing import Direction, Flip, Noise, Script
from tests.peer.conversations import FAULTS, FEW, SEED, Conversation, Kind, converse, frames, spoil_one

Bit = tuple[int, Direction, int, int]
"""A connection's number, a direction, a byte and its bit."""

STRIDE = 127
"""One less than the bits in the head of a frame: from one to the next, another position has its turn."""
PAYLOAD_BITS = 25
NOISE = 25

each_kind = pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)


def bits(undisturbed: Conversation, *, of_payloads: bool) -> Iterator[Bit]:
    """All bits of payloads, or all others."""
    for direction in Direction:
        for number, octets in enumerate(undisturbed.heard(direction)):
            payloads = {at for frame in frames(octets, direction) for at in range(frame.payload, frame.end)}
            for at in range(len(octets)):
                if (at in payloads) == of_payloads:
                    yield from ((number, direction, at, bit) for bit in range(8))


async def flip_each(kind: Kind, places: Iterable[Bit], *, version: int | None = 2) -> None:
    """Flip one bit in each of many conversations, which all come to a good end."""
    for number, direction, at, bit in places:
        try:
            flipped = await converse(kind, spoil_one(number, direction, Flip(at, bit)), objects=FEW, version=version)
            flipped.check_healed()
            assert flipped.triggered or kind is Kind.ASKED  # which may end sooner, with less PROGRESS
            assert not flipped.triggered or any(map(speaks_of_damage, flipped.reported)), flipped.reported
            assert not any(octets[:1] in (b"\1", b"\2", b"\3") for octets in flipped.heard(Direction.TO_SERVER))
        except AssertionError as error:
            error.add_note(f"{kind.name}: bit {bit} of byte {at} {direction.value}, on connection {number}")
            raise


def speaks_of_damage(line: str) -> bool:
    """Whether a line of the log says what has happened: of the first bytes, nobody can know what they were."""
    return "damaged" in line or "begins like" in line or "a request of unknown type" in line


@each_kind
async def test_a_bit_outside_payloads(kind: Kind, autojump_clock: MockClock) -> None:
    undisturbed = await converse(kind, objects=FEW)
    places = list(bits(undisturbed, of_payloads=False))
    await flip_each(kind, places[:: max(1, STRIDE // FAULTS)])


@pytest.mark.parametrize("kind", [Kind.COPY, Kind.TAKE, Kind.PUT, Kind.SYNC], ids=lambda kind: kind.name)
async def test_a_bit_in_a_payload(kind: Kind, autojump_clock: MockClock) -> None:
    undisturbed = await converse(kind, objects=FEW)
    places = list(bits(undisturbed, of_payloads=True))
    chance = random.Random(f"{kind.name} {SEED}")
    await flip_each(kind, chance.sample(places, min(len(places), PAYLOAD_BITS * FAULTS)))


@each_kind
async def test_a_bit_in_the_greeting_does_not_lead_to_version_1(kind: Kind, autojump_clock: MockClock) -> None:
    undisturbed = await converse(kind, objects=FEW)
    places = [
        (0, direction, at, bit)
        for direction in Direction
        for at in range(next(frames(undisturbed.heard(direction)[0], direction)).end)
        for bit in range(8)
    ]
    magic = places[: 8 * 8]
    step = max(1, STRIDE // FAULTS)
    await flip_each(kind, [*magic[:: 5 if FAULTS == 1 else 1], *places[len(magic) :: step]], version=None)


@each_kind
async def test_noise(kind: Kind, autojump_clock: MockClock) -> None:
    healed = 0
    for drawn in range(NOISE * FAULTS):
        seed = f"{kind.name} {SEED} {drawn}"
        chance = random.Random(seed)
        rate = 10 ** chance.uniform(-4.5, -3)  # up to a flip in each chunk

        def noisy(number: int, seed: str = seed, rate: float = rate) -> Script:
            first, second = (random.Random(f"{seed} {number} {way}").getrandbits(32) for way in Direction)
            return Script([Noise(rate, first)], [Noise(rate, second)])

        try:
            made = await converse(kind, noisy)
            assert made.error is not None or len(made.results) == len(made.objects)
            for result in made.results:
                assert result.object_id in made.arrived if result.is_success else str(result)
            if made.error is None and all(result.is_success for result in made.results):
                made.check_healed()
                healed += 1
        except AssertionError as error:
            error.add_note(f"noise drawn by {seed!r}")
            raise
    assert healed
