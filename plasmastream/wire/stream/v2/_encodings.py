"""Encodings of payloads. Their libraries are optional, and imported when the first payload needs them."""

import importlib
from enum import IntEnum
from typing import Any, Final

from plasmastream._errors import LocalProtocolError

_MODULES: Final = {1: "zstandard", 2: "lz4.block"}


class Encoding(IntEnum):
    """What a payload is encoded with."""

    NONE = 0
    ZSTD = 1
    LZ4 = 2
    ABSENT = 255
    """There is no payload: the checksum alone was asked for."""


def known_encodings() -> tuple[str, ...]:
    """The names of the encodings whose libraries are here, as HELLO has them."""
    return tuple(Encoding(number).name.lower() for number in _MODULES if _load(number) is not None)


def encoding_of(name: str | None) -> Encoding:
    """The encoding of that name; None stands for none.

    Raises:
        LocalProtocolError: there is no such encoding, or its library is not installed.
    """
    if name is None:
        return Encoding.NONE
    for number, module in _MODULES.items():
        if Encoding(number).name.lower() == name:
            if _load(number) is None:
                raise LocalProtocolError(f"{name} needs the library {module.partition('.')[0]}, which is not installed")
            return Encoding(number)
    raise LocalProtocolError(f"{name!r} is no encoding: there are zstd and lz4")


def encode(encoding: Encoding, content: bytes | memoryview) -> bytes | memoryview | None:
    """Encode a payload; None where that does not make it smaller."""
    match encoding:
        case Encoding.ZSTD:
            encoded: bytes = _load(encoding).ZstdCompressor(level=1).compress(content)
        case Encoding.LZ4:
            encoded = _load(encoding).compress(content, store_size=False)
        case _:
            return None
    return encoded if len(encoded) < len(content) else None


def decode(encoding: Encoding, encoded: bytes | bytearray | memoryview, size: int) -> bytes | None:
    """Decode a payload of `size` bytes; None where it is no such thing."""
    try:
        if encoding is Encoding.ZSTD:
            # The library takes memory for what the payload says of itself, whatever it is told to expect.
            if _load(encoding).frame_content_size(encoded) != size:
                return None
            decoded: bytes = _load(encoding).ZstdDecompressor().decompress(encoded, allow_extra_data=False)
        else:
            decoded = _load(encoding).decompress(encoded, uncompressed_size=size)
    except Exception:  # each library has errors of its own, and what is damaged may raise any of them
        return None
    return decoded if len(decoded) == size else None


_loaded: dict[int, Any] = {}


def _load(number: int) -> Any:
    if number not in _loaded:
        try:
            _loaded[number] = importlib.import_module(_MODULES[number])
        except ImportError:
            _loaded[number] = None
    return _loaded[number]
