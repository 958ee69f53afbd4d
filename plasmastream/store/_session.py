"""One connection to a store, waited for on Trio or asyncio."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Self, TypeVar

import anyio
import anyio.lowlevel

from plasmastream._client import RETRY_FIRST, RETRY_LAST, Connection, connect, no_store_answers
from plasmastream._errors import StoreConnectionError
from plasmastream.store._finishing import put_off
from plasmastream.store._transport import UnixTransport
from plasmastream.wire.plasma import Message

_ReplyT = TypeVar("_ReplyT", bound=Message)


class StoreConnection(Connection[UnixTransport]):
    """One connection to a store: each reply is waited for to a deadline."""

    def __init__(self, path: str, sock: socket.socket, reply_timeout: float) -> None:
        super().__init__(path, UnixTransport(sock), reply_timeout)

    @classmethod
    async def open(cls, path: str, connect_timeout: float, reply_timeout: float) -> Self:
        """Connect, trying again for `connect_timeout` seconds.

        Raises:
            StoreConnectionError: no store answers.
        """
        deadline = anyio.current_time() + connect_timeout
        delay = RETRY_FIRST
        while True:
            await anyio.lowlevel.checkpoint()
            try:
                return cls(path, connect(path), reply_timeout)
            except OSError as error:
                if anyio.current_time() >= deadline:
                    raise no_store_answers(path, error) from error
            await anyio.sleep(delay)
            delay = min(2 * delay, RETRY_LAST)

    def check(self) -> None:
        """See that the store has not gone; it is not asked, and nothing is read.

        Raises:
            StoreConnectionError: it has.
        """
        if self.broken:
            raise StoreConnectionError(self.broken)
        if self._transport.has_hung_up():  # who waits for a reply hears of it as well, and closes the socket
            raise StoreConnectionError(f"the store at {self.path} closed the connection")

    async def call(self, request: Message, kind: type[_ReplyT]) -> tuple[_ReplyT, dict[int, int]]:
        """Send a request and wait for its reply, with the descriptors that came along.

        Not to be cancelled half-way, since nobody would know what the store has done; so it is shielded, for as
        long as `reply_timeout` at most.
        """
        (reply,) = await self.call_all((request,), kind)
        return reply

    async def call_all(self, requests: Sequence[Message], kind: type[_ReplyT]) -> list[tuple[_ReplyT, dict[int, int]]]:
        """As `call`, for a few small requests that are sent together.

        No shield keeps asyncio's own cancel away: it is put off until the replies are there, see `notice_cancel`.
        """
        waiting = partial(anyio.fail_after, self.reply_timeout, shield=True)
        try:
            return await self._exchange(requests, kind, waiting, is_shielded=True)
        except TimeoutError:
            raise self.fail(f"did not answer within {self.reply_timeout:g} s") from None

    async def exchange(
        self, request: Message, kind: type[_ReplyT], patience: float | None
    ) -> tuple[_ReplyT, dict[int, int]]:
        """As `call`, without shield, for `patience` seconds: after a cancel the connection is of no use any more."""
        try:
            (reply,) = await self._exchange((request,), kind, partial(anyio.fail_after, patience), is_shielded=False)
        except TimeoutError:
            raise self.fail("does not answer a get") from None
        return reply

    async def _exchange(
        self,
        requests: Sequence[Message],
        kind: type[_ReplyT],
        waiting: Callable[[], AbstractContextManager[object]],
        *,
        is_shielded: bool,
    ) -> list[tuple[_ReplyT, dict[int, int]]]:
        """Ask, and look for the replies; where they take longer, wait for them within a context of that kind.

        Whatever ends this before all replies are taken ends the connection: the next reply would be somebody else's.
        """
        replies: list[tuple[_ReplyT, dict[int, int]]] = []
        caught: asyncio.CancelledError | None = None
        try:
            self.ask(requests)
            while len(replies) < len(requests):
                try:
                    if self._transport.flush_nowait() and (
                        received := await self._transport.look(self._wire.get_buffer())
                    ):
                        self.take_in(*received)
                        replies += self.take_replies(kind, len(requests) - len(replies))
                    if len(replies) < len(requests):
                        with waiting():
                            await self._receive(requests, kind, replies)
                except asyncio.CancelledError as cancel:  # which loses nothing of what was sent or has come
                    if not is_shielded:
                        raise
                    caught = cancel
            return replies
        except anyio.ClosedResourceError:
            raise self.fail("is not waited for any more") from None  # `close` has said why
        except TimeoutError:
            raise
        except OSError as error:
            raise self.fail_by(error) from error
        except BaseException as error:
            if self._wire.is_owed_a_reply or not isinstance(error, Exception):
                self.fail_interrupted(error)
            raise
        finally:
            self.is_busy = False
            if caught is not None:
                put_off(caught)

    async def _receive(
        self, requests: Sequence[Message], kind: type[_ReplyT], replies: list[tuple[_ReplyT, dict[int, int]]]
    ) -> None:
        await self._transport.flush()
        while len(replies) < len(requests):
            self.take_in(*await self._transport.receive(self._wire.get_buffer()))
            replies += self.take_replies(kind, len(requests) - len(replies))

    async def flush(self) -> None:
        """Send all that is queued; a store that does not read in time is given up. Nobody else may use it meanwhile."""
        try:
            with anyio.fail_after(self.reply_timeout):
                await self._transport.flush()
        except TimeoutError:
            self.fail(f"read nothing for {self.reply_timeout:g} s")
        except (OSError, anyio.ClosedResourceError) as error:
            self.fail(f"broke the connection: {error}")
