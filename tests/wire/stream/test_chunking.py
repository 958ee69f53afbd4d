"""However the bytes arrive, the events are the same: copied or read in place, in large reads or tiny ones."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from plasmastream.wire.stream import (
    AnswerBegun,
    AnswerComplete,
    ClientConnection,
    ObjectReceived,
    PayloadFinished,
    PayloadStarted,
    ServerConnection,
    TransferKind,
)
from tests.wire.stream.helpers import Note, Reader, asked_server, feed_copy, feed_place, object_id, read, sent

# Around each size at which the path of the bytes changes: inline, direct, the two scratches.
EDGES = [0, 1, 100, 16_375, 16_376, 16_377, 65_535, 65_536, 65_537, 131_000, 262_143, 262_145, 400_000]
# (metadata size, data size) of each object.
SIZES = st.lists(
    st.tuples(st.sampled_from([0, 1, 300, 65_535]), st.sampled_from(EDGES) | st.integers(0, 3_000)),
    min_size=1,
    max_size=5,
)
WISHES = st.lists(st.sampled_from([1, 2, 7, 8, 9, 1_000, 65_536, 70_000, 300_000]), max_size=40)


def pattern(seed: int, size: int) -> bytes:
    """Bytes that show it when they are moved, lost or repeated."""
    return (bytes((i * 7 + seed) % 251 for i in range(251)) * (size // 251 + 1))[:size]


def answer(sizes: list[tuple[int, int]]) -> tuple[bytes, list[Note], bytes]:
    """A request's bytes for so many objects, the notes that a reader of the answer should take, and the answer."""
    client = ClientConnection()
    names = [object_id(i) for i in range(len(sizes))]
    client.request_transfer(TransferKind.COPY, names)
    request = sent(client)
    server = asked_server(request)
    server.begin()
    notes: list[Note] = [AnswerBegun()]
    for i, (name, (metadata_size, data_size)) in enumerate(zip(names, sizes, strict=True)):
        metadata, data = pattern(i, metadata_size), pattern(i + 100, data_size)
        server.send_object(metadata, data)
        if 8 + metadata_size + data_size <= 16 * 1024:
            notes.append(ObjectReceived(name, metadata, data))
        else:
            notes += [PayloadStarted(name, metadata, data_size), PayloadFinished(name), data]
    return request, [*notes, AnswerComplete()], sent(server)


@settings(max_examples=60, deadline=None)
@given(SIZES, WISHES)
@example([(65_535, 400_000), (0, 0), (0, 16_376)], [1] * 9)
def test_answers(sizes: list[tuple[int, int]], wishes: list[int]) -> None:
    _, expected, wire = answer(sizes)
    for feeder in (feed_copy, feed_place):
        for chunks in (wishes, wishes * 1_000):
            client = ClientConnection()
            client.request_transfer(TransferKind.COPY, [object_id(i) for i in range(len(sizes))])
            assert read(client, wire, feeder, chunks) == expected
            assert not client.awaits_answer


@settings(max_examples=30, deadline=None)
@given(SIZES, WISHES, st.sets(st.integers(0, 4)))
def test_discarded_payloads_leave_the_others_whole(
    sizes: list[tuple[int, int]], wishes: list[int], drop: set[int]
) -> None:
    _, expected, wire = answer(sizes)
    dropped = {object_id(i) for i in drop}
    left = [
        note
        for before, note in zip([None, *expected], expected, strict=False)
        if not (isinstance(before, PayloadFinished) and before.object_id in dropped)
    ]
    for feeder in (feed_copy, feed_place):
        client = ClientConnection()
        client.request_transfer(TransferKind.COPY, [object_id(i) for i in range(len(sizes))])
        reader = Reader(client, keep=lambda started: started.object_id not in dropped)
        reader.feed(wire, wishes, feeder)
        assert reader.notes == left


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 8_000), min_size=1, max_size=6), WISHES)
def test_requests(counts: list[int], wishes: list[int]) -> None:
    client = ClientConnection()
    for count in counts:
        client.request_transfer(TransferKind.TAKE, [object_id(i) for i in range(count)])
    wire = sent(client)
    expected = read(ServerConnection(), wire)
    assert len(expected) == len(counts)
    for feeder in (feed_copy, feed_place):
        for chunks in (wishes, [*wishes, 3] * 300):
            assert read(ServerConnection(), wire, feeder, chunks) == expected


def test_all_at_once_and_more_than_the_scratch() -> None:
    """One `receive_data` may bring many answers: what does not fit waits, and nothing is lost."""
    _, expected, wire = answer([(10, 200_000)] * 30)
    assert len(wire) > 20 * 256 * 1024
    client = ClientConnection()
    names = [object_id(i) for i in range(30)]
    client.request_transfer(TransferKind.COPY, names)
    client.request_transfer(TransferKind.COPY, names)
    assert read(client, wire + wire) == expected * 2
