"""Who holds what: the store's objects as the protocol's extension tells of them, a page at a time.

What is told of one object is bounded, and so is a page: neither many objects nor many holders keep the store from
its other clients for long.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from plasmastream._object_id import ObjectID
from plasmastream.store._core import StoreCore
from plasmastream.store._table import ANONYMOUS, Client, Entry, Process
from plasmastream.wire.plasma import (
    MAX_HOLDERS,
    MAX_INSPECTED,
    MAX_NAME_SIZE,
    InspectReply,
    ObjectHolder,
    ObjectStatus,
    ObjectUser,
)

_LONGEST_NAME = MAX_NAME_SIZE // 4  # a character has at most four bytes
_MAX_COUNTED = 10_000  # for a number that is there to be read by people


def inspect_page(core: StoreCore, object_ids: Sequence[ObjectID] = (), cursor: int = 0) -> InspectReply:
    """Tell of these objects, or of all that follow `cursor` where none is named: of `MAX_INSPECTED` at most."""
    core.settle()
    table = core.table
    if object_ids:
        found = [entry for object_id in object_ids[:MAX_INSPECTED] if (entry := table.find(object_id)) is not None]
        next_cursor = 0
    else:
        found = table.page(cursor, MAX_INSPECTED)
        next_cursor = found[-1].number if len(found) == MAX_INSPECTED else 0
    places: dict[ObjectID, int] = {}
    if any(not entry.holders for entry in found):
        places.update((object_id, place) for place, object_id in enumerate(islice(table.idle, _MAX_COUNTED)))
    return InspectReply(tuple(_status(core, entry, places) for entry in found), next_cursor)


def process_at(pid: int, user: int) -> Process:
    """The process of a connection; its name is empty where the system does not tell."""
    name = ""
    with suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").removesuffix("\n")
    return Process(pid, user, name)


def _status(core: StoreCore, entry: Entry, places: Mapping[ObjectID, int]) -> ObjectStatus:
    is_idle = entry.object_id in core.table.idle
    return ObjectStatus(
        object_id=entry.object_id,
        data_size=entry.data_size,
        metadata_size=entry.metadata_size,
        created_at=max(entry.created_at, 0.0),
        last_used_at=max(entry.last_used_at, 0.0),
        sealed_at=None if entry.sealed_at is None else max(entry.sealed_at, 0.0),
        in_memory=entry.is_resident,
        on_disk=entry.record is not None,
        delete_when_released=entry.delete_when_released,
        evicted_after=places.get(entry.object_id, _MAX_COUNTED) if is_idle else -1,
        holder_count=len(entry.holders),
        holders=tuple(
            ObjectHolder(*_identity(client), max(since, 0.0))
            for client, since in islice(entry.holders.items(), MAX_HOLDERS)
        ),
        quota_of=None if entry.owner is None else ObjectUser(*_identity(entry.owner)),
    )


def _identity(client: Client) -> tuple[int, int, str]:
    process = client.process
    if process is None:
        return os.getpid(), os.geteuid(), client.name[:_LONGEST_NAME]
    name = process.name if client.label in ("", ANONYMOUS) else client.label
    return process.pid, process.user, name[:_LONGEST_NAME]
