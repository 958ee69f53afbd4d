"""Two ends to talk to each other, a reader that notes what one says, and a recorded conversation."""

from collections.abc import Callable, Iterable
from itertools import chain, repeat

from plasmastream.wire.stream.v2 import (
    MAGIC,
    NEED_BUFFER,
    NEED_DATA,
    AnyEvent,
    Cancel,
    ChunkEnded,
    ChunkStarted,
    ClientConnection,
    ConnectionClosed,
    Encoding,
    End,
    Hello,
    Limits,
    Listed,
    ListObjects,
    Message,
    Open,
    Outcomes,
    Patience,
    Progress,
    Put,
    Range,
    Read,
    RunArrived,
    ServerConnection,
    Sizes,
    Want,
    known_encodings,
)
from tests.wire.stream.v2.samples import REQUESTS, TOKEN, A, B

Connection = ClientConnection | ServerConnection
Note = object
CLIENT = Hello(b"c" * 16, 1 << 20, known_encodings(), "client")
SERVER = Hello(b"s" * 16, 1 << 20, known_encodings(), "server")


def pattern(seed: int, size: int) -> bytes:
    """Bytes that show it when they are moved, lost or repeated."""
    return (bytes((i * 7 + seed) % 251 for i in range(251)) * (size // 251 + 1))[:size]


def sent(connection: Connection) -> bytes:
    """All that the connection has queued."""
    return b"".join(connection.data_to_send())


def feed(connection: Connection, data: bytes | memoryview, now: float = 0.0) -> None:
    """One read after the other, no events between: for what is shorter than the scratch."""
    rest = memoryview(data)
    while rest:
        with connection.get_buffer() as buffer:
            nbytes = min(len(rest), len(buffer))
            buffer[:nbytes] = rest[:nbytes]
        connection.advance(nbytes, now)
        rest = rest[nbytes:]


class Reader:
    """Feeds a connection, takes its events and notes them; chunks are kept unless `keep` says no."""

    def __init__(self, connection: Connection, keep: Callable[[ChunkStarted], bool] = lambda _: True) -> None:
        self.connection = connection
        self.notes: list[Note] = []
        self._keep = keep
        self._memory: bytearray | None = None
        self.act: Callable[[AnyEvent], None] = lambda _: None
        """What the tested end does at an event, so that its state goes on."""

    def take(self) -> None:
        """Note all events that there are now."""
        connection = self.connection
        while (event := connection.next_event()) is not NEED_DATA:
            if event is NEED_BUFFER:
                started = self.notes[-1]
                assert isinstance(started, ChunkStarted)
                if self._keep(started):
                    self._memory = bytearray(started.length)
                    connection.supply_buffer(self._memory)
                else:
                    connection.discard_chunk()
                continue
            assert isinstance(event, AnyEvent)
            match event:
                case ChunkEnded():
                    content = bytes(self._memory) if self._memory is not None else None
                    if self._memory is not None:
                        self._memory.append(0)  # a BufferError unless the connection has let go of it
                        self._memory = None
                    self.notes += (event, content if event.is_intact else None)
                case RunArrived(objects):
                    self.notes.append([(index, bytes(data), bytes(meta)) for index, data, meta in objects])
                case _:
                    self.notes.append(event)
            self.act(event)
            if isinstance(event, ConnectionClosed):
                return

    def feed(self, data: bytes, wishes: Iterable[int] = ()) -> None:
        """Feed all of `data`, in reads of at most the wished sizes, and take events between them."""
        rest = memoryview(data)
        for wish in chain(wishes, repeat(len(data))):
            if not rest:
                return
            with self.connection.get_buffer() as buffer:
                nbytes = min(wish, len(rest), len(buffer))
                buffer[:nbytes] = rest[:nbytes]
            self.connection.advance(nbytes, 0.0)
            rest = rest[nbytes:]
            self.take()


def new_client(
    hello: Hello = CLIENT, limits: Limits | None = None, patience: Patience | None = None
) -> ClientConnection:
    """A client that has queued its greeting."""
    client = ClientConnection(hello, 0.0, limits=limits, patience=patience)
    client.greet()
    return client


def new_server(
    hello: Hello = SERVER, limits: Limits | None = None, patience: Patience | None = None
) -> ServerConnection:
    """A server that has seen nothing but MAGIC."""
    return ServerConnection(hello, 0.0, limits=limits, patience=patience)


def greeted(
    client_limits: Limits | None = None,
    server_limits: Limits | None = None,
    client_hello: Hello = CLIENT,
    server_hello: Hello = SERVER,
    patience: Patience | None = None,
) -> tuple[ClientConnection, ServerConnection]:
    """Both ends after their greetings."""
    client = new_client(client_hello, client_limits, patience)
    server = new_server(server_hello, server_limits, patience)
    wire = sent(client)
    assert wire.startswith(MAGIC)
    feed(server, wire[len(MAGIC) :])
    assert server.next_event() == client_hello
    server.greet()
    feed(client, sent(server))
    assert client.next_event() == server_hello
    assert (client.next_event(), server.next_event()) == (NEED_DATA, NEED_DATA)
    return client, server


def asked(request: object) -> tuple[ClientConnection, ServerConnection]:
    """Both ends while a request runs."""
    client, server = greeted()
    client.send(request)  # type: ignore[arg-type]
    feed(server, sent(client))
    assert server.next_event() == request
    return client, server


Step = tuple[bool, bytes]  # whether the client sent it, and what


def conversation(large: int = 300, encoding: Encoding = Encoding.ZSTD) -> list[Step]:
    """What both ends say, in turns: each kind of frame at least once."""
    client, server = greeted()
    steps: list[Step] = []

    def say(who: Connection) -> None:
        wire = sent(who)
        other = server if who is client else client
        Reader(other).feed(wire)
        steps.append((who is client, wire))

    def content(seed: int) -> memoryview:
        return memoryview(pattern(seed, large))

    client.send(Open(TOKEN, False, 0, (A, B)))
    say(client)
    server.send(Progress())
    server.send_run([(0, b"data", b"meta"), (3, b"", b"")])
    server.send_run([(1, pattern(2, 600), b"")], encoding)
    server.send_object(2, large, b"metadata", 77)
    server.send(Outcomes(0, 2, "not here", (4, 5)))
    server.send(End())
    say(server)
    client.send(Read(TOKEN, False, 0, (Range(77, 0, large),)))
    say(client)
    server.send_chunk(0, 0, content(3))
    server.send_chunk(0, large, content(4), encoding)
    server.send_chunk(0, 2 * large, content(5), Encoding.ABSENT)
    server.send(End())
    say(server)
    client.send(Put(TOKEN, (A, B), (Sizes(4, 4), Sizes(large, 1))))
    say(client)
    server.send(Want((Range(1, 0, large),)))
    say(server)
    client.send_run([(0, b"data", b"meta")])
    client.send_object(1, large, b"m")
    client.send_chunk(1, 0, content(6))
    client.send(Cancel())
    say(client)
    server.send(End(14, "cancelled"))
    say(server)
    for request in REQUESTS:
        if not isinstance(request, Open | Read | Put | ListObjects):
            client.send(request)
            say(client)
            server.send(End())
            say(server)
    client.send(ListObjects())
    say(client)
    server.send(Listed((), (), ()))
    server.send(End())
    say(server)
    return steps


def said(steps: list[Step], by_client: bool) -> bytes:
    """All that one end says in a conversation."""
    return b"".join(data for is_clients, data in steps if is_clients is by_client)


def listener(steps: list[Step], to_client: bool, most: int = 1 << 20) -> Reader:
    """An end that bears to hear the other's part of a conversation: it asks, or ends requests, as it must.

    Chunks of more than `most` bytes are dropped.
    """
    client, server = greeted()
    if not to_client:
        reader = Reader(server, lambda started: started.length <= most)

        def answer(event: AnyEvent) -> None:
            if isinstance(event, Cancel) or (isinstance(event, Message) and not isinstance(event, Put)):
                server.send(End())
                server.data_to_send()

        reader.act = answer
        return reader
    asker = listener(steps, to_client=False)
    asker.feed(said(steps, by_client=True))
    requests = [note for note in asker.notes if isinstance(note, Message) and not isinstance(note, Cancel)]
    reader = Reader(client, lambda started: started.length <= most)

    def ask(event: AnyEvent | None) -> None:
        if requests and (event is None or isinstance(event, End)):
            client.send(requests.pop(0))
            client.data_to_send()

    ask(None)
    reader.act = ask
    return reader
