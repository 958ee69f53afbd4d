"""The layouts of version 2: the head of every frame, and the bodies that are hot. Pure functions; little-endian.

::

    offset  0   type           u8
            1   0              u8
            2   tag            u16
            4   body length    u32
            8   check of the first 8 bytes: the lower half of their XXH3-64
           12   check of the body, likewise
           16   body
"""

from enum import IntEnum
from struct import Struct
from typing import Final

from xxhash import xxh3_64_intdigest

from plasmastream._errors import RemoteProtocolError
from plasmastream.wire.stream._messages import MAGIC_OF_VERSION_2, DamagedError

MAGIC: Final = MAGIC_OF_VERSION_2
"""What a connection of version 2 begins with."""

HEAD: Final = Struct("<BBHIII")
_START: Final = Struct("<BBHI")
_CHECKS: Final = Struct("<II")
_LOWER_HALF: Final = 0xFFFF_FFFF
_ZEROS_OF_AN_ANSWER: Final = 1, 2, 3, 6, 7
"""Where the head of an answer to a greeting has bytes of 0: its tag is 0, and its body is small."""
_MOST_DAMAGED: Final = 2
"""Bytes, of those and the type: more of them tell that something else is meant."""

OBJECT: Final = Struct("<IIQQ")
"""index, metadata size, data size, handle; the metadata follows."""
CHUNK: Final = Struct("<IB3xQIIQ")
"""index, encoding, offset, length, length on the wire, checksum."""
RUN: Final = Struct("<IB3xIIQ")
"""count, encoding, length, length on the wire, checksum."""
RUN_ENTRY: Final = Struct("<III")
"""index, data size, metadata size."""


class FrameType(IntEnum):
    """What a frame is."""

    HELLO = 1
    OPEN = 2
    READ = 3
    DROP = 4
    CLOSE = 5
    PUT = 6
    SYNC = 7
    STAT = 8
    LIST = 9
    CANCEL = 10
    OBJECT = 16
    CHUNK = 17
    RUN = 18
    WANT = 19
    OUTCOMES = 20
    PROGRESS = 21
    LISTED = 22
    END = 23


_TYPES: Final = {int(frame_type): frame_type for frame_type in FrameType}


def resembles_answer(octets: bytes | memoryview) -> bool:
    """Whether the first bytes of an answer to a greeting may be those of a HELLO or END, perhaps damaged.

    Fewer than a head has are judged as far as they go.
    """
    wrong = sum(octets[at] != 0 for at in _ZEROS_OF_AN_ANSWER if at < len(octets))
    if octets[0] not in (FrameType.HELLO, FrameType.END):
        wrong += 1
    return wrong <= _MOST_DAMAGED


def check_of(octets: bytes | bytearray | memoryview) -> int:
    """The check of a head, or of a body: 32 bits."""
    return xxh3_64_intdigest(octets) & _LOWER_HALF


def pack_frame(frame_type: FrameType, tag: int, body: bytes) -> bytes:
    """Write a whole frame, but for its payload."""
    start = _START.pack(frame_type, 0, tag, len(body))
    checks = xxh3_64_intdigest(start) & _LOWER_HALF, xxh3_64_intdigest(body) & _LOWER_HALF
    return b"".join((start, _CHECKS.pack(*checks), body))


def unpack_head(octets: bytes | memoryview) -> tuple[FrameType, int, int, int]:
    """Read the 16 bytes at the beginning of a frame.

    Returns:
        Its type, its tag, bytes of its body, and the check of that.

    Raises:
        DamagedError: they are not what was sent.
        RemoteProtocolError: there is no frame of this type.
    """
    frame_type, zero, tag, length, check, body_check = HEAD.unpack(octets)
    if check != xxh3_64_intdigest(octets[: _START.size]) & _LOWER_HALF:
        raise DamagedError("the head of a frame was damaged on its way")
    known = _TYPES.get(frame_type)
    if known is None or zero:
        raise RemoteProtocolError(f"a frame has the unknown type {frame_type}, {zero}")
    return known, tag, length, body_check


def unpack_run(content: bytes | bytearray, count: int) -> tuple[tuple[int, memoryview, memoryview], ...]:
    """Read the objects of a run, whose checksum was right: index, data and metadata of each, as views.

    Raises:
        RemoteProtocolError: the table does not fit what follows it.
    """
    at = count * RUN_ENTRY.size
    if at > len(content):
        raise RemoteProtocolError(f"a run of {len(content)} bytes cannot have {count} objects")
    view = memoryview(content).toreadonly()
    found = []
    for index, data_size, metadata_size in RUN_ENTRY.iter_unpack(view[:at]):
        end = at + metadata_size + data_size
        if end > len(content):
            raise RemoteProtocolError("an object reaches out of its run")
        found.append((index, view[at + metadata_size : end], view[at : at + metadata_size]))
        at = end
    if at != len(content):
        raise RemoteProtocolError(f"a run has {len(content) - at} bytes too many")
    return tuple(found)

