"""What `ls` shows of the objects in a store: a table on a terminal, and lines or JSON for programs."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from plasmastream._errors import NotSupportedError
from plasmastream.cli._here import open_store_here
from plasmastream.cli._run import complain
from plasmastream.cli._status import as_dict, holder_in_words, in_time_units, info_as_dict, seconds_since, state_of
from plasmastream.store import StoreClient
from plasmastream.wire.plasma import ObjectInfo, ObjectStatus

_Cells: TypeAlias = tuple[object, ...]

# Heading, alignment, and how a cell is shown to people.
_COLUMNS: tuple[tuple[str, str, Callable[..., str]], ...] = (
    ("ID", "<", str),
    ("DATA", ">", "{:,}".format),
    ("METADATA", ">", "{:,}".format),
    ("STATE", "<", str),
    ("REFERENCES", ">", str),
    ("AGE", ">", in_time_units),
    ("LAST USE", ">", in_time_units),
    ("HOLDERS", "<", str),
)
_SHORT = 6  # columns


async def print_objects(path: str, *, long: bool, as_json: bool) -> None:
    """List a store's objects, oldest first; `long` with who holds them, where the store tells."""
    async with open_store_here(path) as store:
        statuses = await _inspect_all(store) if long else None
        infos = await store.list_objects() if statuses is None else []
    if statuses is None:
        print_infos(infos, as_json=as_json)
        return
    now = time.time()
    statuses.sort(key=lambda status: status.created_at)
    objects = [as_dict(status, now) for status in statuses]
    _print(objects, [_cells(status, now) for status in statuses], len(_COLUMNS), as_json=as_json)


async def _inspect_all(store: StoreClient) -> list[ObjectStatus] | None:
    try:
        return await store.inspect()
    except NotSupportedError as error:
        complain("plasmastream", error)
        return None


def print_infos(infos: Iterable[ObjectInfo], *, as_json: bool) -> None:
    """List objects, oldest first, with what any store and any peer tells of them."""
    now = time.time()
    objects = [info_as_dict(info, now) for info in sorted(infos, key=lambda info: info.create_time)]
    _print(objects, [tuple(values.values()) for values in objects], _SHORT, as_json=as_json)


def _print(objects: Sequence[dict[str, object]], rows: Sequence[_Cells], width: int, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(objects, indent=2))
    elif sys.stdout.isatty():
        _print_table(rows, width)
    else:
        for row in rows:
            print(*row, sep="\t")


def _cells(status: ObjectStatus, now: float) -> _Cells:
    holders = [holder_in_words(holder, now) for holder in status.holders]
    if len(holders) < status.holder_count:
        holders.append(f"{status.holder_count - len(holders):,} more")
    return (
        status.object_id.hex(),
        status.data_size,
        status.metadata_size,
        state_of(status),
        status.holder_count,
        seconds_since(status.created_at, now),
        0 if status.holder_count else seconds_since(status.last_used_at, now),
        ", ".join(holders),
    )


def _print_table(rows: Sequence[_Cells], width: int) -> None:
    headings, alignments, show = zip(*_COLUMNS[:width], strict=True)
    shown = [headings, *([in_words(cell) for in_words, cell in zip(show, row, strict=True)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = [f"{cell:{align}{width}}" for cell, align, width in zip(row, alignments, widths, strict=True)]
        print("  ".join(cells).rstrip())
