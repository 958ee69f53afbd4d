"""How much a frame may carry and a request may ask for: each rule once, for both sides."""

from collections.abc import Callable
from typing import Any, Final

import attrs

MAX_HELLO_SIZE: Final = 4096
"""Bytes of the body of a HELLO."""
MAX_SYNC_SIZE: Final = 24 << 20
"""Bytes of the body of a SYNC."""
MAX_PEER_REQUESTS: Final = 1_024
"""In one SYNC."""
MAX_CHUNK_SIZE: Final = 16 << 20
"""No side may allow more, in bytes."""
MAX_RUN_SIZE: Final = 1 << 20
"""Bytes of a RUN, decoded. Its sender stops at `Limits.run_size`, or at its first object beyond."""
SCRATCH_SIZE: Final = 256 * 1024
"""Bytes read ahead: control frames, and the beginnings of payloads."""


def _between(low: int, high: int) -> Callable[[Any, "attrs.Attribute[int]", int], Any]:
    return attrs.validators.and_(attrs.validators.ge(low), attrs.validators.le(high))


@attrs.frozen
class Limits:
    """What is accepted and sent; all sizes in bytes.

    Raises:
        ValueError: a limit leaves the bounds of the protocol.
    """

    max_objects: int = attrs.field(default=65_536, validator=_between(1, 65_536))
    """Objects in one request, or in one peer request of a SYNC."""
    max_peer_requests: int = attrs.field(default=MAX_PEER_REQUESTS, validator=_between(1, MAX_PEER_REQUESTS))
    """Peer requests in one SYNC."""
    max_sync_objects: int = attrs.field(default=1_048_576, validator=_between(1, 1_048_576))
    """Objects in all peer requests of one SYNC."""
    max_body_size: int = attrs.field(default=4 << 20, validator=_between(64 << 10, 4 << 20))
    """The body of a frame, but for HELLO and SYNC."""
    max_data_size: int = attrs.field(default=2**44, validator=_between(0, 2**44))
    """Data of one object."""
    max_metadata_size: int = attrs.field(default=1 << 20, validator=_between(0, 1 << 20))
    """Metadata of one object."""
    chunk_size: int = attrs.field(default=512 << 10, validator=_between(1, MAX_CHUNK_SIZE))
    """The largest chunk to send, and to take."""
    small_size: int = attrs.field(default=128 << 10, validator=_between(0, 256 << 10))
    """Data and metadata of an object that is sent in a RUN."""
    run_size: int = attrs.field(default=256 << 10, validator=_between(1, MAX_RUN_SIZE // 2))
    """A RUN is sent when it has grown to so much."""


@attrs.frozen
class Patience:
    """How long the machine lets the other side take; all in seconds, but for the rate."""

    hello: float = 5.0
    """For the other side's greeting, all of it."""
    stall: float = 30.0
    """With nothing arriving while something is due."""
    rate: float = 4096.0
    """Bytes per second, on average over `stall` seconds, that a frame under way must bring at least."""
    idle: float = 300.0
    """With a client that asks nothing."""
