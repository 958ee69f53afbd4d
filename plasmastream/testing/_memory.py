"""`memory_transports`: both ends of a connection in memory, for code of the peer room that takes a `Transport`.

They behave like two `TcpTransport`s with a short cable: room for a bounded number of bytes each way, a clean end or a
reset, the same errors in the same words. What a socket does by chance, these do when told: the n-th call stalls, cuts,
fails, or is cancelled; and the bytes on their way meet the faults of a `Script`, as they do in the proxy.
"""

import errno
import math
import os
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import attrs
import trio

from plasmastream._errors import PeerError
from plasmastream.peer import Excuse, PeerStalledError
from plasmastream.testing._faults import Direction, Script
from plasmastream.testing._passage import Triggered
from plasmastream.testing._pipe import Pipe

Method: TypeAlias = Literal["receive_into", "send"]
"""The calls that can go wrong."""

_DEFAULT_ROOM = 64 << 10


@attrs.frozen
class CallFault:
    """What goes wrong at the n-th call of one end, before it does anything; made by one of the functions below.

    Calls are counted from 1: those of one method, or of both where none is named.
    """

    at: int = attrs.field(validator=attrs.validators.ge(1))
    act: Callable[["MemoryTransport"], object] | None
    """What is done then; None stalls the call until it is cancelled or runs out of time."""
    method: Method | None = None

    @classmethod
    def stall(cls, at: int, method: Method | None = None) -> "CallFault":
        """The call waits as if nothing ever came, or no room."""
        return cls(at, None, method)

    @classmethod
    def cut(cls, at: int, method: Method | None = None, *, reset: bool = False) -> "CallFault":
        """The other side ends the connection, in order or by a reset; what it had sent can still be read."""
        return cls(at, lambda end: end.cut(reset=reset), method)

    @classmethod
    def fail(cls, at: int, error: OSError, method: Method | None = None) -> "CallFault":
        """The operating system refuses the call; the connection is broken from then on."""
        return cls(at, lambda end: end._fail(error), method)

    @classmethod
    def cancel(cls, at: int, scope: trio.CancelScope, method: Method | None = None) -> "CallFault":
        """A scope is cancelled; where the call is made inside it, it ends with nothing done."""
        return cls(at, lambda end: scope.cancel(), method)


class MemoryTransport:
    """One end; see `plasmastream.peer` for what its methods promise. Make two by `memory_transports`.

    Attributes:
        peer: the name of the other end, for messages.
        local_address: the name of this one.
        calls: how often each method was called.
    """

    def __init__(
        self,
        name: str,
        peer: str,
        incoming: Pipe,
        outgoing: Pipe,
        faults: Sequence[CallFault],
        triggered: list[Triggered],
    ) -> None:
        self.peer = peer
        self.local_address = name
        self.calls: dict[Method, int] = {"receive_into": 0, "send": 0}
        self._incoming = incoming
        self._outgoing = outgoing
        self._faults = tuple(faults)
        self._triggered = triggered
        self._is_closed = False
        self._sends_no_more = False
        self._breaks_on_death = False

    @property
    def triggered(self) -> list[Triggered]:
        """The faults of the script that have happened, in both directions and in order."""
        now = trio.current_time()
        return sorted((seen for seen in self._triggered if seen.time <= now), key=lambda seen: seen.time)

    async def receive_into(self, buffer: memoryview, *, timeout: float, expected: int = 1) -> int:
        """Read what is there, waiting up to `timeout` seconds for a first byte; 0 bytes mean a clean end.

        However many are `expected`, it does not wait for more.

        Raises:
            PeerStalledError: nothing came in time.
            PeerError: the connection broke, or was closed.
        """
        pipe = self._incoming
        stalls = await self._begin("receive_into")
        with trio.move_on_after(max(0.0, timeout)):
            if stalls:
                await trio.sleep_forever()
            while self.is_quiet() and not self._is_closed:
                await _change(pipe, pipe.next_arrival())
            self._check_open()
            if nbytes := pipe.take(buffer, trio.current_time()):
                return nbytes
            if pipe.error:
                raise self._broken(pipe.error)
            return 0
        raise PeerStalledError(f"{self.peer} sent nothing for {timeout:g} s")

    async def send(
        self,
        pieces: Sequence[bytes | memoryview],
        *,
        timeout: float,
        at_least: int = 1,
        excuse: Excuse | None = None,
    ) -> None:
        """Send all pieces in order; each `timeout` seconds `at_least` bytes move, or there is an `excuse`.

        After a cancel nobody knows what was sent: the connection is of no use any more.

        Raises:
            PeerStalledError: the other end took nothing in time.
            PeerError: the connection broke, or was closed.
        """
        stalls = await self._begin("send")
        octets = memoryview(b"".join(pieces))
        sent = 0
        while True:
            with trio.move_on_after(max(0.0, timeout)) as scope:
                if stalls:
                    await trio.sleep_forever()
                moved = 0
                while sent < len(octets):
                    nbytes = await self._send_some(octets[sent:])
                    sent, moved = sent + nbytes, moved + nbytes
                    if moved >= at_least:
                        moved, scope.deadline = 0, trio.current_time() + timeout
                return
            if excuse is None or not await excuse():
                raise PeerStalledError(f"{self.peer} took nothing for {timeout:g} s")

    def is_quiet(self) -> bool:
        """Whether nothing waits to be read, not even the end."""
        return not self._is_closed and self._incoming.next_arrival() > trio.current_time()

    def cut(self, *, reset: bool = False) -> None:
        """End the connection now, for both ends, in order or by a reset; what has arrived can still be read."""
        _cut((self._incoming, self._outgoing), trio.current_time(), reset)

    def hold(self, seconds: float) -> None:
        """Unplug the cable for so many seconds: what either end sends meanwhile arrives later, and so does its end."""
        for pipe in (self._incoming, self._outgoing):
            pipe.hold(trio.current_time() + seconds)

    def half_close(self) -> None:
        """Send no more: the other end reads a clean end, and may go on sending."""
        self._outgoing.end(leaves=False)
        self._sends_no_more = True

    def break_on_death(self, on: bool) -> None:
        """Decide what `die` does."""
        self._breaks_on_death = on

    def die(self) -> None:
        """Do what the kernel does with a dead process's connection: close it, or break it if that was asked for."""
        if self._breaks_on_death:
            self.abort()
        else:
            self.close()

    def close(self) -> None:
        """End the connection in order; as with a socket, with bytes unread it is a reset. May be called again."""
        self._leave(by_reset=self._incoming.has_arrived(trio.current_time()))

    def abort(self) -> None:
        """Break the connection: the other end gets an error. May be called again."""
        self._leave(by_reset=True)

    def _leave(self, by_reset: bool) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        # Who has a clean end to read reads that, as from a socket.
        self._outgoing.end(_error(errno.ECONNRESET) if by_reset else None, leaves=True)
        self._incoming.forget()

    def _fail(self, error: OSError) -> None:
        self.cut(reset=True)
        raise self._broken(error) from error

    async def _begin(self, method: Method) -> bool:
        """Count a call, and let happen what is to happen at it; whether it stalls."""
        self.calls[method] += 1
        stalls = False
        for fault in self._faults:
            count = sum(self.calls.values()) if fault.method is None else self.calls[method]
            if fault.method in (None, method) and fault.at == count:
                if fault.act is None:
                    stalls = True
                else:
                    fault.act(self)
        await trio.lowlevel.checkpoint()
        return stalls

    async def _send_some(self, octets: memoryview) -> int:
        outgoing, incoming = self._outgoing, self._incoming
        with octets:
            while not self._cannot_send() and outgoing.nbytes >= outgoing.room:
                await _change(outgoing, incoming.left_at)
            self._check_open()
            if self._cannot_send():
                raise self._broken(incoming.error or _error(errno.EPIPE))
            return outgoing.put(octets, trio.current_time())

    def _cannot_send(self) -> bool:
        return self._is_closed or self._sends_no_more or self._incoming.left_at <= trio.current_time()

    def _check_open(self) -> None:
        if self._is_closed:
            raise PeerError(f"the connection to {self.peer} was closed")

    def _broken(self, error: OSError) -> PeerError:
        return PeerError(f"the connection to {self.peer} broke: {error.strerror or error}")

    def __repr__(self) -> str:
        return f"<MemoryTransport from {self.local_address} to {self.peer}>"


def memory_transports(
    client_faults: Sequence[CallFault] = (),
    server_faults: Sequence[CallFault] = (),
    *,
    room: int = _DEFAULT_ROOM,
    script: Script | None = None,
) -> tuple[MemoryTransport, MemoryTransport]:
    """Two connected ends: the client's, and the server's.

    Args:
        client_faults: what goes wrong with calls of the client's end.
        server_faults: what goes wrong with calls of the server's.
        room: bytes that may be under way in each direction; who sends more waits.
        script: what goes wrong with the bytes on their way, by their position; nothing, by default.

    Raises:
        ValueError: there is no room at all.
    """
    if room < 1:
        raise ValueError(f"a connection needs room for a byte at least, not for {room}")
    script = script or Script()
    triggered: list[Triggered] = []

    def cut(due: float, by_reset: bool) -> None:
        _cut((to_server, to_client), due, by_reset)

    to_server = Pipe(Direction.TO_SERVER, room, script.to_server, triggered, cut)
    to_client = Pipe(Direction.TO_CLIENT, room, script.to_client, triggered, cut)
    to_server.begin()
    to_client.begin()
    client = MemoryTransport("client", "server", to_client, to_server, client_faults, triggered)
    server = MemoryTransport("server", "client", to_server, to_client, server_faults, triggered)
    return client, server


def _cut(pipes: Sequence[Pipe], due: float, by_reset: bool) -> None:
    for pipe in pipes:
        pipe.end_at(due, _error(errno.ECONNRESET) if by_reset else None, leaves=True)


async def _change(pipe: Pipe, at: float) -> None:
    """Wait until somebody does something with a pipe, or a time has come."""
    if at == math.inf:
        await pipe.lot.park()
    else:
        with trio.move_on_at(at):
            await pipe.lot.park()


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
