"""What answers what, and whether it fits: the rules of the conversation, for both sides.

The store's side needs them to know when a descriptor goes along; the client's, to believe nothing that it has
not checked, because a wrong offset would become a read of somebody else's memory.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from plasmastream._errors import RemoteProtocolError
from plasmastream.wire.plasma import _extensions as x
from plasmastream.wire.plasma import _messages as m
from plasmastream.wire.plasma._messages import MessageType as T
from plasmastream.wire.plasma._specs import Columns, ObjectSpec, Specs

REPLY_TO: Final[dict[T, T | None]] = {
    T.DISCONNECT_CLIENT: None,
    T.CREATE_REQUEST: T.CREATE_REPLY,
    T.CREATE_AND_SEAL_REQUEST: T.CREATE_AND_SEAL_REPLY,
    T.ABORT_REQUEST: T.ABORT_REPLY,
    T.SEAL_REQUEST: T.SEAL_REPLY,
    T.GET_REQUEST: T.GET_REPLY,
    T.RELEASE_REQUEST: None,
    T.DELETE_REQUEST: T.DELETE_REPLY,
    T.CONTAINS_REQUEST: T.CONTAINS_REPLY,
    T.LIST_REQUEST: T.LIST_REPLY,
    T.CONNECT_REQUEST: T.CONNECT_REPLY,
    T.EVICT_REQUEST: T.EVICT_REPLY,
    T.SUBSCRIBE_REQUEST: None,
    T.SET_OPTIONS_REQUEST: T.SET_OPTIONS_REPLY,
    T.GET_DEBUG_STRING_REQUEST: T.GET_DEBUG_STRING_REPLY,
    T.CREATE_AND_SEAL_BATCH_REQUEST: T.CREATE_AND_SEAL_BATCH_REPLY,
    T.REFRESH_LRU_REQUEST: T.REFRESH_LRU_REPLY,
    T.INSPECT_REQUEST: T.INSPECT_REPLY,
    T.RELEASE_MANY_REQUEST: None,
}
"""The requests that a store accepts, and what it answers (plasma-ipc 2.1)."""

EXTENSION_OF: Final = {
    T.INSPECT_REQUEST: m.Extension.INSPECT,
    T.RELEASE_MANY_REQUEST: m.Extension.RELEASE_MANY,
}
"""The requests that a store must have announced in its `ConnectReply`."""

_GAP = 8  # an `mmap_size` is so many bytes more than what can be mapped (plasma-ipc 3.3)


def segments_of(reply: m.Message) -> list[tuple[int, int]]:
    """List the `(store_fd, mmap_size)` pairs that a reply names, those known to the client included.

    A store leaves a number that is 0 out of its reply.
    """
    if isinstance(reply, m.GetReply):
        return list(zip(reply.store_fds, reply.mmap_sizes, strict=True))
    if isinstance(reply, m.CreateReply) and reply.error == m.ErrorCode.OK and reply.spec.device_num == 0:
        return [(reply.store_fd or 0, reply.mmap_size or 0)]
    return []


def check_reply(request: m.Message, reply: m.Message, segments: Mapping[int, int]) -> None:
    """Check that a reply of the right type answers this very request.

    Args:
        segments: the `mmap_size` of each segment that this connection has seen, the reply's included.

    Raises:
        RemoteProtocolError: it does not, or it places an object outside the memory of its segment.
    """
    check = _CHECKS.get(reply.type)
    if check is not None:
        check(request, reply, segments)


def _check_created(asked: m.CreateRequest, reply: m.CreateReply, segments: Mapping[int, int]) -> None:
    _check_object(asked, reply, segments)
    if reply.error == m.ErrorCode.OK:
        _check_same((asked.data_size, asked.metadata_size), _sizes(reply.spec))
        _check_specs((reply.spec,), segments)


def _check_got(asked: m.GetRequest, reply: m.GetReply, segments: Mapping[int, int]) -> None:
    _check_objects(asked, reply, segments)
    _check_specs(reply.specs, segments)


def _check_object(asked: Any, reply: Any, _: Mapping[int, int]) -> None:
    _check_same(asked.object_id, reply.object_id)


def _check_objects(asked: Any, reply: Any, _: Mapping[int, int]) -> None:
    _check_same(asked.object_ids, reply.object_ids)


def _check_inspection(request: x.InspectRequest, reply: x.InspectReply, _: Mapping[int, int]) -> None:
    if request.object_ids:
        if reply.next_cursor:
            raise RemoteProtocolError("the store goes on when it has told of all that it was asked about")
        unmatched = iter(request.object_ids)  # what is not in the store is left out, and the rest stays in order
        for status in reply.objects:
            if status.object_id not in unmatched:
                raise RemoteProtocolError(f"the store was not asked about {status.object_id}")
    elif reply.next_cursor and (not reply.objects or reply.next_cursor <= request.cursor):
        raise RemoteProtocolError("a list of objects comes to no end")


def _sizes(spec: ObjectSpec) -> tuple[int, int]:
    return spec.data_size, spec.metadata_size


def _check_same(asked: object, answered: object) -> None:
    if asked != answered:
        raise RemoteProtocolError(f"the store was asked about {asked}, and answers about {answered}")


def _check_specs(specs: Iterable[ObjectSpec], segments: Mapping[int, int]) -> None:
    if type(specs) is Specs and all(_are_sound(some.columns(), segments) for some in specs.pieces()):
        return
    for spec in specs:
        if spec.is_missing or spec.device_num:  # device memory has no segment (plasma-ipc 3.4)
            continue
        if spec.segment_index not in segments:
            raise RemoteProtocolError(f"an object lies in segment {spec.segment_index}, which never came")
        if spec.metadata_offset != spec.data_offset + spec.data_size:
            raise RemoteProtocolError(f"data and metadata are not adjacent in {spec}")
        if spec.metadata_offset + spec.metadata_size > segments[spec.segment_index] - _GAP:
            raise RemoteProtocolError(f"an object reaches out of its segment in {spec}")


def _are_sound(some: Columns, segments: Mapping[int, int]) -> bool:
    """Whether all of them are there, in one segment; those that are not are looked at one by one."""
    if len(some.segments) > 1 or some.devices != {0}:
        return False
    (segment,) = some.segments
    return segment in segments and some.lie_within(segments[segment] - _GAP)


_CHECKS: Final[dict[T, Callable[[Any, Any, Mapping[int, int]], None]]] = {
    T.CREATE_REPLY: _check_created,
    T.GET_REPLY: _check_got,
    T.DELETE_REPLY: _check_objects,
    T.INSPECT_REPLY: _check_inspection,
    T.ABORT_REPLY: _check_object,
    T.SEAL_REPLY: _check_object,
    T.CONTAINS_REPLY: _check_object,
}
"""What is checked of a reply, beyond its type."""
