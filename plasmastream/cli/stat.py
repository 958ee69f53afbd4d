"""`plasmastream stat`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._status import print_status
from plasmastream.cli._types import DEFAULT_SOCKET, Flag, Id, PlasmaSocket


async def stat(
    object_id: Annotated[Id, Parameter(name="ID")],
    /,
    *,
    as_json: Annotated[Flag, Parameter(name="--json")] = False,
    plasma_socket: PlasmaSocket = DEFAULT_SOCKET,
) -> None:
    """Show an object: its size, its age, who holds it, and why it cannot be evicted or deleted now.

    Parameters
    ----------
    object_id
        Which object.
    as_json
        Write a JSON object.
    plasma_socket
        The store's Unix socket.
    """
    await print_status(object_id, plasma_socket, as_json=as_json)
