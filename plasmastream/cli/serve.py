"""`plasmastream serve`."""

from plasmastream._node import DEFAULT_GRACE, run_node
from plasmastream.cli._log import log_to_stderr
from plasmastream.cli._store_flags import StoreFlags
from plasmastream.cli._types import DEFAULT_SOCKET, Count, Flag, PlasmaSocket, Port, Protocol, Seconds
from plasmastream.peer import DEFAULT_MAX_CONNECTIONS, DEFAULT_PORT


async def serve(
    *,
    port: Port = DEFAULT_PORT,
    host: str = "127.0.0.1",
    plasma_socket: PlasmaSocket = DEFAULT_SOCKET,
    max_connections: Count = DEFAULT_MAX_CONNECTIONS,
    external_store: Flag = False,
    protocol: Protocol = None,
    grace: Seconds = DEFAULT_GRACE,
    new_store: StoreFlags = StoreFlags(),  # noqa: B008  (it is frozen)
) -> None:
    """Serve a store, and its objects to other machines, until Ctrl-C or SIGTERM.

    There is no authentication: whoever reaches the port may read and take every object.

    Parameters
    ----------
    port
        The TCP port; 0 lets the system choose one.
    host
        The address to listen at. The default is reached from this machine only; 0.0.0.0 is all of IPv4.
    plasma_socket
        The store's Unix socket. Where no store answers, one is started.
    max_connections
        Connections of peers at once; more wait.
    external_store
        Fail where no store answers, rather than start one.
    protocol
        The version of the protocol to speak with servers that this one is told to fetch from; the second, unless given,
        and the first with those that know no other.
    grace
        After the first signal, transfers under way have so many seconds; a second signal ends them.
    """
    log_to_stderr()
    await run_node(
        plasma_socket=plasma_socket,
        new_store=new_store.options,
        host=host,
        port=port,
        max_connections=max_connections,
        external_store=external_store,
        fetch_version=protocol,
        grace=grace,
    )
