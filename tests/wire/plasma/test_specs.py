"""Many specs, packed, are what a tuple of them is."""

import attrs
from hypothesis import given
from hypothesis import strategies as st

from plasmastream.wire.plasma import MISSING_SPEC, PACKED_MISSING, ObjectSpec, Specs, pack_spec
from tests.wire.plasma.samples import INT32, UINT64

lists = st.lists(st.builds(ObjectSpec, INT32, UINT64, UINT64, UINT64, UINT64, INT32), max_size=6)


def packed(specs: list[ObjectSpec]) -> Specs:
    return Specs(b"".join(pack_spec(*attrs.astuple(spec)) for spec in specs))


@given(lists, lists)
def test_as_a_tuple(specs: list[ObjectSpec], others: list[ObjectSpec]) -> None:
    one = packed(specs)
    assert tuple(one) == tuple(specs)
    assert (len(one), repr(one), hash(one)) == (len(specs), repr(tuple(specs)), hash(tuple(specs)))
    assert [one[i] for i in range(-len(specs), len(specs))] == 2 * specs
    assert one[1:-1] == tuple(specs[1:-1])
    assert (one == tuple(others)) is (specs == others)
    assert one == packed(specs)
    assert one != 7
    for spec in specs:
        assert spec in one


@given(lists.filter(bool), UINT64)
def test_column_by_column(specs: list[ObjectSpec], nbytes: int) -> None:
    columns = packed(specs).columns()
    assert columns.segments == {spec.segment_index for spec in specs}
    assert columns.devices == {spec.device_num for spec in specs}
    assert columns.data_offsets == tuple(spec.data_offset for spec in specs)
    assert columns.metadata_sizes == tuple(spec.metadata_size for spec in specs)
    assert columns.lie_within(nbytes) == all(
        spec.metadata_offset == spec.data_offset + spec.data_size
        and spec.metadata_offset + spec.metadata_size <= nbytes
        for spec in specs
    )
    assert columns.has_missing == any(spec.is_missing for spec in specs)


def test_missing_ones_and_pieces() -> None:
    specs = Specs(PACKED_MISSING * 5000)
    assert specs.columns().has_missing
    assert specs[4999] == MISSING_SPEC
    assert [len(piece) for piece in specs.pieces()] == [4096, 904]
    assert list(Specs(b"").pieces()) == []
