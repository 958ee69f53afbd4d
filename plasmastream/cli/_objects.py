"""Objects and files: what `put`, `get` and `rm` do with a store of this machine."""

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

from plasmastream._errors import ObjectNotFoundError, PlasmastreamError, StoreFullError
from plasmastream._object_id import ObjectID
from plasmastream.cli._here import open_store_here
from plasmastream.cli._run import ExitStatus, UsageError, complain
from plasmastream.store import StoreClient
from plasmastream.wire.plasma import ErrorCode

STANDARD = "-"


async def put_files(names: Sequence[str], object_id: ObjectID | None, metadata: bytes, path: str) -> None:
    """Put files into a store and print their ids; `-` is standard input.

    Raises:
        UsageError: one id for several files.
        PlasmastreamError: a file changed while it was read.
    """
    check_one_id(object_id, names)
    async with open_store_here(path) as store:
        for name in names:
            made = object_id or ObjectID.random()
            with open_file(name) as file, naming(name):
                await _put_file(store, file, name, made, metadata)
            print(made, flush=True)


def check_one_id(object_id: ObjectID | None, names: Sequence[str]) -> None:
    """See that an id, where one is given, is for one file.

    Raises:
        UsageError: it is for several.
    """
    if object_id is not None and len(names) > 1:
        raise UsageError(f"--id names one object, and there are {len(names)} files")


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Have what goes wrong with a file say which it is."""
    try:
        yield
    except PlasmastreamError as error:
        error.args = (f"{'standard input' if name == STANDARD else name}: {error}",)  # the same error otherwise
        raise


def open_file(name: str) -> AbstractContextManager[BinaryIO]:
    """Open a file to be read; `-` is standard input."""
    return nullcontext(sys.stdin.buffer) if name == STANDARD else Path(name).open("rb")


async def _put_file(store: StoreClient, file: BinaryIO, name: str, object_id: ObjectID, metadata: bytes) -> None:
    status = os.fstat(file.fileno())
    if name == STANDARD or not stat.S_ISREG(status.st_mode):  # its size shows at its end
        await store.put(file.read(), metadata, object_id=object_id)
        return
    async with store.create(object_id, status.st_size, metadata) as unsealed:
        nbytes, after = _read_into(file, unsealed.data), os.fstat(file.fileno())
        if (nbytes, after.st_size, after.st_mtime_ns) != (status.st_size, status.st_size, status.st_mtime_ns):
            raise PlasmastreamError(f"the file of object {object_id} changed while it was read; put it again")
        await unsealed.seal()


def _read_into(file: BinaryIO, memory: memoryview) -> int:
    return file.readinto(memory)  # type: ignore[attr-defined, no-any-return]  # all that buffered files have it


async def get_object(object_id: ObjectID, output: str, timeout: float, path: str) -> None:
    """Write an object's data to a file; `-` is standard output.

    Raises:
        ObjectNotFoundError: it is not there within `timeout` seconds.
    """
    async with open_store_here(path) as store:
        (lease,) = await store.get([object_id], timeout=timeout)
        if lease is None and await store.contains([object_id]) == [True]:
            raise StoreFullError(f"object {object_id} is on disk, and finds no room in memory: all of it is in use")
        if lease is None:
            raise ObjectNotFoundError(f"object {object_id} is not in the store")
        with lease:
            write_output(output, lease.data)


def write_output(output: str, data: memoryview) -> None:
    """Write a file whole; `-` is standard output. Errors name it, as a disk that is full would not."""
    is_standard = output == STANDARD
    try:
        # A writer of our own: that of `sys.stdout` may be unbuffered, and then writes only part of it.
        with open(sys.stdout.fileno() if is_standard else output, "wb", closefd=not is_standard) as file:
            file.write(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output" if is_standard else output) from error


async def remove_objects(object_ids: Sequence[ObjectID], path: str) -> int:
    """Delete objects; each one that is not gone now has a line of its own.

    Returns:
        The exit status: FAILED where an object was not there.
    """
    async with open_store_here(path) as store:
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
