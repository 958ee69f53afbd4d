"""A floor for large puts: the copy alone, by two threads. Nothing is hashed, and no store is asked."""

import ctypes
import mmap

from benchmarks.workers.loop import by_two_threads, serve, timed

_PIECE = 256 << 10  # the fastest, of 64 KiB to 32 MiB


def put(count: int, size: int) -> float:
    """Copy the same memory to the same shared memory again and again."""
    source = bytearray(b"\1") * size
    beginning = ctypes.addressof(ctypes.c_char.from_buffer(source))
    with mmap.mmap(-1, size) as shared:
        first = ctypes.c_char.from_buffer(shared)
        end = ctypes.addressof(first)

        def work(at: int) -> None:
            ctypes.memmove(end + at, beginning + at, min(_PIECE, size - at))

        pieces = range(0, size, _PIECE)
        by_two_threads(work, pieces)  # which makes the memory
        taken = timed(lambda _: by_two_threads(work, pieces), range(count))
        del first
    return taken


serve({"put": put})
