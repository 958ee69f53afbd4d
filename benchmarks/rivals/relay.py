"""Three processes on Trio that pass a message on: from this one to a second, to a third, and back the same way.

It is the way of a SYNC of one small object, by nothing but sockets: what is below this no program on Trio can have.
"""

import os
import time
from collections.abc import Callable
from functools import partial

import trio

from benchmarks.rivals.beside import start
from benchmarks.workers.loop import serve

_MOST = 4096
_UNCOUNTED = 20


async def _pass_on(beyond: trio.SocketStream | None, stream: trio.SocketStream) -> None:
    while message := await stream.receive_some(_MOST):
        if beyond is not None:
            await beyond.send_all(message)
            message = await beyond.receive_some(_MOST)
        await stream.send_all(message)


async def _listen(beyond: int | None, ready: Callable[[int], None]) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    onward = None if beyond is None else await trio.open_tcp_stream("127.0.0.1", beyond)
    ready(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(partial(_pass_on, onward), listeners)


async def _ask(port: int, count: int, size: int, share: float) -> float:
    message, taken = os.urandom(size), []
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for _ in range(count):
            began = time.perf_counter()
            await stream.send_all(message)
            assert len(await stream.receive_some(_MOST)) == size
            taken.append(time.perf_counter() - began)
    counted = sorted(taken[_UNCOUNTED:])
    return counted[int(share * len(counted))]


def main() -> None:
    """Be a worker that asks `count` times, by messages of `size` bytes, and tells a time that a share of them kept."""
    last = start(lambda ready: trio.run(_listen, None, ready))
    first = start(lambda ready: trio.run(_listen, last, ready))
    serve({"ask": lambda count, size, share: trio.run(_ask, first, count, size, share)})


main()
