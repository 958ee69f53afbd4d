"""Writing a large object: the copy and the digest in one pass, piece by piece, on two processors at once.

A piece is hashed as it comes from memory, and copied while it is still in the cache: hashing is work for the processor,
and hides the wait. The digest of a large object is made of eight parts that nobody needs in order. Both are done
without the interpreter's lock, which is why memory is moved by address here: an assignment between memoryviews keeps
the lock for as long as it takes.
"""

import contextlib
import ctypes
import os
from _thread import allocate_lock, start_new_thread

from plasmastream._client._lease import Buffer
from plasmastream._client._watched import address_of
from plasmastream.wire.plasma import LargeDigest, object_digest

_LARGE = 4 << 20  # a thread is worth its start from here on
_PIECE = 256 << 10
_IS_SHARED = len(os.sched_getaffinity(0)) > 1


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
    parts = iter(range(len(digest.spans)))  # whoever is free takes the next
    is_over = False
    failure: BaseException | None = None
    busy = allocate_lock()

    def work() -> None:
        for part in parts:
            span = digest.spans[part]
            for start in range(span.start, span.stop, _PIECE):
                if is_over:
                    return
                stop = min(start + _PIECE, span.stop)
                digest.update(part, view[start:stop])
                ctypes.memmove(end + start, beginning + start, stop - start)

    def work_beside() -> None:
        nonlocal failure
        with busy:
            try:
                work()
            except BaseException as error:
                failure = error

    try:
        if _IS_SHARED:
            # A bare thread: nobody waits until it has started. If it comes too late, there is nothing left to do.
            with contextlib.suppress(RuntimeError):
                start_new_thread(work_beside, ())
        work()
    except BaseException:
        is_over = True
        raise
    finally:
        has_ended = False
        while not has_ended:  # whatever interrupts that, and however often; in place, since a call can be interrupted
            try:
                with busy:
                    has_ended = True
            except BaseException as error:
                failure = error
        view.release()  # a thread that comes too late still knows it, and the source is its owner's again
        if failure is not None:
            raise failure
    return digest.result(metadata)
