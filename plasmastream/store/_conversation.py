"""What one client of a store says, and what is answered: at the desk as far as nothing must be waited for.

`Conversation` reads and writes, waits, and sees to it that all ends when the connection does. What the answers are is
said by who is derived from it (`_server.py`).
"""

import logging
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias

import trio

from plasmastream._errors import RemoteProtocolError
from plasmastream._object_id import ObjectID
from plasmastream._os_errors import reason_of
from plasmastream.store._access import Gate, leads_to, peer_of
from plasmastream.store._core import NotYetError, StoreCore
from plasmastream.store._desk import Desk
from plasmastream.store._inspect import process_at
from plasmastream.store._limits import ConnectionLimits
from plasmastream.store._spiller import Spiller
from plasmastream.store._subscription import Subscription
from plasmastream.store._table import Client
from plasmastream.store._transport import UnixTransport, close_descriptors
from plasmastream.store._turns import Turns
from plasmastream.wire.plasma import CONNECTION_CLOSED, NEED_DATA, Message, ServerConnection, Signal
from plasmastream.wire.plasma import Subscription as Subscribed

_log = logging.getLogger(__name__)

Rest: TypeAlias = Callable[[], Awaitable[None]]
"""What a connection's own task has to do before the connection can be served at the desk again."""

SEGMENT = 1
"""What `store_fd` and `segment_index` say: an opaque key for the one segment that a store has."""

MANY = 1000
"""Objects, from which on a request is a long one."""

_MOST_STEPS = 32  # for one client, before it is the next one's turn
_HANG_UP_POLL = 0.5


class Conversation(ABC):
    """One client's connection."""

    def __init__(
        self,
        core: StoreCore,
        sock: socket.socket,
        gate: Gate,
        limits: ConnectionLimits,
        desk: Desk,
        turns: Turns,
        spiller: Spiller | None,
        nursery: trio.Nursery,
    ) -> None:
        self._peer = peer_of(sock)
        self._core = core
        self._address = sock.getsockname()
        self._client = Client(f"process {self._peer.pid}", process=process_at(self._peer.pid, self._peer.user))
        self._gate = gate
        self._limits = limits
        self._desk = desk
        self._turns = turns
        self._spiller = spiller
        self._breached: set[str] = set()
        self._wire: ServerConnection[int] = ServerConnection(max_body_size=limits.largest_body(core.capacity))
        self._transport = UnixTransport(sock)
        self._segments = {SEGMENT: core.heap.segment.fd}
        self._mmap_size = core.heap.segment.length + 8  # clients map 8 bytes less than is advertised (plasma-ipc 3.3)
        self._needs_data = True
        self._hung_up = False
        self._nursery = nursery
        self._subscription: Subscription | None = None

    async def run(self) -> None:
        """Serve until the client hangs up or breaks the protocol; then let go what it held."""
        try:
            if self._gate.admits(self._peer):
                await self._converse()
            else:
                _log.warning("%s of user %d may not use this store", self._client.name, self._peer.user)
        except RemoteProtocolError as error:
            _log.warning("%s broke the protocol, its connection is closed: %s", self._client.name, error)
        except TimeoutError:
            _log.warning(
                "%s read nothing of its replies for %g s, its connection is closed",
                self._client.name,
                self._limits.reply_timeout,
            )
        except OSError as error:
            _log.info("%s is gone: %s", self._client.name, reason_of(error))
        finally:
            try:
                await self._turns.each(self._let_go, list(self._client.held))
            finally:
                self._core.disconnect(self._client)
                if self._subscription is not None:
                    self._subscription.close()
                close_descriptors(self._wire.take_unclaimed_descriptors())
                self._transport.close()

    @abstractmethod
    def _respond(self, request: Message) -> Rest | None:
        """Answer a request, or return what is to be waited for first.

        Raises:
            NotYetError: it can be answered when the store has made way.
        """

    async def _converse(self) -> None:
        while not self._hung_up:
            rest = await self._desk.attend(self._transport.fileno(), self._serve)
            await rest()
            if self._owes_much:
                await self._flush()

    def _serve(self) -> Rest | None:
        """Answer what the client has sent, until there is no more, or something is to be waited for."""
        if self._needs_data:
            self._read_nowait()
            self._needs_data = False
        wire = self._wire
        if wire.has_long_frame:  # only a read completes one
            return self._answer_long_frame
        for _ in range(_MOST_STEPS):  # one read may bring a thousand requests
            event = wire.next_event()
            if event is NEED_DATA:
                self._needs_data = True
                return None if self._transport.flush_nowait() else self._flush
            rest = self._take(event)
            if rest is not None:
                return rest
        return trio.lowlevel.checkpoint

    def _take(self, event: Message | Subscribed[int] | Signal) -> Rest | None:
        if event is CONNECTION_CLOSED:
            self._hung_up = True
            return trio.lowlevel.checkpoint
        if isinstance(event, Message):
            try:
                rest = self._respond(event)
            except NotYetError:
                return partial(self._answer, event)
            if rest is not None:
                return partial(self._answer, event, rest)
            return self._flush if self._owes_much else None
        assert isinstance(event, Subscribed)
        self._subscribe(event.descriptor)
        return None

    async def _answer_long_frame(self) -> None:
        rest = self._take(await self._turns.aside(self._wire.next_event))
        if rest is not None:
            await rest()

    async def _answer(self, request: Message, rest: Rest | None = None) -> None:
        """Answer a request, or do the rest of that, and begin anew as long as it cannot be answered yet."""
        while True:
            try:
                rest = rest or self._respond(request)
                if rest is not None:
                    await rest()
                return
            except NotYetError as error:
                rest = None
                await self._flush()
                if self._spiller is None:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._spiller.make_way(error.entries)

    async def _flush(self) -> None:
        """Send what is queued, for as long as the client reads at all."""
        while not self._transport.flush_nowait():
            left = self._transport.queued_bytes
            with trio.move_on_after(self._limits.reply_timeout):
                await self._transport.flush()
            self._transport.flush_nowait()  # the kernel takes some sooner than it says that it does
            if self._transport.queued_bytes == left:
                raise TimeoutError

    @property
    def _owes_much(self) -> bool:
        """Whether so many bytes of replies are unread that the next request must wait."""
        return self._transport.queued_bytes > self._limits.unread_replies

    def _exceeds(self, most: int | None, number: int, what: str) -> bool:
        """Whether a number is over its limit, which is told once."""
        if most is None or number <= most:
            return False
        if what not in self._breached:
            self._breached.add(what)
            over = f"{number:,} {what} would be over its limit of {most:,}"
            _log.warning("%s is refused, from now on in silence: %s", self._client.name, over)
        return True

    def _let_go(self, object_id: ObjectID) -> None:
        if not self._core.abort(self._client, object_id):
            self._core.release(self._client, object_id)

    def _subscribe(self, descriptor: int) -> None:
        if self._subscription is not None:
            self._subscription.close()  # a client that subscribes again reads from the new socket only
        try:
            self._subscription = Subscription(
                self._core, descriptor, self._client.name, self._limits.unread_notifications
            )
        except OSError as error:
            os.close(descriptor)
            raise RemoteProtocolError(f"notifications cannot be sent there: {error.strerror or error}") from error
        self._nursery.start_soon(self._subscription.run)

    def _read_nowait(self) -> None:
        try:
            nbytes, descriptors = self._transport.receive_nowait(self._wire.get_buffer())
        except BlockingIOError:
            return
        self._take_in(nbytes, descriptors)

    def _take_in(self, nbytes: int, descriptors: list[int]) -> None:
        # A client's end that we hold ourselves stays open when the client dies: its connection would never end.
        if descriptors and any(leads_to(self._address, descriptor) for descriptor in descriptors):
            close_descriptors(descriptors)
            raise OSError("a socket came from it that leads, or may yet lead, to this store itself")
        if nbytes:
            self._wire.advance(nbytes, descriptors)
        else:
            close_descriptors(descriptors)
            self._wire.receive_eof()

    def _send(self, message: Message) -> None:
        self._wire.send(message, self._segments)
        self._transport.queue(self._wire.data_to_send())

    async def _send_long(self, message: Message, count: int) -> None:
        """Send a message that names so many objects."""
        if count > MANY:
            await self._turns.aside(partial(self._send, message))
        else:
            self._send(message)

    async def _wait_or_hang_up(self, ready: Sequence[trio.Event]) -> None:
        """Wait for a get's objects, or until the client hangs up; what it sends meanwhile is kept for later."""

        async def watch() -> None:
            try:
                while len(buffer := self._wire.get_buffer()):
                    nbytes, descriptors = await self._transport.receive(buffer)
                    self._take_in(nbytes, descriptors)
                    if not nbytes:
                        break
                else:  # enough was read ahead, and an end behind it does not show by reading
                    while not self._transport.has_hung_up():  # noqa: ASYNC110  (which is no event to Trio)
                        await trio.sleep(_HANG_UP_POLL)
            except OSError as error:
                _log.info("%s is gone: %s", self._client.name, error.strerror or error)
            self._hung_up = True
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            for event in ready:
                await event.wait()
            nursery.cancel_scope.cancel()
