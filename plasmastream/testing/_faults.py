"""What can go wrong with a connection, in words: values that say where and how, and do nothing.

A position `at` counts the bytes of one direction of one connection, from 0. A fault at N happens when N bytes have been
passed on, without waiting for the next one; at 0, as soon as the connection stands. A flip at N changes byte N itself.
Where several stand at the same position, they happen in the order of their list.
"""

import enum
import math
import random
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import attrs

_not_negative = attrs.validators.ge(0)
_no_negative_time = attrs.validators.ge(0.0)
_positive = attrs.validators.gt(0.0)


class Direction(enum.Enum):
    """Which way bytes go."""

    TO_SERVER = "to the server"
    TO_CLIENT = "to the client"


@attrs.frozen
class Cut:
    """The connection ends, in both directions and for both sides.

    By `reset`, both get an error. Otherwise both read a clean end, and get an error if they go on sending. The receiver
    has a second to make room for the bytes before; what it has no room for then is lost.
    """

    at: int = attrs.field(default=0, validator=_not_negative)
    reset: bool = False


@attrs.frozen
class HalfClose:
    """Who receives reads a clean end; what the sender still sends is thrown away. The other direction goes on."""

    at: int = attrs.field(default=0, validator=_not_negative)


@attrs.frozen
class Stall:
    """The connection stays open and nothing more is passed on in this direction, not even its end.

    It goes on after so many seconds, or when it is released.
    """

    at: int = attrs.field(default=0, validator=_not_negative)
    seconds: float = attrs.field(default=math.inf, validator=_no_negative_time)


@attrs.frozen
class Flip:
    """One bit of one byte is the other way round. Bit 0 is the lowest."""

    at: int = attrs.field(validator=_not_negative)
    bit: int = attrs.field(default=0, validator=[_not_negative, attrs.validators.le(7)])

    def flips(self) -> Iterator[tuple[int, int]]:
        """Which bits are changed: (byte, bit), in order."""
        yield self.at, self.bit


@attrs.frozen
class Noise:
    """Each byte has one bit flipped with the probability `rate`. The same seed flips the same bits, in every run."""

    rate: float = attrs.field(validator=[_positive, attrs.validators.lt(1.0)])
    seed: int = 0

    def flips(self) -> Iterator[tuple[int, int]]:
        """Which bits are changed: (byte, bit), in order, without end."""
        chance = random.Random(self.seed)
        at = -1
        while True:
            # The distance to the next one has a geometric distribution: no draw is needed for each byte.
            at += 1 + int(math.log(1 - chance.random()) / math.log1p(-self.rate))
            yield at, chance.randrange(8)


@attrs.frozen
class Delay:
    """Every byte, and the end, arrives so many seconds later. With much under way, this slows the connection down."""

    seconds: float = attrs.field(validator=_no_negative_time)


@attrs.frozen
class Throttle:
    """At most so many bytes per second, in portions of a twentieth of them."""

    bytes_per_second: float = attrs.field(validator=_positive)

    @property
    def portion(self) -> int:
        """Bytes sent at a time."""
        return max(1, int(self.bytes_per_second / 20))

    @property
    def seconds_per_byte(self) -> float:
        """Time that each byte takes."""
        return 1 / self.bytes_per_second


@attrs.frozen
class Trickle:
    """One byte at a time, with so many seconds between two."""

    interval: float = attrs.field(validator=_no_negative_time)

    @property
    def portion(self) -> int:
        """Bytes sent at a time."""
        return 1

    @property
    def seconds_per_byte(self) -> float:
        """Time that each byte takes."""
        return self.interval


Fault: TypeAlias = Cut | HalfClose | Stall | Flip | Noise | Delay | Throttle | Trickle
"""What can go wrong with one direction of a connection."""


def _in_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    return tuple(faults)


@attrs.frozen
class Script:
    """What goes wrong with one connection; nothing, by default. Any faults can be combined."""

    to_server: tuple[Fault, ...] = attrs.field(default=(), converter=_in_order)
    """With the bytes from the client to the server."""
    to_client: tuple[Fault, ...] = attrs.field(default=(), converter=_in_order)
    """With the bytes from the server to the client."""
