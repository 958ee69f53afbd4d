"""The subscriber's socket: notifications written and read."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmastream import LocalProtocolError, RemoteProtocolError
from plasmastream.wire.plasma import (
    CONNECTION_CLOSED,
    NEED_DATA,
    NotificationParser,
    ObjectInfo,
    Signal,
    encode_notification,
)

from .samples import DIGEST, A, B, captured_bodies

SEALED = (ObjectInfo(A, 5, 2, digest=DIGEST),)
DELETED = (ObjectInfo(A, is_deletion=True),)
BATCH = (ObjectInfo(A, 1, 0, digest=DIGEST), ObjectInfo(B, 2, 1, digest=DIGEST))


def events_of(parser: NotificationParser) -> list[tuple[ObjectInfo, ...]]:
    events = []
    while not isinstance(event := parser.next_event(), Signal):
        events.append(event)
    return events


@given(st.lists(st.integers(1, 300), max_size=8))
def test_any_chunking(sizes: list[int]) -> None:
    stream = b"".join(map(encode_notification, (SEALED, DELETED, BATCH, ())))
    parser, events = NotificationParser(), []
    for size in [*sizes, len(stream)]:
        parser.receive_data(memoryview(stream)[:size])
        stream = stream[size:]
        events += events_of(parser)
    assert events == [SEALED, DELETED, BATCH, ()]
    assert parser.next_event() is NEED_DATA
    parser.receive_eof()
    assert parser.next_event() is CONNECTION_CLOSED
    assert parser.next_event() is CONNECTION_CLOSED


def test_byte_by_byte() -> None:
    parser, events = NotificationParser(), []
    for byte in encode_notification(BATCH):
        assert parser.next_event() is NEED_DATA
        parser.receive_data(bytes([byte]))
    events += events_of(parser)
    assert events == [BATCH]


def test_captured() -> None:
    [body] = [body for body in captured_bodies() if len(body) == 208]
    parser = NotificationParser()
    parser.receive_data(struct.pack("<q", len(body)) + body)
    event = parser.next_event()
    assert not isinstance(event, Signal)
    assert [(info.data_size, info.metadata_size) for info in event] == [(1, 0), (2, 1)]


@pytest.mark.parametrize("size", [-1, 1001, 2**62])
def test_the_limit(size: int) -> None:
    parser = NotificationParser(max_size=1000)
    parser.receive_data(struct.pack("<q", size))
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match=f"{size} bytes, 1000 are allowed"):
            parser.next_event()


def test_an_empty_message() -> None:
    parser = NotificationParser()
    parser.receive_data(bytes(8))
    with pytest.raises(RemoteProtocolError, match="NOTIFICATION"):
        parser.next_event()


def test_the_end_inside_of_a_message() -> None:
    parser = NotificationParser()
    parser.receive_data(encode_notification(SEALED)[:-1])
    assert parser.next_event() is NEED_DATA
    parser.receive_eof()
    with pytest.raises(RemoteProtocolError, match="ends inside"):
        parser.next_event()
    with pytest.raises(LocalProtocolError):
        parser.receive_data(b"late")


@given(st.binary(max_size=100))
def test_garbage(data: bytes) -> None:
    parser = NotificationParser()
    parser.receive_data(data)
    parser.receive_eof()
    try:
        events_of(parser)
    except RemoteProtocolError:
        return
