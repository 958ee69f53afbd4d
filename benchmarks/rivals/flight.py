"""Arrow Flight, of a current pyarrow: objects are copied as they arrive into memory that is warm.

`receive`: one DoGet for all objects. An object is a record batch of its own, which one can take as it comes; large ones
have several of 8 MiB. All objects arrive, or the call fails as a whole.

`receive_table`: one DoGet for all objects, as the values of one column: the fewest bytes around them, and no object is
there before the last one is.

`receive_each`: a DoGet for each object, one after the other, so that each can fail, or be missing, by itself. It is
done for the first thousand, and counted for all.
"""

import mmap
import time
from array import array
from collections.abc import Callable
from functools import cache, partial

import pyarrow as pa
from pyarrow import flight

from benchmarks.rivals.beside import start
from benchmarks.workers.loop import serve

_MOST = 1 << 30
_PIECE = 8 << 20
_EACH = 1000
_SCHEMA = pa.schema([("bytes", pa.uint8())])


class _Server(flight.FlightServerBase):  # type: ignore[misc]
    def do_get(self, context: object, ticket: flight.Ticket) -> flight.RecordBatchStream:
        how, *sizes = ticket.ticket.split()
        stored = _in_one_column if how == b"table" else _in_batches
        return flight.RecordBatchStream(stored(*map(int, sizes)))


@cache
def _data() -> pa.Buffer:
    return pa.py_buffer(bytes(_MOST))


@cache
def _in_batches(count: int, size: int) -> pa.Table:
    data = pa.Array.from_buffers(pa.uint8(), _MOST, [None, _data()])
    batches = []
    for number in range(count):
        for first in range(0, size, _PIECE):
            at = (number * size) % (_MOST - size + 1) + first
            piece = data.slice(at, min(_PIECE, size - first))
            batches.append(pa.record_batch([piece], schema=_SCHEMA))
    return pa.Table.from_batches(batches)


@cache
def _in_one_column(count: int, size: int) -> pa.Table:
    offsets = pa.py_buffer(array("q", range(0, count * size + 1, size)))
    return pa.table({"bytes": pa.Array.from_buffers(pa.large_binary(), count, [None, offsets, _data()])})


def _serve(ready: Callable[[int], None]) -> None:
    server = _Server("grpc://127.0.0.1:0")
    ready(server.port)
    server.serve()


def main() -> None:
    """Be a worker with one piece of work, `receive`: another process serves."""
    client = flight.connect(f"grpc://127.0.0.1:{start(_serve)}")
    memory = memoryview(mmap.mmap(-1, _MOST))
    memory[:] = bytes(_MOST)

    def fetch(how: str, count: int, size: int, at: int) -> int:
        for chunk in client.do_get(flight.Ticket(f"{how} {count} {size}".encode())):
            column = chunk.data.column(0)
            if how == "table":
                came = memoryview(column.buffers()[2])[: count * size]
            else:
                came = memoryview(column.buffers()[1])[column.offset : column.offset + len(column)]
            memory[at : at + len(came)] = came.cast("B")
            at += len(came)
        return at

    def receive(how: str, count: int, size: int) -> float:
        began = time.perf_counter()
        end = fetch(how, count, size, 0)
        taken = time.perf_counter() - began
        assert end == count * size, end
        return taken

    def receive_each(count: int, size: int) -> float:
        done = min(count, _EACH)
        return sum(receive("batches", 1, size) for _ in range(done)) * count / done

    serve(
        {
            "receive": partial(receive, "batches"),
            "receive_table": partial(receive, "table"),
            "receive_each": receive_each,
        }
    )


main()
