"""Messages to test with: one of each class, any of each class, and those that were captured."""

from pathlib import Path
from typing import Any

import attrs
from hypothesis import strategies as st

from plasmastream import ObjectID
from plasmastream.wire._flat import (
    Boxed,
    Choice,
    Fixed,
    Flag,
    Kind,
    Moment,
    Octets,
    Record,
    Scalar,
    Table,
    Text,
    Vector,
    View,
)
from plasmastream.wire.plasma import (
    EMPTY_SPEC,
    MISSING_SPEC,
    AbortReply,
    AbortRequest,
    ConnectReply,
    ConnectRequest,
    ContainsReply,
    ContainsRequest,
    CreateAndSealBatchReply,
    CreateAndSealBatchRequest,
    CreateAndSealReply,
    CreateAndSealRequest,
    CreateReply,
    CreateRequest,
    DataReply,
    DataRequest,
    DeleteReply,
    DeleteRequest,
    DisconnectClient,
    ErrorCode,
    EvictReply,
    EvictRequest,
    GetDebugStringReply,
    GetDebugStringRequest,
    GetReply,
    GetRequest,
    InspectReply,
    InspectRequest,
    ListReply,
    ListRequest,
    Message,
    MessageType,
    Notification,
    ObjectHolder,
    ObjectInfo,
    ObjectSpec,
    ObjectStatus,
    ObjectUser,
    RefreshLRUReply,
    RefreshLRURequest,
    ReleaseManyRequest,
    ReleaseReply,
    ReleaseRequest,
    SealReply,
    SealRequest,
    SetOptionsReply,
    SetOptionsRequest,
    SubscribeRequest,
    UnsubscribeRequest,
)
from plasmastream.wire.plasma._codec import TABLES
from plasmastream.wire.plasma._extensions import _PackedIds


def letter(text: str) -> ObjectID:
    return ObjectID(text.encode() * 20)


A, B, M, P, Q, R, U = map(letter, "ABMPQRU")
SPEC = ObjectSpec(4, 64, 100, 164, 4)
DIGEST = bytes.fromhex("0d3adf03df0a5eff")
MMAP_SIZE = 100007944

ONE_OF_EACH: list[Message] = [
    DisconnectClient(),
    CreateRequest(A, True, 100, 4),
    CreateReply(A, SPEC, ErrorCode.OK, 4, MMAP_SIZE),
    CreateAndSealRequest(A, True, b"hello", b"md", DIGEST),
    CreateAndSealReply(ErrorCode.OUT_OF_MEMORY),
    AbortRequest(A),
    AbortReply(A),
    SealRequest(A, DIGEST),
    SealReply(A),
    GetRequest((A, M), 10),
    GetReply((A, M), (SPEC, MISSING_SPEC), (4,), (MMAP_SIZE,)),
    ReleaseRequest(A),
    ReleaseReply(A),
    DeleteRequest((A, B)),
    DeleteReply((A, B), (ErrorCode.OK, ErrorCode.OBJECT_IN_USE)),
    ContainsRequest(A),
    ContainsReply(A, True),
    ListRequest(),
    ListReply((ObjectInfo(A, 100, 4, 1, 1795220960, 0, DIGEST), ObjectInfo(B, digest=b""))),
    ConnectRequest(),
    ConnectReply(100_000_000),
    EvictRequest(1),
    EvictReply(104),
    SubscribeRequest(),
    UnsubscribeRequest(),
    DataRequest(A, "localhost", 1234),
    DataReply(A, 100, 4),
    Notification((ObjectInfo(A, is_deletion=True),)),
    SetOptionsRequest("nm", 1_000_000),
    SetOptionsReply(),
    GetDebugStringRequest(),
    GetDebugStringReply("allocated bytes: 194"),
    CreateAndSealBatchRequest((A, B), True, (b"1", b"22"), (b"", b"m"), (DIGEST, DIGEST)),
    CreateAndSealBatchReply(),
    RefreshLRURequest((A,)),
    RefreshLRUReply(),
    InspectRequest((A, B)),
    InspectReply(
        (
            ObjectStatus(A, 100, 4, 1e9, 2e9, 1.5e9, True, False, True, -1, 1, (ObjectHolder(7, 0, "name", 2e9),)),
            ObjectStatus(B, 1, 0, 1e9, 1e9, None, False, True, False, 5, 0, (), ObjectUser(8, 1000, "größe")),
        )
    ),
    ReleaseManyRequest((A, B)),
]
SAMPLES: dict[MessageType, Message] = {message.type: message for message in ONE_OF_EACH}

# Each request that a store answers, with an answer that fits it.
CONVERSATIONS: list[tuple[Message, Message]] = [
    (request, reply)
    for request in ONE_OF_EACH
    for reply in ONE_OF_EACH
    if type(request).__name__.replace("Request", "Reply") == type(reply).__name__ != type(request).__name__
    and not isinstance(request, ReleaseRequest | DataRequest)
]

CAPTURED: list[Message] = [
    ConnectRequest(),
    ConnectReply(100_000_000),
    CreateRequest(A, True, 100, 4),
    CreateReply(A, SPEC, ErrorCode.OK, 4, MMAP_SIZE),
    SealRequest(A, DIGEST),
    SealReply(A),
    ReleaseRequest(A),
    CreateReply(A, EMPTY_SPEC, ErrorCode.OBJECT_EXISTS),
    GetRequest((A, M), 10),
    GetReply((A, M), (SPEC, MISSING_SPEC), (4,), (MMAP_SIZE,), ()),
    CreateAndSealRequest(B, True, b"hello", b"md", bytes.fromhex("b9d0283912052869")),
    CreateAndSealReply(),
    ContainsRequest(B),
    ContainsReply(B, True),
    ContainsReply(M, False),
    DeleteRequest((B,)),
    DeleteReply((B,), (ErrorCode.OK,)),
    ListRequest(),
    ListReply((ObjectInfo(A, 100, 4, 0, 0x6B00E5E0, 0, DIGEST),)),
    EvictRequest(1),
    EvictReply(104),
    SetOptionsRequest("nm", 1_000_000),
    SetOptionsReply(),
    SubscribeRequest(),
    Notification((ObjectInfo(P, 5, 2, digest=b"DIGEST00"),)),
    CreateAndSealBatchRequest((Q, R), True, (b"1", b"22"), (b"", b"m"), (b"D" * 8, b"E" * 8)),
    CreateAndSealBatchReply(),
    Notification((ObjectInfo(Q, 1, 0, digest=b"D" * 8), ObjectInfo(R, 2, 1, digest=b"E" * 8))),
    Notification((ObjectInfo(P, is_deletion=True),)),
    AbortRequest(U),
    AbortReply(U),
    RefreshLRURequest((Q,)),
    RefreshLRUReply(),
]


def captured_bodies() -> list[bytes]:
    """The bodies in the file, in its order."""
    bodies: list[bytearray] = []
    for line in (Path(__file__).parent / "captured.txt").read_text().splitlines():
        if line.startswith("  "):
            bodies[-1] += bytes.fromhex(line)
        elif not line.startswith("#") and "1-byte fd message" not in line:
            bodies.append(bytearray())
    return [bytes(body) for body in bodies]


def values_of(kind: Kind) -> st.SearchStrategy[Any]:
    """Any value that a field of this kind can have."""
    if kind.default is None:
        return st.none() | _present(kind)
    return _present(kind)


def _present(kind: Kind) -> st.SearchStrategy[Any]:
    match kind:
        case Choice():
            return st.sampled_from(list(kind._choices.values()))
        case Flag() | Scalar(format="?"):
            return st.booleans()
        case Moment():
            return st.floats(0, allow_nan=False, allow_infinity=False)
        case Scalar():
            bits = 8 * kind.size
            low = 0 if kind.format.isupper() else -(1 << bits - 1)
            return st.integers(low, low + (1 << bits) - 1)
        case Fixed():
            return st.binary(min_size=kind._nbytes, max_size=kind._nbytes).map(kind._make)
        case _PackedIds():
            return st.lists(st.binary(min_size=20, max_size=20).map(ObjectID), max_size=4).map(tuple)
        case Octets():
            lengths = st.sampled_from(list(kind._lengths))
            return lengths.flatmap(lambda n: st.binary(min_size=n, max_size=n))
        case Text():
            return st.text(max_size=40)  # 160 bytes, less than any limit
        case View():
            return st.binary(max_size=200)
        case Vector():
            return st.lists(values_of(kind.element), max_size=4).map(tuple)
        case Record():
            return st.builds(ObjectSpec, INT32, UINT64, UINT64, UINT64, UINT64, INT32)
        case Boxed():
            return values_of(kind.slots[0][1])
        case Table():
            return _built(kind)
        case _:
            raise NotImplementedError(kind)


def status_of(object_id: ObjectID, holders: tuple[ObjectHolder, ...] = ()) -> ObjectStatus:
    """What a store tells about a sealed object."""
    return ObjectStatus(object_id, 1, 0, 0.0, 0.0, 0.0, True, False, False, -1, len(holders), holders)


INT32 = st.integers(-(2**31), 2**31 - 1)
UINT64 = st.integers(0, 2**64 - 1)


def _built(table: Table[Any]) -> st.SearchStrategy[Any]:
    arguments = {field.name for field in attrs.fields(table._make) if field.init}
    fields = {name: values_of(kind) for name, kind in table.slots if name in arguments}
    return st.builds(table._make, **fields)


def messages_of(message_type: MessageType) -> st.SearchStrategy[Message]:
    """Any message of a type, with fields that agree."""
    if message_type not in TABLES:
        return st.just(SAMPLES[message_type])
    messages: st.SearchStrategy[Message] = _built(TABLES[message_type]).map(agreeing)
    return messages


def agreeing(message: Message) -> Message:
    """Cut vectors to equal lengths where they must have one, and fill in what must be there."""
    match message:
        case GetReply():
            n = min(len(message.object_ids), len(message.specs))
            k = min(len(message.store_fds), len(message.mmap_sizes))
            return attrs.evolve(
                message,
                object_ids=message.object_ids[:n],
                specs=message.specs[:n],
                store_fds=message.store_fds[:k],
                mmap_sizes=message.mmap_sizes[:k],
            )
        case DeleteReply():
            n = min(len(message.object_ids), len(message.errors))
            return DeleteReply(message.object_ids[:n], message.errors[:n])
        case CreateAndSealBatchRequest():
            n = min(map(len, (message.object_ids, message.data, message.metadata, message.digests)))
            return CreateAndSealBatchRequest(
                message.object_ids[:n],
                message.evict_if_full,
                message.data[:n],
                message.metadata[:n],
                message.digests[:n],
            )
        case ListReply():
            return ListReply(tuple(attrs.evolve(o, digest=o.digest or b"") for o in message.objects))
        case _:
            return message


ANY_MESSAGE = st.sampled_from(MessageType).flatmap(messages_of)
