"""Whole conversations: cut anywhere, the events are the same; damaged anywhere, none of them is wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plasmastream import RemoteProtocolError
from plasmastream.wire.stream.v2 import (
    ChunkEnded,
    ChunkStarted,
    ConnectionClosed,
    DamagedError,
    Encoding,
    End,
    Limits,
    Read,
    RunDamaged,
)
from tests.wire.stream.v2.helpers import Note, Reader, conversation, greeted, listener, pattern, said, sent
from tests.wire.stream.v2.samples import TOKEN

STEPS = conversation()
BOTH = pytest.mark.parametrize("to_client", [True, False])
WIRE = {to_client: said(STEPS, by_client=not to_client) for to_client in (True, False)}


def heard(to_client: bool, wire: bytes, cuts: list[int] | None = None) -> list[Note]:
    reader = listener(STEPS, to_client)
    reader.feed(wire, cuts or ())
    return reader.notes


NOTES = {to_client: heard(to_client, WIRE[to_client]) for to_client in (True, False)}


def test_the_conversation_has_everything() -> None:
    assert len(NOTES[True]) > 20
    assert len(NOTES[False]) > 10
    types = {type(note).__name__ for notes in NOTES.values() for note in notes}
    assert {"list", "ChunkSummed", "ChunkEnded", "ObjectDescribed", "Want", "Listed", "Cancel", "Sync"} <= types
    assert pattern(3, 300) in NOTES[True]
    assert pattern(6, 300) in NOTES[False]


@BOTH
@pytest.mark.parametrize("nbytes", [1, 2, 7, 16, 17, 52])
def test_small_reads_give_the_same_events(to_client: bool, nbytes: int) -> None:
    assert heard(to_client, WIRE[to_client], [nbytes] * len(WIRE[to_client])) == NOTES[to_client]


@BOTH
def test_one_cut_anywhere_gives_the_same_events(to_client: bool) -> None:
    for cut in range(1, len(WIRE[to_client])):
        assert heard(to_client, WIRE[to_client], [cut]) == NOTES[to_client], cut


@BOTH
def test_no_bit_that_flips_makes_a_wrong_event(to_client: bool) -> None:
    """What comes before the damage is right; what is damaged is told so, or costs the connection."""
    wire, right = WIRE[to_client], NOTES[to_client]
    unnoticed = 0
    for place in range(len(wire)):
        for bit in (place % 8, (place + 5) % 8):
            spoilt = bytearray(wire)
            spoilt[place] ^= 1 << bit
            unnoticed += not is_noticed(to_client, bytes(spoilt), right)
    assert unnoticed < 10  # bits of an encoding that mean nothing


def is_noticed(to_client: bool, wire: bytes, right: list[Note]) -> bool:
    reader = listener(STEPS, to_client)
    try:
        reader.feed(wire)
    except DamagedError:
        assert reader.notes == right[: len(reader.notes)]
        with pytest.raises(DamagedError):
            reader.connection.next_event()
        return True
    differing = [(note, expected) for note, expected in zip(reader.notes, right, strict=True) if note != expected]
    for note, expected in differing:
        match note:
            case ChunkEnded(is_intact=False) | None:
                assert isinstance(expected, ChunkEnded | bytes)
            case _:
                assert note == RunDamaged()
                assert isinstance(expected, list)
    return bool(differing)


@BOTH
def test_the_end_anywhere_within_a_frame_is_an_error(to_client: bool) -> None:
    wire = WIRE[to_client]
    for cut in range(1, len(wire), 3):
        reader = listener(STEPS, to_client)
        reader.feed(wire[:cut])
        reader.connection.receive_eof()
        try:
            reader.take()
        except RemoteProtocolError:
            assert reader.notes == NOTES[to_client][: len(reader.notes)]
        else:
            *notes, last = reader.notes
            assert notes == NOTES[to_client][: len(notes)]
            assert last == ConnectionClosed()
            assert not to_client or isinstance(notes[-1], End)


SIZES = st.sampled_from([1, 2, 100, 65_535, 65_536, 65_537, 262_143, 262_144, 400_000, Limits().chunk_size])
ENCODINGS = st.sampled_from([Encoding.NONE, Encoding.ZSTD, Encoding.LZ4])
WISHES = st.lists(st.sampled_from([1, 3, 16, 52, 1_000, 65_536, 300_000]), max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIZES, ENCODINGS, st.booleans()), min_size=1, max_size=4), WISHES, st.integers(0, 3))
def test_any_chunks_in_any_reads(chunks: list[tuple[int, Encoding, bool]], wishes: list[int], repeated: int) -> None:
    client, server = greeted()
    client.send(Read(TOKEN, False, 0, ()))
    Reader(server).feed(sent(client))
    expected: list[Note] = []
    for index, (size, encoding, is_kept) in enumerate(chunks):
        content = pattern(index, size)
        server.send_chunk(index, 5, memoryview(content), encoding)
        expected += [ChunkStarted(index, 5, size), ChunkEnded(index, 5, size, is_kept), content if is_kept else None]
    server.send(End())
    reader = Reader(client, keep=lambda started: chunks[started.index][2])
    reader.feed(sent(server), wishes * 10**repeated)
    assert reader.notes == [*expected, End()]
