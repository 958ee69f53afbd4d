"""Accepting connections, the same way behind every listener of the package."""

import errno
import logging
import socket
from collections.abc import Awaitable, Callable

import trio

from plasmastream._os_errors import reason_of

_log = logging.getLogger(__name__)

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_RETRY_AFTER = 0.1


async def accept_connections(
    listener: socket.socket,
    serve: Callable[[socket.socket], Awaitable[None]],
    nursery: trio.Nursery,
    max_connections: int,
    owner: str,
) -> None:
    """Accept connections until cancelled, and serve each in a task of the nursery.

    At `max_connections` the listener is left alone until one ends: who comes then waits in the kernel's queue. That is
    logged once, until there has been a free place again. When this process or machine runs out of descriptors or
    memory, accepting pauses, says so once, and goes on later. An unexpected error while serving one connection is
    logged, and ends that connection only.

    Args:
        listener: a listening socket, non-blocking.
        serve: serves a connection, owns its socket.
        nursery: where connections are served.
        max_connections: how many at once.
        owner: whose connections they are, for the log.
    """
    slots = trio.Semaphore(max_connections)

    async def serve_one(sock: socket.socket) -> None:
        try:
            await serve(sock)
        except Exception:
            _log.exception("a connection ended by an error that nobody expected; please report it")
        finally:
            sock.close()
            slots.release()

    is_told = False
    while True:
        if slots.value:
            is_told = False
        elif not is_told:
            _log.warning("%s is at its limit of connections, %d: others wait until one ends", owner, max_connections)
            is_told = True
        await slots.acquire()
        nursery.start_soon(serve_one, await _accept(listener))


async def _accept(listener: socket.socket) -> socket.socket:
    is_paused = False
    while True:
        try:
            return listener.accept()[0]
        except BlockingIOError:
            await trio.lowlevel.wait_readable(listener)
        except ConnectionError:
            continue  # whoever it was is gone again
        except OSError as error:
            if error.errno not in _OUT_OF_RESOURCES:
                raise
            if not is_paused:
                _log.warning("no connection can be accepted for now: %s", reason_of(error))
            is_paused = True
            await trio.sleep(_RETRY_AFTER)
