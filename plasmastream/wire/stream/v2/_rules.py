"""What a frame may say, beyond what its layout allows: each rule once, for both sides.

A rule is broken by us (`LocalProtocolError`) or by them (`RemoteProtocolError`): the caller says which error to raise.
"""

from collections.abc import Callable
from typing import Any, Final

from plasmastream._errors import ProtocolError, RemoteProtocolError
from plasmastream._object_id import ObjectID
from plasmastream.wire.stream.v2._encodings import Encoding
from plasmastream.wire.stream.v2._frames import RUN_ENTRY, FrameType
from plasmastream.wire.stream.v2._limits import MAX_RUN_SIZE, Limits
from plasmastream.wire.stream.v2._messages import Drop, Hello, Open, Put, Stat, Sync


def check(holds: bool, fault: str, number: int, error: type[ProtocolError] = RemoteProtocolError) -> None:
    """Raise `error` with the fault, and the number in its words, unless the rule holds."""
    if not holds:
        raise error(fault % number)


def check_message(message: Any, limits: Limits, error: type[ProtocolError]) -> None:
    """Raise `error` if a control message asks for too much, or contradicts itself."""
    rule = _RULES.get(message.type)
    if rule is not None:
        rule(message, limits, error)


def _check_hello(hello: Hello, limits: Limits, error: type[ProtocolError]) -> None:
    check(hello.max_chunk > 0, "a HELLO allows chunks of %d bytes", hello.max_chunk, error)


def _check_ids(message: Open | Drop | Stat | Put, limits: Limits, error: type[ProtocolError]) -> None:
    count = len(message.object_ids)
    check(1 <= count <= limits.max_objects, "a request names %d objects", count, error)


def _check_put(put: Put, limits: Limits, error: type[ProtocolError]) -> None:
    _check_ids(put, limits, error)
    count = len(put.sizes)
    check(len(put.object_ids) == count, "a PUT has sizes of %d objects", count, error)
    for sizes in put.sizes:
        check_sizes(sizes.data, sizes.metadata, limits, error)


def _check_sync(sync: Sync, limits: Limits, error: type[ProtocolError]) -> None:
    count = len(sync.requests)
    check(1 <= count <= limits.max_peer_requests, "a SYNC has %d peer requests", count, error)
    objects = 0
    for request in sync.requests:
        objects += (count := len(request.object_ids))
        check(1 <= count <= limits.max_objects, "a peer request names %d objects", count, error)
        check(request.port > 0, "a peer request names port %d", request.port, error)
    check(objects <= limits.max_sync_objects, "a SYNC names %d objects", objects, error)
    named: set[ObjectID] = set()
    for request in sync.requests:
        named.update(request.object_ids)
    check(len(named) == objects, "a SYNC names %d objects, and some of them twice", objects, error)


_RULES: Final[dict[FrameType, Callable[[Any, Limits, type[ProtocolError]], None]]] = {
    FrameType.HELLO: _check_hello,
    FrameType.OPEN: _check_ids,
    FrameType.DROP: _check_ids,
    FrameType.STAT: _check_ids,
    FrameType.PUT: _check_put,
    FrameType.SYNC: _check_sync,
}


def check_sizes(data_size: int, metadata_size: int, limits: Limits, error: type[ProtocolError]) -> None:
    """Raise `error` if an object is too large; sizes in bytes."""
    if metadata_size > limits.max_metadata_size or data_size > limits.max_data_size:
        raise error(f"an object of {data_size} and {metadata_size} bytes is larger than allowed")


def check_run(count: int, length: int, limits: Limits, error: type[ProtocolError]) -> None:
    """Raise `error` if a RUN of `count` objects, in `length` bytes, is too large."""
    if not 1 <= count <= limits.max_objects:
        raise error(f"a run has {count} objects")
    if length > MAX_RUN_SIZE + RUN_ENTRY.size * count:
        raise error(f"a run of {length} bytes is larger than allowed")


def check_payload(length: int, wire_length: int, most: int, encoding: Encoding, ours: Hello) -> None:
    """See that a payload of `length` bytes, `wire_length` as it travels, may come to us.

    Raises:
        RemoteProtocolError: it is too large, its sizes do not fit its encoding, or we did not name that.
    """
    if not 1 <= length <= most:
        raise RemoteProtocolError(f"a payload of {length} bytes is not allowed")
    match encoding:
        case Encoding.NONE:
            if wire_length != length:
                raise RemoteProtocolError(f"a payload has two sizes: {length} and {wire_length}")
        case Encoding.ABSENT:
            check(wire_length == 0, "an absent payload has %d bytes", wire_length)
        case _:
            check(1 <= wire_length < length, "an encoded payload has %d bytes", wire_length)
            name = encoding.name.lower()
            check(name in ours.features, "a payload has the encoding %d, which nobody named", encoding)
