"""Writing a large object: the copy and the digest in one pass, piece by piece, on two processors at once.

A piece is hashed as it comes from memory, and copied while it is still in the cache: hashing is work for the processor,
and hides the wait. The digest of a large object is made of eight parts that nobody needs in order. Both are done
without the interpreter's lock, which is why memory is moved by address here: an assignment between memoryviews keeps
the lock for as long as it takes.
"""

import ctypes
import os
from collections.abc import Callable, Iterable
from threading import Thread

from plasmastream._client._lease import Buffer
from plasmastream._client._watched import address_of
from plasmastream.wire.plasma import LargeDigest, object_digest

_LARGE = 4 << 20  # a thread is worth its start from here on
_PIECE = 256 << 10
_WORKERS = min(2, len(os.sched_getaffinity(0)))


def copy(source: Buffer, into: memoryview) -> None:
    """Copy bytes into memory of the same size, without the interpreter's lock."""
    ctypes.memmove(address_of(into), address_of(source), len(source))


def copy_and_digest(source: Buffer, into: memoryview, metadata: Buffer) -> bytes:
    """Copy bytes into memory of the same size, and compute their digest; they must not change meanwhile.

    Nothing writes there any more when this returns, or raises.
    """
    if len(source) < _LARGE:
        into[:] = source
        return object_digest(into, metadata)
    digest = LargeDigest(len(source))
    view, beginning, end = memoryview(source), address_of(source), address_of(into)
    is_over = False

    def work(parts: Iterable[int]) -> None:
        for part in parts:
            span = digest.spans[part]
            for start in range(span.start, span.stop, _PIECE):
                if is_over:
                    return
                stop = min(start + _PIECE, span.stop)
                digest.update(part, view[start:stop])
                ctypes.memmove(end + start, beginning + start, stop - start)

    parts = range(len(digest.spans))
    threads = [_Beside(work, parts[first::_WORKERS]) for first in range(1, _WORKERS)]
    try:
        for thread in threads:
            thread.start()
        work(parts[::_WORKERS])
    except BaseException:
        is_over = True
        raise
    finally:
        _end_all(threads)
    return digest.result(metadata)


class _Beside(Thread):
    """Some of the work, in a thread."""

    def __init__(self, work: Callable[[Iterable[int]], None], parts: Iterable[int]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._parts = parts
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Do it."""
        try:
            self._work(self._parts)
        except BaseException as error:
            self.failure = error


def _end_all(threads: Iterable[_Beside]) -> None:
    """Wait for threads to end, whatever interrupts that, and however often; then raise what was raised."""
    failure: BaseException | None = None
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except BaseException as error:
                failure = error
        failure = thread.failure or failure
    if failure is not None:
        raise failure
