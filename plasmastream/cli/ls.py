"""`plasmastream ls`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._listing import print_objects
from plasmastream.cli._run import UsageError
from plasmastream.cli._types import DEFAULT_SOCKET, Flag, Seconds, StoreHere, StoreThere


async def ls(
    *,
    long: Annotated[Flag, Parameter(name=("--long", "-l"))] = False,
    as_json: Annotated[Flag, Parameter(name="--json")] = False,
    plasma_socket: StoreHere = DEFAULT_SOCKET,
    at: StoreThere = None,
    timeout: Annotated[Seconds | None, Parameter(show_default=False)] = None,
) -> None:
    """List the objects in the store, or in that of a peer, oldest first.

    Id, bytes of data and of metadata, state, references, and age in seconds. Where the output is not a terminal, the
    columns are separated by tabs and have no headings.

    Parameters
    ----------
    long
        Show as well when each object was used last, and who holds it since when. Apache's store does not tell.
    as_json
        Write a JSON array.
    plasma_socket
        The store's Unix socket.
    at
        The server whose objects to list. It goes without --long.
    timeout
        With --at: how long the server may take, in seconds.
    """
    if at is not None:
        from plasmastream.cli._remote import print_objects_at

        if long:
            raise UsageError("--long asks a store: a peer does not tell who holds its objects")
        await print_objects_at(at, timeout=timeout, as_json=as_json)
        return
    if timeout is not None:
        raise UsageError("--timeout is for --at: a store here answers at once")
    await print_objects(plasma_socket, long=long, as_json=as_json)
