"""What the connections of a server share, and how one of them keeps its client patient."""

from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, suppress
from typing import TypeVar

import attrs
import trio

from plasmastream._errors import PeerError, ProtocolError
from plasmastream.peer._admission import Admission
from plasmastream.peer._channel import Channel
from plasmastream.peer._companion import Companion
from plasmastream.peer._dispatcher import Claims, Dispatcher
from plasmastream.peer._holds import Hold, Holds
from plasmastream.store._object_store import ObjectStore
from plasmastream.wire.stream.v2 import (
    AnyEvent,
    Cancel,
    ConnectionClosed,
    Hello,
    Limits,
    Outcomes,
    Patience,
    Progress,
    ServerConnection,
)

_BEAT = 5.0
_OUTCOMES_AT_ONCE = 100

T = TypeVar("T")


@attrs.define(eq=False)
class Services:
    """What a server has for all of its connections of version 2."""

    store: ObjectStore
    holds: Holds
    admission: Admission
    """To all requests but SYNC."""
    syncs: Admission
    """To SYNCs, which take long."""
    dispatcher: Dispatcher
    hello: Hello
    limits: Limits
    patience: Patience
    objects_timeout: float
    """How long to wait for objects that are not there, in seconds."""
    room_timeout: float
    """How long to wait for room in the store, in seconds."""
    may_stop: Callable[[trio.CancelScope, Set[Hold]], AbstractContextManager[None]]
    """A block of a scope that is cancelled when the server stops, and these tokens hold nothing any more."""
    taking: Claims
    """What is being taken by version 1."""


class CancelledByClientError(PeerError):
    """The client wants no more of the running request."""


class ServerChannel(Channel):
    """The end that is asked."""

    connection: ServerConnection

    nursery: trio.Nursery
    """For tasks beside the one that answers, while there is one."""
    work: trio.CancelScope
    """Around the requests that are answered, up to one that is given up: a scope for each would take longer than the
    rest of what a small one needs."""
    why_given_up: PeerError | ProtocolError

    def give_up(self, why: PeerError | ProtocolError) -> None:
        """Stop the work on a request that is being answered."""
        self.why_given_up = why.with_traceback(None)  # which would keep what the work had in its hands
        self.work.cancel()

    async def check_cancel(self) -> None:
        """See whether the client wants to go on.

        Raises:
            CancelledByClientError: it does not.
            PeerError: it is gone.
        """
        event = await self.waiting_event()
        if event is not None:
            raise self.not_wanted(event)

    def not_wanted(self, event: AnyEvent) -> PeerError:
        """The error for what a client may send in the middle of an answer: a CANCEL, or the end."""
        if isinstance(event, Cancel):
            return CancelledByClientError(f"{self.peer} cancelled its request")
        assert isinstance(event, ConnectionClosed)
        return PeerError(f"{self.peer} ended the connection in the middle of a request")

    def accompanied(self, after: float, work: Callable[[Companion], Awaitable[None]]) -> Companion:
        """A block beside which there is work, if it takes longer than `after` seconds."""
        return Companion(self.nursery, after, work)

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Wait for something that is not the client's to hasten, and let it know now and then that we live."""
        async with self.accompanied(_BEAT, self._beat):
            return await work()

    async def _beat(self, companion: Companion) -> None:
        while True:
            async with companion.sending:
                with suppress(PeerError):  # which the next one to send will find out as well
                    await self.send(Progress())
            await trio.sleep(_BEAT)

    async def send_outcomes(self, outcomes: Mapping[tuple[int, str], Sequence[int]]) -> None:
        """Send what became of objects: the places of those with the same outcome and reason.

        The last of it is queued only, and leaves with END.
        """
        for number, ((outcome, reason), indexes) in enumerate(outcomes.items(), 1):
            self.connection.send(Outcomes(0, outcome, reason[:1000], tuple(indexes)))
            if number % _OUTCOMES_AT_ONCE == 0:  # each may have a reason of its own
                await self.flush()
                await self.check_cancel()
                await trio.lowlevel.checkpoint()
