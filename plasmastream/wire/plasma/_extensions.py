"""Messages of our own, which a store announces that knows them: who holds what, and giving back many at once.

Each vector and text has a limit, since many entries of one vector may lead to the same bytes.
"""

import struct
from collections.abc import Sequence
from typing import Annotated, Final

import attrs

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream._object_id import OBJECT_ID_SIZE, ObjectID
from plasmastream.wire._flat import Body, Pieces, Table, Text, Vector, View
from plasmastream.wire.plasma import _fields as f
from plasmastream.wire.plasma import _messages as m

MAX_INSPECTED: Final = 256
"""Objects in one `InspectReply`, and ids in one request."""
MAX_HOLDERS: Final = 16
"""Holders of one object that are named."""
MAX_NAME_SIZE: Final = 256
"""Bytes of a holder's name."""


@attrs.frozen
class ObjectUser:
    """A process that is connected to the store, or the store's own."""

    pid: f.Int32
    """0 where the store cannot see the process."""
    user: f.UInt32
    name: Annotated[str, Text(MAX_NAME_SIZE)]
    """What it calls itself, or is called by the system: any characters."""


@attrs.frozen
class ObjectHolder(ObjectUser):
    """Who holds an object."""

    since: f.Moment


@attrs.frozen
class ObjectStatus:
    """All that a store tells about an object: sizes in bytes, times in seconds since the epoch."""

    object_id: f.Id
    data_size: f.Int64
    metadata_size: f.Int64
    created_at: f.Moment
    last_used_at: f.Moment
    """When somebody got it last, or let go of it."""
    sealed_at: f.OptionalMoment
    """None while it is being written."""
    in_memory: f.Bool
    on_disk: f.Bool
    delete_when_released: f.Bool
    """Somebody has asked for it to go as soon as nobody holds it."""
    evicted_after: f.Int64
    """How many objects will be evicted before this one, as far as they were counted; -1 where nobody's need for room
    evicts it, because it is in use, or in somebody's quota."""
    holder_count: f.UInt32
    holders: Annotated[tuple[ObjectHolder, ...], Vector(Table(ObjectHolder), most=MAX_HOLDERS)]
    """Those who have held it for longest. While it is being written, its creator alone."""
    quota_of: Annotated[ObjectUser | None, Table(ObjectUser, None)] = None
    """Whose quota it is counted in."""


@attrs.frozen
class InspectRequest(m.Message):
    """Ask who holds these objects, or all where none is named. Only for a store that announces it."""

    type = m.MessageType.INSPECT_REQUEST
    object_ids: Annotated[
        tuple[ObjectID, ...], Vector(f.ID, most=MAX_INSPECTED)
    ] = ()
    cursor: f.UInt64 = 0
    """Where to go on with all: 0 at first, then what the last reply said."""


@attrs.frozen
class InspectReply(m.Message):
    """Those of the objects that are there, in the order asked, or in that of their creation."""

    type = m.MessageType.INSPECT_REPLY
    objects: Annotated[tuple[ObjectStatus, ...], Vector(Table(ObjectStatus), most=MAX_INSPECTED)]
    next_cursor: f.UInt64 = 0
    """0 where there are no more."""


MAX_RELEASED: Final = 1024
"""Ids in one `ReleaseManyRequest`: so many are let go at once, while nobody else is served."""
_ID = struct.Struct(f"{OBJECT_ID_SIZE}s")



class _PackedIds(View):
    """Ids, one after the other: so that very many of them fit into a socket."""

    def load(self, body: Body, at: int, inline: int) -> tuple[ObjectID, ...]:
        view = super().load(body, at, inline)
        if len(view) % OBJECT_ID_SIZE or len(view) > OBJECT_ID_SIZE * MAX_RELEASED:
            raise RemoteProtocolError(f"{len(view)} bytes are no list of at most {MAX_RELEASED} ids")
        return tuple([f.make_id(value) for (value,) in _ID.iter_unpack(view)])

    def save(self, value: Sequence[ObjectID], at: int, end: int, out: Pieces) -> tuple[int, int]:
        if len(value) > MAX_RELEASED or not set(map(len, value)) <= {OBJECT_ID_SIZE}:
            raise LocalProtocolError(f"{len(value)} values are no list of at most {MAX_RELEASED} ids")
        return super().save(b"".join(value), at, end, out)


@attrs.frozen
class ReleaseManyRequest(m.Message):
    """This connection does not use these objects any more. Has no reply. Only for a store that announces it."""

    type = m.MessageType.RELEASE_MANY_REQUEST
    object_ids: Annotated[tuple[ObjectID, ...], _PackedIds()]
