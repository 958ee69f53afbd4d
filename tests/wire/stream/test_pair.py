"""Two connections back to back: what one end sends is what the other end sees."""

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st

from plasmastream._object_id import ObjectID
from plasmastream.wire.stream import (
    NEED_DATA,
    PAUSED,
    AnswerBegun,
    AnswerComplete,
    ClientConnection,
    ConnectionClosed,
    Event,
    ObjectReceived,
    PayloadFinished,
    PayloadStarted,
    PeerRequest,
    ServerConnection,
    Signal,
    SyncAnswered,
    SyncRequested,
    TransferKind,
    TransferRequested,
)
from tests.wire.stream.helpers import Note, Reader, feed_copy, feed_place, object_id, sent

KINDS = st.sampled_from(TransferKind)
IDS = st.lists(st.binary(min_size=20, max_size=20).map(ObjectID), min_size=1, max_size=30, unique=True)
TRANSFERS = st.builds(TransferRequested, KINDS, IDS.map(tuple))
ADDRESSES = st.ip_addresses()


@st.composite
def syncs(draw: st.DrawFn) -> SyncRequested:
    """A SYNC whose ids are distinct across its peer requests."""
    ids = draw(IDS)
    cuts = sorted(draw(st.sets(st.integers(1, len(ids) - 1)))) if len(ids) > 1 else []
    return SyncRequested(
        tuple(
            PeerRequest(draw(KINDS), draw(ADDRESSES), draw(st.integers(1, 65_535)), tuple(ids[start:end]))
            for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)
        )
    )


class ConnectionPair:
    """A client and a server, joined by nothing."""

    def __init__(self) -> None:
        self.client = ClientConnection()
        self.server = ServerConnection()
        self.reader = Reader(self.client)

    def ask(self, request: TransferRequested | SyncRequested) -> None:
        if isinstance(request, TransferRequested):
            self.client.request_transfer(request.kind, request.object_ids)
        else:
            self.client.request_sync(request.peer_requests)

    def to_server(self) -> None:
        for piece in self.client.data_to_send():
            self.server.receive_data(piece)

    def to_client(self) -> list[Note]:
        self.reader.notes.clear()
        for piece in self.server.data_to_send():
            self.reader.feed(bytes(piece), [], feed_place)
        return self.reader.notes[:]


def content(name: ObjectID) -> tuple[bytes, bytes]:
    """Metadata and data that belong to an id: now and then too large to be delivered whole."""
    return name[: name[0] % 20], name * (1_000 if name[1] % 8 == 0 else name[2])


def answer(server: ServerConnection, request: Event) -> list[Note]:
    """Answer as a server that has every object; what the client should see of it."""
    match request:
        case TransferRequested(_, object_ids):
            server.begin()
            notes: list[Note] = [AnswerBegun()]
            for left, name in zip(range(len(object_ids), 0, -1), object_ids, strict=True):
                assert server.owes_answer
                assert server.objects_left == left
                metadata, data = content(name)
                server.send_object(metadata, data)
                if 8 + len(metadata) + len(data) <= 16 * 1024:
                    notes.append(ObjectReceived(name, metadata, data))
                else:
                    notes += [PayloadStarted(name, metadata, len(data)), PayloadFinished(name), data]
            return [*notes, AnswerComplete()]
        case SyncRequested(peer_requests):
            statuses = tuple(part.port % 256 for part in peer_requests)
            server.answer_sync(statuses)
            return [SyncAnswered(statuses)]
    raise AssertionError(request)


@settings(max_examples=60, deadline=None)
@given(st.lists(TRANSFERS | syncs(), max_size=5))
def test_one_request_after_the_other(requests: list[TransferRequested | SyncRequested]) -> None:
    pair = ConnectionPair()
    for request in requests:
        pair.ask(request)
        assert pair.client.awaits_answer
        pair.to_server()
        assert pair.server.next_event() == request
        assert pair.server.next_event() is PAUSED
        expected = answer(pair.server, request)
        assert not pair.server.owes_answer
        assert pair.server.next_event() is NEED_DATA
        assert pair.to_client() == expected
        assert not pair.client.awaits_answer
    for end in (pair.client, pair.server):
        end.receive_eof()
        assert end.next_event() == ConnectionClosed()
        assert end.next_event() == ConnectionClosed()


@settings(max_examples=60, deadline=None)
@given(st.lists(TRANSFERS | syncs(), min_size=1, max_size=5))
def test_pipelined(requests: list[TransferRequested | SyncRequested]) -> None:
    pair = ConnectionPair()
    for request in requests:
        pair.ask(request)
    pair.server.receive_data(sent(pair.client))
    pair.server.receive_eof()  # a client may say at once that it asks no more
    expected: list[Note] = []
    while not isinstance(event := pair.server.next_event(), ConnectionClosed | Signal):
        expected += answer(pair.server, event)
    assert isinstance(event, ConnectionClosed)
    assert pair.to_client() == expected
    assert not pair.client.awaits_answer


def test_a_server_that_owes_an_answer_reads_ahead_no_further_than_its_scratch() -> None:
    client, server = ClientConnection(), ServerConnection()
    for _ in range(10):
        client.request_transfer(TransferKind.COPY, [object_id(i) for i in range(2_000)])
    rest = memoryview(sent(client))
    taken = 0
    while rest:
        with server.get_buffer() as buffer:
            nbytes = min(len(buffer), len(rest))
            buffer[:nbytes] = rest[:nbytes]
        if nbytes:
            server.advance(nbytes)
            rest = rest[nbytes:]
            if server.owes_answer:
                assert server.next_event() is PAUSED
                continue
        else:
            assert server.next_event() is PAUSED  # an empty place to read to means: answer first
            server.refuse(0x71)
        while isinstance(server.next_event(), TransferRequested):
            taken += 1
            break
    while server.owes_answer:
        server.refuse(0x71)
        taken += isinstance(server.next_event(), TransferRequested)
    assert taken == 10


def test_sendfile_way() -> None:
    """A header through the connection, the data past it."""
    pair = ConnectionPair()
    name = object_id(1)
    pair.ask(TransferRequested(TransferKind.TAKE, (name,)))
    pair.to_server()
    pair.server.next_event()
    pair.server.begin()
    pair.server.send_header(b"meta", 300_000)
    assert not pair.server.owes_answer
    pair.reader.feed(sent(pair.server) + bytes(300_000), [17, 300_000], feed_copy)
    assert pair.reader.notes == [
        AnswerBegun(),
        PayloadStarted(name, b"meta", 300_000),
        PayloadFinished(name),
        bytes(300_000),
        AnswerComplete(),
    ]


def test_both_kinds_of_address_arrive_as_what_they_are() -> None:
    pair = ConnectionPair()
    request = SyncRequested(
        (
            PeerRequest(TransferKind.COPY, IPv4Address("1.2.3.4"), 5, (object_id(1),)),
            PeerRequest(TransferKind.COPY, IPv6Address("::ffff:1.2.3.4"), 5, (object_id(2),)),
        )
    )
    pair.ask(request)
    pair.to_server()
    seen = pair.server.next_event()
    assert isinstance(seen, SyncRequested)
    assert [type(part.address) for part in seen.peer_requests] == [IPv4Address, IPv6Address]
    assert all(type(name) is ObjectID for part in seen.peer_requests for name in part.object_ids)
