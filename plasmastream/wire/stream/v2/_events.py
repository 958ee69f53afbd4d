"""What `next_event` can answer besides the control messages themselves: bytes of objects."""

import attrs

from plasmastream.wire.stream._events import Event


@attrs.frozen
class ObjectDescribed(Event):
    """An object that is not sent in a run: in OPEN there follow no bytes, in PUT the wanted chunks."""

    index: int
    """Its place in the request."""
    data_size: int
    """In bytes; within the limits."""
    handle: int
    """What READ and DROP call it; 0 in PUT."""
    metadata: bytes
    """Its metadata, a copy."""


@attrs.frozen
class ChunkStarted(Event):
    """A piece of an object arrives. Nothing goes on before `supply_buffer` or `discard_chunk`."""

    index: int
    """The place of its range in READ, of its object in PUT."""
    offset: int
    """Where in the data it begins, in bytes. Not checked: who knows the object does that."""
    length: int
    """In bytes, within the limits."""


@attrs.frozen
class ChunkEnded(Event):
    """A piece of an object is in place, or was discarded. The connection holds no view of it now."""

    index: int
    offset: int
    length: int
    is_intact: bool
    """Whether the bytes in place are those that were sent. False for what was discarded."""


@attrs.frozen
class ChunkSummed(Event):
    """The checksum of a piece of an object, which itself was not asked for."""

    index: int
    offset: int
    length: int
    checksum: int
    """XXH3-64 of its bytes."""


@attrs.frozen
class RunArrived(Event):
    """Small objects have arrived: index, data, metadata of each. The views are valid until the next call."""

    objects: tuple[tuple[int, memoryview, memoryview], ...]


@attrs.frozen
class RunDamaged(Event):
    """Small objects were damaged on their way. Which ones is not known."""
