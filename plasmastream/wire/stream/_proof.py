"""How a client makes sure that a server knows version 1 alone, before it trusts it with objects.

A connection that ends without a word may be an old server's answer to the greeting, or a bad network's. So the next one
begins with a COPY of two objects that nobody has. A server of version 1 says that they were not found. One that knows
version 2 knows these ids, too, and says that; it does nothing else that is asked on this connection. So what the
client wants of an old server may follow at once, and the proof takes no time. All is asked twice: whatever bit is
flipped on its way, one of the two is whole, or nothing behind it is understood at all.
"""

from collections.abc import Sequence
from typing import Final

from plasmastream._object_id import ObjectID
from plasmastream.wire.stream._frames import pack_transfer
from plasmastream.wire.stream._messages import Status, TransferKind

_IDS: Final = ObjectID(b"PLSTRM2 spoken here?"), ObjectID(b"?ereh nekops 2MRTSLP")

QUESTION: Final = 2 * pack_transfer(TransferKind.COPY, _IDS)
"""What a connection begins with."""
IS_OLD: Final = 2 * bytes([Status.NOT_FOUND])
"""The answer of a server of version 1."""
IS_NOT_OLD: Final = 0x0E
"""What a server of version 2 answers to each: no status of version 1, and as different from NOT_FOUND as can be."""


def is_question(object_ids: Sequence[ObjectID]) -> bool:
    """Whether a transfer request is that question, also when a bit of it was flipped on its way."""
    return any(id_ in object_ids for id_ in _IDS)
