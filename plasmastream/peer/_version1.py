"""A client of version 1 of the protocol, for peers that know no other, and prove it where that is in doubt."""

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

import anyio
import attrs

from plasmastream._errors import PeerError, TransferError
from plasmastream._object_id import ObjectID
from plasmastream.peer._receiver import Progress, Receiver
from plasmastream.peer._timeouts import PeerTimeouts
from plasmastream.peer._transport import Connect, PeerStalledError, Transport, UnreachableError, format_address
from plasmastream.store._object_store import ObjectStore
from plasmastream.wire.stream import (
    IS_NOT_OLD,
    IS_OLD,
    NEED_DATA,
    QUESTION,
    ClientConnection,
    Limits,
    PeerRequest,
    SyncAnswered,
    TransferKind,
)

_WHOLE = 128 << 10
"""Objects of up to so many bytes go into the store with others, as those of version 2 do.

100 KiB each: 77 microseconds with a create, a seal and a get of its own, 44 with others.
"""

_PERHAPS_INVALID = "a server does so when it finds a SYNC invalid, one that names itself for instance: see its log"

_LIMITS = Limits(inline_size=_WHOLE)


class NotOldError(PeerError):
    """The peer knows version 2, though a connection ended before it answered the greeting."""


class Witness(Protocol):
    """Who knows whether a peer has proven that it knows version 1 alone."""

    @property
    def is_old(self) -> bool:
        """Whether it has."""
        ...

    def note_old(self) -> None:
        """It has proven that."""
        ...

    def note_not_old(self) -> None:
        """It has shown that it knows version 2."""
        ...


@attrs.define(eq=False)
class _Link:
    transport: Transport
    connection: ClientConnection


class Version1Client:
    """A client of the server at `host` and `port`. One request at a time; more wait in order.

    It connects when it has to, and again after an error. Call `aclose` in the end.

    Args:
        host: a name, or an IPv4 or IPv6 address.
        port: its TCP port.
        timeouts: how patient to be.
        connect: makes a connection.
        limits: what is asked for and accepted.
        witness: where one is given, the peer has to prove that it knows no other version, unless it has: every call may
            raise NotOldError, or UnreachableError where it does not answer that.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        timeouts: PeerTimeouts,
        connect: Connect,
        limits: Limits | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._timeouts = timeouts
        self._limits = limits or _LIMITS
        self._connect = connect
        self._witness = witness
        self._turn = anyio.Semaphore(1, fast_acquire=True)
        self._link: _Link | None = None

    async def copy(
        self, object_ids: Sequence[ObjectID], store: ObjectStore, *, on_progress: Progress | None = None
    ) -> None:
        """Fetch objects into a store; the peer keeps its own. All of them or none, per 65,536.

        Args:
            object_ids: which objects, all distinct.
            store: where they go.
            on_progress: called with (objects, bytes) that arrived since the last call.

        Raises:
            TransferError: the peer refused; `status` says why.
            PeerError: it cannot be reached, broke off, or stood still.
            RemoteProtocolError: it broke the protocol.
            StoreError: `store` refused an object (ObjectExistsError: it has it already), or is gone.
        """
        await self._transfer(TransferKind.COPY, object_ids, store, on_progress)

    async def take(
        self, object_ids: Sequence[ObjectID], store: ObjectStore, *, on_progress: Progress | None = None
    ) -> None:
        """Fetch objects into a store, whereupon the peer deletes its own: as `copy` otherwise.

        The peer is told that all arrived by a clean end of the connection; should anything fail before, including this
        process, it sees a broken connection and keeps its objects.
        """
        await self._transfer(TransferKind.TAKE, object_ids, store, on_progress)

    async def sync(self, peer_requests: Sequence[PeerRequest], *, timeout: float | None = None) -> tuple[int, ...]:
        """Have the server fetch objects from other peers into its own store, and wait until all of it is done.

        Args:
            peer_requests: what to fetch from whom; no object twice.
            timeout: how long to wait for the answer, in seconds; None for as long as the connection stands. Fetching
                goes on when we stop waiting.

        Returns:
            A status byte for each peer request, in order: see `plasmastream.wire.stream.Status`.

        Raises:
            PeerError: the server cannot be reached, broke off (it does when it finds the request invalid), or did not
                answer in time.
            RemoteProtocolError: it broke the protocol.
        """
        async with self._turn, _Linked(self) as link:
            link.connection.request_sync(peer_requests)
            await self._send(link)
            patience = math.inf if timeout is None else timeout
            while True:
                event = link.connection.next_event()
                if isinstance(event, SyncAnswered):
                    return event.statuses
                assert event is NEED_DATA
                try:
                    with link.connection.get_buffer() as buffer:
                        nbytes = await link.transport.receive_into(buffer, timeout=patience)
                except PeerStalledError:
                    raise
                except PeerError as error:
                    raise PeerError(f"{error}; {_PERHAPS_INVALID}") from error
                if not nbytes:
                    raise PeerError(f"{link.transport.peer} ended the connection without an answer; {_PERHAPS_INVALID}")
                link.connection.advance(nbytes)

    async def connect(self) -> None:
        """Connect, if that is not done, and have the proof where one is needed.

        Raises:
            PeerError: the server cannot be reached.
        """
        async with self._turn, _Linked(self) as link:
            await self._send(link)

    async def aclose(self) -> None:
        """Close the connection. May be called again; the client may go on to be used."""
        self.disconnect()
        await anyio.lowlevel.checkpoint()

    def disconnect(self) -> None:
        """Do what `aclose` does, at once."""
        if self._link is not None:
            self._link.transport.close()
            self._link = None

    async def _transfer(
        self, kind: TransferKind, object_ids: Sequence[ObjectID], store: ObjectStore, on_progress: Progress | None
    ) -> None:
        for first in range(0, len(object_ids), self._limits.max_objects):
            async with self._turn, _Linked(self) as link:
                wanted = object_ids[first : first + self._limits.max_objects]
                link.connection.request_transfer(kind, wanted)
                if kind is TransferKind.TAKE:
                    link.transport.break_on_death(True)
                await self._send(link)
                await Receiver(
                    link.connection,
                    link.transport,
                    store,
                    what=f"object {wanted[0]}" if len(wanted) == 1 else f"{len(wanted):,} objects",
                    progress_timeout=self._timeouts.progress,
                    store_timeout=self._timeouts.store,
                    on_progress=on_progress,
                ).run()
                if kind is TransferKind.TAKE:
                    link.transport.break_on_death(False)
                self.disconnect()  # version 1 has no other word for "all is here"

    async def _send(self, link: _Link) -> None:
        """Send what is queued, behind the question for a proof where one is needed; then wait for that."""
        request, witness = link.connection.data_to_send(), self._witness
        if witness is None or witness.is_old:
            await link.transport.send(request, timeout=self._timeouts.progress)
        else:
            await self._have_proof(link.transport, witness, request)

    async def _have_proof(self, transport: Transport, witness: Witness, request: Sequence[bytes | memoryview]) -> None:
        answer = bytearray()
        try:
            await transport.send([QUESTION, *request], timeout=self._timeouts.progress)
            with memoryview(bytearray(len(IS_OLD))) as buffer:
                while len(answer) < len(IS_OLD):
                    missing = buffer[len(answer) :]
                    nbytes = await transport.receive_into(missing, timeout=self._timeouts.greeting)
                    if not nbytes:
                        break
                    answer += missing[:nbytes]
        except PeerError as error:
            raise UnreachableError(f"{error}; it answers in no version of the protocol") from error
        if IS_NOT_OLD in answer:
            witness.note_not_old()
            raise NotOldError(f"{transport.peer} knows version 2 of the protocol")
        if answer != IS_OLD:
            raise UnreachableError(f"{transport.peer} ends connections, and answers in no version of the protocol")
        witness.note_old()

    async def link(self) -> _Link:
        """A connection between requests: see `_Linked`."""
        if self._link is not None and not self._link.transport.is_quiet():
            self.disconnect()  # the server has closed it, being idle for long
        if self._link is None:
            transport = await self._connect(self.host, self.port, timeout=self._timeouts.connect)
            self._link = _Link(transport, ClientConnection(self._limits))
        return self._link

    def give_up(self, link: _Link, error: BaseException) -> None:
        """End a connection on which a request failed: in order after a refusal, when nothing is under way."""
        if isinstance(error, TransferError):
            link.transport.break_on_death(False)
            self.disconnect()
        else:
            link.transport.abort()
            self._link = None

    def __str__(self) -> str:
        return format_address((self.host, self.port))

    def __repr__(self) -> str:
        return f"<Version1Client of {self}>"


@attrs.define(eq=False)
class _Linked:
    """A connection between requests, within an `async with` block; it is broken off when the block fails."""

    client: Version1Client
    link: _Link | None = None

    async def __aenter__(self) -> _Link:
        self.link = await self.client.link()
        return self.link

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.link is not None:
            self.client.give_up(self.link, error)
