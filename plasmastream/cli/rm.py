"""`plasmastream rm`."""

from plasmastream.cli._objects import remove_objects
from plasmastream.cli._types import DEFAULT_SOCKET, Ids, PlasmaSocket


async def rm(object_ids: Ids, /, *, plasma_socket: PlasmaSocket = DEFAULT_SOCKET) -> int:
    """Delete objects from the store. One that is in use goes as soon as it is not.

    Parameters
    ----------
    object_ids
        Which objects.
    plasma_socket
        The store's Unix socket.
    """
    return await remove_objects(object_ids, plasma_socket)
