"""What a PUT puts: bytes in memory, or a file, which is read as it leaves."""

import os
from typing import TypeAlias

import attrs

from plasmastream._errors import PlasmastreamError
from plasmastream._object_id import ObjectID
from plasmastream.store._object_store import Buffer, NewObject


@attrs.frozen
class NewFile:
    """An object whose data is a regular file, to be put without having all of it in memory: see `PeerClient.put`."""

    object_id: ObjectID
    descriptor: int
    """Open to be read until the put has ended; where it stands does not matter."""
    size: int
    """Bytes from the file's start. Should it turn out to have fewer, or change meanwhile, the put fails."""
    metadata: Buffer = b""


def stamp_of(new: NewFile) -> tuple[int, int]:
    """What is another when the file has changed."""
    status = os.fstat(new.descriptor)
    return status.st_size, status.st_mtime_ns


class _FileData:
    """The bytes of a file, read when they are looked at: a map would end the process where a file is cut short."""

    def __init__(self, new: NewFile) -> None:
        self._new = new

    def __len__(self) -> int:
        return self._new.size

    def __getitem__(self, piece: slice) -> memoryview:
        start, end, _ = piece.indices(self._new.size)
        data = os.pread(self._new.descriptor, end - start, start)
        while len(data) < end - start:
            more = os.pread(self._new.descriptor, end - start - len(data), start + len(data))
            if not more:
                there = f"{start + len(data):,} of {self._new.size:,} bytes are left; put it again"
                raise PlasmastreamError(f"the file of object {self._new.object_id} became shorter: {there}")
            data += more
        return memoryview(data)


Content: TypeAlias = tuple[memoryview | _FileData, memoryview]
"""Data and metadata of an object. A slice of either is its bytes."""


def content_of(new: NewObject | NewFile) -> Content:
    """What is to be put, in a form that can be sent in pieces."""
    data = _FileData(new) if isinstance(new, NewFile) else memoryview(new.data).cast("B")
    return data, memoryview(new.metadata).cast("B")
