"""Very many things are gone through a part at a time, with a checkpoint behind each: others have their turn in between.

Parts are counted rather than timed: what happens, and in which order, must not depend on how fast a machine is.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import anyio.lowlevel

from plasmastream.store._object_store import Lease, Leases

_AT_ONCE = 1024
"""Of what takes about a microsecond each."""

_T = TypeVar("_T")


def parts(items: Sequence[_T], at_once: int = _AT_ONCE) -> Iterator[Sequence[_T]]:
    """Slices of at most so many items each, in order."""
    for first in range(0, len(items), at_once):
        yield items[first : first + at_once]


async def release_all(leases: Sequence[Lease]) -> None:
    """Release leases: all of them, cancelled or not."""
    for number, part in enumerate(parts(leases)):
        if number:
            await anyio.lowlevel.cancel_shielded_checkpoint()
        Leases(part).release()
