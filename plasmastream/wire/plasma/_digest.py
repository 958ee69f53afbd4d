"""The digest of an object: what a client sends with a seal, and notifications show (plasma-ipc 6).

Nothing verifies it, and objects exist with a wrong one or none: it tells contents apart, and proves nothing.
"""

import struct
from typing import Final

from xxhash import xxh64_intdigest

DIGEST_SIZE: Final = 8
NO_DIGEST: Final = bytes(DIGEST_SIZE)
"""The digest of objects that nobody hashed."""
EMPTY_DIGEST: Final = bytes.fromhex("99e9d85137db46ef")
"""The digest of an object without data and metadata."""

_PARALLEL_SIZE = 1 << 20  # from here on, the original hashes eight chunks in as many threads
_CHUNKS = 8
_ALIGNMENT = 64
_NINE = struct.Struct("<9Q")

_Bytes = bytes | bytearray | memoryview


def object_digest(data: _Bytes, metadata: _Bytes = b"") -> bytes:
    """Compute the 8-byte digest of an object from its data and metadata, which must be contiguous."""
    view = memoryview(data)
    if view.nbytes < _PARALLEL_SIZE:
        return _digest(b"".join((view, metadata)))
    view = view.cast("B")
    chunk = len(view) // _ALIGNMENT // _CHUNKS * _ALIGNMENT
    tail = chunk * _CHUNKS
    parts = [xxh64_intdigest(view[start : start + chunk]) for start in range(0, tail, chunk)]
    return _digest(b"".join((_NINE.pack(*parts, xxh64_intdigest(view[tail:])), metadata)))


def _digest(content: bytes) -> bytes:
    return xxh64_intdigest(content).to_bytes(DIGEST_SIZE, "little")
