"""How objects that are put together are cut into requests."""

import array

import pytest

from plasmastream._client import NewObject, batch_request, batches, written_in_place
from plasmastream._client._requests import _IN_PLACE
from tests.store.helpers import names


def cut(*sizes: int, max_objects: int = 100, max_bytes: int = 2 << 20) -> list[list[int]]:
    new = [NewObject(object_id, bytes(size)) for object_id, size in zip(names(len(sizes)), sizes, strict=True)]
    pieces = batches(new, max_objects, max_bytes)
    assert [each for piece in pieces for each in piece] == new
    return [[len(each.data) for each in piece] for piece in pieces]


def test_small_ones_go_together() -> None:
    assert cut() == []
    assert cut(0, 1, 2) == [[0, 1, 2]]
    assert cut(1, 1, 1, max_objects=2) == [[1, 1], [1]]
    assert cut(60, 40, 1, 100, 101, max_bytes=100) == [[60, 40], [1], [100], [101]]


def test_a_large_one_goes_alone() -> None:
    most, large = _IN_PLACE, _IN_PLACE + 1
    assert cut(1, most, 2) == [[1, most, 2]]
    assert cut(1, large, 2, 3) == [[1], [large], [2, 3]]
    assert cut(large, large, 0) == [[large], [large], [0]]
    assert cut(0, large) == [[0], [large]]


def test_a_large_one_is_written_in_place_whatever_it_is_made_of() -> None:
    (object_id,) = names(1)
    for data, metadata, expected in ((_IN_PLACE, 0, False), (_IN_PLACE + 1, 0, True), (0, _IN_PLACE + 1, True)):
        ((new,),) = batches([NewObject(object_id, bytes(data), bytes(metadata))], 1, 1)
        assert written_in_place([new]) is expected
    assert not written_in_place([new, new])


def test_small_ones_are_asked_for_in_order() -> None:
    new = [NewObject(object_id, object_id, b"m", object_id[:8]) for object_id in names(3)]
    request = batch_request(new)
    assert request.object_ids == tuple(names(3))
    assert list(zip(request.data, request.metadata, request.digests, strict=True)) == [
        (each.data, each.metadata, each.digest) for each in new
    ]


@pytest.mark.parametrize("size", [100, _IN_PLACE])
def test_views_of_any_kind_are_put_by_their_bytes(size: int) -> None:
    (object_id,) = names(1)
    numbers = memoryview(array.array("q", range(size // 4)))
    for data in (numbers, numbers[::2], numbers.cast("B").cast("B", (2, size)), memoryview(b"ab" * size)[::-2]):
        ((new,),) = batches([NewObject(object_id, data, data)], 1, 1)
        assert (new.data, new.metadata) == (data.tobytes(), data.tobytes())
        assert len(new.data) == data.nbytes
        assert written_in_place([new]) is (2 * data.nbytes > _IN_PLACE)
    plain = NewObject(object_id, memoryview(b"data")[1:])
    ((new,),) = batches([plain], 1, 1)
    assert new is plain
