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


async def answer_sync(services: Services, channel: ServerChannel, nursery: trio.Nursery, request: Sync) -> None:
    """Answer a SYNC, but for its END.

    When the client leaves: what it asked for stops, or goes on to its end, as it said. The task that attends to the
    client belongs to the `nursery`; it is over when this returns.

    Raises:
        CancelledByClientError: the client wants no more.
        PeerError: it is gone.
        ProtocolError: it broke the protocol.
    """
    await _SyncRequest(services, channel, nursery, request).answer()


@attrs.define(eq=False)
class _Attending:
    """The task that attends to the client."""

    scope: trio.CancelScope = attrs.Factory(trio.CancelScope)
    until_news: trio.CancelScope = attrs.Factory(trio.CancelScope)
    sending: trio.Lock = attrs.Factory(trio.Lock)
    over: trio.Event = attrs.Factory(trio.Event)

    async def end(self) -> None:
        async with self.sending:  # half a frame would be the end of the connection
            self.scope.cancel()
        await self.over.wait()


class _SyncRequest:
    def __init__(self, services: Services, channel: ServerChannel, nursery: trio.Nursery, request: Sync) -> None:
        self._services = services
        self._channel = channel
        self._nursery = nursery
        self._request = request
        self._states = [_State() for _ in request.requests]
        self._budget = Budget(request.max_bytes or _DEFAULT_MAX_BYTES)
        self._left = len(request.requests)
        self._attending: _Attending | None = None
        self._work = trio.CancelScope()
        self._finished: list[tuple[int, Sequence[Result]]] = []
        self._failure: PeerError | ProtocolError | None = None

    async def answer(self) -> None:
        loop = self._channel.loop
        alarm = loop.call_at(loop.now() + _ATTEND_AFTER, self._begin_attending)
        try:
            with self._work:
                await self._fetch_all()
        finally:
            alarm.cancel()
        if self._attending is not None:
            await self._attending.end()
        if self._failure is not None:
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
        if self._left and self._attending is not None:
            self._attending.until_news.cancel()

    def _begin_attending(self) -> None:
        self._attending = _Attending()
        self._nursery.start_soon(self._attend, self._attending)

    async def _attend(self, attending: "_Attending") -> None:
        """Listen to the client, and tell it what is new: at once where a peer request is done, else every second."""
        try:
            with attending.scope:
                while True:
                    with trio.move_on_after(_REPORT_EVERY) as attending.until_news:
                        raise self._channel.not_wanted(await self._channel.next_event())
                    async with attending.sending:
                        self._queue_news()
                        await self._channel.flush()
        except (PeerError, ProtocolError) as error:
            self._leave(error)
        finally:
            attending.over.set()

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
            self._work.cancel()
