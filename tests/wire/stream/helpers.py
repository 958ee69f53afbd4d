"""Ways to feed a connection and to note what it says, for all tests of the peer protocol."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat

from attrs import evolve

from plasmastream._object_id import ObjectID
from plasmastream.wire.stream import (
    NEED_BUFFER,
    NEED_DATA,
    PAUSED,
    ClientConnection,
    ConnectionClosed,
    Event,
    ObjectReceived,
    PayloadFinished,
    PayloadStarted,
    ServerConnection,
    Signal,
    SyncRequested,
    TransferRequested,
    Version2Offered,
)

Connection = ClientConnection | ServerConnection
Note = Event | bytes
Feeder = Callable[[Connection, memoryview, int], int]


def object_id(number: int) -> ObjectID:
    """An id that is easy to see in hex: its number, repeated."""
    return ObjectID(number.to_bytes(4, "big") * 5)


def sent(connection: Connection) -> bytes:
    """All that the connection has queued."""
    return b"".join(connection.data_to_send())


def feed_copy(connection: Connection, data: memoryview, wish: int) -> int:
    """One `receive_data` of `wish` bytes."""
    nbytes = min(wish, len(data))
    connection.receive_data(data[:nbytes])
    return nbytes


def feed_place(connection: Connection, data: memoryview, wish: int) -> int:
    """One read of at most `wish` bytes into the place that is offered."""
    with connection.get_buffer() as buffer:
        nbytes = min(wish, len(data), len(buffer))
        buffer[:nbytes] = data[:nbytes]
    connection.advance(nbytes)
    return nbytes


class Reader:
    """Takes events, does what the signals ask, and notes all of it: events, and the data of payloads as bytes.

    A server's requests are answered with a refusal, so that it reads on; an offer of version 2 ends what it reads.
    Payloads of a client are put into memory of their own, or dropped when `keep` says so.
    """

    def __init__(self, connection: Connection, keep: Callable[[PayloadStarted], bool] = lambda _: True) -> None:
        self.connection = connection
        self.notes: list[Note] = []
        self.payload: bytearray | None = None
        self.keep = keep
        self._started: PayloadStarted | None = None

    def events(self) -> Iterator[Event | Signal]:
        """Everything up to NEED_DATA or the end of the connection."""
        while (event := self.connection.next_event()) is not NEED_DATA:
            yield event
            if isinstance(event, ConnectionClosed):
                return

    def take(self) -> None:
        """Note all events that there are now."""
        for event in self.events():
            match event:
                case Signal():
                    assert event in (NEED_BUFFER, PAUSED)
                    self.obey()
                case PayloadFinished():
                    self.notes.append(event)
                    if self.payload is not None:
                        self.notes.append(bytes(self.payload))
                        self.payload.append(0)  # a BufferError unless the connection has let go of it
                        self.payload = None
                case ObjectReceived():
                    self.notes.append(evolve(event, data=bytes(event.data)))  # the scratch is used again
                case _:
                    self.notes.append(event)
                    if isinstance(event, PayloadStarted):
                        self._started = event

    def obey(self) -> None:
        """Do what the last signal asks."""
        connection = self.connection
        if isinstance(connection, ServerConnection):
            match self.notes[-1]:
                case TransferRequested():
                    connection.refuse(0x71)
                case SyncRequested(peer_requests):
                    connection.answer_sync([0x41] * len(peer_requests))
                case Version2Offered():
                    connection.take_rest()
            return
        assert self._started is not None
        if self.keep(self._started):
            self.payload = bytearray(self._started.data_size)
            connection.supply_buffer(self.payload)
        else:
            connection.discard_payload()

    def feed(self, data: bytes, wishes: Iterable[int], feeder: Feeder) -> None:
        """Feed all of `data`, in reads of the wished sizes (the rest in one wish), and take events between them."""
        rest = memoryview(data)
        for wish in chain(wishes, repeat(len(data))):
            if not rest or ConnectionClosed() in self.notes:
                return
            rest = rest[feeder(self.connection, rest, wish) :]
            self.take()


def read(connection: Connection, data: bytes, feeder: Feeder = feed_copy, wishes: Iterable[int] = ()) -> list[Note]:
    """Everything that a connection has to say about `data`."""
    reader = Reader(connection)
    reader.feed(data, wishes, feeder)
    return reader.notes


def answering(data: bytes, connection: ServerConnection) -> list[Event]:
    """The first event of each request in `data`, until the server pauses: usually one."""
    connection.receive_data(data)
    events: list[Event] = []
    while not isinstance(event := connection.next_event(), Signal):
        events.append(event)
    return events


def asked_server(request: bytes) -> ServerConnection:
    """A server that has seen one request and owes its answer."""
    server = ServerConnection()
    assert len(answering(request, server)) == 1
    return server
