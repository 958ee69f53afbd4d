"""The log of commands that serve: on standard error, one line an event, whatever a peer has put into its words."""

import logging

from plasmastream.cli._run import printable


def log_to_stderr() -> None:
    """Show what the package reports, from INFO up."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class _OneLine(logging.Formatter):
    """Tracebacks, which follow the line, are as they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return printable(super().formatMessage(record))
