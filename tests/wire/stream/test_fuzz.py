"""One invariant: whatever bytes come, next_event answers events, signals or RemoteProtocolError, and nothing else."""

from hypothesis import given, settings
from hypothesis import strategies as st

from plasmastream._errors import RemoteProtocolError
from plasmastream.wire.stream import ClientConnection, ConnectionClosed, Limits, ServerConnection, TransferKind
from plasmastream.wire.stream._messages import MAGIC_OF_VERSION_2
from tests.wire.stream.helpers import Connection, Reader, feed_copy, feed_place, object_id

# Small pieces that are likely to mean something, so that the garbage gets past the first byte.
FRAGMENTS = st.sampled_from(
    [
        b"\x00",
        MAGIC_OF_VERSION_2,
        b"\x01\x01\x00",
        b"\x02\x01\x00",
        b"\x03\x02\x00",
        b"\x02\x04\xe5\x07\x0a\x00\x00\x01\x01\x00",
        b"\x03\x06\x01\x00" + bytes(16) + b"\x01\x00",
        object_id(1),
        object_id(2),
        bytes.fromhex("0000 000000000000"),
        bytes.fromhex("0300 020000000000") + b"mmmdd",
        bytes.fromhex("0000 640000000000") + bytes(100),
        bytes.fromhex("0000 ffffffffffff"),
        bytes(70_000),
    ]
)
GARBAGE = st.lists(FRAGMENTS | st.binary(max_size=40), max_size=12).map(b"".join)
WISHES = st.lists(st.integers(1, 50), max_size=30)
LIMITS = Limits(max_objects=3, max_peer_requests=2, max_sync_objects=4, max_data_size=200, inline_size=20)


def survive(connection: Connection, data: bytes, wishes: list[int], place: bool) -> None:
    reader = Reader(connection)
    try:
        reader.feed(data, wishes, feed_place if place else feed_copy)
        connection.receive_eof()
        reader.take()
    except RemoteProtocolError:
        return
    assert reader.notes[-1] == ConnectionClosed()


@settings(max_examples=300, deadline=None)
@given(GARBAGE, WISHES, st.booleans(), st.sampled_from([None, LIMITS]))
def test_server(data: bytes, wishes: list[int], place: bool, limits: Limits | None) -> None:
    survive(ServerConnection(limits), data, wishes, place)


@settings(max_examples=300, deadline=None)
@given(GARBAGE, WISHES, st.booleans(), st.sampled_from([LIMITS, Limits(max_data_size=10**6)]), st.integers(0, 3))
def test_client(data: bytes, wishes: list[int], place: bool, limits: Limits, count: int) -> None:
    client = ClientConnection(limits)
    for number in range(count):
        client.request_transfer(TransferKind.COPY, [object_id(i) for i in range(number + 1)])
    survive(client, data, wishes, place)
