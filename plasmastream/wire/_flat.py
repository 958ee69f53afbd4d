"""FlatBuffers, as far as Plasma's schema needs them: tables, structs, scalars, strings, vectors.

The field types of a class *are* its layout. A `Kind` stands in the annotation of each field, and the fields'
order gives their slots::

    @attrs.frozen
    class Point:
        x: Annotated[int, Scalar("q")]
        name: Annotated[str, Text()]

    point_table = Table(Point)

The theory fits in a paragraph. A table has an *inline* part of fixed width for each field that is present,
and a vtable says where in the table each slot's inline part stands (0: nowhere). For a scalar or a struct the
inline part is the value; for everything else it is a uint32, the distance from the inline part itself to the
value (to a string or vector: a uint32 count, then the elements; to a table: an int32, the distance back to
its vtable). Hence the two methods of a kind: `load` turns an inline part and its position into a value,
`save` turns a value into an inline part, writing what does not fit inline behind everything written so far.

Reading is safe against any bytes, and cheap: a vtable is checked once, and becomes a plan with one
`struct.Struct` for the whole table. Reads go through `unpack_from`, which checks bounds; its `struct.error`
is left to the caller of the outermost `load` or `save`, who knows whose fault it is.
"""

import struct
from collections.abc import Callable, Sequence
from itertools import starmap
from math import inf
from operator import add, attrgetter
from typing import Any, Final, Generic, TypeAlias, TypeVar, get_args

import attrs

from plasmastream._errors import LocalProtocolError, RemoteProtocolError

MAX_ENTRIES: Final = 1_048_576
"""Longest vector that is accepted. Many entries may share their bytes, so the body size alone is no limit."""

MAX_PLANS: Final = 64
"""Vtables remembered for each table. An encoder has as many as it has sets of fields left out: one to ten."""

MAX_VTABLE_SIZE: Final = 512
"""Longest vtable that is accepted, in bytes: room for 254 fields. It bounds what remembering vtables takes."""

T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., Any])
Body: TypeAlias = bytes | bytearray | memoryview
Pieces: TypeAlias = list[bytes | bytearray | memoryview]
Load: TypeAlias = Callable[[Body, int, Any], Any]
Save: TypeAlias = Callable[[Any, int, int, Pieces], tuple[Any, int]]

_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_I32 = struct.Struct("<i")
_SHORT = 1024
_PADDING = (bytes(4), bytes(3), bytes(2), bytes(1))  # behind a string, by its size modulo 4: a NUL at least


class Kind:
    """How values of one type travel: `format`, `size` and `alignment` of the inline part, in bytes.

    `default` is what an absent field means; `attrs.NOTHING` says that it must not be absent.
    """

    def __init__(self, format: str = "I", alignment: int = 4, default: Any = attrs.NOTHING) -> None:
        self.format = format
        self.size = struct.calcsize("<" + format)
        self.alignment = alignment
        self.default = default

    def load(self, body: Body, at: int, inline: Any) -> Any:
        """Make the value whose inline part was found at `at`."""
        return inline

    def save(self, value: Any, at: int, end: int, out: Pieces) -> tuple[Any, int]:
        """Return the inline part, to be put at `at`, and the new end of the body, always a multiple of 4.

        What does not fit inline is appended to `out`, whose pieces reach up to `end`.
        """
        return value, end

    def load_many(self, body: Body, at: int, count: int) -> Sequence[Any]:
        """Make the values of a vector, whose inline parts follow each other from `at` on."""
        inlines = self._load_inlines(body, at, count)
        load = _own(self.load)
        if load is None:
            return inlines
        return tuple([load(body, at + self.size * i, inline) for i, inline in enumerate(inlines)])

    def save_many(self, values: Sequence[Any], at: int, end: int, out: Pieces) -> tuple[bytes, int]:
        """As `save`, for all values of a vector; the inline parts one after the other, from `at` on."""
        save = _own(self.save)
        inlines = values
        if save is not None:
            inlines = []
            for number, value in enumerate(values):
                inline, end = save(value, at + self.size * number, end, out)
                inlines.append(inline)
        return self._save_inlines(inlines), end

    def _load_inlines(self, body: Body, at: int, count: int) -> tuple[Any, ...]:
        return struct.unpack_from(f"<{count}{self.format}", body, at)

    def _save_inlines(self, inlines: Sequence[Any]) -> bytes:
        return struct.pack(f"<{len(inlines)}{self.format}", *inlines)


class Scalar(Kind):
    """A number or a bool, by its struct code. Any byte but 0 is true."""

    def __init__(self, format: str, default: Any = 0) -> None:
        super().__init__(format, struct.calcsize(format), False if format == "?" else default)


class Moment(Scalar):
    """A time in seconds since the epoch: finite, and not negative."""

    def __init__(self, default: Any = 0.0) -> None:
        super().__init__("d", default)

    def load(self, body: Body, at: int, inline: float) -> float:
        if not 0 <= inline < inf:
            raise RemoteProtocolError(f"{inline} is no time")
        return inline

    def save(self, value: float, at: int, end: int, out: Pieces) -> tuple[float, int]:
        if not 0 <= value < inf:
            raise LocalProtocolError(f"{value} is no time")
        return value + 0.0, end  # what is equal is written alike: there is a zero below zero


class Flag(Scalar):
    """A bool that takes an int32."""

    def __init__(self) -> None:
        super().__init__("i", False)

    def load(self, body: Body, at: int, inline: int) -> bool:
        return bool(inline)


class Choice(Scalar):
    """An int32 that stands for one of a few values: `choices` in either direction."""

    def __init__(self, choices: dict[int, Any]) -> None:
        super().__init__("i", choices[0])
        self._choices = choices
        self._numbers = {choice: number for number, choice in choices.items()}

    def load(self, body: Body, at: int, inline: int) -> Any:
        try:
            return self._choices[inline]
        except KeyError:
            raise RemoteProtocolError(f"unexpected code {inline}") from None

    def save(self, value: Any, at: int, end: int, out: Pieces) -> tuple[int, int]:
        try:
            return self._numbers[value], end
        except KeyError:
            raise LocalProtocolError(f"{value!r} cannot be sent here") from None


class Record(Kind):
    """A struct: an attrs class of numbers that stands inline, at an alignment of 8 bytes.

    A vector of them is read as a tuple, or as `packed`: a sequence that is made of their bytes, and shows these under
    the same name.
    """

    def __init__(self, cls: type, layout: str, packed: Callable[[bytes], Sequence[Any]] | None = None) -> None:
        self._cls = cls
        self._packed = packed
        self._struct = struct.Struct(layout)
        self._values = attrgetter(*(field.name for field in attrs.fields(cls)))
        super().__init__(f"{self._struct.size}s", 8)

    def load(self, body: Body, at: int, inline: bytes) -> Any:
        return self._cls(*self._struct.unpack(inline))

    def save(self, value: Any, at: int, end: int, out: Pieces) -> tuple[bytes, int]:
        return self._struct.pack(*self._values(value)), end

    def load_many(self, body: Body, at: int, count: int) -> Sequence[Any]:
        end = at + count * self.size
        if end > len(body):
            raise RemoteProtocolError("a vector reaches out of its body")
        if self._packed is not None:
            return self._packed(bytes(body[at:end]))
        return tuple(starmap(self._cls, self._struct.iter_unpack(body[at:end])))

    def save_many(self, values: Sequence[Any], at: int, end: int, out: Pieces) -> tuple[bytes, int]:
        packed: bytes | None = getattr(values, "packed", None)
        return b"".join([self.save(value, at, end, out)[0] for value in values]) if packed is None else packed, end


class View(Kind):
    """A string of bytes, read as a view of the body: nothing is copied, and the body stays alive with it.

    The short ones of a vector are copied all the same: very many views would keep the garbage collector busy.
    """

    def load(self, body: Body, at: int, inline: int) -> Any:
        start = at + inline
        (nbytes,) = _U32.unpack_from(body, start)
        start += 4
        if start + nbytes > len(body):
            raise RemoteProtocolError("a string reaches out of its body")
        return memoryview(body).toreadonly()[start : start + nbytes]

    def save(self, value: Any, at: int, end: int, out: Pieces) -> tuple[int, int]:
        nbytes = memoryview(value).nbytes
        padding = _PADDING[nbytes % 4]
        out += (_U32.pack(nbytes), value, padding)
        return end - at, end + 4 + nbytes + len(padding)

    def load_many(self, body: Body, at: int, count: int) -> Sequence[Any]:
        if type(self).load is not View.load:
            return super().load_many(body, at, count)
        view, unpack, last = memoryview(body).toreadonly(), _U32.unpack_from, len(body)
        inlines = self._load_inlines(body, at, count)
        even = _Even.of(inlines, at, last)
        if even is not None:
            lengths = {length for (length,) in struct.iter_unpack(f"<I{even.stride - 4}x", body[even.span])}
            nbytes = lengths.pop()
            if not lengths and nbytes <= even.stride - 4:
                if not nbytes:
                    return (b"",) * count
                if nbytes <= _SHORT:
                    return tuple([view[start : start + nbytes].tobytes() for start in even.starts])
                return tuple([view[start : start + nbytes] for start in even.starts])
        views = []
        for start in map(add, inlines, range(at + 4, at + 4 + 4 * count, 4)):
            (nbytes,) = unpack(body, start - 4)
            if start + nbytes > last:
                raise RemoteProtocolError("a string reaches out of its body")
            some = view[start : start + nbytes]
            views.append(some if nbytes > _SHORT else some.tobytes())
        return tuple(views)

    def save_many(self, values: Sequence[Any], at: int, end: int, out: Pieces) -> tuple[bytes, int]:
        if type(self).save is View.save and set(map(type, values)) == {bytes}:
            nbytes = len(values[0])
            if set(map(len, values)) == {nbytes}:
                inlines, end = _save_even(values, nbytes, at, end, out)
                return self._save_inlines(inlines), end
        return super().save_many(values, at, end, out)


class Text(View):
    """A string in UTF-8, of at most `most` bytes where that is given."""

    def __init__(self, most: int | None = None, default: Any = attrs.NOTHING) -> None:
        super().__init__(default=default)
        self._most = most

    def load(self, body: Body, at: int, inline: int) -> str:
        view = super().load(body, at, inline)
        if self._most is not None and len(view) > self._most:
            raise RemoteProtocolError(f"a text of {len(view)} bytes, at most {self._most} are accepted")
        try:
            return str(view, "utf-8")
        except UnicodeDecodeError:
            raise RemoteProtocolError("a text is not UTF-8") from None

    def save(self, value: str, at: int, end: int, out: Pieces) -> tuple[int, int]:
        try:
            encoded = value.encode()
        except UnicodeEncodeError:
            raise LocalProtocolError(f"{value!r} has no form in UTF-8") from None
        if self._most is not None and len(encoded) > self._most:
            raise LocalProtocolError(f"a text of {len(encoded)} bytes cannot be sent, at most {self._most}")
        return super().save(encoded, at, end, out)


class Octets(View):
    """A short string of bytes, copied out, of one of the given `lengths`."""

    def __init__(self, lengths: range | tuple[int, ...], default: Any = attrs.NOTHING) -> None:
        super().__init__(default=default)
        self._lengths = lengths

    def load(self, body: Body, at: int, inline: int) -> bytes:
        view = super().load(body, at, inline)
        if len(view) not in self._lengths:
            raise RemoteProtocolError(f"a field of {len(view)} bytes, which cannot be")
        return bytes(view)

    def save(self, value: bytes, at: int, end: int, out: Pieces) -> tuple[int, int]:
        if len(value) not in self._lengths:
            raise LocalProtocolError(f"a field of {len(value)} bytes, which cannot be sent")
        return super().save(value, at, end, out)


class Fixed(Kind):
    """A string of exactly `nbytes` bytes, a multiple of 4, made into a value by `make`. The hot kind."""

    def __init__(self, nbytes: int, make: Callable[[bytes], Any]) -> None:
        super().__init__()
        self._nbytes = nbytes
        self._make = make
        self._load = struct.Struct(f"<I{nbytes}s").unpack_from
        self._save = struct.Struct(f"<I{nbytes}s4x").pack

    def load(self, body: Body, at: int, inline: int) -> Any:
        length, value = self._load(body, at + inline)
        if length != self._nbytes:
            raise RemoteProtocolError(f"a field of {length} bytes where there must be {self._nbytes}")
        return self._make(value)

    def save(self, value: bytes, at: int, end: int, out: Pieces) -> tuple[int, int]:
        if len(value) != self._nbytes:
            raise LocalProtocolError(f"{len(value)} bytes given where there must be {self._nbytes}")
        out.append(self._save(self._nbytes, value))
        return end - at, end + 8 + self._nbytes

    def load_many(self, body: Body, at: int, count: int) -> Sequence[Any]:
        """Encoders write them one after the other, forwards or backwards; then all are read in one go."""
        inlines = self._load_inlines(body, at, count)
        nbytes, make = self._nbytes, self._make
        even = _Even.of(inlines, at, len(body))
        if even is None or even.stride < 4 + nbytes:
            return tuple([self.load(body, at + 4 * i, inline) for i, inline in enumerate(inlines)])
        entries = struct.iter_unpack(f"<I{nbytes}s{even.stride - 4 - nbytes}x", body[even.span])
        values = [value for length, value in entries if length == nbytes]
        if make is not bytes:
            values = [make(value) for value in values]
        if len(values) < count:
            raise RemoteProtocolError(f"a field that has not the {nbytes} bytes that it must have")
        return tuple(values if even.is_forwards else reversed(values))

    def save_many(self, values: Sequence[bytes], at: int, end: int, out: Pieces) -> tuple[bytes, int]:
        if not set(map(len, values)) <= {self._nbytes}:
            raise LocalProtocolError(f"a field has not the {self._nbytes} bytes that it must have")
        inlines, end = _save_even(values, self._nbytes, at, end, out)
        return self._save_inlines(inlines), end


class Vector(Kind):
    """A vector of another kind, of at most `most` entries, read as a tuple."""

    def __init__(self, element: Kind, default: Any = attrs.NOTHING, *, most: int = MAX_ENTRIES) -> None:
        super().__init__(default=default)
        self.element = element
        self._most = most

    def load(self, body: Body, at: int, inline: int) -> Sequence[Any]:
        at += inline
        (count,) = _U32.unpack_from(body, at)
        if count > self._most:
            raise RemoteProtocolError(f"a vector of {count} entries, at most {self._most} are accepted")
        return self.element.load_many(body, at + 4, count)

    def save(self, value: Sequence[Any], at: int, end: int, out: Pieces) -> tuple[int, int]:
        count, element = len(value), self.element
        if count > self._most:
            raise LocalProtocolError(f"a vector of {count} entries cannot be sent, at most {self._most}")
        if (end + 4) % element.alignment:  # it is the first element that must be aligned
            out.append(bytes(4))
            end += 4
        start, end = end, end + 4 + element.size * count
        place = len(out)
        out.append(b"")
        inlines, end = element.save_many(value, start + 4, end, out)
        out[place] = _U32.pack(count) + inlines
        return start - at, end


@attrs.frozen
class _Plan:
    """How to read a table under one vtable: all inline parts at once, then a step for each slot."""

    unpack_from: Callable[[Body, int], tuple[Any, ...]]
    steps: tuple[tuple[int | None, int, Load | None, Any], ...]  # index, offset in the table, load, default


@attrs.frozen
class _Shape:
    """How to write a table with one set of fields present."""

    values: Callable[[Any], tuple[Any, ...]]
    vtable: bytes  # padded, and followed by the way back to it, which is the table's first field
    table: int  # where the table starts, from the start of the vtable
    steps: tuple[tuple[int, Save | None], ...]  # offset in the table, save
    size: int  # of vtable and table
    pack: Callable[..., bytes]


class Table(Kind, Generic[T]):
    """A table that is read into, and written from, the attrs class `cls`.

    A field of the class that is no argument of its constructor (`init=False`) is computed from the others: it
    is written, and what arrives must equal it.
    """

    def __init__(self, cls: type[T], default: Any = attrs.NOTHING) -> None:
        super().__init__(default=default)
        fields = attrs.fields(cls)  # type: ignore[arg-type]
        self.slots: tuple[tuple[str, Kind], ...] = tuple((f.name, get_args(f.type)[1]) for f in fields)
        self._make = cls
        self._computed = tuple(f.name for f in fields if not f.init)  # always the first slots
        optional = [name for name, kind in self.slots if kind.default is None]
        self._has_optional = bool(optional)
        self._optional = _tuple_getter(optional)
        self._plans: dict[bytes, _Plan] = {}
        self._shapes: dict[tuple[bool, ...], _Shape] = {}

    def load(self, body: Body, at: int, inline: int) -> T:
        table = at + inline
        (back,) = _I32.unpack_from(body, table)
        vtable = table - back
        if vtable < 0:  # unpack_from would count from the end
            raise RemoteProtocolError("a vtable lies before its body")
        (size,) = _U16.unpack_from(body, vtable)
        key = bytes(body[vtable : vtable + size])
        plan = self._plans.get(key) or self._plan(key)
        inlines = plan.unpack_from(body, table)
        values = []
        for index, offset, load, default in plan.steps:
            if index is None:
                values.append(default)
            elif load is None:
                values.append(inlines[index])
            else:
                values.append(load(body, table + offset, inlines[index]))
        if not self._computed:
            return self._make(*values)
        made = self._make(*values[len(self._computed) :])
        for name, value in zip(self._computed, values, strict=False):
            if getattr(made, name) != value:
                raise RemoteProtocolError(f"the {name} is {value}, and should be {getattr(made, name)}")
        return made

    def save(self, value: T, at: int, end: int, out: Pieces) -> tuple[int, int]:
        missing = tuple([v is None for v in self._optional(value)]) if self._has_optional else ()
        shape = self._shapes.get(missing) or self._shape(missing)
        if end % 8 != 4:  # so that what follows the vtable's padding and the way back is aligned to 8
            out.append(bytes(4))
            end += 4
        table = end + shape.table
        end += shape.size
        place = len(out)
        out.append(b"")
        inlines = []
        for (offset, save), inline in zip(shape.steps, shape.values(value), strict=True):
            if save is not None:
                inline, end = save(inline, table + offset, end, out)
            inlines.append(inline)
        out[place] = shape.pack(shape.vtable, *inlines)
        return table - at, end

    def _plan(self, vtable: bytes) -> _Plan:
        """Check a vtable, and remember what it means.

        Slots behind those of the class are ignored: they are fields of a later version of the schema.
        """
        if len(vtable) < 4 or len(vtable) % 2 or len(vtable) != _U16.unpack_from(vtable)[0]:
            raise RemoteProtocolError("a vtable is cut short")
        if len(vtable) > MAX_VTABLE_SIZE:
            raise RemoteProtocolError(f"a vtable of {len(vtable)} bytes, {MAX_VTABLE_SIZE} are allowed")
        _, table_size, *offsets = struct.unpack(f"<{len(vtable) // 2}H", vtable)
        offsets = offsets[: len(self.slots)] + [0] * (len(self.slots) - len(offsets))
        present = sorted((offset, slot) for slot, offset in enumerate(offsets) if offset)
        layout, end = "<", 0
        for offset, slot in present:
            kind = self.slots[slot][1]
            if offset < max(end, 4):  # the first four bytes lead to the vtable
                raise RemoteProtocolError("fields of a table overlap")
            layout += f"{offset - end}x{kind.format}"
            end = offset + kind.size
        if max(end, 4) > table_size:
            raise RemoteProtocolError("a field reaches out of its table")
        layout += f"{table_size - end}x"  # so that unpack_from checks the whole of the table
        index = {slot: i for i, (_, slot) in enumerate(present)}
        steps = []
        for slot, (name, kind) in enumerate(self.slots):
            if slot not in index and kind.default is attrs.NOTHING:
                raise RemoteProtocolError(f"the field {name} is missing")
            steps.append((index.get(slot), offsets[slot], _own(kind.load), kind.default))
        if len(self._plans) >= MAX_PLANS:  # many encoders do not meet here, but somebody may play them
            self._plans.clear()
        plan = self._plans[vtable] = _Plan(struct.Struct(layout).unpack_from, tuple(steps))
        return plan

    def _shape(self, missing: tuple[bool, ...]) -> _Shape:
        """Lay out a table without the optional fields marked in `missing`: the widest fields come first."""
        absent = iter(missing)
        present = [
            (slot, name, kind)
            for slot, (name, kind) in enumerate(self.slots)
            if kind.default is not None or not next(absent)
        ]
        present.sort(key=lambda entry: -entry[2].alignment)
        alignment = max((kind.alignment for _, _, kind in present), default=4)
        offsets = [0] * len(self.slots)
        layout, end, steps = "", 4, []
        for slot, _, kind in present:
            offsets[slot] = end
            layout += kind.format
            steps.append((end, _own(kind.save)))
            end += kind.size
        layout += f"{-end % 4}x"
        end += -end % 4
        size = 4 + 2 * len(offsets)
        table = size + -size % alignment
        vtable = struct.pack(f"<HH{len(offsets)}H{table - size}xi", size, end, *offsets, table)
        shape = self._shapes[missing] = _Shape(
            values=_tuple_getter([name for _, name, _ in present]),
            vtable=vtable,
            table=table,
            steps=tuple(steps),
            size=table + end,
            pack=struct.Struct(f"<{len(vtable)}s{layout}").pack,
        )
        return shape


class Boxed(Table[Any]):
    """A table of one field that stands for the field itself."""

    def load(self, body: Body, at: int, inline: int) -> Any:
        return getattr(super().load(body, at, inline), self.slots[0][0])

    def save(self, value: Any, at: int, end: int, out: Pieces) -> tuple[int, int]:
        return super().save(self._make(value), at, end, out)


@attrs.frozen
class _Even:
    """Strings that lie in a body one after the other, forwards or backwards, at equal distances."""

    stride: int
    """From the start of one to that of the next, or of the one before."""
    span: slice
    """All of them, in the body."""
    starts: range
    """Of the bytes of each, behind its length."""

    @property
    def is_forwards(self) -> bool:
        return self.starts.step > 0

    @classmethod
    def of(cls, inlines: tuple[int, ...], at: int, body_size: int) -> "_Even | None":
        """Those to which such offsets lead, from `at` on; None where they lie in another way."""
        count = len(inlines)
        if count < 2:
            return None
        first, step = inlines[0], inlines[1] - inlines[0]
        distance = step + 4
        if -4 <= step <= 0 or inlines != tuple(range(first, first + step * count, step)):
            return None
        lowest = at + first + min(0, distance * (count - 1))
        end = lowest + abs(distance) * count
        if lowest < 0 or end > body_size or abs(distance) < 4:
            return None
        starts = range(at + first + 4, at + first + 4 + distance * count, distance)
        return cls(abs(distance), slice(lowest, end), starts)


def _save_even(
    values: Sequence[bytes], nbytes: int, at: int, end: int, out: Pieces
) -> tuple[Sequence[int], int]:
    """Write strings of `nbytes` bytes each one after the other: all inline parts, and the new end."""
    length, padding = _U32.pack(nbytes), _PADDING[nbytes % 4]
    stride = 4 + nbytes + len(padding)
    if values:
        out += (length, (padding + length).join(values), padding)
    first = end - at
    return range(first, first + (stride - 4) * len(values), stride - 4), end + stride * len(values)


def _own(method: M) -> M | None:
    """Return a `load` or `save` of a kind, or None if it changes nothing, so that calls are saved."""
    return None if getattr(method, "__func__", None) in (Kind.load, Kind.save) else method


def _tuple_getter(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Make `attrgetter` always give a tuple, for no name and for one as well."""
    if len(names) > 1:
        return attrgetter(*names)
    if not names:
        return lambda _: ()
    get = attrgetter(names[0])
    return lambda value: (get(value),)
