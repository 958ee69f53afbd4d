"""Bytes over TCP: try first, wait only when the kernel says so, and give up on a peer that stands still.

Works on Trio and on asyncio. Everything that goes wrong below becomes a `PeerError` here, once, naming the peer.
"""

import errno
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol, TypeAlias

import anyio
import anyio.lowlevel

from plasmastream._errors import PeerError
from plasmastream._os_errors import reason_of
from plasmastream.peer._event_loop import now, running_loop

_Address: TypeAlias = tuple[str | int, ...]

DEFAULT_PORT = 2021
"""The port of the first implementation."""

_JOIN_BELOW = 512 << 10
# Measured over loopback, 1 GiB: 3.6, 8.4, 6.9, 6.0 GB/s with steps of 64 KiB, 256 KiB, 1 MiB, 64 MiB.
_SEND_STEP = 256 << 10
# Measured over loopback, 1 GiB: 3.7 GB/s where a reader is woken for each packet, of 64 KiB; 5.2, 5.3, 5.9, 5.7 where
# it sleeps until there are 128, 256, 512, 1,024 KiB.
_LOW_WATER = 512 << 10
_MOMENT = 0.02  # seconds; what has come may lie in the kernel for so long, where the rest of it is slow
_CALLS_PER_CHECKPOINT = 64  # and so many times 16 KiB

_MAPPED = "::ffff:"  # stands before an IPv4 address where a socket speaks both

# A peer whose machine vanished is noticed by TCP itself within about a minute, also where nothing is to be sent.
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_COUNT = 30, 10, 3


class PeerStalledError(PeerError):
    """The peer made no progress for as long as it was given."""


class UnreachableError(PeerError):
    """Nobody answers at the peer's address."""


Excuse: TypeAlias = Callable[[], Awaitable[bool]]
"""Asked where too little has moved: whether there is a reason to wait for as long again."""


class Transport(Protocol):
    """What sender and receiver need of a connection. Errors are PeerError; a stall is PeerStalledError."""

    @property
    def peer(self) -> str:
        """The other side, as HOST:PORT, for messages."""
        ...

    async def receive_into(self, buffer: memoryview, *, timeout: float, expected: int = 1) -> int:
        """Read what is there, waiting up to `timeout` seconds for a first byte; 0 bytes mean a clean end.

        Where more than one byte is `expected`, since a payload was announced, say, it may wait a moment longer, to read
        many at once.

        A cancel loses nothing: either bytes were read and returned, or none were.
        """
        ...

    async def send(
        self,
        pieces: Sequence[bytes | memoryview],
        *,
        timeout: float,
        at_least: int = 1,
        excuse: Excuse | None = None,
    ) -> None:
        """Send all pieces in order; in each `timeout` seconds of waiting, `at_least` bytes must have moved.

        Where they have not, and there is an `excuse`, the time begins anew.

        After a cancel nobody knows what was sent: the connection is of no use any more.
        """
        ...

    def is_quiet(self) -> bool:
        """Whether nothing waits to be read, not even the end."""
        ...

    def break_on_death(self, on: bool) -> None:
        """Decide what the peer sees if this process dies: a broken connection (`on`), or a clean end."""
        ...

    def close(self) -> None:
        """End the connection in order: the peer reads what was sent, then a clean end. May be called again."""
        ...

    def abort(self) -> None:
        """Break the connection: the peer gets an error, not a clean end. May be called again."""
        ...


class Connect(Protocol):
    """How a client comes to a connection: `connect`, or what takes its place."""

    async def __call__(self, host: str, port: int, *, timeout: float) -> Transport:
        """See `connect`."""
        ...


class TcpTransport:
    """A `Transport` over a connected TCP socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_COUNT)
        self._socket = sock
        self._calls = 0
        self._low_water = 1
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        try:
            self.peer = format_address(sock.getpeername())
        except OSError:
            self.peer = "a peer that is gone already"

    @property
    def local_address(self) -> str:
        """The IP address at which this machine is talking."""
        host: str = self._socket.getsockname()[0]
        return host

    async def receive_into(self, buffer: memoryview, *, timeout: float, expected: int = 1) -> int:
        """See `Transport.receive_into`."""
        self._calls += 1
        if self._calls >= _CALLS_PER_CHECKPOINT:
            await self._breathe()
        deadline: float | None = None
        low_water = min(expected, len(buffer), _LOW_WATER)
        while True:
            try:
                nbytes = self._socket.recv_into(buffer)
                self._calls += nbytes >> 14
                return nbytes
            except BlockingIOError:
                time = now()
                deadline = time + timeout if deadline is None else deadline
                self._sleep_until(low_water)
                wake = deadline if low_water == 1 else min(deadline, time + _MOMENT)
                is_readable = await running_loop().wait_readable(self._socket, wake)
                if not is_readable and (low_water == 1 or self._socket.fileno() < 0):
                    raise self._late(f"sent nothing for {timeout:g} s") from None
                low_water = 1
            except OSError as error:
                raise self._broken(error) from error

    async def send(
        self,
        pieces: Sequence[bytes | memoryview],
        *,
        timeout: float,
        at_least: int = 1,
        excuse: Excuse | None = None,
    ) -> None:
        """See `Transport.send`."""
        moved, since = at_least, 0.0
        blocks = [memoryview(block).cast("B") for block in _joined(pieces)]
        try:
            while blocks:
                self._calls += 1
                if self._calls >= _CALLS_PER_CHECKPOINT:
                    await self._breathe()
                try:
                    nbytes = self._send_some(blocks)
                except BlockingIOError:
                    if moved >= at_least:
                        moved, since = 0, now()
                    if not await running_loop().wait_writable(self._socket, since + timeout):
                        what = "took nothing" if not moved else f"took {moved} bytes only"
                        late = self._late(f"{what} for {timeout:g} s")
                        if not isinstance(late, PeerStalledError) or excuse is None or not await excuse():
                            raise late from None
                        moved, since = 0, now()
                except OSError as error:
                    raise self._broken(error) from error
                else:
                    moved += nbytes
                    self._calls += nbytes >> 14
        finally:
            for block in blocks:
                block.release()

    def _send_some(self, blocks: list[memoryview]) -> int:
        """Send from the first of some blocks, of a short one and the next, and drop from them what was sent."""
        first = blocks[0]
        if len(first) >= _SEND_STEP:
            with first[:_SEND_STEP] as step:
                nbytes = left = self._socket.send(step)
        elif len(blocks) == 1:
            nbytes = left = self._socket.send(first)
        else:
            with blocks[1][:_SEND_STEP] as next_step:
                nbytes = left = self._socket.sendmsg((first, next_step))
        while blocks and left >= len(blocks[0]):
            left -= len(blocks[0])
            blocks.pop(0).release()
        if left:
            with blocks[0] as block:
                blocks[0] = block[left:]
        return nbytes

    def is_quiet(self) -> bool:
        """See `Transport.is_quiet`."""
        if self._socket.fileno() < 0:
            return False
        self._sleep_until(1)
        return not self._poll.poll(0)  # a read that fails takes four times as long

    def break_on_death(self, on: bool) -> None:
        """See `Transport.break_on_death`.

        The kernel closes a dead process's sockets. With a linger time of 0 it does so by a reset.
        """
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))

    def close(self) -> None:
        """See `Transport.close`."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()

    def abort(self) -> None:
        """See `Transport.abort`."""
        if self._socket.fileno() >= 0:
            self.break_on_death(True)
            self.close()

    def _sleep_until(self, nbytes: int) -> None:
        """Have the kernel say that there is something to read only when there are so many bytes, or the end."""
        if nbytes != self._low_water:
            self._low_water = nbytes
            with suppress(OSError):  # the next read says what is wrong
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, nbytes)

    async def _breathe(self) -> None:
        """Let others run, as is due now and then though this connection never has to wait."""
        self._calls = 0
        await anyio.lowlevel.checkpoint()

    def _late(self, what: str) -> PeerError:
        """The error after a wait in vain: the time was over, or the connection was closed meanwhile."""
        if self._socket.fileno() < 0:
            return PeerError(f"the connection to {self.peer} was closed")
        return PeerStalledError(f"{self.peer} {what}")

    def _broken(self, error: OSError) -> PeerError:
        return PeerError(f"the connection to {self.peer} broke: {error.strerror or error}")


async def connect(host: str, port: int, *, timeout: float) -> TcpTransport:
    """Connect to a peer, trying each address that its name has.

    Args:
        host: a name, or an IPv4 or IPv6 address.
        port: its TCP port.
        timeout: for all of it, in seconds.

    Raises:
        UnreachableError: nobody answers there in time.
    """
    peer = format_address((host, port))
    failure = f"{peer} did not answer within {timeout:g} s"
    deadline = now() + timeout
    for family, address in await _look_up(host, port, deadline):
        try:
            transport = await _connect(socket.socket(family, socket.SOCK_STREAM), address, deadline)
            if transport is None:
                break
            return transport
        except OSError as error:
            failure = f"no connection to {peer}: {reason_of(error)}"
    raise UnreachableError(failure)


async def _look_up(host: str, port: int, deadline: float) -> list[tuple[int, _Address]]:
    """The addresses of a host, each with its family; none where the time is over."""
    for family in (socket.AF_INET, socket.AF_INET6):  # an address needs no look-up, which would take a thread
        with suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return [(family, (host, port))]
    try:
        with anyio.CancelScope(deadline=deadline):
            found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [(family, address) for family, _, _, _, address in found]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no host can have this name"
        raise UnreachableError(f"{host} is not a host that is known here: {reason}") from error
    return []


async def _connect(sock: socket.socket, address: _Address, deadline: float) -> TcpTransport | None:
    """Connect a socket, and own it; None where the time is over."""
    try:
        await anyio.lowlevel.checkpoint_if_cancelled()
        sock.setblocking(False)
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            code = sock.connect_ex(address)  # on the same machine it is done by now
        if code in (errno.EALREADY, errno.EINPROGRESS):
            if not await running_loop().wait_writable(sock, deadline):
                sock.close()
                return None
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code not in (0, errno.EISCONN):
            raise OSError(code, os.strerror(code))
        return TcpTransport(sock)
    except BaseException:
        sock.close()
        raise


def format_address(address: Sequence[str | int]) -> str:
    """Write a socket address as HOST:PORT, an IPv6 host in brackets, and an IPv4 host as such."""
    host, port = str(address[0]), address[1]
    if "." in host:
        host = host.removeprefix(_MAPPED)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Read HOST, HOST:PORT, [IPV6] or [IPV6]:PORT.

    Raises:
        ValueError: it is neither.
    """
    host, separator, port = text.rpartition(":")
    if not separator or text.endswith("]"):
        host, port = text, str(default_port)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 address is written in brackets, as in [::1]:{default_port}, not as {text!r}")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"a peer is written as HOST:PORT, with a port from 1 to 65535, not as {text!r}")
    return host, int(port)


def _joined(pieces: Iterable[bytes | memoryview]) -> list[bytes | memoryview]:
    """Join neighbours that are cheaper to copy than to send apart."""
    joined: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = []
    size = 0
    for piece in pieces:
        if not len(piece):
            continue
        if size + len(piece) > _JOIN_BELOW and small:
            joined.append(b"".join(small))
            small, size = [], 0
        if len(piece) > _JOIN_BELOW:
            joined.append(piece)
        else:
            small.append(piece)
            size += len(piece)
    if small:
        joined.append(small[0] if len(small) == 1 else b"".join(small))
    return joined
