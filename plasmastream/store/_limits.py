"""What one client may take from a store before it is refused; a client that reaches a limit hurts itself alone.

The defaults are far from what programs do. What happens at each limit is told in docs/plasma-ipc.md.
"""

import attrs
from attrs.validators import gt, optional

from plasmastream.wire.plasma import MAX_BODY_SIZE

DEFAULT_MAX_CONNECTIONS = 4096
_SMALLEST_BODY_LIMIT = 64 << 20


@attrs.frozen
class ConnectionLimits:
    """The limits of one connection; each is positive."""

    held: int = attrs.field(default=1 << 20, validator=gt(0))
    """Objects held at once, those being written included. Beyond it a get finds nothing new, and creates fail."""
    unsealed: int = attrs.field(default=1 << 16, validator=gt(0))
    """Objects created and not sealed yet. Beyond it creates fail."""
    unsealed_bytes: int | None = attrs.field(default=None, validator=optional(gt(0)))
    """Bytes of them; None: as much as the store has. Beyond it creates fail."""
    request_bytes: int | None = attrs.field(default=None, validator=optional(gt(0)))
    """The largest request; None: the store's capacity, or 64 MiB if that is more. A larger one ends the connection."""
    unread_replies: int = attrs.field(default=256 << 10, validator=gt(0))
    """Bytes of replies that wait to be read. Beyond it no further request is served until the client reads."""
    reply_timeout: float = attrs.field(default=60.0, validator=gt(0))
    """Seconds for which such a client may read nothing at all. Then its connection ends."""
    unread_notifications: int = attrs.field(default=64 << 20, validator=gt(0))
    """Bytes of notifications that wait to be read: about half a million objects. Beyond it the subscription ends."""

    def largest_body(self, capacity: int) -> int:
        """Bytes of the largest request to a store of this capacity."""
        if self.request_bytes is not None:
            return min(MAX_BODY_SIZE, self.request_bytes)
        # What is larger than the store could not be created anyway.
        return min(MAX_BODY_SIZE, max(_SMALLEST_BODY_LIMIT, capacity + (1 << 20)))
