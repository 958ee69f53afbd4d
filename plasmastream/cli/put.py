"""`plasmastream put`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._objects import put_files
from plasmastream.cli._run import ExitStatus, UsageError
from plasmastream.cli._types import DEFAULT_SOCKET, Compression, Id, Seconds, StoreHere, StoreThere


async def put(
    files: Annotated[tuple[str, ...], Parameter(name="FILE...", allow_leading_hyphen=True, negative=())],
    /,
    *,
    object_id: Annotated[Id | None, Parameter(name="--id")] = None,
    metadata: str = "",
    plasma_socket: StoreHere = DEFAULT_SOCKET,
    to: StoreThere = None,
    timeout: Annotated[Seconds | None, Parameter(show_default=False)] = None,
    compression: Compression = None,
) -> int:
    """Put files into the store, or into that of a peer, and print the id of each object, a line each.

    Parameters
    ----------
    files
        What to put; `-` is standard input.
    object_id
        The id to give, 40 hexadecimal digits; with one file only. Without it, each object gets a random one.
    metadata
        Text to be the metadata of each object.
    plasma_socket
        The store's Unix socket.
    to
        The server whose store gets them; none is needed here then. What is there already under the id is left alone:
        it is an error where it differs, and said otherwise.
    timeout
        With --to: how long all of it may take, in seconds, and a peer that cannot be reached is tried again; without
        it, as long as something moves.
    compression
        With --to: what the files are compressed with on their way, where the server knows it too; nothing, unless
        given.
    """
    if to is not None:
        from plasmastream.cli._remote import put_files_there

        return await put_files_there(
            files, object_id, metadata.encode(), to, timeout=timeout, compression=compression
        )
    if timeout is not None or compression is not None:
        raise UsageError("--timeout and --compress are for --to: what goes into the store here does not travel")
    await put_files(files, object_id, metadata.encode(), plasma_socket)
    return ExitStatus.DONE
