"""A connection of version 2 and its transport as one: what is queued goes out, what comes in becomes events."""

import math

from plasmastream._errors import PeerError, RemoteProtocolError
from plasmastream.peer._event_loop import now
from plasmastream.peer._results import RefusedError
from plasmastream.peer._transport import Excuse, PeerStalledError, Transport
from plasmastream.wire.stream.v2 import (
    IDLE,
    NEED_DATA,
    AnyEvent,
    ClientConnection,
    End,
    Hello,
    Lateness,
    Limits,
    Message,
    Outcome,
    Patience,
    ServerConnection,
    Signal,
    describe_outcome,
)


class Channel:
    """One end of a connection.

    Args:
        connection: the machine.
        transport: where its bytes go.
        patience: how long the other side may take.
    """

    def __init__(
        self, connection: ClientConnection | ServerConnection, transport: Transport, patience: Patience
    ) -> None:
        self.connection = connection
        self.transport = transport
        self.patience = patience
        self.received = 0
        """Bytes that have come."""

    @property
    def peer(self) -> str:
        """The other side, as HOST:PORT."""
        return self.transport.peer

    async def send(self, message: Message) -> None:
        """Send a control message, and whatever is queued."""
        self.connection.send(message)
        await self.flush()

    async def flush(self, excuse: Excuse | None = None) -> None:
        """Send what is queued; there may be an excuse where the other side takes too little.

        Raises:
            PeerStalledError: the other side takes too little.
            PeerError: the connection broke.
        """
        pieces = self.connection.data_to_send()
        patience = self.patience
        at_least = int(patience.rate * patience.stall)
        await self.transport.send(pieces, timeout=patience.stall, at_least=at_least, excuse=excuse)
        self.connection.sent(now())

    async def next_event(self) -> AnyEvent:
        """Wait for the next event. A cancel loses nothing.

        Raises:
            PeerStalledError: the other side is late, or too slow.
            PeerError: the connection broke, or ended where it may not.
            RemoteProtocolError: the other side broke the protocol.
        """
        while (event := self.connection.next_event()) is NEED_DATA:
            await self._read()
        assert not isinstance(event, Signal), "a chunk waits for its buffer"
        return event

    async def waiting_event(self) -> AnyEvent | None:
        """The next event if there is one, without waiting for it."""
        while (event := self.connection.next_event()) is NEED_DATA:
            if self.transport.is_quiet():
                return None
            await self._read()
        assert not isinstance(event, Signal), "a chunk waits for its buffer"
        return event

    async def _read(self) -> None:
        deadline = self.connection.deadline
        patience = math.inf if deadline == math.inf else max(0.0, deadline - now())
        try:
            with self.connection.get_buffer() as buffer:
                nbytes = await self.transport.receive_into(
                    buffer, timeout=patience, expected=self.connection.payload_expected
                )
        except PeerStalledError as error:
            raise self._stalled() from error
        if nbytes:
            self.received += nbytes
            self.connection.advance(nbytes, now())
            return
        self.connection.receive_eof()
        try:
            self.connection.next_event()
        except RemoteProtocolError as error:
            raise PeerError(f"{self.peer}: {error}") from error

    def _stalled(self) -> PeerStalledError:
        time = now()
        late = self.connection.late(time) or Lateness.SILENT
        as_a_whole = {Lateness.SLOW: self.patience.stall, Lateness.HELLO: self.patience.hello}
        seconds = as_a_whole.get(late, time - self.connection.last_progress)
        return PeerStalledError(f"{self.peer} {late.value} for {seconds:.3g} s")

    def close(self) -> None:
        """End the connection in order. May be called again."""
        self.connection.close()
        self.transport.close()

    def abort(self) -> None:
        """Break the connection. May be called again."""
        self.connection.close()
        self.transport.abort()


class ClientChannel(Channel):
    """The end that asks."""

    connection: ClientConnection

    @classmethod
    async def greet(cls, transport: Transport, hello: Hello, limits: Limits, patience: Patience) -> "ClientChannel":
        """Begin a connection of version 2.

        Raises:
            NoAnswerError: the other side ended the connection without a word, as version 1 does.
            RefusedError: it has no place for this connection.
            PeerError: it does not answer in time, or the connection broke.
            RemoteProtocolError: it broke the protocol, or speaks another one.
        """
        connection = ClientConnection(hello, now(), limits=limits, patience=patience)
        channel = cls(connection, transport, patience)
        try:
            connection.greet()
            await channel.flush()
            event = await channel.next_event()
        except (PeerError, RemoteProtocolError) as error:
            if connection.is_with_stranger:
                words = f"{channel.peer} does not answer in the protocol of plasmastream: is this the right port?"
                raise RemoteProtocolError(words) from error
            if channel.received or isinstance(error, PeerStalledError):
                raise
            raise NoAnswerError(str(error)) from error
        if isinstance(event, End):
            raise refusal(channel.peer, event)
        return channel

    @property
    def is_reusable(self) -> bool:
        """Whether another request can be made."""
        return self.connection.state is IDLE and self.transport.is_quiet()

    async def answer(self) -> AnyEvent | None:
        """The next event of an answer; None where it is done.

        Raises:
            RefusedError: the request failed as a whole.
            PeerError, RemoteProtocolError: see `next_event`.
        """
        event = await self.next_event()
        if not isinstance(event, End):
            return event
        if event.outcome:
            raise refusal(self.peer, event)
        return None


class NoAnswerError(PeerError):
    """A connection ended before the first byte of an answer: the other side may speak version 1 alone."""


def refusal(peer: str, end: End) -> RefusedError:
    """The error that an END stands for."""
    words = end.reason or describe_outcome(end.outcome)
    again = f"; try again in {end.retry_after:.3g} s" if end.outcome == Outcome.BUSY else ""
    return RefusedError(f"{peer}: {words}{again}", end.outcome, end.retry_after)
