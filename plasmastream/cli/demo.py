"""`plasmastream demo`."""

from plasmastream._demo import DEFAULT_COUNT, DEFAULT_SIZE, run_demo
from plasmastream.cli._types import Count, Size


async def demo(*, size: Size = DEFAULT_SIZE, count: Count = DEFAULT_COUNT) -> None:
    """Move objects between two nodes on this machine, verify them, and show how long it took.

    Parameters
    ----------
    size
        Of the large object: 256MiB, or bytes.
    count
        How many small objects there are, of 1 KiB each.
    """
    await run_demo(size, count)
