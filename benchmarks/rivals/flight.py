"""Arrow Flight, of a current pyarrow: objects are copied as they arrive into memory that is warm.

`receive`: one DoGet for all objects. An object is a record batch of its own, since it must be told from the next; large
ones come in batches of 8 MiB. Here all objects arrive, or the call fails as a whole.

`receive_each`: a DoGet for each object, one after the other, so that each can fail, or be missing, by itself.
"""

import mmap
import time
from collections.abc import Callable, Iterator

import pyarrow as pa
from pyarrow import flight

from benchmarks.rivals.beside import start
from benchmarks.workers.loop import serve

_MOST = 1 << 30
_PIECE = 8 << 20
_SCHEMA = pa.schema([("bytes", pa.uint8())])


class _Server(flight.FlightServerBase):  # type: ignore[misc]
    _data = pa.Array.from_buffers(pa.uint8(), _MOST, [None, pa.py_buffer(bytes(_MOST))])

    def do_get(self, context: object, ticket: flight.Ticket) -> flight.GeneratorStream:
        count, size = map(int, ticket.ticket.split())
        return flight.GeneratorStream(_SCHEMA, self._objects(count, size))

    def _objects(self, count: int, size: int) -> Iterator[pa.RecordBatch]:
        for number in range(count):
            for first in range(0, size, _PIECE):
                at = (number * size) % (_MOST - size + 1) + first
                piece = self._data.slice(at, min(_PIECE, size - first))
                yield pa.record_batch([piece], schema=_SCHEMA)


def _serve(ready: Callable[[int], None]) -> None:
    server = _Server("grpc://127.0.0.1:0")
    ready(server.port)
    server.serve()


def main() -> None:
    """Be a worker with one piece of work, `receive`: another process serves."""
    client = flight.connect(f"grpc://127.0.0.1:{start(_serve)}")
    memory = memoryview(mmap.mmap(-1, _MOST))
    memory[:] = bytes(_MOST)

    def fetch(count: int, size: int, at: int) -> int:
        for chunk in client.do_get(flight.Ticket(f"{count} {size}".encode())):
            column = chunk.data.column(0)
            first = column.offset
            came = memoryview(column.buffers()[1])[first : first + len(column)]
            memory[at : at + len(came)] = came.cast("B")
            at += len(came)
        return at

    def receive(count: int, size: int) -> float:
        began = time.perf_counter()
        end = fetch(count, size, 0)
        taken = time.perf_counter() - began
        assert end == count * size, end
        return taken

    def receive_each(count: int, size: int) -> float:
        began = time.perf_counter()
        end = 0
        for _ in range(count):
            end = fetch(1, size, end)
        taken = time.perf_counter() - began
        assert end == count * size, end
        return taken

    serve({"receive": receive, "receive_each": receive_each})


main()
