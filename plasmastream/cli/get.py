"""`plasmastream get`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._objects import get_object
from plasmastream.cli._run import ExitStatus
from plasmastream.cli._types import DEFAULT_SOCKET, Id, Seconds, StoreHere, StoreThere


async def get(
    object_id: Annotated[Id, Parameter(name="ID")],
    /,
    *,
    output: Annotated[str, Parameter(name=("--output", "-o"), allow_leading_hyphen=True)] = "-",
    timeout: Seconds | None = None,
    plasma_socket: StoreHere = DEFAULT_SOCKET,
    source: Annotated[StoreThere, Parameter(name="--from")] = None,
) -> int:
    """Write the data of an object, of the store or of a peer's, to standard output or to a file.

    Parameters
    ----------
    object_id
        Which object.
    output
        The file; `-` is standard output.
    timeout
        How long to wait for the object, in seconds: not at all, unless said otherwise. With --from, how long all of
        it may take: as long as something moves, unless said otherwise.
    plasma_socket
        The store's Unix socket.
    source
        The server that has it. No store is needed here then, but memory for all of the object.
    """
    if source is not None:
        from plasmastream.cli._remote import get_object_from

        return await get_object_from(object_id, output, timeout, source)
    await get_object(object_id, output, timeout or 0.0, plasma_socket)
    return ExitStatus.DONE
