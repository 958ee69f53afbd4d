"""Share large immutable objects between processes, and move them between machines.

The rooms of the package, each of which imports only those to its right::

    cli  ->  peer  ->  store     ->  _client  ->  wire
                       blocking  ->

`plasmastream.wire` does no I/O and imports no event loop; `plasmastream.store` holds objects in shared memory, and
`plasmastream.blocking` is its client for programs without an event loop; `plasmastream.peer` moves objects between
machines.
"""

from plasmastream._errors import (
    LocalProtocolError,
    NotSupportedError,
    ObjectExistsError,
    ObjectInUseError,
    ObjectNotFoundError,
    ObjectNotSealedError,
    PeerError,
    PlasmastreamError,
    ProtocolError,
    RemoteProtocolError,
    StoreConnectionError,
    StoreError,
    StoreFullError,
    TransferError,
)
from plasmastream._object_id import ObjectID

__version__ = "0.1.0"

__all__ = [
    "LocalProtocolError",
    "NotSupportedError",
    "ObjectExistsError",
    "ObjectID",
    "ObjectInUseError",
    "ObjectNotFoundError",
    "ObjectNotSealedError",
    "PeerError",
    "PlasmastreamError",
    "ProtocolError",
    "RemoteProtocolError",
    "StoreConnectionError",
    "StoreError",
    "StoreFullError",
    "TransferError",
    "__version__",
]
