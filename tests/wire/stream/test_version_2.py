"""How a server of version 1 recognises a connection of version 2, and hands it over."""

import pytest

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream.wire.stream import (
    NEED_DATA,
    PAUSED,
    ConnectionClosed,
    ServerConnection,
    TransferRequested,
    Version2Offered,
)
from plasmastream.wire.stream.v2 import MAGIC, DamagedError
from tests.wire.stream.helpers import Feeder, feed_copy, feed_place, object_id

COPY_ONE = bytes.fromhex("02 0100") + object_id(1)


@pytest.mark.parametrize("feed", [feed_copy, feed_place])
@pytest.mark.parametrize("cut", range(1, len(MAGIC) + 6))
def test_it_is_recognised_however_it_is_cut(cut: int, feed: Feeder) -> None:
    server = ServerConnection()
    wire = memoryview(MAGIC + b"hello")
    feed(server, wire[:cut], cut)
    if cut < len(MAGIC):
        assert server.next_event() is NEED_DATA
        feed(server, wire[cut:], len(wire))
        cut = len(wire)
    assert server.next_event() == Version2Offered()
    assert server.next_event() is PAUSED
    assert server.take_rest() == bytes(wire[len(MAGIC) : cut])
    assert server.next_event() == ConnectionClosed()
    assert not server.owes_answer
    assert not server.data_to_send()


@pytest.mark.parametrize("place", range(1, len(MAGIC)))
def test_a_wrong_byte_is_refused_as_soon_as_it_is_there(place: int) -> None:
    for value in (0, MAGIC[place] ^ 0x20, 0xFF):
        server = ServerConnection()
        server.receive_data(MAGIC[:place])
        assert server.next_event() is NEED_DATA
        server.receive_data(bytes([value]))
        for _ in range(2):
            with pytest.raises(RemoteProtocolError, match="begins like one of version 2"):
                server.next_event()
        with pytest.raises(LocalProtocolError, match="take_rest"):
            server.take_rest()


@pytest.mark.parametrize("bit", range(8))
def test_a_first_byte_with_a_bit_flipped_is_no_request_and_may_have_been_an_offer(bit: int) -> None:
    server = ServerConnection()
    server.receive_data(bytes([MAGIC[0] ^ 1 << bit]) + MAGIC[1:])
    with pytest.raises(DamagedError):
        server.next_event()


def test_later_than_at_the_beginning_it_is_an_unknown_request() -> None:
    server = ServerConnection()
    server.receive_data(COPY_ONE + MAGIC)
    assert isinstance(server.next_event(), TransferRequested)
    server.refuse(0x71)
    with pytest.raises(RemoteProtocolError, match="unknown type 80"):
        server.next_event()


def test_the_rest_is_what_was_read_ahead_and_no_more() -> None:
    server = ServerConnection()
    wire = MAGIC + bytes(range(256)) * 300
    with server.get_buffer() as buffer:
        nbytes = len(buffer)
        buffer[:] = wire[:nbytes]
    server.advance(nbytes)
    assert server.next_event() == Version2Offered()
    while room := len(server.get_buffer()):
        with server.get_buffer() as buffer:
            buffer[:] = wire[nbytes : nbytes + room]
        server.advance(room)
        nbytes += room
    rest = server.take_rest()
    assert rest == wire[len(MAGIC) : nbytes]
    assert len(rest) <= 64 * 1024


def test_what_was_handed_over_at_once_is_in_the_rest_to_its_last_byte() -> None:
    server = ServerConnection()
    server.receive_data(MAGIC + bytes(100_000))
    assert server.next_event() == Version2Offered()
    assert server.take_rest() == bytes(100_000)
    assert server.next_event() == ConnectionClosed()


def test_nothing_follows_the_rest() -> None:
    server = ServerConnection()
    server.receive_data(MAGIC)
    assert server.next_event() == Version2Offered()
    assert server.take_rest() == b""
    with pytest.raises(LocalProtocolError, match="take_rest"):
        server.take_rest()
    with pytest.raises(LocalProtocolError, match="follow the end"):
        server.receive_data(b"x")


def test_an_offer_and_the_end_of_the_connection() -> None:
    server = ServerConnection()
    server.receive_data(MAGIC + b"x")
    server.receive_eof()
    assert server.next_event() == Version2Offered()
    assert server.take_rest() == b"x"
    assert server.next_event() == ConnectionClosed()
