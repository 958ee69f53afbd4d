"""What a cancel may not break off: it is done to its end, and the task hears of the cancel then.

Trio and anyio have shields for that. asyncio's own cancel (`Task.cancel`, and with it `asyncio.timeout`, `wait_for` and
`TaskGroup`) takes no notice of them: it is raised wherever the task waits, and has to be caught there.
"""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import trio

_T = TypeVar("_T")


async def checkpoint_if_cancelled() -> None:
    """Raise what cancels this task, if anything does, also where that is asyncio's own; others seldom run."""
    if trio.lowlevel.in_trio_task():
        await trio.lowlevel.checkpoint_if_cancelled()
    else:
        await anyio.lowlevel.checkpoint_if_cancelled()
        await _notice_cancel()


async def notice_cancel() -> None:
    """Raise a cancel of asyncio's own that was put off; any other waits for the next checkpoint."""
    if not trio.lowlevel.in_trio_task():
        await _notice_cancel()


async def _notice_cancel() -> None:
    task = asyncio.current_task()
    if task is not None and task.cancelling():  # as it is, too, where somebody has caught the cancel and goes on
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(0)


def put_off(cancel: asyncio.CancelledError) -> None:
    """Have asyncio raise a cancel again that was caught, where this task waits next: see `notice_cancel`."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()  # it was counted when it first came
    task.cancel(*cancel.args)


async def finish(work: Coroutine[Any, Any, _T]) -> _T:
    """Do something to its end; a cancel is noticed after that."""
    if trio.lowlevel.in_trio_task():
        with anyio.CancelScope(shield=True):
            return await work
    return await _finish(asyncio.ensure_future(work))


async def finish_in_thread(function: Callable[..., _T], *arguments: object) -> _T:
    """As `finish`, for a function that runs in a thread: nobody may take the memory away that it uses."""
    if trio.lowlevel.in_trio_task():
        return await anyio.to_thread.run_sync(partial(function, *arguments))
    # No task, which would be cancelled with all others when the loop ends.
    return await _finish(asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments)))


async def _finish(future: asyncio.Future[_T]) -> _T:
    caught: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as cancel:
                caught = cancel
    if caught is not None:
        raise caught
    return future.result()
