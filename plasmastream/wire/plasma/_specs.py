"""Where objects lie: one by one, and many of them as they travel, packed one after the other."""

import struct
from collections.abc import Iterator, Sequence
from operator import add
from typing import Final, overload

import attrs

LAYOUT: Final = "<i4xQQQQi4x"
_PACKED = struct.Struct(LAYOUT)
pack_spec: Final = _PACKED.pack
"""The fields of an `ObjectSpec`, in order, as they travel."""

_WORDS = 6  # of 8 bytes
_AT_ONCE = 4096
_LOW, _WORD = struct.Struct("<i"), struct.Struct("<Q")


@attrs.frozen
class Columns:
    """The same field of some specs together, for each of their fields."""

    segments: frozenset[int]
    """All that there are among them."""
    devices: frozenset[int]
    data_offsets: tuple[int, ...]
    data_sizes: tuple[int, ...]
    metadata_offsets: tuple[int, ...]
    metadata_sizes: tuple[int, ...]

    @property
    def has_missing(self) -> bool:
        """Whether objects that did not come are among them."""
        return MISSING_SIZE in self.data_sizes

    def lie_within(self, nbytes: int) -> bool:
        """Whether all end within so many bytes, and metadata follow data."""
        return (
            tuple(map(add, self.data_offsets, self.data_sizes)) == self.metadata_offsets
            and max(map(add, self.metadata_offsets, self.metadata_sizes)) <= nbytes
        )


@attrs.frozen
class ObjectSpec:
    """Where an object lies: sizes in bytes, offsets from the start of the mapping (plasma-ipc 2.2)."""

    segment_index: int = 0
    """The segment, by the number that the store calls `store_fd`."""
    data_offset: int = 0
    data_size: int = 0
    metadata_offset: int = 0
    """Always `data_offset + data_size`."""
    metadata_size: int = 0
    device_num: int = 0
    """0 is host memory."""

    @property
    def is_missing(self) -> bool:
        """Whether this is what a `GetReply` says about an object that did not come."""
        return self.data_size == MISSING_SIZE


MISSING_SIZE: Final = 2**64 - 1
MISSING_SPEC: Final = ObjectSpec(data_size=MISSING_SIZE)
"""What a `GetReply` says about an object that did not come."""
EMPTY_SPEC: Final = ObjectSpec()
"""What a `CreateReply` carries beside an error: Arrow's client reads it all the same."""

PACKED_MISSING: Final = pack_spec(*attrs.astuple(MISSING_SPEC))


class Specs(Sequence[ObjectSpec]):
    """As a tuple of `ObjectSpec`, which are made when somebody looks at them. `packed` is how they travel."""

    __slots__ = ("packed",)

    def __init__(self, packed: bytes) -> None:
        self.packed = packed

    def pieces(self) -> "Iterator[Specs]":
        """All of them, some thousands at a time: so others get to run in between."""
        size = _AT_ONCE * _PACKED.size
        return (Specs(self.packed[start : start + size]) for start in range(0, len(self.packed), size))

    def columns(self) -> Columns:
        """All of them, at least one, field by field."""
        words = struct.unpack(f"<{len(self.packed) // 8}Q", self.packed)
        first, last = ({_LOW.unpack_from(_WORD.pack(word))[0] for word in set(words[n::_WORDS])} for n in (0, 5))
        return Columns(frozenset(first), frozenset(last), *(words[n::_WORDS] for n in range(1, 5)))

    def __len__(self) -> int:
        return len(self.packed) // _PACKED.size

    @overload
    def __getitem__(self, index: int) -> ObjectSpec: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ObjectSpec, ...]: ...

    def __getitem__(self, index: int | slice) -> ObjectSpec | tuple[ObjectSpec, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        return ObjectSpec(*_PACKED.unpack_from(self.packed, range(len(self))[index] * _PACKED.size))

    def __iter__(self) -> Iterator[ObjectSpec]:
        return (ObjectSpec(*fields) for fields in _PACKED.iter_unpack(self.packed))

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))
