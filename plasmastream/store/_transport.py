"""Bytes and descriptors over a Unix socket: try first, wait only when the kernel says so.

Works on Trio and on asyncio. A descriptor that was received is owned by whoever called `receive`; one that is sent
stays the sender's.
"""

import select
import socket

import anyio
import anyio.lowlevel

from plasmastream._client import Haste, UnixSocket
from plasmastream._client import close_descriptors as close_descriptors

_LOOKS_IN_TURN = 8  # before others have theirs: each takes two or three microseconds, theirs at least five


class UnixTransport(UnixSocket):
    """A `UnixSocket` that tasks can wait for. Errors are OSError; the layer above says what they mean."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._haste = Haste()

    def has_hung_up(self) -> bool:
        """Whether the other side has closed, also where bytes that it sent before still wait to be read."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    async def look(self, into: memoryview) -> tuple[int, list[int]] | None:
        """Read what comes any moment; None where it takes longer. Others run meanwhile. Not to be cancelled."""
        haste = self._haste
        haste.begin()
        await anyio.lowlevel.cancel_shielded_checkpoint()
        looks = 0
        try:
            while haste.looks_again():
                try:
                    return self.receive_nowait(into)
                except BlockingIOError:
                    looks += 1
                if looks % _LOOKS_IN_TURN == 0:
                    await anyio.lowlevel.cancel_shielded_checkpoint()
            return None
        finally:
            haste.end()

    async def receive(self, into: memoryview) -> tuple[int, list[int]]:
        """As `receive_nowait`, but waits. A cancel loses nothing: either all of it happened or none."""
        while True:
            try:
                return self.receive_nowait(into)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)

    async def flush(self) -> None:
        """Send all that is queued. After a cancel the rest is still queued, and goes first next time."""
        while not self.flush_nowait():
            await anyio.wait_writable(self._socket)

    def hand_over(self) -> UnixSocket:
        """As `UnixSocket.hand_over`. Whoever waits for this gets an error."""
        anyio.notify_closing(self._socket)
        return super().hand_over()

    def close(self) -> None:
        """Close the socket. Whoever waits for it gets an error."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()
