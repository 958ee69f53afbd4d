"""The layouts of version 1 (A2, A3): what the parsers read, and pure functions from messages to bytes.

All integers are little-endian; the octets of an address are in network order.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final

from plasmastream._object_id import OBJECT_ID_SIZE, ObjectID
from plasmastream.wire.stream._messages import REQUEST_SYNC, PeerRequest, TransferKind

REQUEST_TYPE: Final = Struct("<B")
"""The type of a request."""
COUNT: Final = Struct("<H")
"""How many ids, or how many peer requests, follow."""
PEER_HEAD: Final = Struct("<BBH")
"""The beginning of a peer request: kind, address kind, port."""
OBJECT_ID: Final = Struct(f"{OBJECT_ID_SIZE}s")
"""One object id."""
OBJECT_HEADER: Final = Struct("<Q")
"""`metadata_size | data_size << 16`."""

ADDRESS_TYPES: Final[dict[int, tuple[type[IPv4Address] | type[IPv6Address], Struct]]] = {
    4: (IPv4Address, Struct("4s")),
    6: (IPv6Address, Struct("16s")),
}
"""Address kind → what it is, and its octets. The kind is the version number of the Internet Protocol."""

_TYPE_AND_COUNT: Final = Struct("<BH")
_WRAPPED: Final = 65_536


def pack_count(count: int) -> bytes:
    """Write how many ids follow. 65,536 is written as 0, because an empty list is never valid (A4)."""
    return COUNT.pack(count % _WRAPPED)


def unwrap_count(field: int) -> int:
    """Find how many ids follow, from the field that says so: 0 means 65,536 (A4)."""
    return field or _WRAPPED


def pack_transfer(kind: TransferKind, object_ids: Sequence[ObjectID]) -> bytes:
    """Write a COPY or TAKE request."""
    return b"".join((REQUEST_TYPE.pack(kind), pack_count(len(object_ids)), *object_ids))


def pack_peer_request(request: PeerRequest) -> bytes:
    """Write one peer request of a SYNC."""
    address = request.address
    head = PEER_HEAD.pack(request.kind, address.version, request.port)
    return b"".join((head, address.packed, pack_count(len(request.object_ids)), *request.object_ids))


def pack_sync(peer_requests: Sequence[PeerRequest]) -> bytes:
    """Write a SYNC request."""
    head = _TYPE_AND_COUNT.pack(REQUEST_SYNC, len(peer_requests))
    return b"".join((head, *map(pack_peer_request, peer_requests)))


def pack_object_header(metadata_size: int, data_size: int) -> bytes:
    """Write the header of an object. The two sizes, in bytes, fit their fields of 16 and 48 bits."""
    return OBJECT_HEADER.pack(metadata_size | data_size << 16)
