"""The bodies of control messages: by their layouts, or as they were written last time.

Small requests are alike but for an id and a token, and so are their answers. What was written or read before is
remembered as a whole, and of requests about one object as a mould: the bytes of such a request, with gaps. What does
not fit a mould, to the byte, goes the long way.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import attrs

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream._object_id import OBJECT_ID_SIZE, ObjectID
from plasmastream.wire._flat import Pieces
from plasmastream.wire.stream.v2._frames import FrameType
from plasmastream.wire.stream.v2._messages import (
    TABLES,
    TOKEN_SIZE,
    Amount,
    End,
    Fetch,
    Message,
    Open,
    Outcomes,
    Progress,
    Sync,
)

_ROOT: Final = struct.Struct("<I")
_SHORT: Final = 256  # bytes of a body
_REMEMBERED: Final = 256
_TOKEN: Final = ObjectID.random()[:TOKEN_SIZE]  # these two stand where the gaps will be, and nowhere else
_ID: Final = ObjectID.random()


def encode_message(message: Message) -> bytes:
    """Write the body of a control message.

    Raises:
        LocalProtocolError: a field has a value that cannot be sent.
    """
    encode = _WRITERS.get(message.type, _encode)
    return encode(message)


def decode_message(frame_type: FrameType, body: bytes | bytearray) -> Any:
    """Read the body of a control message.

    Raises:
        RemoteProtocolError: the body is no such message.
    """
    decode = _READERS.get(frame_type, _decode) if len(body) <= _SHORT else _decode
    return decode(frame_type, body)


def _encode(message: Message) -> bytes:
    pieces: Pieces = [b""]
    try:
        root, _ = TABLES[message.type].save(message, 0, _ROOT.size, pieces)
    except struct.error as error:
        raise LocalProtocolError(f"a {message.type.name} cannot be sent: {error}") from None
    pieces[0] = _ROOT.pack(root)
    return b"".join(pieces)


def _decode(frame_type: FrameType, body: bytes | bytearray) -> Any:
    try:
        return TABLES[frame_type].load(body, 0, *_ROOT.unpack_from(body))
    except struct.error:
        fault = "its offsets lead out of it"
    except RemoteProtocolError as error:
        fault = str(error)
    raise RemoteProtocolError(f"a body of {len(body)} bytes is no {frame_type.name}: {fault}")


_no_progress: Final = _encode(Progress())


# What is remembered is found by values and their types: 1.0 equals 1, and cannot be sent in its place.


def _write_end(end: End) -> bytes:
    return _encode_end(end.outcome, end.retry_after) if end.reason == "" else _encode(end)


def _write_outcomes(outcomes: Outcomes) -> bytes:
    match outcomes:
        case Outcomes(request, outcome, "", [index]):
            return _encode_outcome(request, outcome, index)
    return _encode(outcomes)


def _write_progress(progress: Progress) -> bytes:
    match progress.requests:
        case []:
            return _no_progress
        case [Amount(objects, nbytes)]:
            return _encode_amount(objects, nbytes)
    return _encode(progress)


def _write_open(request: Open) -> bytes:
    match request.object_ids:
        case [object_id] if len(request.token) == TOKEN_SIZE:
            return _mould_of_open(request.take, request.encoding).save(request.token, object_id)
    return _encode(request)


def _write_sync(request: Sync) -> bytes:
    match request:
        case Sync([Fetch(take, host, port, [object_id])], False, 0.0, max_bytes, encoding):
            return _mould_of_sync(take, host, port, max_bytes, encoding).save(b"", object_id)
    return _encode(request)


_WRITERS: Final[dict[FrameType, Callable[[Any], bytes]]] = {
    FrameType.END: _write_end,
    FrameType.OUTCOMES: _write_outcomes,
    FrameType.PROGRESS: _write_progress,
    FrameType.OPEN: _write_open,
    FrameType.SYNC: _write_sync,
}


@lru_cache(_REMEMBERED, typed=True)
def _encode_end(outcome: int, retry_after: float) -> bytes:
    return _encode(End(outcome, "", retry_after))


@lru_cache(_REMEMBERED, typed=True)
def _encode_outcome(request: int, outcome: int, index: int) -> bytes:
    return _encode(Outcomes(request, outcome, "", (index,)))


@lru_cache(_REMEMBERED, typed=True)
def _encode_amount(objects: int, nbytes: int) -> bytes:
    return _encode(Progress((Amount(objects, nbytes),)))


def _read_again(frame_type: FrameType, body: bytes | bytearray) -> Any:
    return _decode_again(frame_type, bytes(body))


def _read_open(frame_type: FrameType, body: bytes | bytearray) -> Any:
    for take, mould in enumerate(_opens):
        if (gaps := mould.load(body)) is not None:
            token, object_id = gaps
            return Open(token, bool(take), 0, (ObjectID(object_id),))
    return _decode(frame_type, body)


def _read_sync(frame_type: FrameType, body: bytes | bytearray) -> Any:
    last = _syncs.get(len(body))
    if last is not None and (gaps := _mould_of_sync(*last, 0, 0).load(body)) is not None:
        return Sync((Fetch(*last, (ObjectID(gaps[1]),)),))
    message = _decode(frame_type, body)
    match message:
        case Sync([Fetch(take, host, port, [_])], False, 0.0, 0, 0):
            _syncs[len(body)] = take, host, port
    return message


_READERS: Final[dict[FrameType, Callable[[FrameType, bytes | bytearray], Any]]] = {
    FrameType.END: _read_again,
    FrameType.OUTCOMES: _read_again,
    FrameType.PROGRESS: _read_again,
    FrameType.OPEN: _read_open,
    FrameType.SYNC: _read_sync,
}

_decode_again = lru_cache(_REMEMBERED)(_decode)


@attrs.frozen
class _Mould:
    """The body of a request about one object, with gaps for the token, if it has one, and the id."""

    first: bytes
    between: bytes
    last: bytes
    token_size: int

    @classmethod
    def of(cls, request: Message, token: bytes) -> "_Mould":
        """The mould of a request that has the example of an id, and that of a token or none."""
        before, _, last = _encode(request).partition(_ID)
        first, _, between = before.partition(token) if token else (b"", b"", before)
        return cls(first, between, last, len(token))

    def save(self, token: bytes, object_id: bytes) -> bytes:
        return b"".join((self.first, token, self.between, object_id, self.last))

    def load(self, body: bytes | bytearray) -> tuple[bytes, bytes] | None:
        """The token and the id; None where the body is another one."""
        at = len(self.first)
        token = bytes(body[at : at + self.token_size])
        at += self.token_size + len(self.between)
        object_id = bytes(body[at : at + OBJECT_ID_SIZE])
        return (token, object_id) if self.save(token, object_id) == body else None


@lru_cache(_REMEMBERED, typed=True)
def _mould_of_open(take: bool, encoding: int) -> _Mould:
    return _Mould.of(Open(_TOKEN, take, encoding, (_ID,)), _TOKEN)


@lru_cache(_REMEMBERED, typed=True)
def _mould_of_sync(take: bool, host: str, port: int, max_bytes: int, encoding: int) -> _Mould:
    fetch = Fetch(take, host, port, (_ID,))
    return _Mould.of(Sync((fetch,), max_bytes=max_bytes, encoding=encoding), b"")


_opens: Final = [_mould_of_open(take, 0) for take in (False, True)]
_syncs: Final[dict[int, tuple[bool, str, int]]] = {}
"""What the last SYNC of one object wanted of whom, by the size of its body."""
