"""A progress display on standard error, where that is a terminal; nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator
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
def show_progress(label: str, objects: int) -> Iterator[Callable[[int, int], None]]:
    """Show how many of `objects` objects have arrived, until the block is left.

    Yields:
        What to call with (objects, bytes) that have arrived since the last call.
    """
    if not is_shown():
        yield lambda objects, nbytes: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("objects, {task.fields[arrived]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=objects, arrived="0 bytes")
        total = 0

        def report(objects: int, nbytes: int) -> None:
            nonlocal total
            total += nbytes
            progress.update(task, advance=objects, arrived=in_words(total))

        yield report
