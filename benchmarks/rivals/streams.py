"""What the rivals that are bare loops share: a child sends over TCP, this process receives and takes the time.

A request is one line, "COUNT SIZE"; what follows is COUNT times SIZE bytes.
"""

import os
import socket
import time
from collections.abc import Callable

from benchmarks.workers.loop import serve


def compete(
    send: Callable[[socket.socket, int, int], None], receive: Callable[[socket.socket, int, int], None]
) -> None:
    """Be a worker with one piece of work, `receive`: a fork of this process sends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        if os.fork() == 0:
            sock, _ = listener.accept()
            requests = sock.makefile()
            while line := requests.readline():
                send(sock, *map(int, line.split()))
            os._exit(0)
    sock = socket.create_connection(address)

    def work(count: int, size: int) -> float:
        start = time.perf_counter()
        sock.sendall(f"{count} {size}\n".encode())
        receive(sock, count, size)
        return time.perf_counter() - start

    serve({"receive": work})
    sock.close()
