"""What objects consist of, and which ones are moved how: all of it follows from seeds. Pure."""

import itertools
import math
import random
from collections.abc import Iterator
from enum import Enum, auto

import attrs
import xxhash

from plasmastream import ObjectID

KIB, MIB = 1 << 10, 1 << 20

# A prime: a block that stands where another one belongs has other bytes, unless it is off by a multiple of this.
_PERIOD = 1_048_573


class Content:
    """The bytes of objects, by their ids."""

    def __init__(self, seed: int) -> None:
        self._bytes = memoryview(random.Random(seed).randbytes(_PERIOD) * 2)

    def pieces(self, object_id: ObjectID, size: int) -> Iterator[memoryview]:
        """An object's data, in pieces of up to a MiB."""
        start = int.from_bytes(object_id) % _PERIOD
        for first in range(0, size, _PERIOD):
            yield self._bytes[start : start + min(_PERIOD, size - first)]

    def metadata(self, object_id: ObjectID) -> bytes:
        """An object's metadata."""
        return bytes(object_id) * (object_id[0] % 4)

    def wrong_bytes(self, object_id: ObjectID, size: int, data: memoryview, metadata: memoryview) -> int:
        """How many bytes of an object are not as they should be; those that are missing, or too many, included."""
        expected = xxhash.xxh3_128()
        for piece in self.pieces(object_id, size):
            expected.update(piece)
        wrong = _differences(self.metadata(object_id), metadata)
        if expected.digest() != xxhash.xxh3_128_digest(data):
            first = 0
            for piece in self.pieces(object_id, min(size, len(data))):
                wrong += _differences(piece, data[first : first + len(piece)])
                first += len(piece)
            wrong += abs(size - len(data))
        return wrong


def _differences(one: bytes | memoryview, other: bytes | memoryview) -> int:
    if bytes(one) == bytes(other):
        return 0
    return sum(a != b for a, b in itertools.zip_longest(one, other))


class Kind(Enum):
    """How objects are moved: the destination is asked to fetch them by a SYNC, or is given them."""

    COPY = auto()
    TAKE = auto()
    PUT = auto()


@attrs.frozen
class Job:
    """Objects to be moved together."""

    kind: Kind
    source: int
    """The side that has them, 0 or 1; they go to the other. Of a PUT, the side that they do not go to."""
    through_proxy: bool
    objects: dict[ObjectID, int]
    """Their ids and sizes, in bytes."""

    @property
    def nbytes(self) -> int:
        """Bytes of data in all of them."""
        return sum(self.objects.values())

    def __str__(self) -> str:
        way = "through the proxy" if self.through_proxy else "directly"
        what = f"{self.kind.name} of {len(self.objects)} objects, {self.nbytes:,} bytes"
        return f"{what}, from side {self.source}, {way}: {next(iter(self.objects))}"


def draw_job(rng: random.Random, largest: int) -> Job:
    """Many small objects, some of medium size, one large, or one of up to `largest` bytes."""
    match rng.choices(("many", "some", "large", "largest"), (8, 6, 3, 1))[0]:
        case "many":
            sizes = [rng.choice((0, 1, rng.randrange(2 * KIB))) for _ in range(rng.randrange(1, 200))]
        case "some":
            sizes = [_log_uniform(rng, 1, MIB) for _ in range(rng.randrange(1, 6))]
        case "large":
            sizes = [_log_uniform(rng, MIB, LARGE)]
        case _:
            sizes = [_log_uniform(rng, LARGE, max(LARGE, largest))]
    return Job(
        kind=rng.choice(list(Kind)),
        source=rng.randrange(2),
        through_proxy=rng.random() < 0.5,
        objects={ObjectID(rng.randbytes(20)): size for size in sizes},
    )


LARGE = 8 * MIB
"""Of objects that are larger, each of the two processes has one moved at a time."""


def _log_uniform(rng: random.Random, least: int, most: int) -> int:
    return int(math.exp(rng.uniform(math.log(least), math.log(most))))
