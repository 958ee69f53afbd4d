"""`plasmastream store`."""

from plasmastream._node import run_store
from plasmastream.cli._log import log_to_stderr
from plasmastream.cli._store_flags import StoreFlags
from plasmastream.cli._types import DEFAULT_SOCKET, PlasmaSocket


async def store(*, plasma_socket: PlasmaSocket = DEFAULT_SOCKET, new_store: StoreFlags = StoreFlags()) -> None:  # noqa: B008
    """Serve a store to the processes of this machine, until Ctrl-C or SIGTERM.

    Parameters
    ----------
    plasma_socket
        The Unix socket to serve at.
    """
    log_to_stderr()
    await run_store(plasma_socket, new_store.options)
