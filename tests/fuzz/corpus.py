"""Real messages of every kind, from our own encoders: what all inputs are made from."""

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from plasmastream import ObjectID
from plasmastream.wire.plasma import (
    AbortRequest,
    ConnectRequest,
    ContainsRequest,
    CreateAndSealBatchRequest,
    CreateAndSealRequest,
    CreateRequest,
    DeleteRequest,
    DisconnectClient,
    EvictRequest,
    GetDebugStringRequest,
    GetRequest,
    ListRequest,
    Message,
    ObjectInfo,
    RefreshLRURequest,
    ReleaseRequest,
    SealRequest,
    SetOptionsRequest,
    SubscribeRequest,
    encode,
    encode_body,
    encode_notification,
)
from plasmastream.wire.stream import ClientConnection, PeerRequest, ServerConnection, TransferKind
from plasmastream.wire.stream.v2 import FrameType
from plasmastream.wire.stream.v2._frames import CHUNK, HEAD, RUN, check_of
from tests.wire.plasma.samples import CAPTURED, DIGEST, ONE_OF_EACH
from tests.wire.stream.v2.helpers import conversation, said

IDS: Final = [ObjectID.from_name(f"fuzz-{i}") for i in range(8)]
"""The objects that inputs talk about: few, so that inputs meet each other's."""

CODES: Final = [message.type.to_bytes(2, "little") + encode_body(message) for message in (*ONE_OF_EACH, *CAPTURED)]
"""Bodies, each behind two bytes that say its type."""

FRAMES: Final = [encode(message) for message in (*ONE_OF_EACH, *CAPTURED)]
"""Messages of both directions, as frames."""

NOTIFICATIONS: Final = [
    encode_notification([]),
    encode_notification([ObjectInfo(IDS[0], 5, 2, digest=DIGEST)]),
    encode_notification([ObjectInfo(object_id, is_deletion=True) for object_id in IDS]),
]

_A, _B, _C, _D = IDS[:4]
_SMALL: Final = CreateAndSealRequest(_A, True, b"hello" * 9, b"md", DIGEST)
_BATCH: Final = CreateAndSealBatchRequest((_A, _B, _C), True, (b"1", b"22", b"3" * 99), (b"", b"m", b""), (DIGEST,) * 3)

CONVERSATIONS: Final[list[list[Message]]] = [
    [ConnectRequest()],
    [CreateRequest(_A, True, 1000, 4), SealRequest(_A, DIGEST), GetRequest((_A,), 0), ReleaseRequest(_A)],
    [CreateRequest(_B, True, 64 << 10, 0), AbortRequest(_B), ContainsRequest(_B)],
    [CreateRequest(_C, True, 3 << 20, 16)],
    [CreateRequest(_D, False, 0, 0), SealRequest(_D, DIGEST), ReleaseRequest(_D), DeleteRequest((_D,))],
    [_SMALL, GetRequest((_A, _B), 5), DeleteRequest((_A, _B))],
    [_BATCH, GetRequest((_A, _B, _A, _C), 0), RefreshLRURequest((_A, _C)), ReleaseRequest(_B)],
    [GetRequest((_D,), -1)],
    [GetRequest((_A, _D), 20), EvictRequest(1)],
    [SetOptionsRequest("fuzz", 1 << 20), _SMALL, CreateRequest(_B, True, 1 << 20, 0), GetDebugStringRequest()],
    [ListRequest(), GetDebugStringRequest(), EvictRequest(1 << 20)],
    [DeleteRequest(tuple(IDS)), ListRequest()],
    [EvictRequest(1 << 62), RefreshLRURequest(tuple(IDS))],
    [SubscribeRequest(), _SMALL, DeleteRequest((_A,))],
    [SubscribeRequest(), SubscribeRequest(), _BATCH],
    [ConnectRequest(), DisconnectClient(), ListRequest()],
]
"""What clients ask a store for, one thing after the other."""


def peer_request(port: int, *object_ids: ObjectID, kind: TransferKind = TransferKind.COPY) -> PeerRequest:
    """A part of a SYNC that names a port of this machine."""
    return PeerRequest(kind, IPv4Address("127.0.0.1"), port, object_ids)


def transfer(kind: TransferKind, *object_ids: ObjectID) -> bytes:
    """A COPY or TAKE."""
    client = ClientConnection()
    client.request_transfer(kind, object_ids)
    return b"".join(client.data_to_send())


def sync(*peer_requests: PeerRequest) -> bytes:
    """A SYNC."""
    client = ClientConnection()
    client.request_sync(peer_requests)
    return b"".join(client.data_to_send())


def answer(*objects: tuple[bytes, bytes]) -> bytes:
    """The answer to a COPY of so many objects: metadata and data of each."""
    server = ServerConnection()
    server.receive_data(transfer(TransferKind.COPY, *IDS[: len(objects)]))
    server.next_event()
    server.begin()
    for metadata, data in objects:
        server.send_object(metadata, data)
    return b"".join(server.data_to_send())


TRANSFERS: Final = [
    transfer(TransferKind.COPY, _A),
    transfer(TransferKind.COPY, *IDS),
    transfer(TransferKind.TAKE, _A, _B),
    transfer(TransferKind.TAKE, *IDS[4:]),
]

REQUESTS: Final = [
    *TRANSFERS,
    sync(peer_request(9, _A)),
    sync(peer_request(9, _A, _B), PeerRequest(TransferKind.TAKE, IPv6Address("::1"), 10, (_C,))),
]
"""What peers ask a server for. Only parsers may see these SYNCs: nobody knows who listens at such ports."""

ANSWERS: Final = [
    b"\x71",
    b"\x41\x41",
    answer((b"", b"")),
    answer((b"meta", b"data" * 9), (b"", b"x" * 300), (b"m" * 40, b"")),
    answer((b"m", b"y" * 200), (b"", b"z" * 150)),
    answer((b"m" * 500, b""), (b"", b"z" * 70_000)),
]
"""What a server answers to a COPY, a TAKE or a SYNC."""

CONVERSATION: Final = conversation()
"""All that both ends of version 2 may say, once."""


def _ways(by_client: bool) -> list[bytes]:
    """What one end says, to its end; and each of its turns, at which spoiling may begin."""
    whole = said(CONVERSATION, by_client)
    return [whole, *(data for is_clients, data in CONVERSATION if is_clients is by_client)]


ASKED_V2: Final = _ways(by_client=True)
ANSWERED_V2: Final = _ways(by_client=False)


def with_checks(data: bytes) -> bytes:
    """The same frames, as far as there are any, with right checks."""
    mended, at = bytearray(data), 0
    while at + HEAD.size <= len(mended):
        _, _, _, length, _, _ = HEAD.unpack_from(mended, at)
        start, body = bytes(mended[at : at + 8]), bytes(mended[at + HEAD.size : at + HEAD.size + length])
        mended[at + 8 : at + HEAD.size] = check_of(start).to_bytes(4, "little") + check_of(body).to_bytes(4, "little")
        at += HEAD.size + length
        # Behind the body of a chunk or a run there is a payload, whose length stands in it.
        if start[0] == FrameType.CHUNK and len(body) == CHUNK.size:
            at += CHUNK.unpack(body)[4]
        elif start[0] == FrameType.RUN and len(body) == RUN.size:
            at += RUN.unpack(body)[3]
    return bytes(mended)
