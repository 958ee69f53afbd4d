"""Control messages to bytes and back, checked against the schema and the code that flatc generated from it."""

import contextlib
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plasmastream.wire.stream.v2
from plasmastream import LocalProtocolError, ObjectID, RemoteProtocolError
from plasmastream.wire.stream.v2 import (
    TOKEN_SIZE,
    Amount,
    End,
    Fetch,
    FrameType,
    Hello,
    Message,
    Open,
    Outcome,
    Outcomes,
    Progress,
    Read,
    Stat,
    Sync,
)
from plasmastream.wire.stream.v2._codec import _decode, _encode, decode_message, encode_message
from plasmastream.wire.stream.v2._messages import TABLES
from tests.wire.oracle import Oracle
from tests.wire.stream.helpers import object_id
from tests.wire.stream.v2.samples import ANY_MESSAGE, HELLO, ONE_OF_EACH, TOKEN, A

ORACLE = Oracle(
    Path(plasmastream.wire.stream.v2.__file__).parent / "schema", "plasma.stream", "tests.wire.stream.v2.generated"
)
NAMES = {"Range", "Sizes", "PeerRequest", "Done", "Described"}  # of what is part of a message


def name_of(message: Message) -> str:
    return {FrameType.LIST: "List", FrameType.END: "RequestEnd"}.get(message.type, type(message).__name__)


def check(message: Message) -> None:
    name, body = name_of(message), encode_message(message)
    assert decode_message(message.type, body) == message
    plain = ORACLE.plain(message, name)
    assert ORACLE.read(name, body) == plain
    assert decode_message(message.type, ORACLE.write(name, plain)) == message


def test_each_message_has_a_table_in_the_schema() -> None:
    assert {name_of(message) for message in ONE_OF_EACH} == ORACLE.records.keys() - NAMES
    assert [message.type for message in ONE_OF_EACH] == [t for t in FrameType if t in TABLES]
    for message in ONE_OF_EACH:
        slots = TABLES[message.type].slots
        assert [field for field, _ in slots] == [field for field, _ in ORACLE.records[name_of(message)]]


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=name_of)
def test_one_of_each(message: Message) -> None:
    check(message)


@settings(max_examples=200, deadline=None)
@given(ANY_MESSAGE)
def test_any(message: Message) -> None:
    check(message)


def test_a_table_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    builder = flatbuffers.Builder(64)
    token = builder.CreateByteVector(TOKEN)
    builder.StartObject(3)
    builder.PrependInt32Slot(2, 7, 0)
    builder.PrependUOffsetTRelativeSlot(0, token, 0)
    builder.Finish(builder.EndObject())
    assert decode_message(FrameType.CLOSE, bytes(builder.Output())).token == TOKEN


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=name_of)
def test_any_damage_is_a_remote_protocol_error_or_another_message(message: Message) -> None:
    body = encode_message(message)
    chance = random.Random(1)
    for cut in range(len(body)):
        try_to_read(message.type, body[:cut])
    for _ in range(300):
        spoilt = bytearray(body)
        for _ in range(chance.randint(1, 3)):
            spoilt[chance.randrange(len(spoilt))] = chance.choice([0, 1, 4, 0x7F, 0x80, 0xFF])
        try_to_read(message.type, bytes(spoilt))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(TABLES)), st.binary(max_size=100))
def test_garbage(frame_type: FrameType, body: bytes) -> None:
    try_to_read(frame_type, body)


def try_to_read(frame_type: FrameType, body: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert isinstance(decode_message(frame_type, body), Message)


@pytest.mark.parametrize(
    "message",
    [
        Hello(b"short", 1),
        Hello(b"i" * 16, -1),
        Hello(b"i" * 16, 1, ("f" * 65,)),
        Hello(b"i" * 16, 1, ("f",) * 65),
        Hello(b"i" * 16, 1, (), "s" * 257),
        Open(TOKEN, False, 256, (A,)),
        Open(TOKEN[1:], False, 0, (A,)),
        Stat((A, A)),
        Sync((), timeout=float("nan")),
        Sync((), timeout=-1.0),
        Sync((Fetch(False, "h" * 256, 1, (A,)),)),
        Sync((Fetch(False, "h", 1, (A,)),) * 1_025),
    ],
)
def test_what_cannot_be_sent(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode_message(message)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("Stat", ((*A, *A),)),
        ("Stat", (A[1:],)),
        ("Open", (TOKEN[1:], True, 0, A)),
        ("Hello", (TOKEN, 1, (b"\xff",), b"", b"")),
        ("Hello", (TOKEN, 1, (b"f" * 65,), b"", b"")),
        ("Hello", (TOKEN, 1, (), b"", bytes(2048))),
        ("Sync", ((), False, float("inf"), 0, 0)),
        ("Listed", ((), (), bytes(7))),
    ],
)
def test_what_is_not_accepted(message: str, fault: tuple[object, ...]) -> None:
    with pytest.raises(RemoteProtocolError, match=message.upper()):
        decode_message(FrameType[message.upper()], ORACLE.write(message, fault))


def test_required_fields_are_required() -> None:
    for message in (HELLO, Read(TOKEN, False, 0, ())):
        values = list(ORACLE.plain(message, name_of(message)))
        values[0] = None
        with pytest.raises(RemoteProtocolError, match="missing"):
            decode_message(message.type, ORACLE.write(name_of(message), values))


def test_peer_requests_that_share_their_ids_take_no_memory() -> None:
    """Few bytes would otherwise become millions of ids."""
    builder = flatbuffers.Builder(1 << 20)
    host = builder.CreateString("h")
    ids = builder.CreateByteVector(b"".join(object_id(i) for i in range(10_000)))
    builder.StartObject(4)
    builder.PrependUint16Slot(2, 1, 0)
    builder.PrependUOffsetTRelativeSlot(1, host, 0)
    builder.PrependUOffsetTRelativeSlot(3, ids, 0)
    fetch = builder.EndObject()
    builder.StartVector(4, 1_000, 4)
    for _ in range(1_000):
        builder.PrependUOffsetTRelative(fetch)
    requests = builder.EndVector()
    builder.StartObject(5)
    builder.PrependUOffsetTRelativeSlot(0, requests, 0)
    builder.Finish(builder.EndObject())
    body = bytes(builder.Output())
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="share their ids"):
            decode_message(FrameType.SYNC, body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(body)


@pytest.mark.parametrize("take", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "a.host"])
def test_what_comes_again_is_written_and_read_as_the_first_time(take: bool, host: str) -> None:
    """Also where something like it came in between."""
    for number in range(3):
        object_id = ObjectID.from_name(f"{host} {number}")
        for message in (
            Open(bytes([number]) * TOKEN_SIZE, take, 0, (object_id,)),
            Open(bytes([number]) * TOKEN_SIZE, take, 1, (object_id,)),
            Sync((Fetch(take, host, 2000 + number, (object_id,)),)),
            Sync((Fetch(take, host, 2000 + number, (object_id,)),), detach=True),
            Sync((Fetch(not take, host, 2000, (object_id,)),)),
            Progress((Amount(1, 100 + number % 2),)),
        ):
            body = encode_message(message)
            assert body == _encode(message)
            assert decode_message(message.type, body) == decode_message(message.type, bytearray(body)) == message


ONE: Any = 1.0


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (End(1), End(ONE)),
        (Outcomes(1, 0, "", (1,)), Outcomes(ONE, 0, "", (1,))),
        (Outcomes(0, 1, "", (1,)), Outcomes(0, ONE, "", (1,))),
        (Outcomes(0, 0, "", (1,)), Outcomes(0, 0, "", (ONE,))),
        (Progress((Amount(1, 1),)), Progress((Amount(1, ONE),))),
        (Open(TOKEN, True, 1, (A,)), Open(TOKEN, True, ONE, (A,))),
        (Sync((Fetch(True, "h", 1, (A,)),)), Sync((Fetch(True, "h", ONE, (A,)),))),
        (Sync((Fetch(True, "h", 1, (A,)),), max_bytes=1), Sync((Fetch(True, "h", 1, (A,)),), max_bytes=ONE)),
    ],
)
def test_what_only_equals_what_was_sent_before_is_not_sent(right: Message, wrong: Message) -> None:
    assert right == wrong
    for _ in range(2):
        assert encode_message(right) == _encode(right)
        with pytest.raises(LocalProtocolError):
            encode_message(wrong)


@pytest.mark.parametrize("zeros", [(-0.0, 0.0), (0.0, -0.0), (0.0, 0), (0, -0.0)])
@pytest.mark.parametrize("outcome", [0, True, Outcome.BUSY])
def test_a_zero_is_written_in_one_way(zeros: tuple[float, float], outcome: int) -> None:
    first, second = (encode_message(End(outcome, "", zero)) for zero in zeros)
    assert first == second == _encode(End(int(outcome)))


def test_a_list_is_written_as_a_tuple_is() -> None:
    indexes: Any = [7]
    amounts: Any = [Amount(1, 2)]
    assert encode_message(Outcomes(0, 0, "", indexes)) == encode_message(Outcomes(0, 0, "", (7,)))
    assert encode_message(Progress(amounts)) == encode_message(Progress((Amount(1, 2),)))
    assert encode_message(Progress([])) == encode_message(Progress())  # type: ignore[arg-type]


def test_what_is_remembered_has_a_bound() -> None:
    """Whatever the other side says, and has us say."""
    reasons = [f"{number} {'x' * 4000}" for number in range(1000)]
    bodies = [_encode(Outcomes(0, 1, reason, (1,))) for reason in reasons]
    tracemalloc.start()
    try:
        for number, (reason, body) in enumerate(zip(reasons, bodies, strict=True)):
            decode_message(FrameType.OUTCOMES, body)
            decode_message(FrameType.SYNC, encode_message(Sync((Fetch(True, f"host{number}", 1, (A,)),))))
            encode_message(Outcomes(0, 1, reason, (1,)))
            encode_message(Outcomes(0, 1, "", (number,)))
            encode_message(End(1, reason))
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < 700_000


@pytest.mark.parametrize("message", [Open(b"t" * TOKEN_SIZE, True, 0, (A,)), Sync((Fetch(True, "host", 1, (A,)),))])
def test_what_is_nearly_as_the_last_time_is_read_for_what_it_is(message: Message) -> None:
    body = encode_message(message)
    for at in range(len(body)):
        assert decode_message(message.type, body) == message
        damaged = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        assert outcome(decode_message, message.type, damaged) == outcome(_decode, message.type, damaged)


def outcome(decode: Callable[[FrameType, bytes], Any], frame_type: FrameType, body: bytes) -> object:
    try:
        return decode(frame_type, body)
    except RemoteProtocolError as error:
        return str(error)
