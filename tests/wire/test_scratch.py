"""The receive buffer: two cursors that never lose, repeat or invent a byte."""

from collections import deque
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmastream._errors import LocalProtocolError
from plasmastream.wire._scratch import Scratch, flat_view


def put(scratch: Scratch, data: bytes) -> None:
    with scratch.tail() as tail:
        tail[: len(data)] = data
    scratch.advance(len(data))


def test_bytes_leave_in_the_order_in_which_they_entered() -> None:
    scratch = Scratch(16)
    put(scratch, b"0123456789")
    assert (len(scratch), scratch.room) == (10, 6)
    assert bytes(scratch.peek(2)) == b"01"
    assert bytes(scratch.peek(2, offset=3)) == b"34"
    assert scratch.unpack(Struct("<H")) == (0x3130,)
    assert scratch.unpack(Struct("<BB"), 8) == (0x38, 0x39)
    scratch.consume(1)
    assert scratch.take(3) == b"123"
    assert scratch.take(0) == b""
    assert scratch.take(6) == b"456789"
    assert (len(scratch), scratch.room) == (0, 16)


def test_an_empty_scratch_offers_all_of_itself() -> None:
    scratch = Scratch(16)
    put(scratch, b"0123456789")
    scratch.consume(10)
    assert len(scratch.tail()) == 16


def test_waiting_bytes_move_to_the_front_when_little_room_is_left() -> None:
    scratch = Scratch(16)
    put(scratch, b"0123456789ab")
    scratch.consume(9)
    assert len(scratch.tail()) == 13
    assert scratch.take(3) == b"9ab"


def test_waiting_bytes_stay_when_half_of_the_room_is_left() -> None:
    scratch = Scratch(16)
    put(scratch, b"01234567")
    scratch.consume(4)
    assert len(scratch.tail()) == 8


def test_tail_is_a_query() -> None:
    scratch = Scratch(16)
    put(scratch, b"0123456789ab")
    scratch.consume(9)
    first, second = scratch.tail(), scratch.tail()
    first[:2] = b"XY"
    assert bytes(second[:2]) == b"XY"
    scratch.advance(2)
    assert scratch.take(5) == b"9abXY"


def test_a_full_scratch_offers_nothing() -> None:
    scratch = Scratch(4)
    put(scratch, b"0123")
    assert len(scratch.tail()) == scratch.room == 0


@pytest.mark.parametrize("nbytes", [-1, 5])
def test_no_more_can_arrive_than_was_offered(nbytes: int) -> None:
    scratch = Scratch(4)
    with pytest.raises(LocalProtocolError):
        scratch.advance(nbytes)
    assert len(scratch) == 0


@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=60))
def test_it_is_a_queue_of_bytes(capacity: int, steps: list[tuple[bool, int]]) -> None:
    scratch, model, counter = Scratch(capacity), deque[int](), 0
    for enters, wish in steps:
        if enters:
            room = len(scratch.tail())
            assert room <= scratch.room
            assert room or not scratch.room
            data = bytes((counter + i) % 256 for i in range(min(wish, room)))
            counter += len(data)
            put(scratch, data)
            model.extend(data)
        else:
            nbytes = min(wish, len(model))
            assert scratch.take(nbytes) == bytes(model.popleft() for _ in range(nbytes))
        assert len(scratch) == len(model)


def test_flat_view_gives_every_buffer_one_shape() -> None:
    memory = bytearray(8)
    with flat_view(memoryview(memory).cast("I")) as view:
        view[5] = 1
        assert (view.format, view.nbytes, len(view)) == ("B", 8, 8)
    assert memory[5] == 1
    memory.append(0)  # nothing holds the memory any more
    assert len(flat_view(b"")) == 0


def test_flat_view_refuses_what_is_not_one_piece_of_memory() -> None:
    released = memoryview(b"ab")
    released.release()
    for buffer in (memoryview(b"abcd")[::2], released, "text"):
        with pytest.raises(LocalProtocolError):
            flat_view(buffer)  # type: ignore[arg-type]


def test_flat_view_holds_nothing_after_an_error() -> None:
    memory = bytearray(8)
    view = memoryview(memory)[::2]
    with pytest.raises(LocalProtocolError) as caught:
        flat_view(view)
    view.release()
    memory.append(0)
    assert caught.value.__traceback__ is not None
