"""`plasma-stream-server`: the first implementation's server, by its flags."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream._node import StoreOptions, run_node
from plasmastream.cli._log import log_to_stderr
from plasmastream.cli._types import DEFAULT_SOCKET, Count, PlasmaSocket, Port
from plasmastream.peer import DEFAULT_MAX_CONNECTIONS, DEFAULT_PORT, ServerTimeouts


async def stream_server(
    *,
    port: Annotated[Port, Parameter(name=("--port", "-p"))] = DEFAULT_PORT,
    plasma_socket: PlasmaSocket = DEFAULT_SOCKET,
    plasma_timeout: Annotated[Count, Parameter(name=("--plasma-timeout", "-t"))] = 10,
    max_connections: Annotated[Count, Parameter(name=("--max-connections", "-c"))] = DEFAULT_MAX_CONNECTIONS,
) -> None:
    """Serve an existing store's objects to peers on 127.0.0.1, until Ctrl-C or SIGTERM.

    Parameters
    ----------
    port
        The TCP port.
    plasma_socket
        The store's Unix socket; a store must be there.
    plasma_timeout
        How long to wait for objects that are asked for and not there yet, in milliseconds.
    max_connections
        Connections of peers at once; more wait.
    """
    log_to_stderr()
    await run_node(
        plasma_socket=plasma_socket,
        new_store=StoreOptions(),
        host="127.0.0.1",
        port=port,
        max_connections=max_connections,
        external_store=True,
        timeouts=ServerTimeouts(objects=plasma_timeout / 1000),
    )
