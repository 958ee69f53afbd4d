"""The digest of an object: what a client sends with a seal, and notifications show (plasma-ipc 6).

Nothing verifies it, and objects exist with a wrong one or none: it tells contents apart, and proves nothing.
"""

import struct
from typing import Final

from xxhash import xxh64, xxh64_intdigest

DIGEST_SIZE: Final = 8
NO_DIGEST: Final = bytes(DIGEST_SIZE)
"""The digest of objects that nobody hashed."""
EMPTY_DIGEST: Final = bytes.fromhex("99e9d85137db46ef")
"""The digest of an object without data and metadata."""

PARALLEL_SIZE: Final = 1 << 20
"""Bytes from which on the original hashes eight chunks in as many threads."""

_CHUNKS = 8
_ALIGNMENT = 64
_NINE = struct.Struct("<9Q")

_Bytes = bytes | bytearray | memoryview


def object_digest(data: _Bytes, metadata: _Bytes = b"") -> bytes:
    """Compute the 8-byte digest of an object from its data and metadata, which must be contiguous."""
    view = memoryview(data)
    if view.nbytes < PARALLEL_SIZE:
        return _digest(b"".join((view, metadata)))
    view = view.cast("B")
    digest = LargeDigest(len(view))
    for part, span in enumerate(digest.spans):
        digest.update(part, view[span.start : span.stop])
    return digest.result(metadata)


class LargeDigest:
    """The digest of `nbytes` bytes of data, at least `PARALLEL_SIZE`, whose parts may be hashed by several threads.

    Each of the `spans` of the data is a part, which one thread hashes from its start to its end.
    """

    def __init__(self, nbytes: int) -> None:
        chunk = nbytes // _ALIGNMENT // _CHUNKS * _ALIGNMENT
        tail = chunk * _CHUNKS
        self.spans = [*(range(start, start + chunk) for start in range(0, tail, chunk)), range(tail, nbytes)]
        self._parts = [xxh64() for _ in self.spans]

    def update(self, part: int, data: memoryview) -> None:
        """Take the next bytes of a part."""
        self._parts[part].update(data)

    def result(self, metadata: _Bytes = b"") -> bytes:
        """The digest, when all has been taken."""
        return _digest(b"".join((_NINE.pack(*[part.intdigest() for part in self._parts]), metadata)))


def _digest(content: bytes) -> bytes:
    return xxh64_intdigest(content).to_bytes(DIGEST_SIZE, "little")
