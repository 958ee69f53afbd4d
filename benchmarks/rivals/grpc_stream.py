"""gRPC (grpcio): one call that answers with a stream of messages, copied as they arrive into memory that is warm.

An object is a message of its own; large ones come in messages of 1 MiB.
"""

import mmap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from benchmarks.rivals.beside import start
from benchmarks.workers.loop import serve

_MOST = 1 << 30
_PIECE = 1 << 20


def _objects(request: bytes, context: object) -> Iterator[bytes]:
    count, size = map(int, request.split())
    pieces = [bytes(min(_PIECE, size - first)) for first in range(0, size, _PIECE)]
    for _ in range(count):
        yield from pieces


def _serve(ready: Callable[[int], None]) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    handler = grpc.unary_stream_rpc_method_handler(_objects)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("objects", {"fetch": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ready(port)
    server.wait_for_termination()


def main() -> None:
    """Be a worker with one piece of work, `receive`: another process serves."""
    channel = grpc.insecure_channel(f"127.0.0.1:{start(_serve)}")
    fetch = channel.unary_stream("/objects/fetch")
    memory = memoryview(mmap.mmap(-1, _MOST))
    memory[:] = bytes(_MOST)

    def receive(count: int, size: int) -> float:
        began = time.perf_counter()
        end = 0
        for message in fetch(f"{count} {size}".encode()):
            memory[end : end + len(message)] = message
            end += len(message)
        taken = time.perf_counter() - began
        assert end == count * size, end
        return taken

    serve({"receive": receive})


main()
