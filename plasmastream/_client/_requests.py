"""How requests are cut, and what the answers mean."""

import errno
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from plasmastream._client._lease import Buffer, NewObject
from plasmastream._errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StoreConnectionError,
    StoreError,
    StoreFullError,
)
from plasmastream._object_id import ObjectID
from plasmastream._os_errors import reason_of
from plasmastream.wire.plasma import (
    MAX_INSPECTED,
    CreateAndSealBatchRequest,
    ErrorCode,
    GetReply,
    InspectReply,
    InspectRequest,
    ObjectInfo,
    ObjectStatus,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer as AnyBuffer

DEFAULT_SOCKET = "/tmp/plasma"

AT_ONCE = 64
"""Requests that may be sent before their replies are read: sockets hold so many in both directions."""

_IN_PLACE = 384 << 10
"""Bytes beyond which an object is written in place rather than sent with others.

Measured, sent against written, by the blocking client and on Trio: 21 of 192 KiB, 6.3 ms against 6.9 and 5.8 against
6.7; 10 of 384 KiB, 3.0 against 2.9 and 3.3 against 3.9; 20 of 400 kB, 6.8 against 4.6 and 7.1 against 6.6; 11 of
700 kB, 7.0 against 2.8 and 10.9 against 4.3. What is sent costs the store as much memory of its own, too.
"""
_FOR_EVER = 1e9  # seconds; the protocol counts milliseconds in 64 bits
_FIELD_NAME = re.compile(":[^:]*:")  # in the format of a buffer of structures


def check(code: ErrorCode, what: str) -> None:
    """Raise the error that an answer stands for, if it does; `what` was asked about."""
    if code is ErrorCode.OK:
        return
    if code is ErrorCode.OBJECT_EXISTS:
        raise ObjectExistsError(f"{what}: exists already")
    if code is ErrorCode.OBJECT_NOT_FOUND:
        raise ObjectNotFoundError(f"{what}: not in the store")
    if code is ErrorCode.OUT_OF_MEMORY:
        raise StoreFullError(
            f"{what}: the store has no room for it: its objects are in use, or cannot be spilled, or a limit of "
            "this client is reached; release or delete some, or see the store's log"
        )
    raise StoreError(f"{what}: the store answered {code.name}")


def check_ids(object_ids: object) -> None:
    """Tell a list of ids from one id, which is a sequence of numbers, from text, and from what can be read once.

    Looks at the first id only.

    Raises:
        TypeError: it is no list of ids.
    """
    if isinstance(object_ids, (list, tuple)):
        is_wrong = bool(object_ids) and not isinstance(object_ids[0], bytes)
    else:
        is_wrong = isinstance(object_ids, (bytes, str, Iterator))
    if is_wrong:
        raise TypeError(f"a list of ObjectID is needed, not {object_ids!r:.80}")


def octets(data: "AnyBuffer") -> Buffer:
    """Anything that shows its memory, as bytes in one piece: without a copy, where it is in one piece.

    Raises:
        TypeError: it has Python objects in it.
    """
    view = memoryview(data)
    if not view.nbytes:
        return b""  # an empty view cannot be cast
    if "O" in _FIELD_NAME.sub("", view.format):
        raise TypeError("this buffer holds addresses of Python objects, of no use to others: convert it, or pickle it")
    return view.cast("B") if view.c_contiguous else view.tobytes()


def wait_in_milliseconds(timeout: float | None) -> int:
    """How the protocol says how long a get waits: -1 is for ever.

    Raises:
        ValueError: it is negative, or no number.
    """
    if timeout is None:
        return -1
    if not timeout >= 0:
        raise ValueError(f"a get cannot wait for {timeout} s")
    return math.ceil(timeout * 1000) if timeout < _FOR_EVER else -1


def no_store_answers(path: str, error: OSError) -> StoreConnectionError:
    """The error for a socket at which nobody is, or which this process cannot reach."""
    if error.errno == errno.EMFILE:
        return StoreConnectionError(f"the store at {path} cannot be asked: {reason_of(error)}")
    reason = error.strerror or error
    return StoreConnectionError(f"no store answers at {path}: {reason}; start one there, or name another socket")


def those_asked_for(object_ids: Sequence[ObjectID] | None, listed: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    """The objects of a list that were asked for, in the order asked; all of them where none was named.

    A store lists all of its objects, in any case: its protocol knows no other request.
    """
    check_ids(object_ids)
    if object_ids is None:
        return list(listed)
    known = {info.object_id: info for info in listed}
    return [known[object_id] for object_id in object_ids if object_id in known]


def found_of(asked: Sequence[ObjectID], reply: GetReply) -> list[ObjectID]:
    """Those of the objects asked for that a store holds for us by its reply."""
    return [object_id for object_id, spec in zip(asked, reply.specs, strict=True) if not spec.is_missing]


class Inspection:
    """The requests that tell of many objects, each small enough that the store serves others meanwhile.

    Args:
        object_ids: which objects; all where this is None.
    """

    def __init__(self, object_ids: Sequence[ObjectID] | None) -> None:
        check_ids(object_ids)
        self.found: list[ObjectStatus] = []
        self._waiting = deque([InspectRequest()] if object_ids is None else _pages(object_ids))

    def next_request(self) -> InspectRequest | None:
        """What to ask next; None where all is found."""
        return self._waiting.popleft() if self._waiting else None

    def take(self, reply: InspectReply) -> None:
        """Take the answer."""
        self.found += reply.objects
        if reply.next_cursor:
            self._waiting.append(InspectRequest(cursor=reply.next_cursor))


def _pages(object_ids: Sequence[ObjectID]) -> Iterator[InspectRequest]:
    for start in range(0, len(object_ids), MAX_INSPECTED):
        yield InspectRequest(tuple(object_ids[start : start + MAX_INSPECTED]))


def name_of(batch: Sequence[NewObject]) -> str:
    """What errors call objects that are put together."""
    first = batch[0].object_id
    return f"object {first}" if len(batch) == 1 else f"one of {len(batch):,} objects, from {first} on"


def batches(objects: Sequence[NewObject], max_objects: int, max_bytes: int) -> list[list[NewObject]]:
    """Cut into pieces that fit a frame of moderate size; what is `written_in_place` is a piece by itself."""
    pieces: list[list[NewObject]] = []
    nbytes = 0
    is_over = True
    for new in objects:
        if memoryview in (type(new.data), type(new.metadata)):
            new = _in_bytes(new)
        size = len(new.data) + len(new.metadata)
        is_alone = size > _IN_PLACE
        if is_over or is_alone or len(pieces[-1]) == max_objects or nbytes + size > max_bytes:
            pieces.append([])
            nbytes = 0
        pieces[-1].append(new)
        nbytes += size
        is_over = is_alone
    return pieces


def _in_bytes(new: NewObject) -> NewObject:
    """The same, with views whose length is their size, and which are in one piece."""
    if _is_in_bytes(new.data) and _is_in_bytes(new.metadata):
        return new
    return attrs.evolve(new, data=octets(new.data), metadata=octets(new.metadata))


def _is_in_bytes(data: Buffer) -> bool:
    return type(data) is not memoryview or (data.format == "B" and data.ndim == 1 and data.c_contiguous)


def written_in_place(batch: Sequence[NewObject]) -> bool:
    """Whether a piece is one object, so large that it is created, written and sealed instead of sent."""
    return len(batch) == 1 and len(batch[0].data) + len(batch[0].metadata) > _IN_PLACE


def batch_request(batch: Sequence[NewObject]) -> CreateAndSealBatchRequest:
    """The request that creates, fills and seals a piece of small ones."""
    return CreateAndSealBatchRequest(
        object_ids=tuple(new.object_id for new in batch),
        evict_if_full=True,
        data=tuple(new.data for new in batch),
        metadata=tuple(new.metadata for new in batch),
        digests=tuple(new.digest for new in batch),
    )
