"""The frame that every message travels in: three little-endian int64, then the body (plasma-ipc 1).

::

    offset  0   protocol version, always 0
            8   message type
           16   body length N, in bytes
           24   body, a flatbuffer
"""

import struct
from typing import Final

from plasmastream._errors import LocalProtocolError, RemoteProtocolError

VERSION: Final = 0
HEADER_SIZE: Final = 24
MAX_BODY_SIZE: Final = 2**31 - 1
"""Largest body that flatbuffer offsets can span, in bytes."""

HEADER: Final = struct.Struct("<qqq")


def pack_header(message_type: int, body_size: int) -> bytes:
    """Write the 24 bytes that announce a body of `body_size` bytes.

    Raises:
        LocalProtocolError: the body is larger than the format can carry.
    """
    if not 0 <= body_size <= MAX_BODY_SIZE:
        raise LocalProtocolError(f"a body of {body_size} bytes cannot be sent, at most {MAX_BODY_SIZE}")
    return HEADER.pack(VERSION, message_type, body_size)


def unpack_header(header: bytes | bytearray | memoryview, max_body_size: int = MAX_BODY_SIZE) -> tuple[int, int]:
    """Read 24 bytes, and return the message type, unchecked, and the size of the body in bytes.

    Raises:
        RemoteProtocolError: another version, or a size that is negative or above `max_body_size`.
    """
    return check_header(HEADER.unpack(header), max_body_size)


def check_header(fields: tuple[int, ...], max_body_size: int) -> tuple[int, int]:
    """As `unpack_header`, for a header that is unpacked already."""
    version, message_type, body_size = fields
    if version != VERSION:
        raise RemoteProtocolError(f"protocol version {version} in a frame header, only {VERSION} is known")
    if not 0 <= body_size <= max_body_size:
        raise RemoteProtocolError(f"a frame announces {body_size} bytes, {max_body_size} are allowed")
    return message_type, body_size
