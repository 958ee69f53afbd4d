"""What every client of a store does, whatever it waits with: leases, holds, maps, one end of a connection.

No event loop is imported here. `plasmastream.store` waits with anyio, `plasmastream.blocking` with the kernel alone.
"""

from plasmastream._client._connection import RETRY_FIRST, RETRY_LAST, Connection, connect
from plasmastream._client._copying import copy, copy_and_digest
from plasmastream._client._haste import Haste
from plasmastream._client._lease import Buffer, FileSlice, Lease, Leases, NewObject, Ticket, Unsealed
from plasmastream._client._requests import (
    AT_ONCE,
    DEFAULT_SOCKET,
    Inspection,
    batch_request,
    batches,
    check,
    check_ids,
    found_of,
    name_of,
    no_store_answers,
    octets,
    those_asked_for,
    wait_in_milliseconds,
    written_in_place,
)
from plasmastream._client._session import Mapping, Session
from plasmastream._client._socket import UnixSocket, close_descriptors
from plasmastream._client._watched import WatchedMemory

__all__ = [
    "AT_ONCE",
    "DEFAULT_SOCKET",
    "RETRY_FIRST",
    "RETRY_LAST",
    "Buffer",
    "Connection",
    "FileSlice",
    "Haste",
    "Inspection",
    "Lease",
    "Leases",
    "Mapping",
    "NewObject",
    "Session",
    "Ticket",
    "UnixSocket",
    "Unsealed",
    "WatchedMemory",
    "batch_request",
    "batches",
    "check",
    "check_ids",
    "close_descriptors",
    "connect",
    "copy",
    "copy_and_digest",
    "found_of",
    "name_of",
    "no_store_answers",
    "octets",
    "those_asked_for",
    "wait_in_milliseconds",
    "written_in_place",
]
