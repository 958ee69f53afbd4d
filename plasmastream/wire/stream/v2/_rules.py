"""What a frame may say, beyond what its layout allows: each rule once, for both sides.

A rule is broken by us (`LocalProtocolError`) or by them (`RemoteProtocolError`): the caller says which error to raise.
"""

from typing import Any

from plasmastream._errors import ProtocolError, RemoteProtocolError
from plasmastream.wire.stream.v2._encodings import Encoding
from plasmastream.wire.stream.v2._frames import RUN_ENTRY
from plasmastream.wire.stream.v2._limits import MAX_RUN_SIZE, Limits
from plasmastream.wire.stream.v2._messages import Drop, Hello, Open, Put, Stat, Sync


def check(holds: bool, fault: str, number: int, error: type[ProtocolError] = RemoteProtocolError) -> None:
    """Raise `error` with the fault, and the number in its words, unless the rule holds."""
    if not holds:
        raise error(fault % number)


def check_message(message: Any, limits: Limits, error: type[ProtocolError]) -> None:
    """Raise `error` if a control message asks for too much, or contradicts itself."""
    match message:
        case Open(object_ids=ids) | Stat(object_ids=ids) | Put(object_ids=ids) | Drop(object_ids=ids):
            check(1 <= len(ids) <= limits.max_objects, "a request names %d objects", len(ids), error)
            if isinstance(message, Put):
                check(len(ids) == len(message.sizes), "a PUT has sizes of %d objects", len(message.sizes), error)
                for sizes in message.sizes:
                    check_sizes(sizes.data, sizes.metadata, limits, error)
        case Sync():
            _check_sync(message, limits, error)
        case Hello():
            check(message.max_chunk > 0, "a HELLO allows chunks of %d bytes", message.max_chunk, error)
        case _:
            pass


def _check_sync(sync: Sync, limits: Limits, error: type[ProtocolError]) -> None:
    count = len(sync.requests)
    check(1 <= count <= limits.max_peer_requests, "a SYNC has %d peer requests", count, error)
    for request in sync.requests:
        count = len(request.object_ids)
        check(1 <= count <= limits.max_objects, "a peer request names %d objects", count, error)
        check(request.port > 0, "a peer request names port %d", request.port, error)
    count = sum(len(request.object_ids) for request in sync.requests)
    check(count <= limits.max_sync_objects, "a SYNC names %d objects", count, error)
    named = {object_id for request in sync.requests for object_id in request.object_ids}
    check(len(named) == count, "a SYNC names %d objects, and some of them twice", count, error)


def check_sizes(data_size: int, metadata_size: int, limits: Limits, error: type[ProtocolError]) -> None:
    """Raise `error` if an object is too large; sizes in bytes."""
    if metadata_size > limits.max_metadata_size or data_size > limits.max_data_size:
        raise error(f"an object of {data_size} and {metadata_size} bytes is larger than allowed")


def check_run(count: int, length: int, limits: Limits, error: type[ProtocolError]) -> None:
    """Raise `error` if a RUN of `count` objects, in `length` bytes, is too large."""
    check(1 <= count <= limits.max_objects, "a run has %d objects", count, error)
    most = MAX_RUN_SIZE + RUN_ENTRY.size * count
    check(length <= most, "a run of %d bytes is larger than allowed", length, error)


def check_payload(length: int, wire_length: int, most: int, encoding: Encoding, ours: Hello) -> None:
    """See that a payload of `length` bytes, `wire_length` as it travels, may come to us.

    Raises:
        RemoteProtocolError: it is too large, its sizes do not fit its encoding, or we did not name that.
    """
    check(1 <= length <= most, "a payload of %d bytes is not allowed", length)
    match encoding:
        case Encoding.NONE:
            check(wire_length == length, "a payload has two sizes: %d and another", length)
        case Encoding.ABSENT:
            check(wire_length == 0, "an absent payload has %d bytes", wire_length)
        case _:
            check(1 <= wire_length < length, "an encoded payload has %d bytes", wire_length)
            name = encoding.name.lower()
            check(name in ours.features, "a payload has the encoding %d, which nobody named", encoding)
