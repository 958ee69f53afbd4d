"""A SYNC at the client: ask a server to fetch, and follow it to its end."""

from collections.abc import Callable, Sequence

import anyio
import attrs

from plasmastream._errors import PeerError, ProtocolError, RemoteProtocolError
from plasmastream.peer._channel import ClientChannel
from plasmastream.peer._lanes import Lane, Lanes, OldPeerError
from plasmastream.peer._persistence import Persistence
from plasmastream.peer._results import RefusedError, Result, outcome_of
from plasmastream.peer._transport import PeerStalledError
from plasmastream.wire.stream import PeerRequest, TransferKind
from plasmastream.wire.stream.v2 import Encoding, Fetch, Outcome, Outcomes, Progress, Sync

SyncProgress = Callable[[Sequence[tuple[int, int]]], None]
"""Called with the (objects, bytes) of each peer request so far."""

_LAST_WORD = 5.0  # seconds for a server to say what became of what ran out of time
_SHORTEST = 0.001


@attrs.frozen
class SyncCall:
    """What to ask a server for: see `PeerClient.sync_each`."""

    peer_requests: Sequence[PeerRequest]
    timeout: float | None
    detach: bool = False
    max_bytes: int = 0
    encoding: Encoding = Encoding.NONE
    on_progress: SyncProgress | None = None

    async def run(self, lanes: Lanes, persistence: Persistence) -> tuple[tuple[Result, ...], ...]:
        """Ask, and ask again where the connection broke: what has been fetched by then is present.

        Raises:
            OldPeerError: the server speaks version 1 alone.
            PeerError: it cannot be reached, or refused.
            RemoteProtocolError: it broke the protocol.
        """
        if self.timeout is None:
            return await self._ask_until_answered(lanes, persistence)
        with anyio.CancelScope(deadline=persistence.deadline + _LAST_WORD):
            return await self._ask_until_answered(lanes, persistence)
        raise PeerStalledError(f"{lanes} did not end a SYNC within its {self.timeout:g} s, nor {_LAST_WORD:g} s later")

    async def _ask_until_answered(self, lanes: Lanes, persistence: Persistence) -> tuple[tuple[Result, ...], ...]:
        while True:
            try:
                async with lanes.channel(Lane.SYNC) as channel:
                    return await self._ask(channel, persistence)
            except OldPeerError:
                raise
            except (PeerError, ProtocolError) as error:
                persistence.failed(error)
                retry_after = error.retry_after if isinstance(error, RefusedError) else 0.0
                is_first = not persistence.has_progressed and self.timeout is None
                outcome = outcome_of(error)
                if not outcome.may_pass or (is_first and outcome is not Outcome.BUSY):
                    raise
                if not await persistence.pause(retry_after):
                    raise

    async def _ask(self, channel: ClientChannel, persistence: Persistence) -> tuple[tuple[Result, ...], ...]:
        requests = tuple(
            Fetch(request.kind is TransferKind.TAKE, str(request.address), request.port, tuple(request.object_ids))
            for request in self.peer_requests
        )
        results: list[list[Result | None]] = [[None] * len(request.object_ids) for request in requests]
        timeout = 0.0  # for none
        if self.timeout is not None:
            timeout = max(_SHORTEST, persistence.deadline - anyio.current_time())
        await channel.send(Sync(requests, self.detach, timeout, self.max_bytes, self.encoding))
        while (event := await channel.answer()) is not None:
            match event:
                case Outcomes():
                    self._note(channel, event, results)
                case Progress():
                    persistence.reached(sum(amount.nbytes for amount in event.requests))
                    if self.on_progress is not None and len(event.requests) == len(requests):
                        self.on_progress([(amount.objects, amount.nbytes) for amount in event.requests])
                case _:
                    raise RemoteProtocolError(f"{channel.peer} answered a SYNC with a {type(event).__name__}")
        return tuple(
            tuple(
                result or Result(object_id, Outcome.BROKEN_OFF, f"{channel.peer} did not say what became of it")
                for object_id, result in zip(request.object_ids, found, strict=True)
            )
            for request, found in zip(requests, results, strict=True)
        )

    def _note(self, channel: ClientChannel, outcomes: Outcomes, results: list[list[Result | None]]) -> None:
        if outcomes.request >= len(results):
            raise RemoteProtocolError(f"{channel.peer} answered for peer request {outcomes.request} of {len(results)}")
        found = results[outcomes.request]
        ids = self.peer_requests[outcomes.request].object_ids
        for index in outcomes.indexes:
            if index >= len(found):
                raise RemoteProtocolError(f"{channel.peer} answered for object {index} of {len(found)}")
            found[index] = Result(ids[index], outcomes.outcome, outcomes.reason)
