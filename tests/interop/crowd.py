"""A crowd of a thousand clients of one store: some stall in the midst of a frame, some never read, most are idle.

They are plain sockets of the test's own process, which must be allowed as many descriptors; so must the store.
"""

import contextlib
import resource
import socket
from collections.abc import Iterator
from typing import Self

import attrs
import pytest

from plasmastream import ObjectID
from plasmastream.wire.plasma import ConnectRequest, ContainsRequest, encode

_HEADROOM = 200

_ASK = encode(ContainsRequest(ObjectID.from_name("what a crowd asks for")))
_MANY = _ASK * 256


@contextlib.contextmanager
def descriptors_for(clients: int) -> Iterator[None]:
    """Let this process, and those that it starts, have so many connections; skip where that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = clients + _HEADROOM
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"{needed:,} descriptors are needed, and this user may have {hard:,} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@attrs.frozen
class Crowd:
    """`stalled` clients have sent part of a frame, `deaf` ones ask and never read; `active` ones may be made to ask."""

    stalled: list[socket.socket]
    deaf: list[socket.socket]
    active: list[socket.socket]
    idle: list[socket.socket]
    _sent: dict[socket.socket, int] = attrs.field(factory=dict, init=False)

    @classmethod
    def connect(cls, path: str, *, stalled: int, deaf: int, active: int, idle: int) -> Self:
        """Connect all of them, and bring each into its state."""
        crowd = cls(*([_connect(path) for _ in range(count)] for count in (stalled, deaf, active, idle)))
        for number, client in enumerate(crowd.stalled):
            client.sendall(_ASK[: 1 + number % (len(_ASK) - 1)])
        for client in (*crowd.active, *crowd.idle):
            client.sendall(encode(ConnectRequest()))
        return crowd

    def __len__(self) -> int:
        return sum(map(len, (self.stalled, self.deaf, self.active, self.idle)))

    def ask(self, number: int) -> None:
        """Have one of the active clients ask something, and read the answer to what it asked before."""
        client = self.active[number % len(self.active)]
        with contextlib.suppress(BlockingIOError):
            client.recv(1 << 16)
        client.sendall(_ASK)

    def still_connected(self) -> int:
        """How many the store has not hung up on: whoever has nothing to read, or bytes."""
        return sum(_is_connected(client) for client in (*self.stalled, *self.deaf, *self.active, *self.idle))

    def deaf_are_stuck(self) -> bool:
        """Have the deaf clients ask; whether none of them could, as kernel and store have all that they take."""
        return not sum([self._fill(client) for client in self.deaf])

    def _fill(self, client: socket.socket) -> int:
        """Send requests until the kernel takes no more; tell how many bytes those were."""
        before = self._sent.get(client, 0)
        total = before
        with contextlib.suppress(BlockingIOError):
            while True:  # a frame may have been cut, and goes on where it was
                total += client.send(_MANY[total % len(_ASK) :])
        self._sent[client] = total
        return total - before

    def close(self) -> None:
        """Disconnect all of them."""
        for client in (*self.stalled, *self.deaf, *self.active, *self.idle):
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(path)
    client.setblocking(False)
    return client


def _is_connected(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
