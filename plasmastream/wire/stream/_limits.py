"""How much a request may ask for and how large an object may be (A4): each rule once, for both sides.

A rule is broken by us (`LocalProtocolError`) or by them (`RemoteProtocolError`): the caller says which error
to raise.
"""

from collections.abc import Callable, Collection
from typing import Any, Final

import attrs

from plasmastream._errors import ProtocolError
from plasmastream._object_id import OBJECT_ID_SIZE
from plasmastream.wire.stream._messages import Status

CLIENT_SCRATCH_SIZE: Final = 256 * 1024
"""Bytes of a client's scratch: room for a header with the largest metadata, or for hundreds of small objects.
"""

SERVER_SCRATCH_SIZE: Final = 64 * 1024
"""Bytes of a server's scratch: requests are short, and long lists of ids are taken out of it piece by piece.
"""


def _between(low: int, high: int) -> Callable[[Any, "attrs.Attribute[int]", int], Any]:
    return attrs.validators.and_(attrs.validators.ge(low), attrs.validators.le(high))


@attrs.frozen
class Limits:
    """What is accepted and sent; the defaults are the protocol's own, except where noted.

    Raises:
        ValueError: a limit is larger than its field on the wire, or too small to let anything pass.
    """

    max_objects: int = attrs.field(default=65_536, validator=_between(1, 65_536))
    """Objects in one COPY, one TAKE, or one peer request of a SYNC."""
    max_peer_requests: int = attrs.field(default=1_024, validator=_between(1, 65_535))
    """Peer requests in one SYNC."""
    max_sync_objects: int = attrs.field(default=1_048_576, validator=_between(1, 65_536 * 65_535))
    """Objects in all peer requests of one SYNC. Our own bound: 1,024 x 65,536 ids would fill gigabytes."""
    max_data_size: int = attrs.field(default=2**44, validator=_between(0, 2**48 - 1))
    """Data of one object, in bytes."""
    max_metadata_size: int = attrs.field(default=2**16 - 1, validator=_between(0, 2**16 - 1))
    """Metadata of one object, in bytes. A4 allows one byte more, which the 16-bit field cannot express."""
    inline_size: int = attrs.field(default=16 * 1024, validator=_between(0, CLIENT_SCRATCH_SIZE))
    """An object is delivered whole if header, metadata and data have at most so many bytes. Our own choice.
    """

    def check_sizes(self, metadata_size: int, data_size: int) -> Status | None:
        """Find what is wrong with the sizes of an object, in bytes: the status to refuse it with, or None."""
        if metadata_size > self.max_metadata_size:
            return Status.METADATA_TOO_LARGE
        if data_size > self.max_data_size:
            return Status.DATA_TOO_LARGE
        return None

    def check_count(self, count: int, error: type[ProtocolError]) -> None:
        """Raise `error` unless one request may name `count` objects."""
        if not 1 <= count <= self.max_objects:
            raise error(f"a request names {count} objects; 1 to {self.max_objects} are allowed")

    def check_peer_requests(self, count: int, error: type[ProtocolError]) -> None:
        """Raise `error` unless one SYNC may have `count` peer requests."""
        if not 1 <= count <= self.max_peer_requests:
            raise error(f"a SYNC has {count} peer requests; 1 to {self.max_peer_requests} are allowed")

    def check_sync_objects(self, count: int, error: type[ProtocolError]) -> None:
        """Raise `error` unless one SYNC may name `count` objects in all."""
        if count > self.max_sync_objects:
            raise error(f"a SYNC names {count} or more objects; {self.max_sync_objects} are allowed")


def check_distinct(distinct: int, count: int, error: type[ProtocolError]) -> None:
    """Raise `error` unless `count` ids, of which `distinct` differ, are all distinct."""
    if distinct != count:
        raise error(f"a request names an object twice ({count} ids, {distinct} of them distinct)")


def check_port(port: int, error: type[ProtocolError]) -> None:
    """Raise `error` unless a peer can listen on `port`."""
    if not 1 <= port <= 65_535:
        raise error(f"a peer cannot listen on port {port}")


def check_id_sizes(object_ids: Collection[bytes], error: type[ProtocolError]) -> None:
    """Raise `error` unless every id has its 20 bytes, as an `ObjectID` always has and plain bytes may not."""
    if not all(len(object_id) == OBJECT_ID_SIZE for object_id in object_ids):
        raise error(f"an object id has {OBJECT_ID_SIZE} bytes")
