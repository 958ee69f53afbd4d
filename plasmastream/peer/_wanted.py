"""One object of a fetch, and how the ranges that are missing of several are divided into READs."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import attrs

from plasmastream._errors import RemoteProtocolError
from plasmastream._object_id import ObjectID
from plasmastream.peer._incoming import Incoming, Ranges
from plasmastream.peer._results import Result
from plasmastream.store._object_store import Buffer, Lease
from plasmastream.wire.stream.v2 import ChunkEnded, ChunkStarted, ChunkSummed, Outcome


@attrs.define(eq=False, weakref_slot=False)
class Wanted:
    """One object, and how far it has come."""

    object_id: ObjectID
    result: Result | None = None
    is_open: bool = False
    """Whether the source holds it for our token."""
    handle: int = 0
    incoming: Incoming | None = None
    """Set while it is on its way, if it is large."""
    lease: Lease | None = None
    """Set when it is sealed here."""
    was_present: bool = False
    """Whether it was sealed here before we came."""
    unchecked: Ranges | None = None
    """What is here, but may differ from what the source has open."""
    times_held: int = 0
    """How often others held what was here, when it was to be relied on."""
    obstacle: tuple[int, str] = (Outcome.BROKEN_OFF, "")
    """What stood in the way last."""

    def is_same(self, data: Buffer, metadata: Buffer) -> bool:
        """Whether what is sealed here has these bytes."""
        assert self.lease is not None
        return self.lease.data == data and self.lease.metadata == metadata


Piece: TypeAlias = tuple[Wanted, int, int]
"""Some bytes of an object: where they begin, and where they end."""


def piece_of(chunk: ChunkStarted | ChunkEnded | ChunkSummed, asked: Sequence[Piece]) -> Piece:
    """Which of the bytes that were asked for a chunk has.

    Raises:
        RemoteProtocolError: none.
    """
    start, end = chunk.offset, chunk.offset + chunk.length
    if chunk.index < len(asked):
        wanted, first, last = asked[chunk.index]
        if first <= start and end <= last:
            return wanted, start, end
    raise RemoteProtocolError(f"bytes {start} to {end} of range {chunk.index} came unasked")


def shares(readable: Iterable[Wanted], most_bytes: int, most_ranges: int) -> Iterable[list[Piece]]:
    """Divide what is missing into READs of about `most_bytes`."""
    share: list[Piece] = []
    size = 0
    for wanted in readable:
        assert wanted.incoming is not None
        for start, end in tuple(wanted.incoming.missing) or ((0, 0),):
            at = start
            while True:
                step = min(end, at + most_bytes - size)
                share.append((wanted, at, step))
                size += step - at
                at = step
                if size >= most_bytes or len(share) >= most_ranges:
                    yield share
                    share, size = [], 0
                if at >= end:
                    break
    if share:
        yield share
