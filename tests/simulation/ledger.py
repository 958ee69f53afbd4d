"""How much of large objects is received in a world by version 2, and how much of it twice.

What a broken connection or a damaged payload costs is one chunk. That holds for who asks again under the same token:
not for who was killed or cancelled, for a SYNC that stops when its client leaves, nor where the token of a PUT has
lapsed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import attrs

from plasmastream.peer._channel import Channel
from plasmastream.wire.stream.v2 import AnyEvent, ChunkEnded, ChunkStarted


@attrs.define
class Ledger:
    """Bytes of chunks, all connections taken together."""

    received: int = 0
    """Those of chunks that have begun, each counted as a whole."""
    in_vain: int = 0
    """Those of chunks that were damaged on their way."""

    def note(self, event: AnyEvent) -> None:
        """Something has come."""
        match event:
            case ChunkStarted():
                self.received += event.length
            case ChunkEnded(is_intact=False):
                self.in_vain += event.length

    def twice(self, needed: int) -> int:
        """Bytes that came without need, where so many were needed; negative if some have not come at all."""
        return self.received - self.in_vain - needed


@contextmanager
def kept() -> Iterator[Ledger]:
    """A ledger of what is received in the block."""
    ledger = Ledger()
    next_event = Channel.next_event

    async def noted(channel: Channel) -> AnyEvent:
        event = await next_event(channel)
        ledger.note(event)
        return event

    with mock.patch.object(Channel, "next_event", noted):
        yield ledger
