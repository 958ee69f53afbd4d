"""Connections to one peer, kept for the next request: some for what is small, some for what is large, some for SYNCs.

So a small request never stands behind a long one. A connection serves one request at a time; who finds none free waits
in order. Which version the peer speaks is found out here, by the first connection.
"""

import logging
import math
import threading
from collections.abc import Awaitable, Callable
from enum import Enum
from types import TracebackType
from typing import TypeAlias

import anyio
import attrs

from plasmastream._errors import LocalProtocolError, PeerError
from plasmastream.peer._channel import ClientChannel, NoAnswerError
from plasmastream.peer._results import RefusedError
from plasmastream.peer._transport import Connect, PeerStalledError, UnreachableError, format_address
from plasmastream.peer._version1 import NotOldError
from plasmastream.wire.stream.v2 import IDLE, DamagedError, Hello, Limits, Outcome, Patience

_log = logging.getLogger(__name__)

_VERSION_1_FOR = 600.0

Prove: TypeAlias = Callable[[], Awaitable[None]]
"""Has a peer prove that it speaks version 1 alone, and raises a PeerError where it does not."""


class Lane(Enum):
    """Which connections a request goes over. The value is how many there may be."""

    SMALL = 2
    LARGE = 4
    SYNC = 16

    __hash__ = object.__hash__  # that of an enum is written in Python


class OldPeerError(PeerError):
    """The peer seems to speak version 1 alone; `Lanes.is_old` says whether it has proven that."""


@attrs.frozen
class Introduction:
    """What a client says, allows and expects of every connection."""

    hello: Hello
    limits: Limits
    patience: Patience
    connect_timeout: float
    """Seconds."""
    may_fall_back: bool = True
    """Whether version 1 will do."""


class Lanes:
    """Connections of version 2 to the peer at `host` and `port`. Call `close` in the end.

    Args:
        host: a name, or an IP address.
        port: its TCP port.
        connect: makes a connection.
        introduction: what to say on it.
    """

    def __init__(self, host: str, port: int, connect: Connect, introduction: Introduction) -> None:
        self._host = host
        self._port = port
        self._connect = connect
        self._introduction = introduction
        self._slots = {lane: anyio.Semaphore(lane.value, fast_acquire=True) for lane in Lane}
        self._idle: dict[Lane, list[ClientChannel]] = {lane: [] for lane in Lane}
        self._in_use: set[ClientChannel] = set()
        self._retired: set[ClientChannel] = set()  # of those: which are not to be kept
        self._is_closed = False
        self._thread: int | None = None
        self._has_spoken_version_2 = False
        self._version_1_until = -math.inf

    @property
    def is_old(self) -> bool:
        """Whether the peer has proven lately that it speaks version 1 alone."""
        return anyio.current_time() < self._version_1_until

    def note_old(self) -> None:
        """The peer has proven that it speaks version 1 alone."""
        if self._version_1_until == -math.inf:
            _log.info("%s does not know version 2 of the protocol; version 1 is spoken with it", self)
        self._version_1_until = anyio.current_time() + _VERSION_1_FOR

    def note_not_old(self) -> None:
        """The peer has shown that it knows version 2."""
        self._has_spoken_version_2 = True

    @property
    def has_any(self) -> bool:
        """Whether there are connections."""
        return bool(self._in_use) or any(self._idle.values())

    @property
    def in_use(self) -> int:
        """Connections with a request under way."""
        return len(self._in_use)

    def channel(self, lane: Lane, prove: Prove | None = None) -> "_Loan":
        """A connection for one request after the other; it is broken off when the `async with` block ends within one.

        Args:
            lane: for which requests.
            prove: has a peer that seems to be old prove it; without, `is_old` says whether it has.

        Raises:
            LocalProtocolError: another thread uses them.
            OldPeerError: the peer speaks version 1 alone, or seems to.
            UnreachableError: nobody answers there.
            RefusedError: the peer has no place for one more.
            PeerError: the connection broke.
        """
        return _Loan(self, lane, prove)

    async def lend(self, lane: Lane, prove: Prove | None) -> ClientChannel:
        """Wait for a connection, and lend it: see `channel`."""
        self._check_thread()
        slots = self._slots[lane]
        await slots.acquire()
        try:
            channel = self._reuse(lane) or await self._open(prove)
        except BaseException:
            slots.release()
            raise
        self._in_use.add(channel)
        return channel

    def take_back(self, lane: Lane, channel: ClientChannel, *, has_failed: bool) -> None:
        """Keep a connection that was lent for the next request, if it is good for one."""
        self._in_use.discard(channel)
        if has_failed or self._is_closed or channel in self._retired or channel.connection.state is not IDLE:
            self._retired.discard(channel)
            channel.abort()
        else:
            self._idle[lane].append(channel)
        self._slots[lane].release()

    def close(self) -> None:
        """Close all connections that no request is using; the others close when it ends."""
        self._is_closed = True
        self._thread = None
        for idle in self._idle.values():
            while idle:
                idle.pop().close()

    def close_idle(self) -> None:
        """Close all connections that no request is using."""
        self.close()
        self._is_closed = False

    def retire(self) -> None:
        """Have none of these connections kept: those in use close when their request ends, the others now."""
        self._retired |= self._in_use
        self.close_idle()

    def _check_thread(self) -> None:
        thread = threading.get_ident()
        if self._thread not in (None, thread):
            raise LocalProtocolError(f"the client of {self} belongs to another thread: make another one")
        self._thread = thread

    def _reuse(self, lane: Lane) -> ClientChannel | None:
        idle = self._idle[lane]
        while idle:
            channel = idle.pop()
            if channel.is_reusable:
                return channel
            channel.abort()  # the server has closed it, being idle for long
        return None

    async def _open(self, prove: Prove | None) -> ClientChannel:
        introduction = self._introduction
        if introduction.may_fall_back and self.is_old:
            raise OldPeerError(f"{self} speaks version 1")
        transport = await self._connect(self._host, self._port, timeout=introduction.connect_timeout)
        try:
            channel = await ClientChannel.greet(
                transport, introduction.hello, introduction.limits, introduction.patience
            )
        except NoAnswerError as error:
            transport.abort()
            if self._has_spoken_version_2 or not introduction.may_fall_back:
                raise PeerError(f"{self} ended the connection before the greeting") from error
            try:
                if prove is not None:
                    await prove()
            except NotOldError:
                return await self._open(prove)
            raise OldPeerError(f"{self} speaks version 1") from error
        except PeerStalledError as error:
            transport.abort()
            raise UnreachableError(str(error)) from error
        except DamagedError as error:
            transport.abort()
            raise PeerError(f"{self}: {error}") from error
        except BaseException:
            transport.abort()
            raise
        self._has_spoken_version_2 = True
        peer = channel.connection.peer
        if peer is not None and peer.identity == introduction.hello.identity:
            channel.close()
            raise RefusedError(f"{self} is this server itself", Outcome.REFUSED)
        return channel

    def __str__(self) -> str:
        return format_address((self._host, self._port))


@attrs.define(eq=False)
class _Loan:
    """See `Lanes.channel`."""

    lanes: Lanes
    lane: Lane
    prove: Prove | None
    channel: ClientChannel | None = None

    async def __aenter__(self) -> ClientChannel:
        self.channel = await self.lanes.lend(self.lane, self.prove)
        return self.channel

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.channel is not None
        self.lanes.take_back(self.lane, self.channel, has_failed=kind is not None)
