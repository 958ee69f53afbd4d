"""A SYNC at the server: fetch from all peers at once, and keep the client informed as long as it is there.

A small one is over before its client can have anything to say, or to be told. So whoever attends to the client comes
later than the work, and mostly not at all.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence

import attrs
import trio

from plasmastream._errors import PeerError, PlasmastreamError, ProtocolError
from plasmastream.peer._budget import Budget
from plasmastream.peer._companion import Companion
from plasmastream.peer._results import Result, outcome_of
from plasmastream.peer._services import CancelledByClientError, ServerChannel, Services
from plasmastream.wire.stream.v2 import Amount, Fetch, Outcome, Outcomes, Progress, Sync

_log = logging.getLogger(__name__)

_ATTEND_AFTER = 0.02
_REPORT_EVERY = 1.0
_DEFAULT_MAX_BYTES = 256 << 20


@attrs.define
class _State:
    """How far a peer request has come."""

    objects: int = 0
    nbytes: int = 0

    def add(self, objects: int, nbytes: int) -> None:
        self.objects += objects
        self.nbytes += nbytes


async def answer_sync(services: Services, channel: ServerChannel, request: Sync) -> None:
    """Answer a SYNC, but for its END.

    When the client leaves: what it asked for is given up by `channel`, or goes on to its end, as it said.

    Raises:
        PeerError: it is gone, and what it asked for has gone on to its end.
        ProtocolError: it broke the protocol, likewise.
    """
    await _SyncRequest(services, channel, request).answer()


class _SyncRequest:
    def __init__(self, services: Services, channel: ServerChannel, request: Sync) -> None:
        self._services = services
        self._channel = channel
        self._request = request
        self._states = [_State() for _ in request.requests]
        self._budget = Budget(request.max_bytes or _DEFAULT_MAX_BYTES)
        self._left = len(request.requests)
        self._until_news = trio.CancelScope()
        self._finished: list[tuple[int, Sequence[Result]]] = []
        self._failure: PeerError | ProtocolError | None = None

    async def answer(self) -> None:
        async with self._channel.accompanied(_ATTEND_AFTER, self._attend):
            await self._fetch_all()
        if self._failure is not None:
            await trio.lowlevel.checkpoint()  # where it was given up, that is noticed here, if not before
            raise self._failure
        self._queue_news()  # which leaves with the END

    async def _fetch_all(self) -> None:
        if len(self._request.requests) == 1:  # a task of its own would take longer than the rest of a small request
            await self._fetch(0, self._request.requests[0])
            return
        async with trio.open_nursery() as work:
            for number, fetch in enumerate(self._request.requests):
                work.start_soon(self._fetch, number, fetch)

    async def _fetch(self, number: int, fetch: Fetch) -> None:
        request = self._request
        try:
            results = await self._services.dispatcher.fetch(
                fetch,
                timeout=request.timeout or None,
                encoding=request.encoding,
                budget=self._budget,
                report=self._states[number].add,
            )
        except PlasmastreamError as error:
            results = [Result(object_id, outcome_of(error), str(error)) for object_id in fetch.object_ids]
        except Exception:
            _log.exception("a peer request ended by an error that nobody expected; please report it")
            reason = "the server made an error, which its log describes"
            results = [Result(object_id, Outcome.REFUSED, reason) for object_id in fetch.object_ids]
        self._finished.append((number, results))
        self._states[number].objects = len(results)
        self._left -= 1
        if self._left:
            self._until_news.cancel()

    async def _attend(self, companion: Companion) -> None:
        """Listen to the client, and tell it what is new: at once where a peer request is done, else every second."""
        pause = _REPORT_EVERY - _ATTEND_AFTER
        try:
            while True:
                with trio.move_on_after(pause) as self._until_news:
                    if not self._finished:  # before there was anybody to tell, or while the last news left
                        raise self._channel.not_wanted(await self._channel.next_event())
                pause = _REPORT_EVERY
                async with companion.sending:
                    self._queue_news()
                    await self._channel.flush()
        except (PeerError, ProtocolError) as error:
            self._leave(error)

    def _queue_news(self) -> None:
        connection = self._channel.connection
        connection.send(Progress(tuple(Amount(state.objects, state.nbytes) for state in self._states)))
        finished, self._finished = self._finished, []
        for number, results in finished:
            groups: dict[tuple[int, str], list[int]] = defaultdict(list)
            for index, result in enumerate(results):
                groups[result.outcome, result.reason[:1000]].append(index)
            for (outcome, reason), indexes in groups.items():
                connection.send(Outcomes(number, outcome, reason, tuple(indexes)))

    def _leave(self, failure: PeerError | ProtocolError) -> None:
        """The client wants no more, or is gone: stop, unless it wished otherwise."""
        self._failure = failure
        if not self._request.detach or isinstance(failure, CancelledByClientError):
            self._channel.give_up(failure)
