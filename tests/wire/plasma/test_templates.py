"""Templates say what the codec says, and nothing where they do not fit."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plasmastream import LocalProtocolError, ObjectID, RemoteProtocolError
from plasmastream.wire.plasma import (
    ContainsReply,
    ContainsRequest,
    CreateReply,
    CreateRequest,
    ErrorCode,
    GetReply,
    GetRequest,
    Message,
    ObjectSpec,
    ReleaseRequest,
    SealReply,
    SealRequest,
    decode,
    encode,
)
from plasmastream.wire.plasma import _codec as codec

ids = st.binary(min_size=20, max_size=20).map(ObjectID)
int32, int64 = st.integers(-(1 << 31), (1 << 31) - 1), st.integers(-(1 << 63), (1 << 63) - 1)
uint64 = st.integers(0, (1 << 64) - 1)
specs = st.builds(ObjectSpec, int32, uint64, uint64, uint64, uint64, int32)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(lambda object_id, timeout: GetRequest((object_id,), timeout), ids, int64),
    st.builds(lambda i, spec, fd, size: GetReply((i,), (spec,), (fd,), (size,)), ids, specs, int32, int64),
    st.builds(ReleaseRequest, ids),
    st.builds(CreateRequest, ids, st.just(True), uint64, uint64),
    st.builds(lambda i, spec, fd, size: CreateReply(i, spec, store_fd=fd, mmap_size=size), ids, specs, int32, int64),
    st.builds(SealRequest, ids, st.binary(min_size=8, max_size=8)),
    st.builds(SealReply, ids),
    st.builds(ContainsRequest, ids),
    st.builds(ContainsReply, ids, st.just(True)),
)


@given(messages)
def test_both_ways_are_those_of_the_codec(message: Message) -> None:
    frame, body = encode(message), codec.encode_body(message)
    assert frame[24:] == body
    template = codec._TEMPLATES[message.type]
    assert template.size == len(body)
    assert template.load(body) == message
    assert template.load(bytearray(body)) == message
    assert decode(message.type, body) == message


@given(messages, st.data())
def test_a_changed_byte_means_what_it_does_without_templates(message: Message, data: st.DataObject) -> None:
    body = bytearray(encode(message)[24:])
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    assert _outcome(message, bytes(body)) == _outcome_without(message, bytes(body))


@pytest.mark.parametrize(
    "message",
    [
        GetRequest((), 0),
        GetRequest((ObjectID(bytes(20)),) * 2, 0),
        GetReply((ObjectID(bytes(20)),), (ObjectSpec(),), (), ()),
        GetReply((ObjectID(bytes(20)),), (ObjectSpec(),), (1, 2), (3, 4)),
        CreateRequest(ObjectID(bytes(20)), False, 1, 2),
        CreateRequest(ObjectID(bytes(20)), True, 1, 2, device_num=1),
        CreateReply(ObjectID(bytes(20)), ObjectSpec(), ErrorCode.OUT_OF_MEMORY),
        SealReply(ObjectID(bytes(20)), ErrorCode.OBJECT_EXISTS),
        ContainsReply(ObjectID(bytes(20)), False),
    ],
)
def test_what_does_not_fit_goes_the_long_way(message: Message) -> None:
    assert codec._TEMPLATES[message.type].take(message) is None
    assert decode(message.type, encode(message)[24:]) == message


@pytest.mark.parametrize(
    "message",
    [
        ReleaseRequest(bytes(19)),  # type: ignore[arg-type]
        GetRequest((ObjectID(bytes(20)),), 1 << 63),
        GetReply((ObjectID(bytes(20)),), (ObjectSpec(data_size=-1),), (1,), (8,)),
        GetReply((ObjectID(bytes(20)),), (), (1,), (8,)),
        SealRequest(ObjectID(bytes(20)), bytes(7)),
    ],
)
def test_what_cannot_be_sent_is_refused_as_ever(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)


def _outcome(message: Message, body: bytes) -> Any:
    try:
        return decode(message.type, body)
    except RemoteProtocolError as error:
        return str(error)


def _outcome_without(message: Message, body: bytes) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_TEMPLATES", {})
        return _outcome(message, body)
