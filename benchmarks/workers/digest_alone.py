"""A floor for large puts: the digest alone, by two threads. Nothing is copied, and no store is asked."""

from benchmarks.workers.loop import by_two_threads, serve, timed
from plasmastream.wire.plasma import LargeDigest


def put(count: int, size: int) -> float:
    """Hash the same memory again and again, in the parts that the protocol says."""
    data = memoryview(b"\1" * size)

    def one(_: int) -> None:
        digest = LargeDigest(size)

        def work(part: int) -> None:
            span = digest.spans[part]
            digest.update(part, data[span.start : span.stop])

        by_two_threads(work, range(len(digest.spans)))
        digest.result()

    return timed(one, range(count))


serve({"put": put})
