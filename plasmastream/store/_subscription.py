"""One client's notifications: what is sealed and what is removed, in order, on a socket of the client's own.

Readers may fetch a message with a single `recv`, so each is sent whole, with one call, or not yet. The kernel takes a
message of moderate size into a Unix socket entirely or not at all; so long lists are cut into several messages,
which readers unpack one by one anyway. What the socket does not take waits in a bounded queue, and a subscriber that
lets it overflow is dropped, with a line in the log. What was sealed before is told a little at a time, as fast as it is
read, and what happens meanwhile waits behind it.
"""

import errno
import logging
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence

import trio

from plasmastream.store._core import StoreCore
from plasmastream.store._table import Entry
from plasmastream.wire.plasma import ObjectInfo, encode_notification

_log = logging.getLogger(__name__)

DEFAULT_MAX_UNREAD = 64 << 20
"""Bytes of unread notifications at which a subscriber is dropped: about half a million objects."""

# About 15 KB: the kernel splits what is larger than 32 KiB.
ENTRIES_PER_MESSAGE = 128
_SLICE = 0.001


class Subscription:
    """Sends notifications from now on, beginning with all objects that are sealed already.

    Args:
        core: the store.
        descriptor: the socket to send to; owned by this from now on.
        subscriber: whose it is, for the log.
        max_unread: bytes that may wait for the reader.

    Raises:
        OSError: the descriptor is not a Unix stream socket; it stays the caller's.
    """

    def __init__(self, core: StoreCore, descriptor: int, subscriber: str, max_unread: int = DEFAULT_MAX_UNREAD) -> None:
        self._socket = socket.socket(fileno=descriptor)
        if (self._socket.family, self._socket.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            self._socket.detach()
            # Closing a socket of another kind may block for as long as its owner likes (SO_LINGER).
            raise OSError(errno.EPROTOTYPE, "it is not a Unix stream socket")
        self._core = core
        self._subscriber = subscriber
        self._max_unread = max_unread
        self._unread: deque[memoryview] = deque()
        self._unread_bytes = 0
        self._blocked = trio.Event()
        self._old: Iterator[Entry] | None = iter([entry for entry in core.table if entry.sealed_at is not None])
        self._behind_old: list[memoryview] = []
        core.add_listener(self)
        self._tell_old()

    async def run(self) -> None:
        """Send what the socket did not take at once, whenever it takes more; until cancelled, closed, or dropped."""
        try:
            while self._socket.fileno() >= 0:
                await self._blocked.wait()
                self._blocked = trio.Event()
                while self._unread or self._old is not None:
                    await trio.lowlevel.wait_writable(self._socket)
                    self._send()
                    self._tell_old()
        except trio.ClosedResourceError:
            return
        finally:
            self.close()

    def sealed(self, entries: Sequence[Entry]) -> None:
        """Tell of objects that were sealed by one request."""
        for first in range(0, len(entries), ENTRIES_PER_MESSAGE):
            self._tell([_describe(entry) for entry in entries[first : first + ENTRIES_PER_MESSAGE]])

    def removed(self, entry: Entry) -> None:
        """Tell of an object that was deleted or evicted."""
        self._tell((ObjectInfo(entry.object_id, is_deletion=True),))

    def close(self) -> None:
        """Stop, and close the socket. May be called again."""
        self._core.remove_listener(self)
        self._unread.clear()
        self._old = None
        self._behind_old.clear()
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        self._blocked.set()

    def _tell(self, objects: Sequence[ObjectInfo]) -> None:
        if self._socket.fileno() < 0:
            return
        message = memoryview(encode_notification(objects))
        self._unread_bytes += len(message)
        if self._old is None:
            self._queue(message)
        else:
            self._behind_old.append(message)
        if self._unread_bytes > self._max_unread:
            _log.warning("%s does not read its notifications and is no longer told", self._subscriber)
            self.close()

    def _tell_old(self) -> None:
        """Tell some of what was sealed before, unless the reader has enough for now."""
        end = time.perf_counter() + _SLICE
        while self._old is not None and not self._unread and time.perf_counter() < end:
            entry = next(self._old, None)
            if entry is None:
                self._old = None
                self._unread.extend(self._behind_old)
                self._behind_old.clear()
                self._send()
            else:
                message = memoryview(encode_notification((_describe(entry),)))
                self._unread_bytes += len(message)
                self._queue(message)
        if self._old is not None:
            self._blocked.set()

    def _queue(self, message: memoryview) -> None:
        self._unread.append(message)
        # At once, so that it is there before the reply to the request that caused it.
        if len(self._unread) == 1:
            self._send()

    def _send(self) -> None:
        while self._unread:
            message = self._unread[0]
            try:
                # Not all subscribers make the end that they give away non-blocking.
                sent = self._socket.send(message, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._blocked.set()
                return
            except OSError as error:
                _log.info("%s stopped listening: %s", self._subscriber, error.strerror or error)
                self.close()
                return
            self._unread_bytes -= sent
            if sent == len(message):
                self._unread.popleft()
            else:  # a socket with an unusually small buffer
                self._unread[0] = message[sent:]


def _describe(entry: Entry) -> ObjectInfo:
    return ObjectInfo(
        object_id=entry.object_id,
        data_size=entry.data_size,
        metadata_size=entry.metadata_size,
        digest=entry.digest,
    )
