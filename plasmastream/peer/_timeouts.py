"""How patient clients and servers are."""

import attrs

from plasmastream.wire.stream.v2 import Patience


def _check(timeouts: "PeerTimeouts | ServerTimeouts") -> None:
    """See that all of them are times: nobody is ever as late as NaN seconds, and would be waited for for ever."""
    for name, seconds in attrs.asdict(timeouts, recurse=False).items():
        if isinstance(seconds, PeerTimeouts):
            continue
        if not isinstance(seconds, (int, float)):
            raise TypeError(f"{name} is a number of seconds, not {seconds!r:.80}")
        if not seconds >= 0:
            raise ValueError(f"{name} cannot be {seconds} s")


@attrs.frozen
class PeerTimeouts:
    """How patient to be with a peer, all in seconds, and none negative."""

    connect: float = 10.0
    """From the look-up of its name to the established connection."""
    greeting: float = 5.0
    """For its answer to the greeting, all of it."""
    progress: float = 30.0
    """With a request under way, for any byte to move; version 2 asks for 4 KiB a second on average over that time."""
    store: float = 10.0
    """For room in our own store, where it is full of objects in use."""
    retry: float = 60.0
    """Without any progress in spite of attempts, after which a transfer is given up."""

    def __attrs_post_init__(self) -> None:
        _check(self)

    @property
    def patience(self) -> Patience:
        """What of it the machine of version 2 has to know."""
        return Patience(hello=self.greeting, stall=self.progress)


@attrs.frozen
class ServerTimeouts:
    """How patient a server is, all in seconds, and none negative."""

    idle: float = 300.0
    """With a connection on which nothing more is asked."""
    greeting: float = 5.0
    """With a client's greeting that has begun, for all of it."""
    progress: float = 30.0
    """With a new connection for its first byte, with a request that has begun for all of it (version 2: for 4 KiB a
    second), and with an answer under way for any byte to move."""
    objects: float = 0.01
    """For objects that are asked for and not there yet (the first implementation's `--plasma-timeout`)."""
    token: float = 30.0
    """For a client of version 2 to come back after its connections broke, before what it has open is let go."""
    waiting: float = 20.0
    """With a request that has to wait for others of the same peer, before it is refused."""
    fetching: PeerTimeouts = attrs.Factory(PeerTimeouts)
    """With the peers that SYNC requests name."""

    def __attrs_post_init__(self) -> None:
        _check(self)

    @property
    def patience(self) -> Patience:
        """What of it the machine of version 2 has to know."""
        return Patience(hello=self.greeting, stall=self.progress, idle=self.idle)
