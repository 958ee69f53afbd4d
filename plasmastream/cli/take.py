"""`plasmastream take`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._fetch import fetch
from plasmastream.cli._types import DEFAULT_SOCKET, Ids, PlasmaSocket, Server
from plasmastream.peer import TransferKind


async def take(
    source: Annotated[Server, Parameter(name="HOST:PORT")],
    object_ids: Ids,
    /,
    *,
    plasma_socket: PlasmaSocket = DEFAULT_SOCKET,
) -> None:
    """Fetch objects from another machine, which deletes its own: all of them or none.

    Parameters
    ----------
    source
        The server that has them.
    object_ids
        Which objects.
    plasma_socket
        The Unix socket of the store that gets them.
    """
    await fetch(TransferKind.TAKE, source, object_ids, plasma_socket)
