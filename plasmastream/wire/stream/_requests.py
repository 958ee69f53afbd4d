"""The server's parser: one request, read from top to bottom as A2 writes it down.

A generator: it yields `NEED_DATA` where bytes are missing, and returns the event. A count alone allocates
nothing; memory grows with the ids that have arrived, which may be more than the scratch holds.
"""

from collections.abc import Generator
from itertools import starmap
from struct import Struct
from typing import Any, Final

from plasmastream._errors import RemoteProtocolError
from plasmastream._object_id import ObjectID
from plasmastream.wire._scratch import Scratch
from plasmastream.wire.stream._events import (
    NEED_DATA,
    Signal,
    SyncRequested,
    TransferRequested,
    Version2Offered,
)
from plasmastream.wire.stream._frames import (
    ADDRESS_TYPES,
    COUNT,
    OBJECT_ID,
    PEER_HEAD,
    REQUEST_TYPE,
    unwrap_count,
)
from plasmastream.wire.stream._limits import Limits, check_distinct, check_port
from plasmastream.wire.stream._messages import (
    MAGIC_OF_VERSION_2,
    REQUEST_SYNC,
    DamagedError,
    PeerRequest,
    TransferKind,
)

_KINDS: Final = {int(kind): kind for kind in TransferKind}


def parse_request(scratch: Scratch, limits: Limits) -> Generator[Signal, None, TransferRequested | SyncRequested]:
    """Parse one request.

    Raises:
        RemoteProtocolError: its type is unknown, a limit of A4 is exceeded, or an id or a peer is not valid.
    """
    (request_type,) = yield from _read(scratch, REQUEST_TYPE)
    if request_type == REQUEST_SYNC:
        return (yield from _parse_sync(scratch, limits))
    kind = _transfer_kind(request_type)
    count = unwrap_count((yield from _read(scratch, COUNT))[0])
    limits.check_count(count, RemoteProtocolError)
    return TransferRequested(kind, (yield from _read_ids(scratch, count, set())))


def offers_version_2(scratch: Scratch) -> bool:
    """Whether the first byte, which is there, begins a connection of version 2, or did before one bit was flipped.

    None of these bytes begins a request.
    """
    return (scratch.peek(1)[0] ^ MAGIC_OF_VERSION_2[0]).bit_count() <= 1


def parse_magic(scratch: Scratch) -> Generator[Signal, None, Version2Offered]:
    """Parse the beginning of a connection of version 2.

    Raises:
        DamagedError: it is another one, as soon as that shows.
    """
    size = len(MAGIC_OF_VERSION_2)
    while True:
        arrived = min(size, len(scratch))
        if scratch.peek(arrived) != MAGIC_OF_VERSION_2[:arrived]:
            raise DamagedError("a connection begins like one of version 2, and not quite")
        if arrived == size:
            scratch.consume(size)
            return Version2Offered()
        yield NEED_DATA


def _parse_sync(scratch: Scratch, limits: Limits) -> Generator[Signal, None, SyncRequested]:
    (peer_count,) = yield from _read(scratch, COUNT)
    limits.check_peer_requests(peer_count, RemoteProtocolError)
    peer_requests: list[PeerRequest] = []
    seen: set[ObjectID] = set()
    for _ in range(peer_count):
        request_type, address_kind, port = yield from _read(scratch, PEER_HEAD)
        kind = _transfer_kind(request_type)
        if address_kind not in ADDRESS_TYPES:
            raise RemoteProtocolError(f"a peer request has an address of unknown kind {address_kind}")
        check_port(port, RemoteProtocolError)
        address_type, layout = ADDRESS_TYPES[address_kind]
        (octets,) = yield from _read(scratch, layout)
        count = unwrap_count((yield from _read(scratch, COUNT))[0])
        limits.check_count(count, RemoteProtocolError)
        limits.check_sync_objects(len(seen) + count, RemoteProtocolError)
        object_ids = yield from _read_ids(scratch, count, seen)
        peer_requests.append(PeerRequest(kind, address_type(octets), port, object_ids))
    return SyncRequested(tuple(peer_requests))


def _transfer_kind(request_type: int) -> TransferKind:
    kind = _KINDS.get(request_type)
    if kind is None:
        raise RemoteProtocolError(f"a request has the unknown type {request_type}")
    return kind


def _read(scratch: Scratch, layout: Struct) -> Generator[Signal, None, tuple[Any, ...]]:
    while len(scratch) < layout.size:
        yield NEED_DATA
    values = scratch.unpack(layout)
    scratch.consume(layout.size)
    return values


def _read_ids(scratch: Scratch, count: int, seen: set[ObjectID]) -> Generator[Signal, None, tuple[ObjectID, ...]]:
    """Read `count` ids, as many at a time as there are, and add them to those `seen` in this request."""
    object_ids: list[ObjectID] = []
    expected = len(seen) + count
    while (missing := expected - len(seen)) > 0:
        nbytes = min(missing, len(scratch) // OBJECT_ID.size) * OBJECT_ID.size
        if not nbytes:
            yield NEED_DATA
            continue
        arrived = list(starmap(ObjectID, OBJECT_ID.iter_unpack(scratch.take(nbytes))))
        total = len(seen) + len(arrived)
        seen.update(arrived)
        check_distinct(len(seen), total, RemoteProtocolError)
        object_ids += arrived
    return tuple(object_ids)
