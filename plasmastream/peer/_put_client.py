"""Putting: objects from this process into the store of a peer, by version 2, tried again until each has its outcome."""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import anyio
import anyio.lowlevel

from plasmastream._errors import PeerError, PlasmastreamError, ProtocolError, RemoteProtocolError
from plasmastream.peer._channel import ClientChannel, refusal
from plasmastream.peer._contents import NewFile, content_of, stamp_of
from plasmastream.peer._lanes import Lane, Lanes, OldPeerError, Prove
from plasmastream.peer._persistence import Persistence
from plasmastream.peer._results import RefusedError, Result, advice_on, outcome_of
from plasmastream.peer._transport import PeerStalledError
from plasmastream.store._object_store import NewObject
from plasmastream.wire.stream.v2 import (
    TOKEN_SIZE,
    Close,
    Encoding,
    End,
    Limits,
    Outcome,
    Outcomes,
    Progress,
    Put,
    Range,
    Sizes,
    Want,
)

_AT_ONCE = 4096
_SMALL_REQUEST = 1 << 20
_ABANDON_WITHIN = 1.0


class Upload:
    """One transfer of some objects to one peer.

    Args:
        lanes: connections to the peer.
        objects: what to put, all of different ids.
        persistence: how long to try.
        encoding: what payloads are encoded with.
        limits: sizes of chunks and runs.
        report: told of (objects, bytes) that have left; what is sent again is not told again.
        prove: see `Lanes.channel`.
    """

    def __init__(
        self,
        lanes: Lanes,
        objects: Sequence[NewObject | NewFile],
        *,
        persistence: Persistence,
        encoding: Encoding,
        limits: Limits,
        report: Callable[[int, int], None],
        prove: Prove,
    ) -> None:
        self._lanes = lanes
        self._objects = objects
        self._stamps = {new.object_id: stamp_of(new) for new in objects if isinstance(new, NewFile)}
        self._results: list[Result | None] = [None] * len(objects)
        self._obstacles: dict[int, tuple[int, str]] = {}
        self._persistence = persistence
        self._encoding = encoding
        self._limits = limits
        self._report = report
        self._prove = prove
        self._token = os.urandom(TOKEN_SIZE)
        self._moved = False
        self._has_begun = False
        self._unsent: dict[int, int | None] = {}
        """The least bytes of each object that were ever left to send, from its turn on; None when it has left whole."""

    async def run(self) -> list[Result]:
        """Put all that can be put.

        Returns:
            What became of each object, in order.

        Raises:
            OldPeerError: the peer speaks version 1 alone, which cannot do this.
            PlasmastreamError: a file has changed.
        """
        failure: PlasmastreamError | None = None
        try:
            with anyio.CancelScope(deadline=self._persistence.deadline) as scope:
                while left := [index for index, result in enumerate(self._results) if result is None]:
                    self._moved = False
                    try:
                        await self._put(left[:_AT_ONCE])
                        failure = None
                    except (PeerError, ProtocolError) as error:
                        if isinstance(error, OldPeerError):
                            raise
                        self._persistence.failed(error)
                        failure = error.with_traceback(None)  # or it and this frame would keep each other
                    if self._moved and failure is None:
                        continue
                    if not await self._may_go_on(failure):
                        break
        finally:
            if self._has_begun:
                await self._abandon()
        is_late = scope.cancelled_caught
        return [result or self._give_up(index, failure, is_late) for index, result in enumerate(self._results)]

    def _give_up(self, index: int, failure: PlasmastreamError | None, is_late: bool) -> Result:
        outcome, reason = self._obstacles.get(index, (Outcome.BROKEN_OFF, ""))
        if failure is not None:
            outcome, reason = outcome_of(failure), str(failure)
        reasons = [reason] if reason else []
        if is_late:
            outcome = Outcome.OUT_OF_TIME
            reasons.insert(0, "the time allowed for it is over")
        size = sum(map(len, content_of(self._objects[index])))
        how_far = f"{size - (self._unsent.get(index, size) or 0):,} of {size:,} bytes had left"
        words = self._persistence.last_words(self._lanes, *reasons, how_far, advice=advice_on(outcome))
        return Result(self._objects[index].object_id, outcome, words)

    async def _abandon(self) -> None:
        """Where this was broken off, have the server take back what is not whole: it would keep it for a while."""
        with anyio.move_on_after(_ABANDON_WITHIN, shield=True), suppress(PeerError, ProtocolError):
            async with self._lanes.channel(Lane.SMALL) as channel:
                await channel.send(Close(self._token, ()))
                while await channel.answer() is not None:
                    pass

    async def _may_go_on(self, failure: PlasmastreamError | None) -> bool:
        if failure is None:
            for index, (outcome, reason) in self._obstacles.items():
                if self._results[index] is None:
                    self._persistence.hindered(str(Result(self._objects[index].object_id, outcome, reason)))
                    break
            return await self._persistence.pause()
        outcome = outcome_of(failure)
        is_first = not self._persistence.has_progressed and self._persistence.deadline == math.inf
        if not outcome.may_pass or (outcome is Outcome.UNREACHABLE and is_first):
            return False
        return await self._persistence.pause(failure.retry_after if isinstance(failure, RefusedError) else 0.0)

    async def _put(self, batch: Sequence[int]) -> None:
        sizes = tuple(Sizes(*map(len, content_of(self._objects[index]))) for index in batch)
        for index, size in zip(batch, sizes, strict=True):
            self._unsent.setdefault(index, size.data + size.metadata)
        total = sum(size.data + size.metadata for size in sizes)
        ids = tuple(self._objects[index].object_id for index in batch)
        async with self._lanes.channel(Lane.SMALL if total <= _SMALL_REQUEST else Lane.LARGE, self._prove) as channel:
            said: set[int] = set()
            self._has_begun |= any(size.data + size.metadata > self._limits.small_size for size in sizes)
            await channel.send(Put(self._token, ids, sizes))
            while (event := await channel.answer()) is not None:
                match event:
                    case Want():
                        self._persistence.check(self._lanes)
                        await self._send(channel, batch, event.ranges)
                    case Outcomes():
                        self._note(channel, batch, event)
                        said.update(event.indexes)
                    case Progress():
                        self._persistence.check(self._lanes)
                    case _:
                        raise RemoteProtocolError(f"{channel.peer} answered a PUT with a {type(event).__name__}")
            self._has_begun = False
            for position, index in enumerate(batch):
                if position not in said:
                    reason = f"{channel.peer} ended the PUT, and did not say what became of it"
                    self._obstacles[index] = Outcome.BROKEN_OFF, reason

    def _note(self, channel: ClientChannel, batch: Sequence[int], outcomes: Outcomes) -> None:
        for position in outcomes.indexes:
            if position >= len(batch):
                raise RemoteProtocolError(f"{channel.peer} answered for object {position} of {len(batch)}")
            object_id = self._objects[batch[position]].object_id
            known = Outcome.known(outcomes.outcome)
            if known is not None and known.may_pass:
                self._obstacles[batch[position]] = outcomes.outcome, outcomes.reason
            else:
                self._results[batch[position]] = Result(object_id, outcomes.outcome, outcomes.reason)
                self._moved = True
                self._persistence.progressed()

    async def _send(self, channel: ClientChannel, batch: Sequence[int], ranges: Sequence[Range]) -> None:
        connection = channel.connection
        run: list[tuple[int, memoryview, memoryview]] = []
        size, described = 0, -1
        left: Counter[int] = Counter()
        for wanted in ranges:
            left[wanted.what] += wanted.length
        for wanted in ranges:
            position = wanted.what
            if position >= len(batch):
                raise RemoteProtocolError(f"{channel.peer} wants object {position} of {len(batch)}")
            data, metadata = content_of(self._objects[batch[position]])
            end = wanted.offset + wanted.length
            if end > len(data):
                raise RemoteProtocolError(f"{channel.peer} wants bytes up to {end} of {len(data)}")
            if len(data) + len(metadata) <= self._limits.small_size:
                run.append((position, data[: len(data)], metadata))
                self._check_unchanged(batch[position])
                size += len(data) + len(metadata)
                if size >= self._limits.run_size:
                    await self._send_run(channel, batch, run)
                    run, size = [], 0
                continue
            if position != described:
                connection.send_object(position, len(data), bytes(metadata))
                described = position
            for at in range(wanted.offset, end, connection.chunk_size):
                piece = data[at : min(end, at + connection.chunk_size)]
                left[position] -= len(piece)
                if not left[position]:
                    self._check_unchanged(batch[position])
                connection.send_chunk(position, at, piece, self._encoding)
                await self._flush(channel)
                self._note_sent(batch[position], left[position])
        if run:
            await self._send_run(channel, batch, run)
        connection.send(Progress())
        await channel.flush(partial(self._is_excused, channel))  # and what comes now is the answer

    def _check_unchanged(self, index: int) -> None:
        """See that a file is still what it was at first: to be called before the last of it leaves.

        Otherwise something would be sealed that the file never was.
        """
        new = self._objects[index]
        if isinstance(new, NewFile) and stamp_of(new) != self._stamps[new.object_id]:
            raise PlasmastreamError(f"the file of object {new.object_id} changed while it was read; put it again")

    async def _send_run(
        self, channel: ClientChannel, batch: Sequence[int], run: Sequence[tuple[int, memoryview, memoryview]]
    ) -> None:
        channel.connection.send_run(run, self._encoding)
        await self._flush(channel)
        for position, _, _ in run:
            self._note_sent(batch[position], 0)

    def _note_sent(self, index: int, left: int) -> None:
        """Note that all but so many bytes of an object have left. What is sent again is no progress."""
        before = self._unsent[index]
        if before is not None and (left < before or not left):
            self._unsent[index] = left or None
            self._persistence.progressed()
            self._report(int(not left), before - left)

    async def _flush(self, channel: ClientChannel) -> None:
        await channel.flush(partial(self._is_excused, channel))
        await self._hear(channel)
        await anyio.lowlevel.checkpoint()

    async def _is_excused(self, channel: ClientChannel) -> bool:
        """Whether a server that takes nothing has said that it lives: it may have to wait for room."""
        try:
            return await self._hear(channel)
        except (PeerStalledError, RefusedError):
            raise
        except PeerError:  # it has given up as well, at the same moment
            return False

    async def _hear(self, channel: ClientChannel) -> bool:
        """Hear what the server says before it has all; whether that is a sign of life."""
        is_alive = False
        while (event := await channel.waiting_event()) is not None:
            match event:
                case Progress():
                    self._persistence.check(self._lanes)
                    is_alive = True
                case End():  # a server that will not have all of it
                    raise refusal(channel.peer, event)
                case _:
                    raise RemoteProtocolError(f"{channel.peer} answered a PUT before it was whole")
        return is_alive
