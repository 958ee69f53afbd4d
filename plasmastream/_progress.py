"""A progress display on standard error, where that is a terminal; nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def is_shown() -> bool:
    """Whether there is a terminal to show progress on."""
    return sys.stderr.isatty()


def in_words(nbytes: float) -> str:
    """Write a number of bytes with three digits and a decimal unit: 1.23 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.0f} {unit}" if unit == "bytes" or nbytes >= 99.5 else f"{nbytes:#.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.3g} TB"


@contextmanager
def show_bars(bars: Sequence[tuple[str, int]]) -> Iterator[Callable[[Sequence[tuple[int, int]]], None]]:
    """Show a bar for each (label, objects), until the block is left.

    Yields:
        What to call with the (objects, bytes) of each bar so far.
    """
    if not is_shown():
        yield lambda amounts: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("objects, {task.fields[arrived]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks = [progress.add_task(label, total=objects, arrived=in_words(0)) for label, objects in bars]

        def report(amounts: Sequence[tuple[int, int]]) -> None:
            for task, (objects, nbytes) in zip(tasks, amounts, strict=True):
                progress.update(task, completed=objects, arrived=in_words(nbytes))

        yield report


@contextmanager
def show_progress(label: str, objects: int) -> Iterator[Callable[[int, int], None]]:
    """Show how many of `objects` objects have arrived, until the block is left.

    Yields:
        What to call with (objects, bytes) that have arrived since the last call.
    """
    arrived, received = 0, 0
    with show_bars([(label, objects)]) as show:

        def report(objects: int, nbytes: int) -> None:
            nonlocal arrived, received
            arrived += objects
            received += nbytes
            show([(arrived, received)])

        yield report


@contextmanager
def show_steps(label: str, steps: int) -> Iterator[Callable[[str, float], None]]:
    """Show which of so many steps is being done, until the block is left.

    Yields:
        What to call with the step's name, and how many are done: parts of one count.
    """
    if not is_shown():
        yield lambda step, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=steps)
        yield lambda step, done: progress.update(task, description=f"{label}: {step}", completed=done)
