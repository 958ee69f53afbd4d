"""Objects and files: what `put`, `get`, `ls` and `rm` do with a store."""

import json
import os
import stat
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO

from plasmastream._errors import ObjectNotFoundError, PlasmastreamError
from plasmastream._object_id import ObjectID
from plasmastream.cli._run import ExitStatus, UsageError, complain
from plasmastream.store import StoreClient, open_store
from plasmastream.wire.plasma import ErrorCode, ObjectInfo

_STANDARD = "-"


async def put_files(names: Sequence[str], object_id: ObjectID | None, metadata: bytes, path: str) -> None:
    """Put files into a store and print their ids; `-` is standard input.

    Raises:
        UsageError: one id for several files.
        PlasmastreamError: a file shrank while it was read.
    """
    if object_id is not None and len(names) > 1:
        raise UsageError(f"--id names one object, and there are {len(names)} files")
    async with open_store(path) as store:
        for name in names:
            made = object_id or ObjectID.random()
            with _open(name) as file:
                await _put_file(store, file, name, made, metadata)
            print(made, flush=True)


def _open(name: str) -> AbstractContextManager[BinaryIO]:
    return nullcontext(sys.stdin.buffer) if name == _STANDARD else Path(name).open("rb")


async def _put_file(store: StoreClient, file: BinaryIO, name: str, object_id: ObjectID, metadata: bytes) -> None:
    status = os.fstat(file.fileno())
    if name == _STANDARD or not stat.S_ISREG(status.st_mode):  # its size shows at its end
        await store.put(file.read(), metadata, object_id=object_id)
        return
    async with store.create(object_id, status.st_size, metadata) as unsealed:
        if _read_into(file, unsealed.data) < status.st_size:
            raise PlasmastreamError(f"{name} became shorter while it was read; it was not put")
        await unsealed.seal()


def _read_into(file: BinaryIO, memory: memoryview) -> int:
    return file.readinto(memory)  # type: ignore[attr-defined, no-any-return]  # all that buffered files have it


async def get_object(object_id: ObjectID, output: str, timeout: float, path: str) -> None:
    """Write an object's data to a file; `-` is standard output.

    Raises:
        ObjectNotFoundError: it is not there within `timeout` seconds.
    """
    async with open_store(path) as store:
        (lease,) = await store.get([object_id], timeout=timeout)
        if lease is None:
            raise ObjectNotFoundError(f"object {object_id} is not in the store")
        with lease:
            _write(output, lease.data)


def _write(output: str, data: memoryview) -> None:
    if output == _STANDARD:
        try:
            # A writer of our own: that of `sys.stdout` may be unbuffered, and then writes only part of it.
            with open(sys.stdout.fileno(), "wb", closefd=False) as stdout:
                stdout.write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from error
    else:
        Path(output).write_bytes(data)


async def remove_objects(object_ids: Sequence[ObjectID], path: str) -> int:
    """Delete objects; each one that is not gone now has a line of its own.

    Returns:
        The exit status: FAILED where an object was not there.
    """
    async with open_store(path) as store:
        codes = await store.delete(object_ids)
    status = ExitStatus.DONE
    for object_id, code in zip(object_ids, codes, strict=True):
        match code:
            case ErrorCode.OK:
                pass
            case ErrorCode.OBJECT_IN_USE | ErrorCode.OBJECT_NOT_SEALED:
                complain("plasmastream", f"object {object_id} is in use, and goes as soon as it is not")
            case ErrorCode.OBJECT_NOT_FOUND:
                complain("plasmastream", f"object {object_id} is not in the store")
                status = ExitStatus.FAILED
            case _:
                complain("plasmastream", f"object {object_id} was not deleted: {code.name}")
                status = ExitStatus.FAILED
    return status


async def print_objects(path: str, *, as_json: bool) -> None:
    """List a store's objects, oldest first: for people on a terminal, as lines of tab-separated values elsewhere."""
    async with open_store(path) as store:
        objects = await store.list_objects()
    objects.sort(key=lambda info: info.create_time)
    now = time.time()
    if as_json:
        print(json.dumps([_as_dict(info, now) for info in objects], indent=2))
    elif sys.stdout.isatty():
        _print_table(objects, now)
    else:
        for info in objects:
            print(*_as_dict(info, now).values(), sep="\t")


def _as_dict(info: ObjectInfo, now: float) -> dict[str, str | int]:
    return {
        "id": info.object_id.hex(),
        "data_size": info.data_size,
        "metadata_size": info.metadata_size,
        "state": "unsealed" if info.construct_duration < 0 else "sealed",
        "references": info.ref_count,
        "age_seconds": max(0, int(now - info.create_time)),
    }


def _print_table(objects: Iterable[ObjectInfo], now: float) -> None:
    rows = [("ID", "DATA", "METADATA", "STATE", "REFERENCES", "AGE")]
    for info in objects:
        values = _as_dict(info, now)
        rows.append(
            (
                str(values["id"]),
                f"{info.data_size:,}",
                f"{info.metadata_size:,}",
                str(values["state"]),
                str(info.ref_count),
                _age(int(values["age_seconds"])),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        object_id, data, metadata, state, *numbers = (
            f"{cell:{align}{width}}" for cell, align, width in zip(row, "<>><>>", widths, strict=True)
        )
        print(object_id, data, metadata, state, *numbers, sep="  ")


def _age(seconds: int) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
