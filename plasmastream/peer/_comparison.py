"""Comparing: whether a peer has the same bytes under an id. Those of large objects do not travel, but checksums do."""

import os

import anyio.lowlevel
import attrs
from xxhash import xxh3_64_intdigest

from plasmastream._errors import RemoteProtocolError
from plasmastream._object_id import ObjectID
from plasmastream.peer._channel import ClientChannel
from plasmastream.peer._contents import Content
from plasmastream.peer._incoming import Ranges
from plasmastream.peer._persistence import Persistence
from plasmastream.peer._results import Result
from plasmastream.wire.stream.v2 import (
    TOKEN_SIZE,
    ChunkSummed,
    Close,
    Encoding,
    Event,
    Message,
    ObjectDescribed,
    Open,
    Outcome,
    Outcomes,
    Progress,
    Range,
    Read,
    RunArrived,
    RunDamaged,
)


class Comparison:
    """One object of ours and what a peer has under its id. Tried once, over one connection.

    Args:
        channel: the connection.
        object_id: the id.
        content: what we have.
        persistence: how long the peer may do no more than give signs of life.
    """

    def __init__(
        self, channel: ClientChannel, object_id: ObjectID, content: Content, persistence: Persistence
    ) -> None:
        self._channel = channel
        self._object_id = object_id
        self._data, self._metadata = content
        self._persistence = persistence
        self._token = os.urandom(TOKEN_SIZE)
        self._handle: int | None = None

    async def run(self) -> Result:
        """Compare.

        Returns:
            PRESENT where all is the same, DIFFERENT, or why nobody can tell.

        Raises:
            PeerError: the connection broke, or the peer is late.
            RemoteProtocolError: it broke the protocol.
        """
        result = await self._open()
        if self._handle is not None:
            if result.is_success and len(self._data):
                result = await self._read(self._handle)
            await self._channel.send(Close(self._token, ()))
            while (event := await self._channel.answer()) is not None:
                self._wait_on(event)
        return result

    async def _open(self) -> Result:
        """Compare the sizes and the metadata; of a small object, all."""
        result = Result(self._object_id, Outcome.DAMAGED, "it was damaged on its way")
        await self._channel.send(Open(self._token, False, Encoding.NONE, (self._object_id,)))
        while (event := await self._channel.answer()) is not None:
            match event:
                case RunArrived():
                    for _, data, metadata in event.objects:
                        result = self._judge(data == self._data[: len(self._data)] and metadata == self._metadata)
                case ObjectDescribed():
                    self._handle = event.handle
                    result = self._judge(event.data_size == len(self._data) and event.metadata == self._metadata)
                case Outcomes():
                    result = self._failure(event)
                case _:
                    self._wait_on(event, RunDamaged)
        return result

    async def _read(self, handle: int) -> Result:
        """Compare the data by checksums."""
        result, unseen = self._judge(True), Ranges((0, len(self._data)))
        whole = Range(handle, 0, len(self._data))
        await self._channel.send(Read(self._token, True, Encoding.NONE, (whole,)))
        while (event := await self._channel.answer()) is not None:
            match event:
                case ChunkSummed():
                    self._persistence.progressed()
                    start, end = event.offset, event.offset + event.length
                    if event.index or end > len(self._data):
                        raise RemoteProtocolError(f"{self._channel.peer} summed bytes that nobody asked for")
                    unseen.remove(start, end)
                    if xxh3_64_intdigest(self._data[start:end]) != event.checksum:
                        result = self._judge(False)
                    await anyio.lowlevel.checkpoint()
                case Outcomes():
                    result = self._failure(event)
                case _:
                    self._wait_on(event)
        if result.is_success and unseen:
            raise RemoteProtocolError(f"{self._channel.peer} did not sum all of object {self._object_id}")
        return result

    def _judge(self, is_same: bool) -> Result:
        if is_same:
            return Result(self._object_id, Outcome.PRESENT)
        return Result(self._object_id, Outcome.DIFFERENT, "there is another object of this id")

    def _failure(self, outcomes: Outcomes) -> Result:
        """Why nobody can tell. That all is the same is for us to find out, and not for the peer to say."""
        result = Result(self._object_id, outcomes.outcome, outcomes.reason)
        if result.is_success or set(outcomes.indexes) != {0}:
            raise RemoteProtocolError(f"{self._channel.peer} says what it must show: {result}")
        if result.outcome == Outcome.NOT_FOUND and not result.reason:
            return attrs.evolve(result, reason="there is no object of this id")
        return result

    def _wait_on(self, event: Event | Message, *kinds: type) -> None:
        if not isinstance(event, (Progress, *kinds)):
            raise RemoteProtocolError(f"{self._channel.peer} answered with a {type(event).__name__}")
        self._persistence.check(self._channel.peer)
