"""Bytes and descriptors over a Unix socket, without waiting.

A descriptor that was received is owned by whoever received it; one that is sent stays the sender's.
"""

import array
import errno
import os
import socket
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from plasmastream.wire.plasma import Outgoing

# As plain numbers: an operation on flags of an enumeration costs as much as the system call.
_CLOSE_ON_EXEC, _TRUNCATED = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)

_DISCARDED_AT_ONCE = 64 << 10
_ONE_DESCRIPTOR = socket.CMSG_SPACE(array.array("i").itemsize)


def close_descriptors(descriptors: Iterable[int]) -> None:
    """Close file descriptors that nobody is going to claim."""
    for descriptor in descriptors:
        os.close(descriptor)


class UnixSocket:
    """A connected, non-blocking Unix socket. Errors are OSError; the layer above says what they mean."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._queue: deque[tuple[bytes | memoryview, int | None]] = deque()
        self.queued_bytes = 0

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._socket.fileno()

    def receive_nowait(self, into: memoryview) -> tuple[int, list[int]]:
        """Read what is there; 0 bytes mean the end.

        Returns:
            How many bytes were read, and the descriptors that came with the last of them.

        Raises:
            BlockingIOError: nothing is there yet.
            OSError: the connection is broken, or descriptors were lost for want of room.
        """
        nbytes, ancillary, flags, _ = self._socket.recvmsg_into([into], _ONE_DESCRIPTOR, _CLOSE_ON_EXEC)
        if not ancillary and not flags & _TRUNCATED:
            return nbytes, []
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
        if flags & _TRUNCATED:
            close_descriptors(descriptors)
            # The kernel does not tell which of the two it was; with a full table, none of them has arrived.
            if descriptors:
                raise OSError(errno.EPROTO, "more descriptors arrived in one message than the protocol knows")
            raise OSError(errno.EMFILE, "a descriptor that arrived was lost")
        return nbytes, list(descriptors)

    def queue(self, pieces: Iterable[Outgoing[int]]) -> None:
        """Add to what `flush` sends: in order, and whole, whoever flushes and is cancelled in between."""
        for piece in pieces:
            self._queue.append(piece)
            self.queued_bytes += len(piece.data)

    def flush_nowait(self) -> bool:
        """Send as much as the kernel takes.

        Returns:
            Whether all is sent.

        Raises:
            OSError: the connection is broken.
        """
        queue = self._queue
        while queue:
            data, descriptor = queue[0]
            try:
                if descriptor is None:
                    sent = self._socket.send(data)
                else:
                    rights = array.array("i", [descriptor]).tobytes()
                    sent = self._socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            except BlockingIOError:
                return False
            self.queued_bytes -= sent
            if sent == len(data):
                queue.popleft()
            else:  # a descriptor travels with the first byte, and its message has only one
                queue[0] = (memoryview(data)[sent:], None)
        return True

    def discard(self) -> None:
        """Read what comes, for nobody, until the connection is over, and close the socket. Blocks."""
        with self._socket as sock, suppress(OSError):
            sock.setblocking(True)
            while sock.recv(_DISCARDED_AT_ONCE):  # the kernel closes descriptors that nobody takes
                pass

    def shut_down(self) -> None:
        """End the conversation in both directions, also for whoever waits for the socket."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def hand_over(self) -> "UnixSocket":
        """The same connection, with all that is queued, as a new socket; this one is as if it were closed."""
        heir = UnixSocket(socket.socket(fileno=self._socket.detach()))
        heir._queue, heir.queued_bytes = self._queue, self.queued_bytes
        return heir

    def close(self) -> None:
        """Close the socket. May be called again."""
        self._socket.close()
