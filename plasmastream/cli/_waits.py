"""Saying what a command waits for: one line on standard error, when nothing has moved for some seconds."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from plasmastream.cli._run import complain

_QUIET = 3.0  # seconds


class Watch(logging.Handler):
    """What a command knows of how it gets on: how far it has come, and what was said last of what is in its way."""

    def __init__(self, peer: object) -> None:
        super().__init__(logging.INFO)
        self.peer = peer
        """What it waits for, in words."""
        self._reached: object = None
        self._is_moving = True
        self._reason = ""

    def moved(self) -> None:
        """Say that something has moved."""
        self._is_moving = True

    def reached(self, amount: object) -> None:
        """Say how far it has come, where the same may be said again; at first, where it begins."""
        if self._reached not in (None, amount):
            self._is_moving = True
        self._reached = amount

    def emit(self, record: logging.LogRecord) -> None:
        """Take what the package says of its attempts."""
        self._reason = record.getMessage()

    async def tell(self) -> None:
        """Wait until nothing moves, and say so."""
        while self._is_moving:
            self._is_moving = False
            await trio.sleep(_QUIET)
        reason = f"; {self._reason}" if self._reason else ""
        complain("plasmastream", f"waiting for {self.peer}: nothing has moved for {_QUIET:g} s{reason}")


@asynccontextmanager
async def watching(peer: object) -> AsyncIterator[Watch]:
    """Tell, once, what the block waits for, should nothing move in it for some seconds."""
    watch, log = Watch(peer), logging.getLogger("plasmastream.peer")
    before, failure = log.level, None
    log.setLevel(logging.INFO)
    log.addHandler(watch)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.tell)
            try:
                yield watch
            except Exception as error:  # passed on as it is, and not as a group of one
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        log.removeHandler(watch)
        log.setLevel(before)
    if failure is not None:
        raise failure
