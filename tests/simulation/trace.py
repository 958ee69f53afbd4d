"""What happens in a simulated world, in order, and what of it must not happen.

A failure is written down rather than raised: code under test would have the chance to catch it.
"""

import hashlib
import logging

import trio


class Trace(logging.Handler):
    """Events in order, with the times at which they happen, and failures among them.

    It is a handler of logs: what the package logs is part of the story, and an error in its log is a failure.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[float, str]] = []
        self.failures: list[str] = []

    def note(self, what: str) -> None:
        """Something happens now."""
        self.events.append((trio.current_time(), what))

    def fail(self, what: str) -> None:
        """Something happens that must not."""
        self.note(f"FAILURE: {what}")
        self.failures.append(what)

    def emit(self, record: logging.LogRecord) -> None:
        """Take in a line of the log."""
        what = f"log: {record.getMessage()}"
        if record.levelno >= logging.ERROR:
            self.fail(what if record.exc_info is None else f"{what}\n{self.format(record)}")
        else:
            self.note(what)

    def lines(self) -> list[str]:
        """The whole story."""
        return [f"{time:12.6f}  {what}" for time, what in self.events]

    def digest(self) -> str:
        """Short, and the same for the same story only."""
        return hashlib.sha256("\n".join(self.lines()).encode()).hexdigest()[:16]
