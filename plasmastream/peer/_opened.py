"""What the source has open for a fetch, under its token: noted here, and closed there as soon as it is done with."""

import os

import anyio

from plasmastream._errors import PeerError, ProtocolError
from plasmastream._object_id import ObjectID
from plasmastream.peer._lanes import Lane, Lanes
from plasmastream.wire.stream.v2 import TOKEN_SIZE, Close

_CLOSE_WITHIN, _ABANDON_WITHIN = 5.0, 1.0


class Opened:
    """A token of our own, and what the source may hold for it; `lanes` are the connections to the source."""

    def __init__(self, lanes: Lanes) -> None:
        self.token = os.urandom(TOKEN_SIZE)
        self._lanes = lanes
        self.is_used = False
        """Whether the source may hold something."""
        self._finished: list[ObjectID] = []

    def use(self) -> None:
        """Note that objects are being opened: from now on the source may hold something."""
        self.is_used = True

    def finish(self, object_id: ObjectID) -> None:
        """Note an object that is open, and that nothing is wanted of any more."""
        self._finished.append(object_id)

    async def close_finished(self) -> None:
        """Have the source let go of what is done with.

        Raises:
            PeerError, ProtocolError: it cannot be told.
        """
        if self._finished:
            ids, self._finished = tuple(self._finished), []
            await self._close(ids)

    async def close_all(self) -> PeerError | ProtocolError | None:
        """Have the source let go of everything; returns why it cannot be told, and will have to do so by itself."""
        with anyio.move_on_after(_CLOSE_WITHIN):
            try:
                await self._close(())
            except (PeerError, ProtocolError) as error:
                return error
        return None

    def nothing_is_held(self) -> None:
        """Note that there is nothing left to close."""
        self.is_used = False

    async def abandon(self) -> None:
        """After a fetch that broke off, have the source let go at once.

        It would keep all open for as long as connections over which that was opened live, whoever uses them now.
        """
        if not self.is_used or not self._lanes.has_any:
            return
        with anyio.move_on_after(_ABANDON_WITHIN):
            try:
                await self._close(())
                return
            except (PeerError, ProtocolError):
                pass
        self._lanes.retire()

    async def _close(self, object_ids: tuple[ObjectID, ...]) -> None:
        async with self._lanes.channel(Lane.SMALL) as channel:
            await channel.send(Close(self.token, object_ids))
            while await channel.answer() is not None:
                pass
            self.is_used = self.is_used and bool(object_ids)
