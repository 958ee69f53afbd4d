"""A client's own share of the store: what it creates is counted there, evicts there, and is safe from all others."""

from collections.abc import Callable

import attrs

from plasmastream._errors import StoreFullError
from plasmastream._object_id import ObjectID
from plasmastream.store._eviction import LRUQueue

GLOBAL_SHARE = 0.3
"""The part of the capacity that quotas together must leave to everybody."""


@attrs.define(eq=False)
class Quota:
    """At most `nbytes` bytes of objects; `owned` holds them, in use or not, oldest first."""

    nbytes: int
    owned: LRUQueue = attrs.Factory(LRUQueue)
    evictions: int = 0
    evicted_bytes: int = 0

    def plan(
        self, size: int, *, evict: bool, in_use: Callable[[ObjectID], bool]
    ) -> tuple[list[ObjectID], list[ObjectID]]:
        """What must leave the quota before an object of `size` bytes fits; nothing is changed yet.

        Returns:
            The objects to evict; and those that are in use, which go over to everybody's share.

        Raises:
            StoreFullError: it is larger than the quota, or does not fit and `evict` is false.
        """
        excess = self.owned.nbytes + size - self.nbytes
        if size > self.nbytes or (excess > 0 and not evict):
            raise StoreFullError(
                f"{size:,} bytes do not fit: of a quota of {self.nbytes:,} bytes {self.owned.nbytes:,} are taken"
            )
        leaving = self.owned.oldest(excess) if excess > 0 else []
        return [i for i in leaving if not in_use(i)], [i for i in leaving if in_use(i)]
