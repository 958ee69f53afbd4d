"""What a closed client leaves behind while views of its objects live: the socket by which the store holds them.

No client waits for it any more, and no event loop knows it. So whoever has the turn may speak, in any thread, also from
a finalizer; nothing that is said has an answer that matters. It closes when nobody can reach it any more, at the
latest. In a child after a fork it is closed at once: the store goes on to hear the parent.
"""

import os
from _thread import start_new_thread
from collections.abc import Iterable
from contextlib import suppress
from threading import Lock
from weakref import WeakSet

from plasmastream._client._socket import UnixSocket
from plasmastream.wire.plasma import Message, Outgoing, encode


class Lingering:
    """The socket of a client that was closed."""

    def __init__(self, transport: UnixSocket) -> None:
        self.turn = Lock()
        """For whoever speaks. Taken without waiting: a finalizer may come in the midst of who has it."""
        self._transport = transport
        self._is_read = False
        _all.add(self)

    def read_for_nobody(self) -> None:
        """Have a thread read what the store sends: Apache's, which has one thread, would wait until somebody does."""
        self._is_read = True
        try:
            start_new_thread(self._transport.discard, ())
        except RuntimeError:  # there can be no more threads
            self._is_read = False

    def tell(self, requests: Iterable[Message]) -> None:
        """Send what the kernel takes; the rest goes with the next, or needs not be said any more."""
        said = b"".join(map(encode, requests))
        if said:
            self._transport.queue((Outgoing(said),))
        try:
            self._transport.flush_nowait()
        except OSError:
            self.close()  # the store is gone, or has let go by itself

    def close(self) -> None:
        """Close the socket: the store lets go of what is still held. May be called again."""
        if self._is_read:
            with suppress(OSError):  # it is over
                self._transport.shut_down()  # and whoever reads closes it
        else:
            self._transport.close()

    def __del__(self) -> None:
        self.close()


_all: WeakSet[Lingering] = WeakSet()


def _leave_all_to_parent() -> None:
    for lingering in list(_all):
        lingering._transport.close()


os.register_at_fork(after_in_child=_leave_all_to_parent)
