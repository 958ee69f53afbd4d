"""The name of an object: 20 bytes, immutable, the same on every machine."""

import hashlib
import os
from typing import Self

OBJECT_ID_SIZE = 20


class ObjectID(bytes):
    """The 20-byte name of an object.

    It *is* a `bytes` object, so that it hashes and compares at C speed and goes into protocols and
    dictionaries as it stands; what it adds is the length check, and hex text.

    Raises:
        ValueError: the value is not 20 bytes long.
    """

    __slots__ = ()

    def __new__(cls, value: bytes | bytearray | memoryview) -> Self:
        self = super().__new__(cls, value)
        if len(self) != OBJECT_ID_SIZE:
            raise ValueError(f"an object id has {OBJECT_ID_SIZE} bytes, not {len(self)}")
        return self

    @classmethod
    def random(cls) -> Self:
        """Make a new id from the operating system's randomness."""
        return cls(os.urandom(OBJECT_ID_SIZE))

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Read an id from 40 hexadecimal digits, in either case.

        Raises:
            ValueError: the text has another length, or another character in it.
        """
        try:
            if len(text) != 2 * OBJECT_ID_SIZE:  # fromhex alone would skip spaces
                raise ValueError
            return cls.fromhex(text)
        except ValueError:
            raise ValueError(f"an object id is written as 40 hexadecimal digits, not as {text!r}") from None

    @classmethod
    def from_name(cls, name: str) -> Self:
        """Derive an id from any name: the first 20 bytes of the SHA-256 of its UTF-8 form.

        The same name gives the same id on every machine.
        """
        return cls(hashlib.sha256(name.encode()).digest()[:OBJECT_ID_SIZE])

    def __reduce__(self) -> tuple[type[Self], tuple[bytes]]:
        return (type(self), (bytes(self),))

    def __repr__(self) -> str:
        return f"ObjectID.from_hex({self.hex()!r})"

    def __str__(self) -> str:
        return self.hex()
