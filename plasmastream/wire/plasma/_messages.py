"""Every message of the store's protocol, a frozen class each; the types of the fields are the layout.

Fields stand in the order of the schema's slots (plasma-ipc 2.3; `schema/*.fbs`), so the classes below can be
read side by side with it. A request's answer is the class of the same name that ends in `Reply`.
"""

from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Annotated, ClassVar, TypeAlias

import attrs

from plasmastream.wire._flat import Boxed, Choice, Octets, Record, Table, Vector
from plasmastream.wire.plasma import _fields as f
from plasmastream.wire.plasma._specs import LAYOUT, ObjectSpec, Specs


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
    RELEASE_MANY_REQUEST = 1002


class Extension(IntFlag):
    """What a store may know beyond the published messages, as its `ConnectReply` says."""

    INSPECT = 1
    """It answers an `InspectRequest`."""
    RELEASE_MANY = 2
    """It hears a `ReleaseManyRequest`."""


class ErrorCode(IntEnum):
    """Why a store refused. The last two stand in a `DeleteReply` only: elsewhere they kill Arrow's client."""

    OK = 0
    OBJECT_EXISTS = 1
    OBJECT_NOT_FOUND = 2
    OUT_OF_MEMORY = 3
    OBJECT_NOT_SEALED = 4
    OBJECT_IN_USE = 5


_CODES = {int(code): code for code in ErrorCode}
_STATUSES = {number: code for number, code in _CODES.items() if number <= ErrorCode.OUT_OF_MEMORY}

_Status: TypeAlias = Annotated[ErrorCode, Choice(_STATUSES)]
_Codes: TypeAlias = Annotated[tuple[ErrorCode, ...], Vector(Choice(_CODES))]
_SPEC = Record(ObjectSpec, LAYOUT, Specs)
_Spec: TypeAlias = Annotated[ObjectSpec, _SPEC]
_Specs: TypeAlias = Annotated[Sequence[ObjectSpec], Vector(_SPEC)]


@attrs.frozen
class ObjectInfo:
    """An object in a list, or a change in a notification (plasma-ipc 2.4)."""

    object_id: f.Id
    data_size: f.Int64 = 0
    metadata_size: f.Int64 = 0
    ref_count: f.Int32 = 0
    """Connections that use it; in lists only."""
    create_time: f.Int64 = 0
    """Unix time in whole seconds; in lists only."""
    construct_duration: f.Int64 = 0
    """Seconds from create to seal, -1 until then; in lists only."""
    digest: f.OptionalDigest = None
    """8 bytes; in lists `b""` until it is sealed; None in a notification of a deletion."""
    is_deletion: f.Bool = False


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
    object_id: f.Id
    evict_if_full: f.Bool = False
    data_size: f.UInt64 = 0
    metadata_size: f.UInt64 = 0
    device_num: f.Int32 = 0


@attrs.frozen
class CreateReply(Message):
    """Where to write the object, or why not. May be followed by the segment's descriptor (plasma-ipc 3.2)."""

    type = MessageType.CREATE_REPLY
    object_id: f.Id
    spec: _Spec
    error: _Status = ErrorCode.OK
    store_fd: f.OptionalInt32 = None
    mmap_size: f.OptionalInt64 = None
    """8 more than the bytes that can be mapped (plasma-ipc 3.3)."""
    ipc_handle: _OptionalHandle = None


@attrs.frozen
class CreateAndSealRequest(Message):
    """Store a small object whose contents come along."""

    type = MessageType.CREATE_AND_SEAL_REQUEST
    object_id: f.Id
    evict_if_full: f.Bool
    data: f.Bytes
    metadata: f.Bytes
    digest: f.Digest


@attrs.frozen
class CreateAndSealReply(Message):
    """Whether the object was stored."""

    type = MessageType.CREATE_AND_SEAL_REPLY
    error: _Status = ErrorCode.OK


@attrs.frozen
class AbortRequest(Message):
    """Give back the memory of an unsealed object."""

    type = MessageType.ABORT_REQUEST
    object_id: f.Id


@attrs.frozen
class AbortReply(Message):
    """The object is gone."""

    type = MessageType.ABORT_REPLY
    object_id: f.Id


@attrs.frozen
class SealRequest(Message):
    """Make an object immutable, and visible to all."""

    type = MessageType.SEAL_REQUEST
    object_id: f.Id
    digest: f.Digest


@attrs.frozen
class SealReply(Message):
    """Whether the object was sealed."""

    type = MessageType.SEAL_REPLY
    object_id: f.Id
    error: _Status = ErrorCode.OK


@attrs.frozen
class GetRequest(Message):
    """Pin objects, and tell where they lie, waiting for those that are not sealed yet (-1: for ever)."""

    type = MessageType.GET_REQUEST
    object_ids: f.Ids
    timeout_ms: f.Int64


@attrs.frozen
class GetReply(Message):
    """A spec for each id asked for, in order. May be followed by descriptors (plasma-ipc 3.2)."""

    type = MessageType.GET_REPLY
    object_ids: f.Ids
    specs: _Specs
    store_fds: f.Int32s
    """The distinct segments in `specs`, those known to the client included."""
    mmap_sizes: f.Int64s
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
    object_id: f.Id


@attrs.frozen
class ReleaseReply(Message):
    """In the schema, but never sent."""

    type = MessageType.RELEASE_REPLY
    object_id: f.Id
    error: _Status = ErrorCode.OK


@attrs.frozen
class DeleteRequest(Message):
    """Remove objects, each as soon as nobody uses it."""

    type = MessageType.DELETE_REQUEST
    count: f.Int32 = attrs.field(init=False, repr=False)
    object_ids: f.Ids

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "count", len(self.object_ids))


@attrs.frozen
class DeleteReply(Message):
    """What became of each id. Those not sealed yet, or in use, are deleted as soon as that is over."""

    type = MessageType.DELETE_REPLY
    count: f.Int32 = attrs.field(init=False, repr=False)
    object_ids: f.Ids
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
    object_id: f.Id


@attrs.frozen
class ContainsReply(Message):
    """Whether the store holds the object, sealed."""

    type = MessageType.CONTAINS_REPLY
    object_id: f.Id
    has_object: f.Flag


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
    memory_capacity: f.Int64
    extensions: f.UInt32 = 0
    """Of `Extension`, and of what later versions know. A field of our own: Apache's store leaves it out."""


@attrs.frozen
class EvictRequest(Message):
    """Free at least so many bytes, oldest objects first."""

    type = MessageType.EVICT_REQUEST
    num_bytes: f.UInt64


@attrs.frozen
class EvictReply(Message):
    """How many bytes were freed."""

    type = MessageType.EVICT_REPLY
    num_bytes: f.UInt64


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
    object_id: f.Id
    address: f.Text
    port: f.Int32


@attrs.frozen
class DataReply(Message):
    """A leftover of Plasma's manager, never sent."""

    type = MessageType.DATA_REPLY
    object_id: f.Id
    object_size: f.UInt64
    metadata_size: f.UInt64


@attrs.frozen
class Notification(Message):
    """Objects that were sealed or deleted. Travels on the subscriber's socket, never in a frame."""

    type = MessageType.NOTIFICATION
    objects: _Infos


@attrs.frozen
class SetOptionsRequest(Message):
    """Name this client, and reserve so many bytes for the objects that it creates."""

    type = MessageType.SET_OPTIONS_REQUEST
    client_name: f.Text
    output_memory_quota: f.Int64


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
    debug_string: f.Text


@attrs.frozen
class CreateAndSealBatchRequest(Message):
    """Store several small objects, all or none."""

    type = MessageType.CREATE_AND_SEAL_BATCH_REQUEST
    object_ids: f.Ids
    evict_if_full: f.Bool
    data: f.BytesVector
    metadata: f.BytesVector
    digests: f.Digests

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
    object_ids: f.Ids


@attrs.frozen
class RefreshLRUReply(Message):
    """Done."""

    type = MessageType.REFRESH_LRU_REPLY
