"""Messages to bytes and back, checked against captures, the schema, generated code, and garbage."""

import math
import re
import struct
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plasmastream import LocalProtocolError, ObjectID, RemoteProtocolError
from plasmastream.wire import _flat as flat
from plasmastream.wire.plasma import (
    EMPTY_SPEC,
    ConnectReply,
    ContainsReply,
    ContainsRequest,
    CreateAndSealBatchRequest,
    CreateAndSealRequest,
    CreateReply,
    CreateRequest,
    DeleteReply,
    DeleteRequest,
    DisconnectClient,
    ErrorCode,
    EvictRequest,
    Extension,
    GetDebugStringReply,
    GetReply,
    GetRequest,
    InspectReply,
    InspectRequest,
    ListReply,
    Message,
    MessageType,
    Notification,
    ObjectHolder,
    ObjectInfo,
    ObjectSpec,
    RefreshLRURequest,
    ReleaseManyRequest,
    SealReply,
    SealRequest,
    SetOptionsRequest,
    decode,
    decode_body,
    encode,
    encode_body,
    pack_header,
    unpack_header,
)
from plasmastream.wire.plasma._codec import TABLES
from plasmastream.wire.plasma._extensions import _PackedIds

from . import oracle
from .samples import (
    ANY_MESSAGE,
    CAPTURED,
    DIGEST,
    ONE_OF_EACH,
    SAMPLES,
    SPEC,
    A,
    B,
    captured_bodies,
    messages_of,
    status_of,
)

TYPES_WITH_TABLE = [message_type for message_type in MessageType if message_type in TABLES]
RENAMED = {
    "spec": "plasma_object",
    "specs": "plasma_objects",
    "digests": "digest",
    "objects": ("objects", "object_info"),
}
EMPTY_TABLE = bytes.fromhex("080000000400040004000000")


def body_of(*fields: tuple[int, bytes], slots: int, tail: bytes = b"") -> bytes:
    """A body with its fields in the given slots one behind the other, and `tail` behind the table."""
    offsets, inline = [0] * slots, b""
    for slot, value in fields:
        offsets[slot] = 4 + len(inline)
        inline += value
    vtable = struct.pack(f"<HH{slots}H", 4 + 2 * slots, 4 + len(inline), *offsets)
    return struct.pack("<I", 4 + len(vtable)) + vtable + struct.pack("<i", len(vtable)) + inline + tail


# Captures


@pytest.mark.parametrize(("body", "expected"), list(zip(captured_bodies(), CAPTURED, strict=True)))
def test_captured_bodies(body: bytes, expected: Message) -> None:
    decoded = decode(expected.type, body)
    assert decoded == expected
    assert decode(expected.type, encode_body(decoded)) == expected
    assert oracle.read(expected.type, body) == oracle.plain_message(expected)


def test_an_empty_table_has_the_bytes_of_the_original() -> None:
    for message in ONE_OF_EACH:
        if message.type in TABLES and not TABLES[message.type].slots:
            assert encode_body(message) == EMPTY_TABLE


# Schema


def test_enums_are_those_of_the_schema() -> None:
    numbers = oracle.schema_enum("MessageType")
    ours = oracle.schema_enum("ExtensionMessageType")
    assert (len(numbers), min(ours.values()), len(MessageType)) == (36, 1000, 36 + len(ours))
    for name, number in (numbers | ours).items():
        assert MessageType(number).name.replace("_", "") == name.removeprefix("Plasma").upper()
    errors = oracle.schema_enum("PlasmaError")
    assert {code.name.replace("_", ""): code.value for code in ErrorCode} == {
        name.upper(): number for name, number in errors.items()
    }


def test_every_table_of_the_schema_has_a_layout() -> None:
    tables = {f"Plasma{type(SAMPLES[t]).__name__}" for t in TYPES_WITH_TABLE}
    parts = {"CudaHandle", "ObjectInfo", "PlasmaObjectSpec", "ObjectStatus", "ObjectHolder", "ObjectUser"}
    assert tables == oracle.RECORDS.keys() - parts - {"ExtendedConnectReply"}
    assert [message.type for message in ONE_OF_EACH] == list(MessageType)


def test_what_we_add_to_a_reply_is_hidden_from_others() -> None:
    body = encode_body(ConnectReply(100, Extension.INSPECT))
    assert oracle.generated("PlasmaConnectReply").PlasmaConnectReply.GetRootAs(body).MemoryCapacity() == 100
    published = body_of((0, struct.pack("<q", 100)), slots=1)
    assert decode_body(ConnectReply, published) == ConnectReply(100, 0)


def assert_layout(slots: tuple[tuple[str, flat.Kind], ...], name: str) -> None:
    assert len(slots) == len(oracle.RECORDS[name])
    for (ours, kind), (theirs, type_name) in zip(slots, oracle.RECORDS[name], strict=True):
        assert theirs == ours or theirs in RENAMED[ours]
        assert_kind(kind, type_name)


def assert_kind(kind: flat.Kind, type_name: str) -> None:
    match kind:
        case flat.Vector():
            assert re.fullmatch(r"\[\w+\]", type_name)
            assert_kind(kind.element, type_name[1:-1])
        case flat.Record():
            fields = oracle.RECORDS[type_name]
            assert [field.name for field in attrs.fields(ObjectSpec)] == [name for name, _ in fields]
            assert [type_name for _, type_name in fields] == ["int", *["ulong"] * 4, "int"]
            assert kind.size == 48
        case flat.Boxed():
            assert oracle.RECORDS[type_name] == [("handle", "[ubyte]")]
        case flat.Table():
            assert_layout(kind.slots, type_name)
        case _PackedIds():
            assert type_name == "[ubyte]"
        case flat.Choice():
            assert type_name == "PlasmaError"
        case flat.Scalar():
            formats = {"bool": "?", "int": "i", "uint": "I", "long": "q", "ulong": "Q", "double": "d"}
            assert kind.format == formats[type_name]
        case _:
            assert type_name == "string"


@pytest.mark.parametrize("message_type", TYPES_WITH_TABLE)
def test_layouts_are_those_of_the_schema(message_type: MessageType) -> None:
    assert_layout(TABLES[message_type].slots, oracle.TYPE_NAMES[message_type])


# Generated code


@pytest.mark.parametrize("message_type", TYPES_WITH_TABLE)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_generated_code_agrees(message_type: MessageType, data: st.DataObject) -> None:
    message = data.draw(messages_of(message_type))
    body = encode_body(message)
    plain = oracle.plain_message(message)
    assert decode(message_type, body) == message
    assert oracle.read(message_type, body) == plain
    theirs = decode(message_type, oracle.write(message_type, plain))
    assert oracle.plain_message(theirs) == plain


@given(ANY_MESSAGE)
def test_frames(message: Message) -> None:
    frame = encode(message)
    message_type, size = unpack_header(frame[:24])
    assert size == len(frame) - 24
    assert decode(message_type, frame[24:]) == message
    assert decode(message_type, bytearray(frame)[24:]) == message
    assert decode(message_type, memoryview(frame)[24:]) == message


def assert_aligned(body: bytes, kind: flat.Kind, at: int) -> None:
    """Follow a value that we wrote, and check the position of all that is wider than 4 bytes."""
    assert at % kind.alignment == 0
    if kind.format != "I" or isinstance(kind, flat.View | flat.Fixed):
        return
    start = at + struct.unpack_from("<I", body, at)[0]
    if isinstance(kind, flat.Vector):
        for i in range(struct.unpack_from("<I", body, start)[0]):
            assert_aligned(body, kind.element, start + 4 + i * kind.element.size)
    if isinstance(kind, flat.Table):
        vtable = start - struct.unpack_from("<i", body, start)[0]
        for slot, (_, field) in enumerate(kind.slots):
            (offset,) = struct.unpack_from("<H", body, vtable + 4 + 2 * slot)
            if offset:
                assert_aligned(body, field, start + offset)


@given(ANY_MESSAGE)
def test_wide_fields_are_aligned(message: Message) -> None:
    if message.type in TABLES:
        body = encode_body(message)
        assert len(body) % 4 == 0
        assert_aligned(body, TABLES[message.type], 0)


# Views


def test_contents_are_views_of_the_body() -> None:
    body = bytearray(encode_body(CreateAndSealRequest(A, False, b"content", b"md", DIGEST)))
    message = decode_body(CreateAndSealRequest, body)
    assert isinstance(message.data, memoryview)
    assert message.data.readonly
    body[body.index(b"content")] = ord("C")
    assert bytes(message.data) == b"Content"


def test_contents_may_be_any_buffer() -> None:
    words = memoryview(bytes(range(16))).cast("Q")
    message = CreateAndSealRequest(A, False, words, bytearray(b"md"), DIGEST)
    assert decode_body(CreateAndSealRequest, encode_body(message)).data == bytes(range(16))


# Garbage


@given(st.sampled_from(MessageType), st.binary(max_size=120))
def test_garbage_is_a_message_or_an_error(message_type: MessageType, body: bytes) -> None:
    assert_message_or_error(message_type, body)


@settings(max_examples=400, deadline=None)
@given(
    message=ANY_MESSAGE,
    changes=st.lists(
        st.tuples(
            st.integers(0, 1 << 16),
            st.sampled_from([b"\0", b"\1", b"\2", b"\x7f", b"\x80", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\x80"]),
        ),
        min_size=1,
        max_size=4,
    ),
    cut=st.integers(0, 40),
)
def test_damage_is_a_message_or_an_error(message: Message, changes: list[tuple[int, bytes]], cut: int) -> None:
    body = bytearray(encode_body(message))
    for position, value in changes:
        if body:
            position %= len(body)
            body[position : position + len(value)] = value
    assert_message_or_error(message.type, bytes(body))
    assert_message_or_error(message.type, bytes(body[: len(body) - cut]))


def assert_message_or_error(message_type: MessageType, body: bytes) -> None:
    try:
        message = decode(message_type, body)
    except RemoteProtocolError:
        return
    assert message.type is message_type
    assert decode(message_type, encode_body(message)) == message


@pytest.mark.parametrize("message", ONE_OF_EACH)
def test_every_cut_and_every_byte(message: Message) -> None:
    body = encode_body(message)
    for end in range(len(body)):
        assert_message_or_error(message.type, body[:end])
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            assert_message_or_error(message.type, body[:end] + bytes([value]) + body[end + 1 :])


@pytest.mark.parametrize("message_type", TYPES_WITH_TABLE)
def test_an_empty_body_is_no_table(message_type: MessageType) -> None:
    with pytest.raises(RemoteProtocolError, match="offsets lead out"):
        decode(message_type, b"")


def test_a_disconnect_has_any_body() -> None:
    assert decode(0, b"whatever") == DisconnectClient()
    assert encode(DisconnectClient()) == bytes(24)


@pytest.mark.parametrize("number", [-1, 36, 999, 1003, 2**40])
def test_unknown_types(number: int) -> None:
    with pytest.raises(RemoteProtocolError, match="no message of type"):
        decode(number, EMPTY_TABLE)


SPECS_CUT_SHORT = body_of(
    *[(slot, struct.pack("<I", distance)) for slot, distance in enumerate((16, 16, 8, 4))],
    slots=4,
    tail=struct.pack("<II", 0, 5),
)
HELD = status_of(A, (ObjectHolder(5, 6, "a name.", 1e9),))
SINCE = struct.pack("<d", 1e9)


def changed(old: bytes, new: bytes, message: Message, *, more: int = 0) -> bytes:
    """The body of a message with the last occurrence of some bytes replaced, and zeros behind it."""
    head, found, tail = encode_body(message).rpartition(old)
    assert found
    return head + new + tail + bytes(more)


HOSTILE: dict[str, tuple[type[Message], bytes]] = {
    "vtable lies before": (ContainsRequest, struct.pack("<Ii", 4, 100)),
    "vtable is cut short": (ContainsRequest, struct.pack("<IIHH", 8, 0, 4, 0)),
    "fields of a table overlap": (
        CreateRequest,
        body_of((1, b"\1"), slots=5).replace(b"\4\0\0\0\0\0", b"\3\0\0\0\0\0", 1),
    ),
    "out of its table": (EvictRequest, struct.pack("<IHHHHi8x", 12, 6, 8, 4, 0, 8)),
    "vtable of 514 bytes": (EvictRequest, body_of((0, bytes(8)), slots=255)),
    "object_id is missing": (ContainsRequest, EMPTY_TABLE),
    "objects is missing": (Notification, EMPTY_TABLE),
    "field of 19 bytes": (ContainsRequest, body_of((0, b"\4\0\0\0"), slots=1, tail=struct.pack("<I20s", 19, A))),
    "field of 7 bytes": (
        SealRequest,
        encode_body(SealRequest(A, DIGEST)).replace(b"\x08\0\0\0\x0d", b"\x07\0\0\0\x0d"),
    ),
    "unexpected code 4": (
        SealReply,
        encode_body(SealReply(A, ErrorCode.OUT_OF_MEMORY)).replace(b"\3\0\0\0", b"\4\0\0\0", 1),
    ),
    "vector of 1048577 entries": (GetRequest, body_of((0, b"\4\0\0\0"), slots=2, tail=struct.pack("<I", 1048577))),
    "offsets lead out": (GetRequest, body_of((0, b"\4\0\0\0"), slots=2, tail=struct.pack("<I", 1048576))),
    "vector reaches out": (GetReply, SPECS_CUT_SHORT),
    "string reaches out": (SetOptionsRequest, body_of((0, b"\4\0\0\0"), slots=2, tail=struct.pack("<I", 1))),
    "not UTF-8": (GetDebugStringReply, body_of((0, b"\4\0\0\0"), slots=1, tail=b"\1\0\0\0\xff")),
    "19 bytes are no list": (ReleaseManyRequest, body_of((0, b"\4\0\0\0"), slots=1, tail=b"\x13\0\0\0" + A)),
    "20500 bytes are no list": (
        ReleaseManyRequest,
        body_of((0, b"\4\0\0\0"), slots=1, tail=struct.pack("<I", 20_500) + 1025 * A),
    ),
    "vector of 257 entries": (InspectRequest, body_of((0, b"\4\0\0\0"), slots=2, tail=struct.pack("<I", 257))),
    "vector of 17 entries": (InspectReply, changed(b"\1\0\0\0", b"\x11\0\0\0", InspectReply((HELD,)))),
    "text of 257 bytes": (InspectReply, changed(b"\7\0\0\0", struct.pack("<I", 257), InspectReply((HELD,)), more=300)),
    "nan is no time": (InspectReply, changed(SINCE, struct.pack("<d", math.nan), InspectReply((HELD,)))),
    "inf is no time": (InspectReply, changed(SINCE, struct.pack("<d", math.inf), InspectReply((HELD,)))),
    "-1.0 is no time": (InspectReply, changed(SINCE, struct.pack("<d", -1), InspectReply((HELD,)))),
    "the count is 2, and should be 1": (DeleteRequest, encode_body(DeleteRequest((A,))).replace(b"\1", b"\2", 1)),
}


@pytest.mark.parametrize("complaint", HOSTILE)
def test_hostile_bodies(complaint: str) -> None:
    cls, body = HOSTILE[complaint]
    with pytest.raises(RemoteProtocolError, match=complaint):
        decode_body(cls, body)


def test_later_versions_of_the_schema_are_understood() -> None:
    body = body_of((0, b"\x0c\0\0\0"), (5, bytes(8)), slots=9, tail=struct.pack("<I20s", 20, A))
    assert decode(MessageType.CONTAINS_REQUEST, body) == ContainsRequest(A)


@pytest.mark.parametrize("byte", [1, 2, 0xFF])
def test_bools_are_lenient(byte: int) -> None:
    request = bytearray(encode_body(CreateRequest(A, True)))
    request[request.index(1, 40)] = byte
    assert decode_body(CreateRequest, request) == CreateRequest(A, True)
    reply = bytearray(encode_body(ContainsReply(A, True)))
    reply[reply.index(1)] = byte
    assert decode_body(ContainsReply, reply).has_object is True


def test_many_vtables_do_not_fill_the_memory() -> None:
    table = TABLES[MessageType.EVICT_REQUEST]
    for slots in range(1, 3 * flat.MAX_PLANS):
        decode(MessageType.EVICT_REQUEST, body_of((0, bytes(8)), slots=slots))
        assert 0 < len(table._plans) <= flat.MAX_PLANS


def test_shared_bytes_are_not_multiplied() -> None:
    """A vector whose entries all lead to one large handle."""
    handle = struct.pack("<HHHxxiII", 6, 8, 4, 8, 4, 1 << 20) + bytes(1 << 20)
    empty = struct.pack("<I", 0)
    fields = [(slot, struct.pack("<I", 20 - 4 * slot)) for slot in range(4)]
    body = body_of(*fields, (4, struct.pack("<I", 8)), slots=5, tail=empty + struct.pack("<II", 1, 12) + handle)
    with pytest.raises(RemoteProtocolError, match=r"1048576 bytes, which cannot be"):
        decode(MessageType.GET_REPLY, body)


# What cannot be sent

MUST_NOT_BE_SENT: dict[str, Message] = {
    "where there must be 20": ContainsRequest(b"short"),  # type: ignore[arg-type]
    "must be 8": SealRequest(A, b"seven.."),
    "which cannot be sent": ListReply((ObjectInfo(A, digest=b"seven.."),)),
    "int": ContainsReply(A, "no"),  # type: ignore[arg-type]
    "format|range|argument": EvictRequest(-1),
    "OBJECT_IN_USE.* cannot be sent here": SealReply(A, ErrorCode.OBJECT_IN_USE),
    "no form in UTF-8": SetOptionsRequest("\ud800", 0),
    "2 specs for 1 ids": GetReply((A,), (SPEC, SPEC), (), ()),
    "1 sizes for 2 segments": GetReply((), (), (1, 2), (1,)),
    "0 codes for 1 ids": DeleteReply((A,), ()),
    "without a digest": ListReply((ObjectInfo(A),)),
    r"unequal lengths \[0, 1\]": CreateAndSealBatchRequest((A,), True, (), (b"",), (DIGEST,)),
    "a vector of": RefreshLRURequest((A,) * (flat.MAX_ENTRIES + 1)),
    "1025 values are no list": ReleaseManyRequest((A,) * 1025),
    "a vector of 257": InspectRequest((A,) * 257),
    "a text of 257 bytes": InspectReply((status_of(A, (ObjectHolder(1, 1, "é" * 128 + "x", 0.0),)),)),
    "-1.0 is no time": InspectReply((status_of(A, (ObjectHolder(1, 1, "x", -1.0),)),)),
}


@pytest.mark.parametrize("complaint", MUST_NOT_BE_SENT)
def test_what_cannot_be_sent(complaint: str) -> None:
    with pytest.raises(LocalProtocolError, match=complaint):
        encode(MUST_NOT_BE_SENT[complaint])


@pytest.mark.parametrize("message", [GetReply((A,), (SPEC,), (), ()), DeleteReply((A,), (ErrorCode.OK,))])
def test_what_contradicts_itself_is_refused(message: Message) -> None:
    body = bytearray(encode_body(message))
    body[:] = body.replace(b"\1\0\0\0\4\0\0\0\x14", b"\0\0\0\0\4\0\0\0\x14")
    with pytest.raises(RemoteProtocolError, match=r"1 specs for 0|count is 1, and should be 0"):
        decode(message.type, body)


# Headers


def test_headers() -> None:
    header = pack_header(MessageType.CONNECT_REQUEST, 12)
    assert header == bytes.fromhex("000000000000000013000000000000000c00000000000000")
    assert unpack_header(header) == (19, 12)


@pytest.mark.parametrize("size", [-1, 2**31])
def test_sizes_out_of_range(size: int) -> None:
    with pytest.raises(LocalProtocolError):
        pack_header(0, size)
    with pytest.raises(RemoteProtocolError):
        unpack_header(struct.pack("<qqq", 0, 0, size))


def test_other_versions() -> None:
    with pytest.raises(RemoteProtocolError, match="version 1"):
        unpack_header(struct.pack("<qqq", 1, 0, 0))


# Values


def test_plain_kinds_change_nothing() -> None:
    assert flat.Scalar("i").load(b"", 0, 5) == 5
    assert flat.Scalar("i").save(5, 0, 8, []) == (5, 8)


def test_missing_spec() -> None:
    assert not EMPTY_SPEC.is_missing
    assert decode_body(GetReply, encode_body(SAMPLES[MessageType.GET_REPLY])).specs[1].is_missing


def test_ids_come_out_as_ids() -> None:
    message = decode_body(GetRequest, encode_body(GetRequest((A, B), 0)))
    assert all(type(object_id) is ObjectID for object_id in message.object_ids)
    assert type(decode_body(ContainsRequest, encode_body(ContainsRequest(A))).object_id) is ObjectID


def test_counts_are_computed() -> None:
    assert DeleteRequest((A, B)).count == 2
    assert DeleteReply((A,), (ErrorCode.OK,)).count == 1


def test_a_create_reply_with_a_handle() -> None:
    message = CreateReply(A, EMPTY_SPEC, ErrorCode.OK, -1, 0, b"\0" * 8)
    assert decode_body(CreateReply, encode_body(message)) == message


def test_messages_are_documented() -> None:
    everything: list[Any] = [type(message) for message in ONE_OF_EACH]
    assert all(cls.__doc__ for cls in everything)
