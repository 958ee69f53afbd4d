"""Every message of the store's protocol, a frozen class each; the types of the fields are the layout.

Fields stand in the order of the schema's slots (plasma-ipc 2.3; `schema/*.fbs`), so the classes below can be
read side by side with it. A request's answer is the class of the same name that ends in `Reply`.
"""

from enum import IntEnum, IntFlag
from typing import Annotated, ClassVar, Final, TypeAlias

import attrs

from plasmastream._object_id import OBJECT_ID_SIZE, ObjectID
from plasmastream.wire._flat import (
    Boxed,
    Choice,
    Fixed,
    Flag,
    Moment,
    Octets,
    Record,
    Scalar,
    Table,
    Text,
    Vector,
    View,
)
from plasmastream.wire.plasma._digest import DIGEST_SIZE


class MessageType(IntEnum):
    """What a frame carries (plasma-ipc 2.1). From 1000 on, these are our own."""

    DISCONNECT_CLIENT = 0
    CREATE_REQUEST = 1
    CREATE_REPLY = 2
    CREATE_AND_SEAL_REQUEST = 3
    CREATE_AND_SEAL_REPLY = 4
    ABORT_REQUEST = 5
    ABORT_REPLY = 6
    SEAL_REQUEST = 7
    SEAL_REPLY = 8
    GET_REQUEST = 9
    GET_REPLY = 10
    RELEASE_REQUEST = 11
    RELEASE_REPLY = 12
    DELETE_REQUEST = 13
    DELETE_REPLY = 14
    CONTAINS_REQUEST = 15
    CONTAINS_REPLY = 16
    LIST_REQUEST = 17
    LIST_REPLY = 18
    CONNECT_REQUEST = 19
    CONNECT_REPLY = 20
    EVICT_REQUEST = 21
    EVICT_REPLY = 22
    SUBSCRIBE_REQUEST = 23
    UNSUBSCRIBE_REQUEST = 24
    DATA_REQUEST = 25
    DATA_REPLY = 26
    NOTIFICATION = 27
    SET_OPTIONS_REQUEST = 28
    SET_OPTIONS_REPLY = 29
    GET_DEBUG_STRING_REQUEST = 30
    GET_DEBUG_STRING_REPLY = 31
    CREATE_AND_SEAL_BATCH_REQUEST = 32
    CREATE_AND_SEAL_BATCH_REPLY = 33
    REFRESH_LRU_REQUEST = 34
    REFRESH_LRU_REPLY = 35
    INSPECT_REQUEST = 1000
    INSPECT_REPLY = 1001


class Extension(IntFlag):
    """What a store may know beyond the published messages, as its `ConnectReply` says."""

    INSPECT = 1
    """It answers an `InspectRequest`."""


class ErrorCode(IntEnum):
    """Why a store refused. The last two stand in a `DeleteReply` only: elsewhere they kill Arrow's client."""

    OK = 0
    OBJECT_EXISTS = 1
    OBJECT_NOT_FOUND = 2
    OUT_OF_MEMORY = 3
    OBJECT_NOT_SEALED = 4
    OBJECT_IN_USE = 5


# Field types. `data` and `metadata` are read as read-only views of the body that they arrived in.

BytesLike: TypeAlias = bytes | bytearray | memoryview

_CODES = {int(code): code for code in ErrorCode}
_STATUSES = {number: code for number, code in _CODES.items() if number <= ErrorCode.OUT_OF_MEMORY}

_Bool: TypeAlias = Annotated[bool, Scalar("?")]
_Flag: TypeAlias = Annotated[bool, Flag()]
_Int32: TypeAlias = Annotated[int, Scalar("i")]
_UInt32: TypeAlias = Annotated[int, Scalar("I")]
_Int64: TypeAlias = Annotated[int, Scalar("q")]
_UInt64: TypeAlias = Annotated[int, Scalar("Q")]
_Int32s: TypeAlias = Annotated[tuple[int, ...], Vector(Scalar("i"))]
_Int64s: TypeAlias = Annotated[tuple[int, ...], Vector(Scalar("q"))]
_OptionalInt32: TypeAlias = Annotated[int | None, Scalar("i", None)]
_OptionalInt64: TypeAlias = Annotated[int | None, Scalar("q", None)]
_Status: TypeAlias = Annotated[ErrorCode, Choice(_STATUSES)]
_Codes: TypeAlias = Annotated[tuple[ErrorCode, ...], Vector(Choice(_CODES))]
_Id: TypeAlias = Annotated[ObjectID, Fixed(OBJECT_ID_SIZE, ObjectID)]
_Ids: TypeAlias = Annotated[tuple[ObjectID, ...], Vector(Fixed(OBJECT_ID_SIZE, ObjectID))]
_Digest: TypeAlias = Annotated[bytes, Fixed(DIGEST_SIZE, bytes)]
_Digests: TypeAlias = Annotated[tuple[bytes, ...], Vector(Fixed(DIGEST_SIZE, bytes))]
_OptionalDigest: TypeAlias = Annotated[bytes | None, Octets((0, DIGEST_SIZE), None)]
_Bytes: TypeAlias = Annotated[BytesLike, View()]
_BytesVector: TypeAlias = Annotated[tuple[BytesLike, ...], Vector(View())]
_Text: TypeAlias = Annotated[str, Text()]
_Moment: TypeAlias = Annotated[float, Moment()]
_OptionalMoment: TypeAlias = Annotated[float | None, Moment(None)]


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
        return self.data_size == _MISSING_SIZE


_MISSING_SIZE: Final = 2**64 - 1
MISSING_SPEC: Final = ObjectSpec(data_size=_MISSING_SIZE)
"""What a `GetReply` says about an object that did not come."""
EMPTY_SPEC: Final = ObjectSpec()
"""What a `CreateReply` carries beside an error: Arrow's client reads it all the same."""

_SPEC = Record(ObjectSpec, "<i4xQQQQi4x")
_Spec: TypeAlias = Annotated[ObjectSpec, _SPEC]
_Specs: TypeAlias = Annotated[tuple[ObjectSpec, ...], Vector(_SPEC)]


@attrs.frozen
class ObjectInfo:
    """An object in a list, or a change in a notification (plasma-ipc 2.4)."""

    object_id: _Id
    data_size: _Int64 = 0
    metadata_size: _Int64 = 0
    ref_count: _Int32 = 0
    """Connections that use it; in lists only."""
    create_time: _Int64 = 0
    """Unix time in whole seconds; in lists only."""
    construct_duration: _Int64 = 0
    """Seconds from create to seal, -1 until then; in lists only."""
    digest: _OptionalDigest = None
    """8 bytes; in lists `b""` until it is sealed; None in a notification of a deletion."""
    is_deletion: _Bool = False


_Infos: TypeAlias = Annotated[tuple[ObjectInfo, ...], Vector(Table(ObjectInfo))]


@attrs.frozen
class _CudaHandle:
    # An int64 and at most 64 bytes (plasma-ipc 3.4). The limit keeps a vector of handles that all lead to the
    # same bytes from being more than its body when copied out.
    handle: Annotated[bytes, Octets(range(129))]


_OptionalHandle: TypeAlias = Annotated[bytes | None, Boxed(_CudaHandle, None)]
_OptionalHandles: TypeAlias = Annotated[tuple[bytes, ...] | None, Vector(Boxed(_CudaHandle), None)]


@attrs.frozen
class Message:
    """Base of all messages."""

    type: ClassVar[MessageType]

    def fault(self) -> str | None:
        """Say what is wrong with fields that are right one by one; None if they agree."""
        return None


@attrs.frozen
class DisconnectClient(Message):
    """The client hangs up. It has no table: any body will do. (Arrow's client just closes its socket.)"""

    type = MessageType.DISCONNECT_CLIENT


@attrs.frozen
class CreateRequest(Message):
    """Reserve memory for an object, which this connection holds until it seals or aborts; sizes in bytes."""

    type = MessageType.CREATE_REQUEST
    object_id: _Id
    evict_if_full: _Bool = False
    data_size: _UInt64 = 0
    metadata_size: _UInt64 = 0
    device_num: _Int32 = 0


@attrs.frozen
class CreateReply(Message):
    """Where to write the object, or why not. May be followed by the segment's descriptor (plasma-ipc 3.2)."""

    type = MessageType.CREATE_REPLY
    object_id: _Id
    spec: _Spec
    error: _Status = ErrorCode.OK
    store_fd: _OptionalInt32 = None
    mmap_size: _OptionalInt64 = None
    """8 more than the bytes that can be mapped (plasma-ipc 3.3)."""
    ipc_handle: _OptionalHandle = None


@attrs.frozen
class CreateAndSealRequest(Message):
    """Store a small object whose contents come along."""

    type = MessageType.CREATE_AND_SEAL_REQUEST
    object_id: _Id
    evict_if_full: _Bool
    data: _Bytes
    metadata: _Bytes
    digest: _Digest


@attrs.frozen
class CreateAndSealReply(Message):
    """Whether the object was stored."""

    type = MessageType.CREATE_AND_SEAL_REPLY
    error: _Status = ErrorCode.OK


@attrs.frozen
class AbortRequest(Message):
    """Give back the memory of an unsealed object."""

    type = MessageType.ABORT_REQUEST
    object_id: _Id


@attrs.frozen
class AbortReply(Message):
    """The object is gone."""

    type = MessageType.ABORT_REPLY
    object_id: _Id


@attrs.frozen
class SealRequest(Message):
    """Make an object immutable, and visible to all."""

    type = MessageType.SEAL_REQUEST
    object_id: _Id
    digest: _Digest


@attrs.frozen
class SealReply(Message):
    """Whether the object was sealed."""

    type = MessageType.SEAL_REPLY
    object_id: _Id
    error: _Status = ErrorCode.OK


@attrs.frozen
class GetRequest(Message):
    """Pin objects, and tell where they lie, waiting for those that are not sealed yet (-1: for ever)."""

    type = MessageType.GET_REQUEST
    object_ids: _Ids
    timeout_ms: _Int64


@attrs.frozen
class GetReply(Message):
    """A spec for each id asked for, in order. May be followed by descriptors (plasma-ipc 3.2)."""

    type = MessageType.GET_REPLY
    object_ids: _Ids
    specs: _Specs
    store_fds: _Int32s
    """The distinct segments in `specs`, those known to the client included."""
    mmap_sizes: _Int64s
    """One for each of `store_fds`: 8 more than the bytes that can be mapped."""
    handles: _OptionalHandles = None

    def fault(self) -> str | None:
        if len(self.object_ids) != len(self.specs):
            return f"{len(self.specs)} specs for {len(self.object_ids)} ids"
        if len(self.store_fds) != len(self.mmap_sizes):
            return f"{len(self.mmap_sizes)} sizes for {len(self.store_fds)} segments"
        return None


@attrs.frozen
class ReleaseRequest(Message):
    """This connection does not use the object any more. Has no reply."""

    type = MessageType.RELEASE_REQUEST
    object_id: _Id


@attrs.frozen
class ReleaseReply(Message):
    """In the schema, but never sent."""

    type = MessageType.RELEASE_REPLY
    object_id: _Id
    error: _Status = ErrorCode.OK


@attrs.frozen
class DeleteRequest(Message):
    """Remove objects, each as soon as nobody uses it."""

    type = MessageType.DELETE_REQUEST
    count: _Int32 = attrs.field(init=False, repr=False)
    object_ids: _Ids

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "count", len(self.object_ids))


@attrs.frozen
class DeleteReply(Message):
    """What became of each id. Those not sealed yet, or in use, are deleted as soon as that is over."""

    type = MessageType.DELETE_REPLY
    count: _Int32 = attrs.field(init=False, repr=False)
    object_ids: _Ids
    errors: _Codes

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "count", len(self.object_ids))

    def fault(self) -> str | None:
        if len(self.errors) != self.count:
            return f"{len(self.errors)} codes for {self.count} ids"
        return None


@attrs.frozen
class ContainsRequest(Message):
    """Ask whether the store holds this object, sealed."""

    type = MessageType.CONTAINS_REQUEST
    object_id: _Id


@attrs.frozen
class ContainsReply(Message):
    """Whether the store holds the object, sealed."""

    type = MessageType.CONTAINS_REPLY
    object_id: _Id
    has_object: _Flag


@attrs.frozen
class ListRequest(Message):
    """Ask for all objects, unsealed ones included."""

    type = MessageType.LIST_REQUEST


@attrs.frozen
class ListReply(Message):
    """All objects, in no order."""

    type = MessageType.LIST_REPLY
    objects: _Infos

    def fault(self) -> str | None:
        if any(info.digest is None for info in self.objects):
            return 'an entry without a digest (that of an unsealed object is b"")'
        return None


@attrs.frozen
class ConnectRequest(Message):
    """The first message of a client."""

    type = MessageType.CONNECT_REQUEST


@attrs.frozen
class ConnectReply(Message):
    """The store's capacity in bytes, and what it knows beyond the published messages."""

    type = MessageType.CONNECT_REPLY
    memory_capacity: _Int64
    extensions: _UInt32 = 0
    """Of `Extension`, and of what later versions know. A field of our own: Apache's store leaves it out."""


@attrs.frozen
class EvictRequest(Message):
    """Free at least so many bytes, oldest objects first."""

    type = MessageType.EVICT_REQUEST
    num_bytes: _UInt64


@attrs.frozen
class EvictReply(Message):
    """How many bytes were freed."""

    type = MessageType.EVICT_REPLY
    num_bytes: _UInt64


@attrs.frozen
class SubscribeRequest(Message):
    """Send notifications to the socket whose descriptor follows. Has no reply (plasma-ipc 7)."""

    type = MessageType.SUBSCRIBE_REQUEST


@attrs.frozen
class UnsubscribeRequest(Message):
    """A number without a table, never sent."""

    type = MessageType.UNSUBSCRIBE_REQUEST


@attrs.frozen
class DataRequest(Message):
    """A leftover of Plasma's manager, never sent."""

    type = MessageType.DATA_REQUEST
    object_id: _Id
    address: _Text
    port: _Int32


@attrs.frozen
class DataReply(Message):
    """A leftover of Plasma's manager, never sent."""

    type = MessageType.DATA_REPLY
    object_id: _Id
    object_size: _UInt64
    metadata_size: _UInt64


@attrs.frozen
class Notification(Message):
    """Objects that were sealed or deleted. Travels on the subscriber's socket, never in a frame."""

    type = MessageType.NOTIFICATION
    objects: _Infos


@attrs.frozen
class SetOptionsRequest(Message):
    """Name this client, and reserve so many bytes for the objects that it creates."""

    type = MessageType.SET_OPTIONS_REQUEST
    client_name: _Text
    output_memory_quota: _Int64


@attrs.frozen
class SetOptionsReply(Message):
    """Whether the quota was granted."""

    type = MessageType.SET_OPTIONS_REPLY
    error: _Status = ErrorCode.OK


@attrs.frozen
class GetDebugStringRequest(Message):
    """Ask for figures to be read by people."""

    type = MessageType.GET_DEBUG_STRING_REQUEST


@attrs.frozen
class GetDebugStringReply(Message):
    """Figures to be read by people (plasma-ipc 8.4)."""

    type = MessageType.GET_DEBUG_STRING_REPLY
    debug_string: _Text


@attrs.frozen
class CreateAndSealBatchRequest(Message):
    """Store several small objects, all or none."""

    type = MessageType.CREATE_AND_SEAL_BATCH_REQUEST
    object_ids: _Ids
    evict_if_full: _Bool
    data: _BytesVector
    metadata: _BytesVector
    digests: _Digests

    def fault(self) -> str | None:
        lengths = {len(self.object_ids), len(self.data), len(self.metadata), len(self.digests)}
        return None if len(lengths) == 1 else f"vectors of unequal lengths {sorted(lengths)}"


@attrs.frozen
class CreateAndSealBatchReply(Message):
    """Whether they were stored: the first error."""

    type = MessageType.CREATE_AND_SEAL_BATCH_REPLY
    error: _Status = ErrorCode.OK


@attrs.frozen
class RefreshLRURequest(Message):
    """Make idle objects the last to be evicted."""

    type = MessageType.REFRESH_LRU_REQUEST
    object_ids: _Ids


@attrs.frozen
class RefreshLRUReply(Message):
    """Done."""

    type = MessageType.REFRESH_LRU_REPLY


# Our own. Each vector and text has a limit, since many entries of one vector may lead to the same bytes.

MAX_INSPECTED: Final = 256
"""Objects in one `InspectReply`, and ids in one request."""
MAX_HOLDERS: Final = 16
"""Holders of one object that are named."""
MAX_NAME_SIZE: Final = 256
"""Bytes of a holder's name."""


@attrs.frozen
class ObjectUser:
    """A process that is connected to the store, or the store's own."""

    pid: _Int32
    """0 where the store cannot see the process."""
    user: _UInt32
    name: Annotated[str, Text(MAX_NAME_SIZE)]
    """What it calls itself, or is called by the system: any characters."""


@attrs.frozen
class ObjectHolder(ObjectUser):
    """Who holds an object."""

    since: _Moment


@attrs.frozen
class ObjectStatus:
    """All that a store tells about an object: sizes in bytes, times in seconds since the epoch."""

    object_id: _Id
    data_size: _Int64
    metadata_size: _Int64
    created_at: _Moment
    last_used_at: _Moment
    """When somebody got it last, or let go of it."""
    sealed_at: _OptionalMoment
    """None while it is being written."""
    in_memory: _Bool
    on_disk: _Bool
    delete_when_released: _Bool
    """Somebody has asked for it to go as soon as nobody holds it."""
    evicted_after: _Int64
    """How many objects will be evicted before this one, as far as they were counted; -1 where nobody's need for room
    evicts it, because it is in use, or in somebody's quota."""
    holder_count: _UInt32
    holders: Annotated[tuple[ObjectHolder, ...], Vector(Table(ObjectHolder), most=MAX_HOLDERS)]
    """Those who have held it for longest. While it is being written, its creator alone."""
    quota_of: Annotated[ObjectUser | None, Table(ObjectUser, None)] = None
    """Whose quota it is counted in."""


@attrs.frozen
class InspectRequest(Message):
    """Ask who holds these objects, or all where none is named. Only for a store that announces it."""

    type = MessageType.INSPECT_REQUEST
    object_ids: Annotated[
        tuple[ObjectID, ...], Vector(Fixed(OBJECT_ID_SIZE, ObjectID), most=MAX_INSPECTED)
    ] = ()
    cursor: _UInt64 = 0
    """Where to go on with all: 0 at first, then what the last reply said."""


@attrs.frozen
class InspectReply(Message):
    """Those of the objects that are there, in the order asked, or in that of their creation."""

    type = MessageType.INSPECT_REPLY
    objects: Annotated[tuple[ObjectStatus, ...], Vector(Table(ObjectStatus), most=MAX_INSPECTED)]
    next_cursor: _UInt64 = 0
    """0 where there are no more."""
