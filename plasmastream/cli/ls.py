"""`plasmastream ls`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._listing import print_objects
from plasmastream.cli._types import DEFAULT_SOCKET, Flag, PlasmaSocket


async def ls(
    *,
    long: Annotated[Flag, Parameter(name=("--long", "-l"))] = False,
    as_json: Annotated[Flag, Parameter(name="--json")] = False,
    plasma_socket: PlasmaSocket = DEFAULT_SOCKET,
) -> None:
    """List the objects in the store, oldest first.

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
    """
    await print_objects(plasma_socket, long=long, as_json=as_json)
