"""A server beside its client: a fork of this process, which ends when this one does."""

import os
import threading
from collections.abc import Callable


def start(serve: Callable[[Callable[[int], None]], None]) -> int:
    """Fork, and have the child serve; it calls back with the port once it does.

    Returns:
        The port.
    """
    ports, lives = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(lives[1])
        threading.Thread(target=_end_with_parent, args=(lives[0],), daemon=True).start()
        serve(lambda port: _tell(ports[1], port))
        os._exit(0)
    return int(os.read(ports[0], 100))


def _tell(pipe: int, port: int) -> None:
    os.write(pipe, str(port).encode())


def _end_with_parent(pipe: int) -> None:
    os.read(pipe, 1)  # at the parent's end
    os._exit(0)
