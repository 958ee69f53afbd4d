"""The log of commands that serve: on standard error, one line an event."""

import logging


def log_to_stderr() -> None:
    """Show what the package reports, from INFO up."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
