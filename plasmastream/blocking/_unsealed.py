"""An object that a program without an event loop is writing."""

from collections.abc import Callable

from plasmastream._client import Unsealed
from plasmastream._object_id import ObjectID


class UnsealedObject(Unsealed):
    """An object that is being written: nobody else can see it before `seal`.

    `data` is a writable view of the shared memory; the metadata is there already. Do not write after `seal`.
    """

    __slots__ = ("_seal",)

    def __init__(
        self, object_id: ObjectID, data: memoryview, seal: "Callable[[UnsealedObject, bytes | None], None]"
    ) -> None:
        super().__init__(object_id, data)
        self._seal = seal

    def seal(self, digest: bytes | None = None) -> None:
        """Make the object immutable and visible to all.

        Args:
            digest: its 8-byte digest; computed from the bytes where none is given, which reads them all. Nothing
                verifies it, so that `NO_DIGEST` is a fair answer where speed counts.

        Raises:
            StoreError: the store refused, or is gone; the object is not sealed.
        """
        self._seal(self, digest)
        self.forget_data()
