"""The 20-byte id: what it accepts, how it is written, and that it is a `bytes` in every way that matters."""

import copy
import hashlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmastream import ObjectID

OCTETS = bytes(range(20))


@pytest.mark.parametrize("value", [OCTETS, bytearray(OCTETS), memoryview(OCTETS)])
def test_it_is_made_from_any_20_bytes(value: bytes | bytearray | memoryview) -> None:
    assert ObjectID(value) == OCTETS


@pytest.mark.parametrize("length", [0, 1, 19, 21, 40])
def test_any_other_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"20 bytes, not {length}$"):
        ObjectID(bytes(length))


@given(st.binary(min_size=20, max_size=20))
def test_its_text_and_its_repr_lead_back_to_it(octets: bytes) -> None:
    object_id = ObjectID(octets)
    assert ObjectID.from_hex(str(object_id)) == object_id
    assert ObjectID.from_hex(str(object_id).upper()) == object_id
    assert eval(repr(object_id), {"ObjectID": ObjectID}) == object_id
    assert f"{object_id}" == octets.hex()


@pytest.mark.parametrize("text", ["", "00" * 19, "00" * 21, "0g" * 20, "00 " * 13 + "0", "é" * 40, " " + "0" * 39])
def test_text_that_is_no_id_is_shown_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="40 hexadecimal digits") as caught:
        ObjectID.from_hex(text)
    assert repr(text) in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_name_gives_the_same_id_everywhere() -> None:
    assert ObjectID.from_name("weights/é") == hashlib.sha256("weights/é".encode()).digest()[:20]
    assert ObjectID.from_name("a") != ObjectID.from_name("b")


def test_random_ids_differ() -> None:
    assert len({ObjectID.random() for _ in range(100)}) == 100


def test_it_is_equal_to_its_bytes_and_hashes_like_them() -> None:
    object_id = ObjectID(OCTETS)
    assert {OCTETS: 1}[object_id] == 1
    assert isinstance(object_id, bytes)


def test_it_has_no_room_for_attributes() -> None:
    with pytest.raises(AttributeError):
        ObjectID(OCTETS).note = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_survives_pickling(protocol: int) -> None:
    again = pickle.loads(pickle.dumps(ObjectID(OCTETS), protocol))
    assert type(again) is ObjectID
    assert again == OCTETS


def test_a_copy_is_an_id_too() -> None:
    assert type(copy.deepcopy(ObjectID(OCTETS))) is ObjectID
