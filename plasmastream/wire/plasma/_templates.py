"""The messages about one object, which are nearly all that a store hears and says, by one call of `struct` each.

Such a message has the same bytes each time but for an id and a few numbers. A template is the codec's own work with
gaps: it is made by encoding an example twice, with other values, and the gaps are where the two differ. So nothing of
the layout is told here a second time. What does not fit a template, to the byte, goes the long way.
"""

import struct
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Final

from plasmastream._object_id import OBJECT_ID_SIZE
from plasmastream.wire._flat import Body
from plasmastream.wire.plasma import _messages as m
from plasmastream.wire.plasma._fields import make_id
from plasmastream.wire.plasma._frames import pack_header
from plasmastream.wire.plasma._specs import ObjectSpec

Values = tuple[Any, ...]


class Template:
    """One message with gaps.

    Args:
        codes: the struct code of each value; ``"20s"`` is an id.
        make: a message from its values.
        take: the values of a message, or None for one that does not fit.
        encode: writes the body of a message.
    """

    def __init__(
        self,
        codes: tuple[str, ...],
        make: Callable[..., m.Message],
        take: Callable[[Any], Values | None],
        encode: Callable[[m.Message], bytes],
    ) -> None:
        self.take = take
        self._make = make
        values = [_example(code, 1) for code in codes]
        message = make(*values)
        body = encode(message)
        gaps: list[tuple[int, int]] = []  # where each begins, and which value goes there
        for number, code in enumerate(codes):
            other = encode(make(*values[:number], _example(code, 2), *values[number + 1 :]))
            differing = [at for at, (mine, its) in enumerate(zip(body, other, strict=True)) if mine != its]
            assert len(differing) == struct.calcsize("<" + code)
            gaps.append((differing[0], number))
        gaps.sort()
        layout, end = "<", 0
        fixed: list[bytes] = []
        for at, number in gaps:
            layout += f"{at - end}s{codes[number]}"
            fixed.append(body[end:at])
            end = at + struct.calcsize("<" + codes[number])
        self._struct = struct.Struct(f"{layout}{len(body) - end}s")
        self._fixed = (*fixed, body[end:])
        places = [2 * gaps.index(gap) + 1 for gap in sorted(gaps, key=itemgetter(1))]
        self._values = itemgetter(*places) if len(places) > 1 else itemgetter(slice(places[0], places[0] + 1))
        # Out of the fixed parts with the values behind them: a fixed part, the value that follows it, and so on.
        self._in_order = itemgetter(
            *[part for i, (_, number) in enumerate(gaps) for part in (i, len(self._fixed) + number)], len(gaps)
        )
        self._header = pack_header(message.type, len(body))
        self.type = message.type
        self.size = len(body)

    def save(self, values: Values) -> bytes:
        """A frame; raises `struct.error` for a number that does not fit."""
        return self._header + self._struct.pack(*self._in_order(self._fixed + values))

    def load(self, body: Body) -> m.Message | None:
        """The message that a body of `size` bytes is; None where it is another one, or in another layout."""
        fields = self._struct.unpack(body)
        if fields[::2] != self._fixed:
            return None
        return self._make(*self._values(fields))


def make_templates(encode: Callable[[m.Message], bytes]) -> list[Template]:
    """All templates."""
    return [Template(*parts, encode) for parts in _PARTS]


def _example(code: str, number: int) -> Any:
    """A value whose bytes all are this number."""
    nbytes = struct.calcsize("<" + code)
    return bytes([number]) * nbytes if code.endswith("s") else int.from_bytes(bytes([number]) * nbytes, "little")


def _get_reply(object_id: bytes, *numbers: int) -> m.GetReply:
    *place, store_fd, mmap_size = numbers
    return m.GetReply((make_id(object_id),), (ObjectSpec(*place),), (store_fd,), (mmap_size,))


def _of_get_reply(reply: m.GetReply) -> Values | None:
    if not len(reply.object_ids) == len(reply.specs) == len(reply.store_fds) == len(reply.mmap_sizes) == 1:
        return None
    if reply.handles is not None:
        return None
    (spec,) = reply.specs
    return *reply.object_ids, *_of_spec(spec), *reply.store_fds, *reply.mmap_sizes


def _create_reply(object_id: bytes, *numbers: int) -> m.CreateReply:
    *place, store_fd, mmap_size = numbers
    return m.CreateReply(make_id(object_id), ObjectSpec(*place), store_fd=store_fd, mmap_size=mmap_size)


def _of_create_reply(reply: m.CreateReply) -> Values | None:
    if reply.error != m.ErrorCode.OK or None in (reply.store_fd, reply.mmap_size) or reply.ipc_handle is not None:
        return None
    return reply.object_id, *_of_spec(reply.spec), reply.store_fd, reply.mmap_size


def _of_spec(spec: ObjectSpec) -> Values:
    return (
        spec.segment_index,
        spec.data_offset,
        spec.data_size,
        spec.metadata_offset,
        spec.metadata_size,
        spec.device_num,
    )


_ID = f"{OBJECT_ID_SIZE}s"
_PLACE = ("i", "Q", "Q", "Q", "Q", "i", "i", "q")  # a spec, then `store_fd` and `mmap_size`

_PARTS: Final[tuple[tuple[tuple[str, ...], Callable[..., m.Message], Callable[[Any], Values | None]], ...]] = (
    (
        (_ID, "q"),
        lambda object_id, timeout: m.GetRequest((make_id(object_id),), timeout),
        lambda get: (*get.object_ids, get.timeout_ms) if len(get.object_ids) == 1 else None,
    ),
    ((_ID, *_PLACE), _get_reply, _of_get_reply),
    (
        (_ID,),
        lambda object_id: m.ReleaseRequest(make_id(object_id)),
        lambda release: (release.object_id,),
    ),
    (
        (_ID, "Q", "Q"),
        lambda object_id, *sizes: m.CreateRequest(make_id(object_id), True, *sizes),
        lambda create: (create.object_id, create.data_size, create.metadata_size)
        if create.evict_if_full is True and not create.device_num
        else None,
    ),
    ((_ID, *_PLACE), _create_reply, _of_create_reply),
    (
        (_ID, "8s"),
        lambda object_id, digest: m.SealRequest(make_id(object_id), digest),
        lambda seal: (seal.object_id, seal.digest) if len(seal.digest) == 8 else None,
    ),
    (
        (_ID,),
        lambda object_id: m.SealReply(make_id(object_id)),
        lambda reply: (reply.object_id,) if reply.error == m.ErrorCode.OK else None,
    ),
    (
        (_ID,),
        lambda object_id: m.ContainsRequest(make_id(object_id)),
        lambda contains: (contains.object_id,),
    ),
    (
        (_ID,),
        lambda object_id: m.ContainsReply(make_id(object_id), True),
        lambda reply: (reply.object_id,) if reply.has_object is True else None,
    ),
)
