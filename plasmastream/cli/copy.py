"""`plasmastream copy`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._fetch import fetch
from plasmastream.cli._types import DEFAULT_SOCKET, Ids, PlasmaSocket, Server
from plasmastream.peer import TransferKind


async def copy(
    source: Annotated[Server, Parameter(name="HOST:PORT")],
    object_ids: Ids,
    /,
    *,
    plasma_socket: PlasmaSocket = DEFAULT_SOCKET,
) -> None:
    """Fetch objects from another machine into the store: all of them or none.

    Parameters
    ----------
    source
        The server that has them.
    object_ids
        Which objects.
    plasma_socket
        The Unix socket of the store that gets them.
    """
    await fetch(TransferKind.COPY, source, object_ids, plasma_socket)
