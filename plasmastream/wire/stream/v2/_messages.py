"""The control messages of version 2, a frozen class each; the types of the fields are the layout.

Fields stand in the order of the slots in `schema/stream.fbs`.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import starmap
from typing import Annotated, Any, ClassVar, Final

import attrs

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream._object_id import OBJECT_ID_SIZE, ObjectID
from plasmastream.wire._flat import Body, Moment, Octets, Pieces, Record, Scalar, Table, Text, Vector, View
from plasmastream.wire.stream.v2._frames import FrameType
from plasmastream.wire.stream.v2._limits import MAX_PEER_REQUESTS

TOKEN_SIZE: Final = 16
DIGEST_SIZE: Final = 8

_ID: Final = struct.Struct(f"{OBJECT_ID_SIZE}s")
_ROOT: Final = struct.Struct("<I")


class Ids(View):
    """Object ids, one after the other, all distinct."""

    def load(self, body: Body, at: int, inline: int) -> tuple[ObjectID, ...]:
        view = super().load(body, at, inline)
        if len(view) % OBJECT_ID_SIZE:
            raise RemoteProtocolError(f"{len(view)} bytes are no list of ids")
        ids = tuple(starmap(ObjectID, _ID.iter_unpack(view)))
        if len(set(ids)) < len(ids):
            raise RemoteProtocolError("an object is named twice")
        return ids

    def save(self, value: Sequence[ObjectID], at: int, end: int, out: Pieces) -> tuple[int, int]:
        if len(set(value)) < len(value):
            raise LocalProtocolError("an object is named twice")
        return super().save(b"".join(value), at, end, out)


class Digests(View):
    """Digests of 8 bytes, one after the other."""

    def load(self, body: Body, at: int, inline: int) -> tuple[bytes, ...]:
        view = super().load(body, at, inline)
        if len(view) % DIGEST_SIZE:
            raise RemoteProtocolError(f"{len(view)} bytes are no list of digests")
        return tuple(bytes(view[start : start + DIGEST_SIZE]) for start in range(0, len(view), DIGEST_SIZE))

    def save(self, value: Sequence[bytes], at: int, end: int, out: Pieces) -> tuple[int, int]:
        return super().save(b"".join(value), at, end, out)


_OFFSETS: Final = Vector(Scalar("I"), most=MAX_PEER_REQUESTS)


class Fetches(Vector):
    """Peer requests. None may lend its ids to another: so many ids cannot be named in so few bytes."""

    def load(self, body: Body, at: int, inline: int) -> tuple[Any, ...]:
        inlines = _OFFSETS.load(body, at, inline)
        start = at + inline + 4
        fetches, nbytes = [], 0
        for place, entry in enumerate(inlines):
            fetch = self.element.load(body, start + self.element.size * place, entry)
            nbytes += OBJECT_ID_SIZE * len(fetch.object_ids)
            if nbytes > len(body):
                raise RemoteProtocolError("peer requests share their ids")
            fetches.append(fetch)
        return tuple(fetches)


@attrs.frozen
class Message:
    """Base of all control messages, which are events as well."""

    type: ClassVar[FrameType]


_Token = Annotated[bytes, Octets((TOKEN_SIZE,))]
_Bool = Annotated[bool, Scalar("?")]


@attrs.frozen
class Hello(Message):
    """Who is there, and what it knows."""

    type = FrameType.HELLO
    identity: _Token
    max_chunk: Annotated[int, Scalar("I")]
    features: Annotated[tuple[str, ...], Vector(Text(64), default=(), most=64)] = ()
    software: Annotated[str, Text(256, default="")] = ""
    credentials: Annotated[bytes, Octets(range(2048), default=b"")] = b""


@attrs.frozen
class Open(Message):
    """Hold objects under a token; send the small ones, describe the others."""

    type = FrameType.OPEN
    token: _Token
    take: _Bool
    encoding: Annotated[int, Scalar("B")]
    object_ids: Annotated[tuple[ObjectID, ...], Ids()]


@attrs.frozen
class Range:
    """Some bytes of the data of an object."""

    what: int
    """In `Read`: a handle. In `Want`: the index of an object."""
    offset: int
    """In bytes."""
    length: int
    """In bytes."""


@attrs.frozen
class Read(Message):
    """Send these ranges, or their checksums."""

    type = FrameType.READ
    token: _Token
    checksums: _Bool
    encoding: Annotated[int, Scalar("B")]
    ranges: Annotated[tuple[Range, ...], Vector(Record(Range, "<QQQ"))]


@attrs.frozen
class Drop(Message):
    """These objects are sealed here: delete yours."""

    type = FrameType.DROP
    token: _Token
    object_ids: Annotated[tuple[ObjectID, ...], Ids()]


@attrs.frozen
class Close(Message):
    """Let go of these objects; of all that this token holds, where none is named."""

    type = FrameType.CLOSE
    token: _Token
    object_ids: Annotated[tuple[ObjectID, ...], Ids(default=())] = ()


@attrs.frozen
class Sizes:
    """The sizes of an object, in bytes."""

    data: int
    metadata: int


@attrs.frozen
class Put(Message):
    """Take these objects."""

    type = FrameType.PUT
    token: _Token
    object_ids: Annotated[tuple[ObjectID, ...], Ids()]
    sizes: Annotated[tuple[Sizes, ...], Vector(Record(Sizes, "<QQ"))]


@attrs.frozen
class Fetch:
    """One part of a SYNC: which objects to fetch from whom."""

    take: _Bool
    host: Annotated[str, Text(255)]
    port: Annotated[int, Scalar("H")]
    object_ids: Annotated[tuple[ObjectID, ...], Ids()]


@attrs.frozen
class Sync(Message):
    """Fetch objects from peers into your store."""

    type = FrameType.SYNC
    requests: Annotated[tuple[Fetch, ...], Fetches(Table(Fetch), most=MAX_PEER_REQUESTS)]
    detach: _Bool = False
    timeout: Annotated[float, Moment()] = 0.0
    max_bytes: Annotated[int, Scalar("Q")] = 0
    encoding: Annotated[int, Scalar("B")] = 0


@attrs.frozen
class Stat(Message):
    """Describe these objects."""

    type = FrameType.STAT
    object_ids: Annotated[tuple[ObjectID, ...], Ids()]


@attrs.frozen
class ListObjects(Message):
    """Describe all objects."""

    type = FrameType.LIST


@attrs.frozen
class Cancel(Message):
    """Stop the running request."""

    type = FrameType.CANCEL


@attrs.frozen
class Want(Message):
    """The ranges that the server lacks of a PUT."""

    type = FrameType.WANT
    ranges: Annotated[tuple[Range, ...], Vector(Record(Range, "<QQQ"))]


@attrs.frozen
class Outcomes(Message):
    """What became of some objects, all the same."""

    type = FrameType.OUTCOMES
    request: Annotated[int, Scalar("I")]
    """Which peer request of a SYNC; 0 elsewhere."""
    outcome: Annotated[int, Scalar("H")]
    """An `Outcome`, or what a later version may know."""
    reason: Annotated[str, Text(4096, default="")]
    indexes: Annotated[tuple[int, ...], Vector(Scalar("I"))]
    """Which objects of the request, by their place in it."""


@attrs.frozen
class Amount:
    """How far a peer request has come."""

    objects: int
    """Objects with an outcome."""
    nbytes: int
    """Bytes that have arrived."""


@attrs.frozen
class Progress(Message):
    """How far a SYNC has come; elsewhere, that the server is alive."""

    type = FrameType.PROGRESS
    requests: Annotated[tuple[Amount, ...], Vector(Record(Amount, "<QQ"), default=())] = ()


@attrs.frozen
class Described:
    """What LISTED says of an object: see `plasmastream.wire.plasma.ObjectInfo`."""

    data_size: int
    metadata_size: int
    ref_count: int
    create_time: int
    construct_duration: int


@attrs.frozen
class Listed(Message):
    """Some of the objects that were asked about; those that are not there are left out."""

    type = FrameType.LISTED
    object_ids: Annotated[tuple[ObjectID, ...], Ids()]
    objects: Annotated[tuple[Described, ...], Vector(Record(Described, "<QQqqq"))]
    digests: Annotated[tuple[bytes, ...], Digests()]


@attrs.frozen
class End(Message):
    """The request is done, or has failed as a whole."""

    type = FrameType.END
    outcome: Annotated[int, Scalar("H")] = 0
    reason: Annotated[str, Text(4096, default="")] = ""
    retry_after: Annotated[float, Moment()] = 0.0
    """Seconds."""


_OFTEN_ALIKE: Final = FrameType.END, FrameType.OUTCOMES, FrameType.PROGRESS
_SHORT: Final = 256  # bytes of a body
_REMEMBERED: Final = 256

_MESSAGES: Final[tuple[type[Message], ...]] = (
    Hello, Open, Read, Drop, Close, Put, Sync, Stat, ListObjects, Cancel, Want, Outcomes, Progress, Listed, End,
)  # fmt: skip
TABLES: Final[dict[FrameType, Table[Message]]] = {cls.type: Table(cls) for cls in _MESSAGES}
"""The layout of each control message, by frame type."""


def encode_message(message: Message) -> bytes:
    """Write the body of a control message.

    Raises:
        LocalProtocolError: a field has a value that cannot be sent.
    """
    match message:
        case End() | Outcomes(indexes=[_]) | Progress(requests=[] | [_]):  # of which most are like those before them
            return _encode_again(message)
        case _:
            return _encode(message)


def _encode(message: Message) -> bytes:
    pieces: Pieces = [b""]
    try:
        root, _ = TABLES[message.type].save(message, 0, _ROOT.size, pieces)
    except struct.error as error:
        raise LocalProtocolError(f"a {message.type.name} cannot be sent: {error}") from None
    pieces[0] = _ROOT.pack(root)
    return b"".join(pieces)


def decode_message(frame_type: FrameType, body: bytes | bytearray) -> Any:
    """Read the body of a control message.

    Raises:
        RemoteProtocolError: the body is no such message.
    """
    if len(body) <= _SHORT and frame_type in _OFTEN_ALIKE:
        return _decode_again(frame_type, bytes(body))
    return _decode(frame_type, body)


def _decode(frame_type: FrameType, body: bytes | bytearray) -> Any:
    try:
        return TABLES[frame_type].load(body, 0, *_ROOT.unpack_from(body))
    except struct.error:
        fault = "its offsets lead out of it"
    except RemoteProtocolError as error:
        fault = str(error)
    raise RemoteProtocolError(f"a body of {len(body)} bytes is no {frame_type.name}: {fault}")


_encode_again = lru_cache(_REMEMBERED)(_encode)
_decode_again = lru_cache(_REMEMBERED)(_decode)
