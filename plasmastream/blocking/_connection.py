"""One end of a connection to a store, waited for by `poll`: every wait has a deadline."""

import math
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self, TypeVar

from plasmastream._client import RETRY_FIRST, RETRY_LAST, Connection, Haste, UnixSocket, connect, no_store_answers
from plasmastream._errors import StoreConnectionError
from plasmastream.wire.plasma import Message

_LONGEST_POLL = 3600.0  # the kernel counts milliseconds in 32 bits

_ReplyT = TypeVar("_ReplyT", bound=Message)


class StoreConnection(Connection[UnixSocket]):
    """A connection that is waited for by `poll`, each time to a deadline."""

    def __init__(self, path: str, transport: UnixSocket, reply_timeout: float) -> None:
        super().__init__(path, transport, reply_timeout)
        self._haste = Haste()

    @classmethod
    def open(cls, path: str, connect_timeout: float, reply_timeout: float) -> Self:
        """Connect, trying again for `connect_timeout` seconds.

        Raises:
            StoreConnectionError: no store answers.
        """
        deadline = time.monotonic() + connect_timeout
        delay = RETRY_FIRST
        while True:
            try:
                return cls(path, UnixSocket(connect(path)), reply_timeout)
            except OSError as error:
                remaining = deadline - time.monotonic()
                if not remaining > 0:  # nor for ever, should it be NaN
                    raise no_store_answers(path, error) from error
            time.sleep(min(delay, remaining))
            delay = min(2 * delay, RETRY_LAST)

    def call(
        self, request: Message, kind: type[_ReplyT], patience: float | None = None
    ) -> tuple[_ReplyT, dict[int, int]]:
        """Send a request, and wait `patience` seconds (`reply_timeout` if not given) for its reply and descriptors.

        It stays busy, for whoever called to say when all consequences are drawn: what is interrupted before that
        is of no use any more.
        """
        (reply,) = self.call_all((request,), kind, patience)
        return reply

    def call_all(
        self, requests: Sequence[Message], kind: type[_ReplyT], patience: float | None = None
    ) -> list[tuple[_ReplyT, dict[int, int]]]:
        """As `call`, for a few small requests that are sent together."""
        patience = self.reply_timeout if patience is None else patience
        deadline = time.monotonic() + patience
        try:
            self.ask(requests)
        except Exception:
            self.is_busy = self._wire.is_owed_a_reply  # what nobody can send has done no harm
            raise
        replies: list[tuple[_ReplyT, dict[int, int]]] = []
        try:
            while not self.flush_nowait():
                self._wait(select.POLLOUT, deadline)
            while len(replies) < len(requests):
                self._receive(deadline)
                replies += self.take_replies(kind, len(requests) - len(replies))
        except TimeoutError:
            raise self.fail(f"did not answer within {patience:g} s") from None
        return replies

    def hang_up(self) -> None:
        """Have another thread, which waits for a reply, give up and close the connection."""
        self.broken = self.broken or f"this client of the store at {self.path} is closed"
        with suppress(OSError):
            self._transport.shut_down()

    def _wait(self, event: int, deadline: float) -> None:
        if self.broken:
            raise StoreConnectionError(self.broken)
        poll = select.poll()
        poll.register(self._transport, event)
        while True:
            remaining = deadline - time.monotonic()
            if poll.poll(math.ceil(1000 * max(0.0, min(remaining, _LONGEST_POLL)))):
                return
            if not remaining > 0:
                raise TimeoutError

    def _receive(self, deadline: float) -> None:
        haste = self._haste
        haste.begin()
        while True:
            if not haste.looks_again():  # which gives the processor to the store: nothing comes sooner than that
                self._wait(select.POLLIN, deadline)
            try:
                received = self._transport.receive_nowait(self._wire.get_buffer())
            except BlockingIOError:
                continue
            except OSError as error:
                raise self.fail_by(error) from error
            else:
                haste.end()
                self.take_in(*received)
                return
