"""`plasmastream copy`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._fetch import fetch
from plasmastream.cli._types import DEFAULT_SOCKET, Compression, Ids, PlasmaSocket, Protocol, Seconds, Server
from plasmastream.peer import TransferKind


async def copy(
    source: Annotated[Server, Parameter(name="HOST:PORT")],
    object_ids: Ids,
    /,
    *,
    timeout: Annotated[Seconds | None, Parameter(show_default=False)] = None,
    compression: Compression = None,
    protocol: Protocol = None,
    plasma_socket: PlasmaSocket = DEFAULT_SOCKET,
) -> int:
    """Fetch objects from another machine into the store, each with an outcome of its own.

    Each that fails has a line on standard error. What is there already is neither fetched again nor compared.

    Parameters
    ----------
    source
        The server that has them.
    object_ids
        Which objects.
    timeout
        How long all of it may take, in seconds, and a peer that cannot be reached is tried again; without it, as long
        as something moves.
    compression
        What the objects are compressed with on their way, where the server knows it too; nothing, unless given.
    protocol
        The version of the protocol to speak; the second, unless given, and the first with a server that knows no other.
    plasma_socket
        The Unix socket of the store that gets them.
    """
    return await fetch(
        TransferKind.COPY,
        source,
        object_ids,
        plasma_socket,
        timeout=timeout,
        compression=compression,
        version=protocol,
    )
