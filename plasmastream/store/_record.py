"""What is known of an object on disk."""

import attrs

from plasmastream._object_id import ObjectID


@attrs.frozen
class Record:
    """Where an object lies on disk, and what it was when it left memory; sizes and the offset in bytes."""

    object_id: ObjectID
    offset: int
    data_size: int
    metadata_size: int
    created_at: float
    sealed_at: float
    digest: bytes
    checksum: int = 0
    """XXH3-64 of data and metadata."""

    @property
    def size(self) -> int:
        """Bytes of data and metadata."""
        return self.data_size + self.metadata_size
