"""Which object goes first when room is needed: the one that nobody has used for longest."""

import sys
from collections import OrderedDict
from collections.abc import Container, Iterator

from plasmastream._object_id import ObjectID

_MANY = 1000


class LRUQueue:
    """Sealed objects that nobody holds, with their sizes, oldest first.

    An object enters at the recent end when its last holder lets go, and leaves when somebody gets it.
    """

    __slots__ = ("_sizes", "nbytes")

    def __init__(self) -> None:
        # A plain dict looks for its oldest key among all that have gone before.
        self._sizes: OrderedDict[ObjectID, int] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, object_id: object) -> bool:
        return object_id in self._sizes

    def __iter__(self) -> Iterator[ObjectID]:
        return iter(self._sizes)

    def add(self, object_id: ObjectID, size: int) -> None:
        """Enter an object, of `size` bytes, as the most recent one."""
        self._sizes[object_id] = size
        self.nbytes += size

    def discard(self, object_id: ObjectID) -> None:
        """Take an object out, if it is in."""
        self.nbytes -= self._sizes.pop(object_id, 0)

    def refresh(self, object_id: ObjectID) -> None:
        """Move an object, if it is in, to the recent end."""
        if object_id in self._sizes:
            self._sizes.move_to_end(object_id)

    def oldest(
        self, nbytes: int, but: Container[ObjectID] = (), *, more: int = 0, most: int = sys.maxsize
    ) -> list[ObjectID]:
        """The oldest objects, `but` some, whose sizes reach `nbytes` in sum, or all where they do not; empty for 0.

        Objects of size 0 that are met on the way are among them. After that as many as reach `more` bytes, in all, as
        long as there are no more than a thousand. However many bytes, they are `most` objects at most.
        """
        chosen: list[ObjectID] = []
        total = 0
        for object_id, size in self._sizes.items():
            if len(chosen) >= most or (total >= nbytes and (total >= more or len(chosen) >= _MANY)):
                break
            if object_id in but:
                continue
            chosen.append(object_id)
            total += size
        return chosen
