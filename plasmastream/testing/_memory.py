"""`memory_transports`: both ends of a connection in memory, for code of the peer room that takes a `Transport`.

They behave like two `TcpTransport`s with a short cable: room for a bounded number of bytes each way, a clean end or a
reset, the same errors in the same words. What a socket does by chance, these do when told: the n-th call stalls, cuts,
fails, or is cancelled.
"""

import errno
import os
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import attrs
import trio

from plasmastream._errors import PeerError
from plasmastream.peer import PeerStalledError

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
        return cls(at, lambda end: end._cut(reset), method)

    @classmethod
    def fail(cls, at: int, error: OSError, method: Method | None = None) -> "CallFault":
        """The operating system refuses the call; the connection is broken from then on."""
        return cls(at, lambda end: end._fail(error), method)

    @classmethod
    def cancel(cls, at: int, scope: trio.CancelScope, method: Method | None = None) -> "CallFault":
        """A scope is cancelled; where the call is made inside it, it ends with nothing done."""
        return cls(at, lambda end: scope.cancel(), method)


class _Pipe:
    """Bytes on their way in one direction."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.data = bytearray()
        self.is_ended = False
        self.error: OSError | None = None  # for who reads, when the data is used up
        self.is_refused = False  # nobody will read
        self.lot = trio.lowlevel.ParkingLot()


class MemoryTransport:
    """One end; see `plasmastream.peer` for what its methods promise. Make two by `memory_transports`.

    Attributes:
        peer: the name of the other end, for messages.
        local_address: the name of this one.
        calls: how often each method was called.
    """

    def __init__(self, name: str, peer: str, incoming: _Pipe, outgoing: _Pipe, faults: Sequence[CallFault]) -> None:
        self.peer = peer
        self.local_address = name
        self.calls: dict[Method, int] = {"receive_into": 0, "send": 0}
        self._incoming = incoming
        self._outgoing = outgoing
        self._faults = tuple(faults)
        self._is_closed = False
        self._breaks_on_death = False

    async def receive_into(self, buffer: memoryview, *, timeout: float) -> int:
        """Read what is there, waiting up to `timeout` seconds for a first byte; 0 bytes mean a clean end.

        Raises:
            PeerStalledError: nothing came in time.
            PeerError: the connection broke, or was closed.
        """
        pipe = self._incoming
        stalls = await self._begin("receive_into")
        with trio.move_on_after(max(0.0, timeout)):
            if stalls:
                await trio.sleep_forever()
            while not (self._is_closed or pipe.data or pipe.error or pipe.is_ended):
                await pipe.lot.park()
            self._check_open()
            if pipe.data:
                nbytes = min(len(buffer), len(pipe.data))
                buffer[:nbytes] = pipe.data[:nbytes]
                del pipe.data[:nbytes]
                pipe.lot.unpark_all()
                return nbytes
            if pipe.error:
                raise self._broken(pipe.error)
            return 0
        raise PeerStalledError(f"{self.peer} sent nothing for {timeout:g} s")

    async def send(self, pieces: Sequence[bytes | memoryview], *, timeout: float, at_least: int = 1) -> None:
        """Send all pieces in order; in each `timeout` seconds, `at_least` bytes must have moved.

        After a cancel nobody knows what was sent: the connection is of no use any more.

        Raises:
            PeerStalledError: the other end took nothing in time.
            PeerError: the connection broke, or was closed.
        """
        stalls = await self._begin("send")
        with trio.move_on_after(max(0.0, timeout)) as scope:
            if stalls:
                await trio.sleep_forever()
            moved = 0
            for piece in pieces:
                with memoryview(piece) as whole, whole.cast("B") as octets:
                    sent = 0
                    while sent < len(octets):
                        nbytes = await self._send_some(octets[sent:])
                        sent, moved = sent + nbytes, moved + nbytes
                        if moved >= at_least:
                            moved, scope.deadline = 0, trio.current_time() + timeout
            return
        raise PeerStalledError(f"{self.peer} took nothing for {timeout:g} s")

    def is_quiet(self) -> bool:
        """Whether nothing waits to be read, not even the end."""
        pipe = self._incoming
        return not (self._is_closed or pipe.data or pipe.error or pipe.is_ended)

    def half_close(self) -> None:
        """Send no more: the other end reads a clean end, and may go on sending."""
        self._outgoing.is_ended = True
        self._outgoing.lot.unpark_all()

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
        self._leave(by_reset=bool(self._incoming.data))

    def abort(self) -> None:
        """Break the connection: the other end gets an error. May be called again."""
        self._leave(by_reset=True)

    def _leave(self, by_reset: bool) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if by_reset and not self._outgoing.is_ended:  # who has a clean end to read reads that, as from a socket
            self._outgoing.error = _error(errno.ECONNRESET)
        self._outgoing.is_ended = True
        self._incoming.is_refused = True
        self._incoming.data.clear()
        self._wake()

    def _cut(self, by_reset: bool) -> None:
        if by_reset:
            self._incoming.error = self._outgoing.error = _error(errno.ECONNRESET)
        for pipe in (self._incoming, self._outgoing):
            pipe.is_ended = pipe.is_refused = True
        self._wake()

    def _fail(self, error: OSError) -> None:
        self._cut(by_reset=True)
        raise self._broken(error) from error

    def _wake(self) -> None:
        self._incoming.lot.unpark_all()
        self._outgoing.lot.unpark_all()

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
        pipe = self._outgoing
        with octets:
            while not (self._is_closed or pipe.is_refused or pipe.is_ended) and len(pipe.data) >= pipe.room:
                await pipe.lot.park()
            self._check_open()
            if self._incoming.error:
                raise self._broken(self._incoming.error)
            if pipe.is_refused or pipe.is_ended:
                raise self._broken(_error(errno.EPIPE))
            nbytes = min(len(octets), pipe.room - len(pipe.data))
            pipe.data += octets[:nbytes]
            pipe.lot.unpark_all()
            return nbytes

    def _check_open(self) -> None:
        if self._is_closed:
            raise PeerError(f"the connection to {self.peer} was closed")

    def _broken(self, error: OSError) -> PeerError:
        return PeerError(f"the connection to {self.peer} broke: {error.strerror or error}")

    def __repr__(self) -> str:
        return f"<MemoryTransport from {self.local_address} to {self.peer}>"


def memory_transports(
    client_faults: Sequence[CallFault] = (), server_faults: Sequence[CallFault] = (), *, room: int = _DEFAULT_ROOM
) -> tuple[MemoryTransport, MemoryTransport]:
    """Two connected ends: the client's, and the server's.

    Args:
        client_faults: what goes wrong with calls of the client's end.
        server_faults: what goes wrong with calls of the server's.
        room: bytes that may be under way in each direction; who sends more waits.

    Raises:
        ValueError: there is no room at all.
    """
    if room < 1:
        raise ValueError(f"a connection needs room for a byte at least, not for {room}")
    to_server, to_client = _Pipe(room), _Pipe(room)
    client = MemoryTransport("client", "server", to_client, to_server, client_faults)
    server = MemoryTransport("server", "client", to_server, to_client, server_faults)
    return client, server


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
