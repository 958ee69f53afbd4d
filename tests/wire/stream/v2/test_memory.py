"""Where the bytes go, who holds them, and how much memory an announcement takes."""

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lz4.block
import pytest
import zstandard
from xxhash import xxh3_64_intdigest

from plasmastream import LocalProtocolError, RemoteProtocolError
from plasmastream.wire.stream.v2 import (
    NEED_BUFFER,
    NEED_DATA,
    ChunkEnded,
    ChunkStarted,
    ClientConnection,
    Encoding,
    FrameType,
    Limits,
    RunDamaged,
)
from plasmastream.wire.stream.v2._encodings import decode, encode
from plasmastream.wire.stream.v2._frames import CHUNK, RUN, pack_frame
from tests.wire.stream.v2.helpers import CLIENT, Connection, feed, greeted, new_client, pattern, sent
from tests.wire.stream.v2.samples import REQUESTS, SERVER_HELLO_16

BIG = Limits().chunk_size
CONTENT = pattern(1, BIG)
ENCODINGS = pytest.mark.parametrize("encoding", [Encoding.NONE, Encoding.ZSTD, Encoding.LZ4])


def reading(encoding: Encoding = Encoding.NONE) -> tuple[ClientConnection, bytes]:
    """A client that has asked for a chunk, and the frame that brings it."""
    client, server = greeted()
    client.send(REQUESTS[1])
    feed(server, sent(client))
    server.next_event()
    server.send_chunk(0, 0, memoryview(CONTENT), encoding)
    return client, sent(server)


def started(encoding: Encoding) -> tuple[ClientConnection, bytes, bytearray]:
    """The same after the head of the chunk, and some of its bytes, with the buffer that was supplied."""
    client, wire = reading(encoding)
    feed(client, wire[:152])
    assert client.next_event() == ChunkStarted(0, 0, BIG)
    assert client.next_event() is NEED_BUFFER
    memory = bytearray(BIG)
    client.supply_buffer(memory)
    with pytest.raises(BufferError):
        memory.append(0)
    assert client.next_event() is NEED_DATA
    return client, wire[152:], memory


@ENCODINGS
def test_nothing_is_held_once_the_chunk_has_ended(encoding: Encoding) -> None:
    client, rest, memory = started(encoding)
    feed_all(client, rest)
    assert client.next_event() == ChunkEnded(0, 0, BIG, is_intact=True)
    memory.append(0)
    assert memory[:-1] == CONTENT


@ENCODINGS
def test_nothing_is_held_or_written_after_a_discard(encoding: Encoding) -> None:
    client, rest, memory = started(encoding)
    before = bytes(memory)
    client.discard_chunk()
    memory.append(0)
    feed_all(client, rest)
    assert client.next_event() == ChunkEnded(0, 0, BIG, is_intact=False)
    assert memory[:-1] == before
    client.discard_chunk()  # without effect


def feed_all(client: ClientConnection, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        with client.get_buffer() as buffer:
            nbytes = min(len(rest), len(buffer))
            buffer[:nbytes] = rest[:nbytes]
        client.advance(nbytes, 0.0)
        rest = rest[nbytes:]
        if rest:
            assert client.next_event() is NEED_DATA


def fail(client: ClientConnection) -> None:
    client.receive_eof()
    with pytest.raises(RemoteProtocolError):
        client.next_event()


@ENCODINGS
@pytest.mark.parametrize("end", [fail, ClientConnection.close])
def test_a_failed_or_closed_connection_goes_at_once(
    encoding: Encoding, end: Callable[[ClientConnection], None]
) -> None:
    gc.disable()
    try:
        client, _, memory = started(encoding)
        end(client)
        memory.append(0)
        with pytest.raises(RemoteProtocolError):
            client.next_event()
        with pytest.raises(LocalProtocolError):
            client.supply_buffer(memory)
        gone = weakref.ref(client)
        del client
        assert gone() is None
    finally:
        gc.enable()


def test_closing_in_any_state() -> None:
    gc.disable()
    try:
        for make in (new_client, lambda: greeted()[0], lambda: greeted()[1], lambda: reading()[0]):
            connection: Connection = make()
            connection.close()
            connection.close()
            assert not connection.data_to_send()
            gone = weakref.ref(connection)
            del connection
            assert gone() is None
    finally:
        gc.enable()


def test_buffers_that_do_not_fit() -> None:
    client, wire = reading()
    with pytest.raises(LocalProtocolError):
        client.supply_buffer(bytearray(BIG))
    feed(client, wire[:48])
    client.next_event()
    for buffer in (bytearray(BIG - 1), memoryview(bytes(BIG)), bytearray(0)):
        with pytest.raises(LocalProtocolError):
            client.supply_buffer(buffer)
        assert client.next_event() is NEED_BUFFER
    client.supply_buffer(bytearray(BIG))
    with pytest.raises(LocalProtocolError):
        client.supply_buffer(bytearray(BIG))
    with client.get_buffer() as view:
        assert len(view) == client.payload_expected == BIG  # it is read straight into its place, and no further
    client.advance(BIG, 0.0)
    assert client.payload_expected == 1


def test_reading_is_checked() -> None:
    client = new_client()
    for nbytes in (0, -1, 1 << 30):
        with pytest.raises(LocalProtocolError):
            client.advance(nbytes, 0.0)
    client.receive_eof()
    with pytest.raises(LocalProtocolError):
        client.advance(1, 0.0)


@contextmanager
def at_most(nbytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < nbytes


def test_announcements_take_no_memory() -> None:
    client, server = greeted()
    client.send(REQUESTS[1])
    feed(server, sent(client))
    server.next_event()
    body = CHUNK.pack(0, 0, 0, BIG, BIG, 0)
    with at_most(50_000):
        feed(client, pack_frame(FrameType.CHUNK, 1, body))
        assert client.next_event() == ChunkStarted(0, 0, BIG)
        client.discard_chunk()
        assert client.next_event() is NEED_DATA


def test_the_largest_chunks_are_those_of_both() -> None:
    limits = Limits(chunk_size=16 << 20)
    client, server = greeted(limits, limits, client_hello=SERVER_HELLO_16, server_hello=SERVER_HELLO_16)
    assert client.chunk_size == server.chunk_size == 16 << 20
    client, server = greeted(limits, limits, client_hello=SERVER_HELLO_16)
    assert client.chunk_size == 1 << 20
    client, _ = greeted(Limits(chunk_size=1_000), limits, server_hello=SERVER_HELLO_16)
    assert client.chunk_size == 1_000


BOMBS = {
    Encoding.ZSTD: zstandard.ZstdCompressor().compress(bytes(100 << 20)),
    Encoding.LZ4: lz4.block.compress(bytes(100 << 20), store_size=False),
}


@pytest.mark.parametrize("encoding", BOMBS)
def test_bombs_do_not_burst(encoding: Encoding) -> None:
    bomb = BOMBS[encoding]
    with at_most(2 * BIG):
        assert decode(encoding, bomb, BIG) is None
    client, server = greeted()
    client.send(REQUESTS[0])
    feed(server, sent(client))
    server.next_event()
    with at_most(4 * BIG):
        feed_all(client, pack_frame(FrameType.RUN, 1, RUN.pack(1, encoding, BIG, len(bomb), 0)) + bomb)
        assert client.next_event() == RunDamaged()


def test_a_frame_that_does_not_say_its_size_is_no_payload() -> None:
    """Its receiver would have to believe in it to find out."""
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))
    assert zstandard.ZstdDecompressor().decompress(silent, max_output_size=1000) == bytes(1000)
    assert decode(Encoding.ZSTD, silent, 1000) is None


def test_a_frame_that_lies_about_its_size_or_asks_for_a_large_window_is_no_payload() -> None:
    honest = zstandard.ZstdCompressor().compress(bytes(BIG))
    magic, one_frame = honest[:4], honest
    assert decode(Encoding.ZSTD, one_frame + one_frame, BIG) is None
    assert decode(Encoding.ZSTD, one_frame + one_frame, 2 * BIG) is None
    # A window of 128 MiB, four bytes of size, and a block that never comes.
    head = magic + b"\x80" + bytes([17 << 3]) + (1000).to_bytes(4, "little")
    with at_most(4 * BIG):
        assert decode(Encoding.ZSTD, head + (50 << 3).to_bytes(3, "little"), 1000) is None
    # The same, and a block of 128 KiB.
    with at_most(4 * BIG):
        assert decode(Encoding.ZSTD, head + (1 | 1 << 1 | (128 << 10) << 3).to_bytes(3, "little") + b"x", 1000) is None


@pytest.mark.parametrize("encoding", BOMBS)
def test_encodings(encoding: Encoding) -> None:
    for size in (1, 100, 65_536, BIG):
        content = pattern(3, size)
        encoded = encode(encoding, memoryview(content))
        if size > 1_000:
            assert encoded is not None
        if encoded is not None:
            assert decode(encoding, bytearray(encoded), size) == content
            for spoilt in (encoded[:-1], encoded[1:], bytes(encoded) + b"x", bytes(len(encoded))):
                decoded = decode(encoding, spoilt, size)
                assert decoded is None or (len(decoded) == size and xxh3_64_intdigest(decoded) is not None)
            assert decode(encoding, encoded, size + 1) is None
            assert decode(encoding, encoded, size - 1) is None


def test_what_does_not_shrink_is_sent_as_it_is() -> None:
    assert encode(Encoding.ZSTD, b"x") is None
    assert encode(Encoding.LZ4, b"x") is None
    assert CLIENT.features == ("zstd", "lz4")
