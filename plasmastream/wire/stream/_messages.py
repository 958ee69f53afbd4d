"""What the peer protocol talks about: kinds of transfer, statuses, requests to a peer (A2, A3)."""

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import attrs

from plasmastream._errors import RemoteProtocolError
from plasmastream._object_id import ObjectID

REQUEST_SYNC: Final = 1
"""The first byte of a SYNC. COPY and TAKE begin with their `TransferKind`, later versions with other bytes.
"""
MAGIC_OF_VERSION_2: Final = b"PLSTRM2\n"
"""What a connection of version 2 begins with. No request of version 1 begins with its first byte."""


class DamagedError(RemoteProtocolError):
    """A frame of version 2, or what comes before the first, was damaged. Nobody can know where the next one begins."""


class TransferKind(IntEnum):
    """How objects change place. The value is the byte on the wire."""

    COPY = 2
    """The source keeps its objects."""
    TAKE = 3
    """The source deletes its objects after sending them."""


class Status(IntEnum):
    """The status bytes that version 1 knows (A3).

    Statuses travel through the parsers as plain `int`: what a peer answers is passed on unchanged, known or
    not.
    """

    BEGIN = 0x00
    SUCCESS = 0x41
    METADATA_TOO_LARGE = 0x50
    DATA_TOO_LARGE = 0x51
    DATA_EMPTY = 0x52
    STORE_ERROR = 0x60
    PEER_STORE_ERROR = 0x61
    PEER_REQUEST_CRASHED = 0x62
    SCHEDULED_FOR_DELETION = 0x70
    NOT_FOUND = 0x71
    ALREADY_RECEIVING = 0x80
    ALREADY_PRESENT = 0x81
    PEER_FAILED = 0x90
    CLIENT_FAILED = 0x91


_WORDS: Final[dict[int, str]] = {
    Status.BEGIN: "the objects follow",
    Status.SUCCESS: "success",
    Status.METADATA_TOO_LARGE: "the metadata of an object is too large",
    Status.DATA_TOO_LARGE: "the data of an object is too large",
    Status.DATA_EMPTY: "an object has data of length zero",
    Status.STORE_ERROR: "the store failed",
    Status.PEER_STORE_ERROR: "the store of the peer failed",
    Status.PEER_REQUEST_CRASHED: "the request to the peer crashed",
    Status.SCHEDULED_FOR_DELETION: "an object is about to be deleted, because a TAKE of it is running",
    Status.NOT_FOUND: "an object was not found",
    Status.ALREADY_RECEIVING: "an object is being received already",
    Status.ALREADY_PRESENT: "an object is in the local store already",
    Status.PEER_FAILED: "the connection to the peer failed",
    Status.CLIENT_FAILED: "the connection to the client failed",
}


def describe_status(status: int) -> str:
    """Say in words what a status byte means; a byte that version 1 does not know is shown as a number."""
    return _WORDS.get(status) or f"unknown status 0x{status:02x}"


def _address(value: str | bytes | int | IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    # What is one already would be written as text, and read again. Not a subclass: an interface is one, with a mask.
    if type(value) is IPv4Address or type(value) is IPv6Address:
        return value
    return ip_address(value)


@attrs.frozen
class PeerRequest:
    """One part of a SYNC: which objects the server is to fetch from which peer."""

    kind: TransferKind = attrs.field(converter=TransferKind)
    """Whether the peer keeps its objects."""
    address: IPv4Address | IPv6Address = attrs.field(converter=_address)
    """Where the peer listens. The scope of an IPv6 address has no place in the protocol and is not sent."""
    port: int
    """The peer's TCP port, 1 to 65,535."""
    object_ids: tuple[ObjectID, ...]
    """The objects to fetch, all distinct; no other part of the same SYNC may name them either."""
