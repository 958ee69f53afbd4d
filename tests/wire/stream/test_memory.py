"""Where the bytes go: straight into the caller's memory, nowhere before they arrive, and nothing is held on to."""

import ctypes
import gc
import mmap
import tracemalloc
import weakref

import pytest

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream.wire.stream import (
    NEED_BUFFER,
    NEED_DATA,
    AnswerComplete,
    ClientConnection,
    PayloadFinished,
    PayloadStarted,
    ServerConnection,
    TransferKind,
)
from tests.wire.stream.helpers import object_id

A, B = object_id(1), object_id(2)
BIG = 1_000_000


def started(data_size: int, before: bytes = b"", *, objects: int = 1) -> ClientConnection:
    """A client that has said PayloadStarted; `before` came in the same read as the header."""
    client = ClientConnection()
    client.request_transfer(TransferKind.COPY, [A, B][:objects])
    # Metadata keeps objects with little data from being delivered whole.
    client.receive_data(b"\x00" + (data_size << 16 | 20_000).to_bytes(8, "little") + bytes(20_000) + before)
    client.next_event()
    assert client.next_event() == PayloadStarted(A, bytes(20_000), data_size)
    assert client.next_event() is NEED_BUFFER
    return client


def address(view: memoryview | bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_large_payloads_are_read_in_place() -> None:
    client = started(BIG, b"12345")
    memory = bytearray(BIG)
    start = address(memory)
    client.supply_buffer(memory)
    assert memory[:6] == b"12345\0"
    with client.get_buffer() as buffer:
        assert address(buffer) == start + 5
        assert len(buffer) == BIG - 5  # it ends where the payload ends: nothing can be read beyond
        assert client.payload_expected == BIG - 5
        buffer[:2] = b"67"
    client.advance(2)
    assert client.payload_expected == BIG - 7
    assert memory[:8] == b"1234567\0"
    assert client.bytes_received == 7
    with client.get_buffer() as buffer:
        assert address(buffer) == start + 7
    assert client.next_event() is NEED_DATA
    with pytest.raises(LocalProtocolError):
        client.advance(BIG - 6)


def test_the_last_part_of_a_large_payload_is_read_in_place_too() -> None:
    client = started(BIG)
    memory = bytearray(BIG)
    client.supply_buffer(memory)
    client.advance(BIG - 1)
    assert client.next_event() is NEED_DATA
    with client.get_buffer() as buffer:
        assert (len(buffer), address(buffer)) == (1, address(memory) + BIG - 1)
    client.advance(1)
    with client.get_buffer() as buffer:
        assert len(buffer) == 256 * 1024  # the payload is whole: what follows goes to the scratch
    assert client.payload_expected == 1
    assert client.next_event() == PayloadFinished(A)


@pytest.mark.parametrize(("missing", "direct"), [(65_535, False), (65_536, True)])
def test_little_is_copied_and_much_is_read_in_place(missing: int, direct: bool) -> None:
    client = started(missing + 100, bytes(100))
    client.supply_buffer(bytearray(missing + 100))
    with client.get_buffer() as buffer:
        assert (len(buffer) == missing) == direct
        assert client.payload_expected == (missing if direct else 1)
        assert direct or len(buffer) > 100_000


def test_a_payload_that_came_whole_with_its_header() -> None:
    client = started(5, b"12345\x00")
    memory = bytearray(5)
    client.supply_buffer(memory)
    assert memory == b"12345"
    assert client.next_event() == PayloadFinished(A)
    memory.append(0)


def test_nothing_is_held_after_the_payload() -> None:
    client = started(BIG, objects=2)
    memory = bytearray(BIG)
    view = memoryview(memory)
    client.supply_buffer(view)
    view.release()
    with pytest.raises(BufferError):
        memory.append(0)
    client.advance(BIG)
    assert client.next_event() == PayloadFinished(A)
    memory.append(0)


def test_a_segment_can_be_closed_after_the_payload() -> None:
    segment = mmap.mmap(-1, BIG + 4096)
    client = started(BIG)
    with memoryview(segment) as whole, whole[4096:] as view:
        client.supply_buffer(view)
    client.advance(BIG)
    assert client.next_event() == PayloadFinished(A)
    segment.close()


def test_nothing_is_held_after_a_late_discard() -> None:
    client = started(BIG, objects=1)
    memory = bytearray(BIG)
    client.supply_buffer(memory)
    client.advance(10)
    client.discard_payload()
    memory.append(0)
    left = BIG - 10
    while left:
        with client.get_buffer() as buffer:
            nbytes = min(left, len(buffer))
        client.advance(nbytes)
        left -= nbytes
        assert client.next_event() == (NEED_DATA if left else PayloadFinished(A))
    assert client.next_event() == AnswerComplete()


def test_nothing_is_held_after_a_failure() -> None:
    client = started(BIG)
    memory = bytearray(BIG)
    client.supply_buffer(memory)
    client.advance(10)
    client.receive_eof()
    with pytest.raises(RemoteProtocolError, match=f"after 10 of {BIG} bytes of object {A}") as caught:
        client.next_event()
    memory.append(0)
    assert caught.value.__traceback__ is not None  # not even the traceback holds it
    assert client.current_object == A
    client.discard_payload()  # so that cleaning up needs not ask whether the connection has failed
    with pytest.raises(RemoteProtocolError):
        client.next_event()


def test_a_connection_that_is_dropped_goes_at_once() -> None:
    """No cycles: a scratch, and a destination, do not wait for the garbage collector."""
    gc.disable()
    try:
        memory = bytearray(BIG)
        client = started(BIG)
        client.supply_buffer(memory)
        server = ServerConnection()
        server.receive_data(b"\x02\x05")
        assert server.next_event() is NEED_DATA
        ends = weakref.WeakSet[ClientConnection | ServerConnection]([client, server])
        del client, server
        assert len(ends) == 0
        memory.append(0)
    finally:
        gc.enable()


def test_buffers_that_do_not_fit() -> None:
    client = started(BIG)
    read_only = bytes(BIG)
    memory = bytearray(2 * BIG)
    released = memoryview(bytearray(BIG))
    released.release()
    with pytest.raises(LocalProtocolError, match=f"writable buffer of {BIG} bytes") as caught:
        client.supply_buffer(memory)
    memory.append(0)  # not even the traceback holds it
    assert caught.value.__traceback__ is not None
    for buffer in (
        memoryview(read_only),
        bytearray(BIG - 1),
        bytearray(BIG + 1),
        bytearray(),
        memoryview(memory)[::2],
        released,
    ):
        with pytest.raises(LocalProtocolError):
            client.supply_buffer(buffer)
        assert client.next_event() is NEED_BUFFER
    memory.append(0)
    client.supply_buffer(memoryview(bytearray(BIG)).cast("Q"))  # any shape will do
    with client.get_buffer() as buffer:
        assert (len(buffer), buffer.format) == (BIG, "B")


def test_a_payload_of_no_bytes() -> None:
    for client in (started(0, objects=1), started(0, objects=1)):
        client.supply_buffer(bytearray())
        assert client.next_event() == PayloadFinished(A)
        assert client.next_event() == AnswerComplete()
    client = started(0)
    client.discard_payload()
    assert client.next_event() == PayloadFinished(A)


def test_reading_ahead_while_no_buffer_is_there_is_bounded_by_the_scratch() -> None:
    client = started(BIG)
    total = 0
    while nbytes := len(client.get_buffer()):
        client.advance(nbytes)
        total += nbytes
        assert client.next_event() is NEED_BUFFER
    assert total <= 256 * 1024
    client.supply_buffer(bytearray(BIG))
    assert client.bytes_received == total
    assert len(client.get_buffer()) == BIG - total


def test_get_buffer_is_a_query() -> None:
    client = started(BIG, bytes(1_000))
    for _ in range(3):
        assert client.next_event() is NEED_BUFFER
        with client.get_buffer() as first, client.get_buffer() as second:
            assert address(first) == address(second)
            assert len(first) == len(second)


def test_announcements_allocate_nothing() -> None:
    """Neither a count nor a size makes anybody reserve memory."""
    client = ClientConnection()
    client.request_transfer(TransferKind.COPY, [A])
    servers = [ServerConnection() for _ in range(4)]
    announcements = [
        bytes.fromhex("02 0000"),
        bytes.fromhex("03 ffff"),
        bytes.fromhex("01 0004"),
        bytes.fromhex("01 0004 02 06 e507") + bytes(16) + b"\0\0",
    ]
    client.receive_data(b"\x00" + (2**44 << 16).to_bytes(8, "little"))
    client.next_event()
    tracemalloc.start()
    try:
        for server, data in zip(servers, announcements, strict=True):
            server.receive_data(data)
            assert server.next_event() is NEED_DATA
        assert client.next_event() == PayloadStarted(A, b"", 2**44)
        client.discard_payload()
        assert client.next_event() is NEED_DATA
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000


def test_ids_take_memory_as_they_arrive() -> None:
    server = ServerConnection()
    server.receive_data(bytes.fromhex("02 0000"))
    server.next_event()
    data = b"".join(map(object_id, range(1_000)))
    tracemalloc.start()
    try:
        server.receive_data(data)
        assert server.next_event() is NEED_DATA
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000 * 400
