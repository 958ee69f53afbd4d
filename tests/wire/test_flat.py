"""Vectors that are read as a whole say what their elements say one by one, however they lie."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmastream import RemoteProtocolError
from plasmastream.wire import _flat as flat

KINDS = {"view": flat.View(), "fixed": flat.Fixed(4, bytes), "made": flat.Fixed(4, bytes.hex), "text": flat.Text()}


@st.composite
def vectors(draw: st.DrawFn) -> bytes:
    """Offsets at the start of a body, to strings at equal distances, or nearly so, or anywhere."""
    count = draw(st.integers(0, 6))
    first, step = draw(st.integers(0, 80)), draw(st.sampled_from([0, 1, 4, 8, 12, -4, -8, -12, -16, 40]))
    offsets = [(first + step * number) % 2**32 for number in range(count)]
    is_odd = draw(st.booleans())
    if offsets and is_odd:
        offsets[draw(st.integers(0, count - 1))] = draw(st.integers(0, 120) | st.just(2**32 - 1))
    body = bytearray(struct.pack(f"<{count}I", *offsets) + draw(st.binary(max_size=100)))
    length = draw(st.sampled_from([0, 4, 5]))
    for number, offset in enumerate(offsets):
        start = 4 * number + offset
        if start + 4 <= len(body) and start >= 4 * count and draw(st.integers(0, 7)):
            struct.pack_into("<I", body, start, length)
    return struct.pack("<I", count) + body


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(vectors())
def test_as_one_by_one(kind: flat.Kind, body: bytes) -> None:
    (count,) = struct.unpack_from("<I", body)
    inlines = struct.unpack_from(f"<{count}I", body, 4)

    def one_by_one() -> tuple[object, ...]:
        return tuple([kind.load(body, 4 + 4 * number, inline) for number, inline in enumerate(inlines)])

    assert outcome(lambda: tuple(flat.Vector(kind).load(body, 0, 0))) == outcome(one_by_one)


def outcome(load: Callable[[], tuple[object, ...]]) -> tuple[object, ...] | None:
    """What is read; None where it is refused."""
    try:
        return load()
    except (RemoteProtocolError, struct.error):
        return None


@pytest.mark.parametrize(
    "values",
    [(b"",) * 3, (b"four",) * 3, (b"1", b"four", b""), (b"x" * 2000,) * 2, (bytearray(3), b"abc")],
)
@pytest.mark.parametrize("is_mutable", [False, True])
def test_both_ways(values: tuple[bytes, ...], is_mutable: bool) -> None:
    kind = flat.Vector(flat.View())
    pieces: flat.Pieces = [bytes(4)]
    inline, size = kind.save(values, 0, 4, pieces)
    body: flat.Body = b"".join(pieces)
    assert len(body) == size
    loaded = kind.load(bytearray(body) if is_mutable else body, 0, inline)
    assert tuple(bytes(value) for value in loaded) == tuple(bytes(value) for value in values)
    assert all(isinstance(value, bytes) or value.readonly for value in loaded)
