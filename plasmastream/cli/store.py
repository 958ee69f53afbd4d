"""`plasmastream store`."""

from plasmastream._node import DEFAULT_MEMORY, run_store
from plasmastream.cli._log import log_to_stderr
from plasmastream.cli._types import DEFAULT_SOCKET, Directory, Flag, PlasmaSocket, Size


async def store(
    *,
    plasma_socket: PlasmaSocket = DEFAULT_SOCKET,
    memory: Size = DEFAULT_MEMORY,
    directory: Directory = None,
    huge_pages: Flag = False,
) -> None:
    """Serve a store to the processes of this machine, until Ctrl-C or SIGTERM.

    Parameters
    ----------
    plasma_socket
        The Unix socket to serve at.
    memory
        What all objects together may have: 4GiB, 256MiB, 10GB, or bytes. Taken from the machine at the start.
    directory
        Take the memory from the file system of this directory, rather than from none.
    huge_pages
        Take huge pages, of which the machine must have enough (vm.nr_hugepages).
    """
    log_to_stderr()
    await run_store(plasma_socket, memory, directory=directory, huge_pages=huge_pages)
