"""What a server holds for its clients under tokens: leases and claims of what they opened, and what they are putting.

A token outlives its connections for a while, so that a client that comes back finds what it had. It belongs to the node
that made it.
"""

import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import attrs
import trio

from plasmastream._object_id import ObjectID
from plasmastream.peer._channel import Channel
from plasmastream.peer._incoming import Incoming
from plasmastream.peer._turns import release_all
from plasmastream.store._object_store import Lease

_MOST_TOKENS = 64
_MOST_OBJECTS = 131_072


@attrs.define(eq=False)
class Putting:
    """A connection that is putting objects under a token."""

    channel: Channel
    over: trio.Event = attrs.Factory(trio.Event)
    """Set when it writes to none of them any more."""


@attrs.define(eq=False)
class Hold:
    """What one token holds."""

    token: bytes
    node: bytes
    """The identity of the node that made it."""
    peer: str
    """Its IP address."""
    leases: dict[ObjectID, Lease] = attrs.Factory(dict)
    handles: dict[int, ObjectID] = attrs.Factory(dict)
    handle_of: dict[ObjectID, int] = attrs.Factory(dict)
    claimed: set[ObjectID] = attrs.Factory(set)
    dropped: set[ObjectID] = attrs.Factory(set)
    """What has been deleted at its word."""
    incoming: dict[ObjectID, Incoming] = attrs.Factory(dict)
    """What it is putting, and has not put whole."""
    putting: Putting | None = None
    """Who writes to them."""
    users: int = 0
    """Connections that have used it and stand."""
    unused: trio.CancelScope | None = None
    """Around the wait for its connections to come back."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing would be missed if it went."""
        return not (self.leases or self.dropped or self.incoming)


class Holds:
    """All tokens of a server.

    Args:
        capacity: bytes of the store, of which one peer may have a quarter held.
        patience: how long a token outlives its connections, in seconds.
    """

    def __init__(self, capacity: int, patience: float) -> None:
        self._most_bytes = capacity // 4
        self._patience = patience
        self._holds: dict[bytes, Hold] = {}
        self._claims: dict[ObjectID, Hold] = {}
        self._objects: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._is_closing = False

    def __len__(self) -> int:
        return len(self._holds)

    def use(self, token: bytes, node: bytes, peer: str, used: set[Hold]) -> Hold | None:
        """What a token holds, for a connection that now uses it.

        Args:
            token: from the request.
            node: who the client is.
            peer: its IP address.
            used: what this connection uses; the hold is added.

        Returns:
            None where the token is another node's.
        """
        hold = self._holds.get(token)
        if hold is None:
            hold = self._holds[token] = Hold(token, node, peer)
        elif hold.node != node:
            return None
        if hold not in used:
            used.add(hold)
            hold.users += 1
            if hold.unused is not None:
                hold.unused.cancel()
        return hold

    def tidy(self, used: set[Hold]) -> None:
        """Forget tokens of a connection that hold nothing: there may be any number of them."""
        for hold in [hold for hold in used if hold.is_empty]:
            used.discard(hold)
            hold.users -= 1
            self.forget_if_empty(hold)

    # Claims

    def is_claimed(self, object_id: ObjectID) -> bool:
        """Whether somebody is taking an object."""
        return object_id in self._claims

    def gives_way(self, hold: Hold, object_id: ObjectID) -> bool:
        """Whether nobody else is taking an object, or somebody who has left it behind: see `claim`."""
        other = self._claims.get(object_id)
        if other is None or other is hold:
            return True
        return not other.users and (other.node == hold.node or other.peer == hold.peer)

    def claim(self, hold: Hold, object_id: ObjectID) -> bool:
        """Keep other TAKEs away from an object; False where another one has claimed it.

        A claim of the same node, or the same peer, gives way when no connection of its token is left.
        """
        if not self.gives_way(hold, object_id):
            return False
        other = self._claims.get(object_id)
        if other is not None and other is not hold:
            self.let_go(other, [object_id])
        self._claims[object_id] = hold
        hold.claimed.add(object_id)
        return True

    # Objects

    async def make_room(self, hold: Hold, nbytes: int, announced: int = 0) -> bool:
        """Whether so many bytes more may be held for this peer, beside those `announced`; one object always may.

        Tokens that the peer has left behind give way, the oldest first.
        """
        while not self._has_room(hold, nbytes, announced):
            left = self._left_behind(hold.peer)
            if not left:
                return False
            await self.release(left[0])
        return True

    async def supersede(self, hold: Hold, object_ids: Iterable[ObjectID]) -> None:
        """Let go of what this peer has begun to put under tokens that it has left behind, and now puts anew."""
        wanted = frozenset(object_ids)
        for other in self._left_behind(hold.peer):
            for object_id in wanted.intersection(other.incoming):
                incoming = other.incoming.get(object_id)  # perhaps gone meanwhile, or in use again
                if incoming is not None and other is not hold and other.unused is not None:
                    self.forget_incoming(other, incoming)
                    await incoming.abort()

    def _left_behind(self, peer: str) -> list[Hold]:
        return [hold for hold in self._holds.values() if hold.peer == peer and hold.unused is not None]

    def _has_room(self, hold: Hold, nbytes: int, announced: int) -> bool:
        held = self._bytes[hold.peer] + announced
        return self._objects[hold.peer] < _MOST_OBJECTS and (not held or held + nbytes <= self._most_bytes)

    def keep(self, hold: Hold, lease: Lease) -> int:
        """Hold an object under a token, and return its handle."""
        object_id = lease.object_id
        handle = int.from_bytes(os.urandom(8), "little") or 1
        hold.leases[object_id] = lease
        hold.dropped.discard(object_id)  # that was another object of this id
        hold.handles[handle], hold.handle_of[object_id] = object_id, handle
        self._objects[hold.peer] += 1
        self._bytes[hold.peer] += lease.size
        return handle

    def keep_incoming(self, hold: Hold, incoming: Incoming) -> None:
        """Keep an object that a token is putting."""
        hold.incoming[incoming.object_id] = incoming
        self._objects[hold.peer] += 1
        self._bytes[hold.peer] += incoming.size

    def forget_incoming(self, hold: Hold, incoming: Incoming) -> None:
        """Forget an object that was put whole, or will not be."""
        if hold.incoming.pop(incoming.object_id, None) is not None:
            self._forget(hold.peer, incoming.size)

    def let_go(self, hold: Hold, object_ids: Iterable[ObjectID]) -> None:
        """Let go of objects, and of claims to them."""
        for lease in self._forget_leases(hold, object_ids):
            lease.release()

    def _forget_leases(self, hold: Hold, object_ids: Iterable[ObjectID]) -> list[Lease]:
        """Forget objects, and claims to them, at once; returns the leases, which nobody else will release."""
        forgotten: list[Lease] = []
        for object_id in object_ids:
            lease = hold.leases.pop(object_id, None)
            if lease is not None:
                self._forget(hold.peer, lease.size)
                hold.handles.pop(hold.handle_of.pop(object_id))
                forgotten.append(lease)
            if object_id in hold.claimed:
                hold.claimed.discard(object_id)
                del self._claims[object_id]
        return forgotten

    def _forget(self, peer: str, nbytes: int) -> None:
        self._objects[peer] -= 1
        self._bytes[peer] -= nbytes
        if not self._objects[peer]:
            del self._objects[peer], self._bytes[peer]

    @asynccontextmanager
    async def put_by(self, hold: Hold, channel: Channel) -> AsyncIterator[None]:
        """Let a connection write to what a token is putting, and no other one: one that did so before is broken off."""
        await self.end_putting(hold)
        hold.putting = putting = Putting(channel)
        try:
            yield
        finally:
            hold.putting = None
            putting.over.set()

    async def end_putting(self, hold: Hold) -> None:
        """Break off the connection that writes to what a token is putting: no view of it may outlive what follows."""
        while (putting := hold.putting) is not None:
            putting.channel.abort()
            await putting.over.wait()

    # The end of tokens

    async def release(self, hold: Hold) -> None:
        """Let go of all that a token holds, and forget it."""
        await self.end_putting(hold)
        # All at once: a connection that comes meanwhile must find none of it.
        leases = self._forget_leases(hold, (*hold.leases, *hold.claimed))
        hold.dropped.clear()
        doomed = tuple(hold.incoming.values())
        for incoming in doomed:
            self.forget_incoming(hold, incoming)
        with trio.CancelScope(shield=True):
            await release_all(leases)
            for incoming in doomed:
                await incoming.abort()
        self.forget_if_empty(hold)

    def forget_if_empty(self, hold: Hold) -> None:
        """Forget a token that holds nothing."""
        if hold.is_empty and self._holds.get(hold.token) is hold and not hold.users:
            del self._holds[hold.token]

    async def leave(self, used: set[Hold]) -> None:
        """End the use of tokens by a connection that is gone: wait until each is used again, or has lapsed."""
        async with trio.open_nursery() as nursery:
            for hold in used:
                hold.users -= 1
                if not hold.users:
                    nursery.start_soon(self._lapse, hold)

    async def _lapse(self, hold: Hold) -> None:
        if hold.users:  # somebody has come back already
            return
        try:
            if not hold.is_empty and not self._is_closing:
                self._make_place(hold.peer)
                with trio.CancelScope() as hold.unused:
                    await trio.sleep(self._patience)
        finally:
            hold.unused = None
            if not hold.users:
                await self.release(hold)

    def _make_place(self, peer: str) -> None:
        unused = self._left_behind(peer)
        for hold in unused[: max(0, len(unused) + 1 - _MOST_TOKENS)]:
            assert hold.unused is not None
            hold.unused.cancel()

    def close(self) -> None:
        """Let tokens lapse at once that no connection uses, from now on."""
        self._is_closing = True
        for hold in self._holds.values():
            if hold.unused is not None:
                hold.unused.cancel()
