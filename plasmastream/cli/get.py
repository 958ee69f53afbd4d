"""`plasmastream get`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._objects import get_object
from plasmastream.cli._types import DEFAULT_SOCKET, Id, PlasmaSocket, Seconds


async def get(
    object_id: Annotated[Id, Parameter(name="ID")],
    /,
    *,
    output: Annotated[str, Parameter(name=("--output", "-o"), allow_leading_hyphen=True)] = "-",
    timeout: Seconds = 0.0,
    plasma_socket: PlasmaSocket = DEFAULT_SOCKET,
) -> None:
    """Write the data of an object to standard output, or to a file.

    Parameters
    ----------
    object_id
        Which object.
    output
        The file; `-` is standard output.
    timeout
        How long to wait for the object, in seconds.
    plasma_socket
        The store's Unix socket.
    """
    await get_object(object_id, output, timeout, plasma_socket)
