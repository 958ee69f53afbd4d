"""Objects in shared memory: the store, its server, and what programs hold of it."""

from plasmastream._client import DEFAULT_SOCKET
from plasmastream.store._access import Access
from plasmastream.store._client import StoreClient, open_store
from plasmastream.store._core import DEFAULT_MAX_OBJECTS, StoreCore
from plasmastream.store._embedded import EmbeddedStore
from plasmastream.store._limits import DEFAULT_MAX_CONNECTIONS, ConnectionLimits
from plasmastream.store._object_store import (
    Buffer,
    FileSlice,
    Lease,
    Leases,
    NewObject,
    ObjectStore,
    UnsealedObject,
)
from plasmastream.store._server import serve_store

__all__ = [
    "DEFAULT_MAX_CONNECTIONS",
    "DEFAULT_MAX_OBJECTS",
    "DEFAULT_SOCKET",
    "Access",
    "Buffer",
    "ConnectionLimits",
    "EmbeddedStore",
    "FileSlice",
    "Lease",
    "Leases",
    "NewObject",
    "ObjectStore",
    "StoreClient",
    "StoreCore",
    "UnsealedObject",
    "open_store",
    "serve_store",
]
