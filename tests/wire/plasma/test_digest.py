"""The digest, against a second reading of plasma-ipc 6."""

import struct

import pytest
import xxhash

from plasmastream.wire.plasma import DIGEST_SIZE, EMPTY_DIGEST, NO_DIGEST, object_digest

MIB = 1 << 20


def expected(data: bytes, metadata: bytes) -> bytes:
    hasher = xxhash.xxh64(seed=0)
    if len(data) < MIB:
        hasher.update(data)
    else:
        size = ((len(data) // 64) // 8) * 64
        for i in range(8):
            hasher.update(xxhash.xxh64(data[i * size : (i + 1) * size]).digest()[::-1])
        hasher.update(xxhash.xxh64(data[8 * size :]).digest()[::-1])
    hasher.update(metadata)
    return struct.pack("<Q", hasher.intdigest())


@pytest.mark.parametrize("size", [0, 5, 1000, MIB - 1, MIB, MIB + 777, 3 * MIB + 323])
@pytest.mark.parametrize("metadata", [b"", b"metadata"])
def test_against_another_implementation(size: int, metadata: bytes) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    assert object_digest(data, metadata) == expected(data, metadata)


def test_vectors_of_the_original() -> None:
    assert object_digest(b"") == EMPTY_DIGEST == bytes.fromhex("99e9d85137db46ef")
    assert object_digest(b"hello", b"md") == bytes.fromhex("b9d0283912052869")  # captured, appendix A


def test_any_buffer() -> None:
    words = memoryview(bytes(range(16))).cast("Q")
    assert object_digest(words, bytearray(b"md")) == object_digest(bytes(range(16)), memoryview(b"md"))
    assert object_digest(memoryview(bytes(MIB)).cast("Q")) == object_digest(bytes(MIB))
    assert object_digest(memoryview(b"").cast("B")) == EMPTY_DIGEST
    assert len(NO_DIGEST) == DIGEST_SIZE
