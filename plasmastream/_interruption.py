"""Signals that end a piece of work which has to clean up behind itself."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def interruptible() -> AsyncIterator[trio.CancelScope]:
    """Cancel the block at SIGINT, SIGTERM or SIGHUP; further ones, while it cleans up, change nothing.

    Yields:
        The scope that the block is in.

    Raises:
        KeyboardInterrupt: one of them came, and the block has ended.
    """
    interrupted = False
    work = trio.CancelScope()

    async def watch(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal interrupted
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                interrupted = True
                work.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(watch)  # it outlives the work and its cleaning up
        with work:
            yield work
        nursery.cancel_scope.cancel()
    if interrupted:
        raise KeyboardInterrupt
