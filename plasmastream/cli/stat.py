"""`plasmastream stat`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._run import UsageError
from plasmastream.cli._status import print_status
from plasmastream.cli._types import DEFAULT_SOCKET, Flag, Id, Seconds, StoreHere, StoreThere


async def stat(
    object_id: Annotated[Id, Parameter(name="ID")],
    /,
    *,
    as_json: Annotated[Flag, Parameter(name="--json")] = False,
    plasma_socket: StoreHere = DEFAULT_SOCKET,
    at: StoreThere = None,
    timeout: Annotated[Seconds | None, Parameter(show_default=False)] = None,
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
    at
        The server that has it, which tells its size, age, state and references.
    timeout
        With --at: how long the server may take, in seconds.
    """
    if at is not None:
        from plasmastream.cli._remote import print_status_at

        await print_status_at(object_id, at, timeout=timeout, as_json=as_json)
        return
    if timeout is not None:
        raise UsageError("--timeout is for --at: a store here answers at once")
    await print_status(object_id, plasma_socket, as_json=as_json)
