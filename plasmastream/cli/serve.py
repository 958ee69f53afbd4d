"""`plasmastream serve`."""

from plasmastream._node import DEFAULT_GRACE, DEFAULT_MEMORY, run_node
from plasmastream.cli._log import log_to_stderr
from plasmastream.cli._types import DEFAULT_SOCKET, Count, Directory, Flag, PlasmaSocket, Port, Seconds, Size
from plasmastream.peer import DEFAULT_MAX_CONNECTIONS, DEFAULT_PORT


async def serve(
    *,
    port: Port = DEFAULT_PORT,
    host: str = "127.0.0.1",
    plasma_socket: PlasmaSocket = DEFAULT_SOCKET,
    memory: Size = DEFAULT_MEMORY,
    directory: Directory = None,
    huge_pages: Flag = False,
    max_connections: Count = DEFAULT_MAX_CONNECTIONS,
    external_store: Flag = False,
    grace: Seconds = DEFAULT_GRACE,
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
    memory
        Capacity of a store that is started: 4GiB, 256MiB, 10GB, or bytes.
    directory
        A store that is started takes its memory from the file system of this directory, rather than from none.
    huge_pages
        A store that is started takes huge pages, of which the machine must have enough (vm.nr_hugepages).
    max_connections
        Connections of peers at once; more wait.
    external_store
        Fail where no store answers, rather than start one.
    grace
        After the first signal, transfers under way have so many seconds; a second signal ends them.
    """
    log_to_stderr()
    await run_node(
        plasma_socket=plasma_socket,
        memory=memory,
        host=host,
        port=port,
        max_connections=max_connections,
        directory=directory,
        huge_pages=huge_pages,
        external_store=external_store,
        grace=grace,
    )
