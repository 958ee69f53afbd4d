"""Arrow Flight, of a current pyarrow: one DoGet for all objects, copied as they arrive into memory that is warm.

An object is a record batch of its own, since it must be told from the next; large ones come in batches of 8 MiB.
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

    def receive(count: int, size: int) -> float:
        began = time.perf_counter()
        end = 0
        for chunk in client.do_get(flight.Ticket(f"{count} {size}".encode())):
            column = chunk.data.column(0)
            first = column.offset
            came = memoryview(column.buffers()[1])[first : first + len(column)]
            memory[end : end + len(came)] = came.cast("B")
            end += len(came)
        taken = time.perf_counter() - began
        assert end == count * size, end
        return taken

    serve({"receive": receive})


main()
