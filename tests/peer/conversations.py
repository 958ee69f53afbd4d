"""Whole transfers by version 2 between stores, over connections in memory that a test may spoil, all written down.

What must hold in each, whatever is spoilt: no object is sealed with wrong bytes, and none leaves a store before another
one has it sealed. Both are looked at whenever an object is sealed or removed: nothing changes them in between.
"""

import enum
import ipaddress
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import attrs
import trio

from plasmastream import PlasmastreamError
from plasmastream.peer import Excuse, Limits2, PeerClient, PeerRequest, PeerServer, Result, TransferKind, Transport
from plasmastream.store import EmbeddedStore, NewObject
from plasmastream.store._table import Entry
from plasmastream.testing import Direction, Fault, MemoryTransport, Script, Triggered, memory_transports
from tests.peer.helpers import Objects, assert_nothing_claimed, contents, fill, objects_of
from tests.store.helpers import assert_untouched

FAULTS: Final = int(os.environ.get("PLASMASTREAM_FAULTS", "1"))
"""How many times as much as in `make test`."""
SEED: Final = int(os.environ.get("PLASMASTREAM_FAULTS_SEED", "0"))

CAPACITY: Final = 128 << 10
CHUNK_SIZE: Final = 1000
LIMITS: Final = Limits2(chunk_size=CHUNK_SIZE, small_size=100, run_size=200)
"""So small that a few kilobytes have frames of all types."""
OBJECTS: Final = objects_of(
    [(10, 0), (90, 10), (60, 0), (0, 0), (100, 0), (40, 5), (2500, 20), (1000, 0), (0, 150), (1001, 0)]
)
"""Two RUNs of small ones; chunks that are full, begun, and of one byte; and one that is large by its metadata alone."""
FEW: Final = objects_of([(10, 3), (150, 2)])
"""One object of each sort."""

_PATIENCE = 600.0
_MOST_SECONDS = 3600.0
"""No conversation lasts longer, idle connections and forgotten tokens included."""

Scripts = Callable[[int], Script]
"""What goes wrong with which connection, counted from 0."""


def _unspoilt(number: int) -> Script:
    return Script()


class Kind(enum.Enum):
    """What is asked for, and so which connections are spoilt."""

    COPY = "COPY"
    TAKE = "TAKE"
    PUT = "PUT"
    SYNC = "SYNC"
    """A SYNC of a TAKE; the connections between the servers are spoilt."""
    ASKED = "SYNC as asked for"
    """The same, but the connections between client and server are."""

    @property
    def deletes(self) -> bool:
        """Whether the source is to delete its own."""
        return self in (Kind.TAKE, Kind.SYNC, Kind.ASKED)


class Tap:
    """An end of a connection, whose incoming bytes are written down. See `plasmastream.peer.Transport`."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.read = bytearray()
        self.peer = transport.peer
        self._transport = transport

    @property
    def triggered(self) -> list[Triggered]:
        """See `MemoryTransport`."""
        return self._transport.triggered

    async def receive_into(self, buffer: memoryview, *, timeout: float, expected: int = 1) -> int:
        """See `Transport`."""
        nbytes = await self._transport.receive_into(buffer, timeout=timeout, expected=expected)
        self.read += buffer[:nbytes]
        return nbytes

    async def send(
        self,
        pieces: Sequence[bytes | memoryview],
        *,
        timeout: float,
        at_least: int = 1,
        excuse: Excuse | None = None,
    ) -> None:
        """See `Transport`."""
        await self._transport.send(pieces, timeout=timeout, at_least=at_least, excuse=excuse)

    def is_quiet(self) -> bool:
        """See `Transport`."""
        return self._transport.is_quiet()

    def break_on_death(self, on: bool) -> None:
        """See `Transport`."""
        self._transport.break_on_death(on)

    def close(self) -> None:
        """See `Transport`."""
        self._transport.close()

    def abort(self) -> None:
        """See `Transport`."""
        self._transport.abort()


@attrs.frozen
class Frame:
    """Where a frame is among the bytes of one direction of one connection."""

    type: int
    start: int
    body: int
    payload: int
    end: int


_HEAD = struct.Struct("<BBHIII")
_MAGIC_SIZE = 8
_CHUNK, _RUN = 17, 18
_RUN_ENTRY_SIZE = 12
_WIRE_LENGTH_AT = {_CHUNK: 20, _RUN: 12}


def frames(octets: bytes, direction: Direction) -> Iterator[Frame]:
    """The frames in the undamaged bytes of one direction, the last of them perhaps cut off; by docs/protocol.md."""
    at = _MAGIC_SIZE if direction is Direction.TO_SERVER else 0
    while at + _HEAD.size <= len(octets):
        frame_type, _, _, length, _, _ = _HEAD.unpack_from(octets, at)
        body = at + _HEAD.size
        payload = end = body + length
        if frame_type in _WIRE_LENGTH_AT and payload <= len(octets):
            end += int.from_bytes(octets[body + _WIRE_LENGTH_AT[frame_type] :][:4], "little")
        yield Frame(frame_type, at, body, payload, end)
        at = end


def sent_twice(objects: Objects, heard: Iterable[bytes], direction: Direction, limits: Limits2 = LIMITS) -> int:
    """Bytes of payloads, the begun ones included, that connections have brought beyond those of the objects."""
    needed = 0
    for data, metadata in objects.values():
        is_small = len(data) + len(metadata) <= limits.small_size
        needed += len(data) + (_RUN_ENTRY_SIZE + len(metadata) if is_small else 0)
    arrived = sum(
        min(frame.end, len(octets)) - min(frame.payload, len(octets))
        for octets in heard
        for frame in frames(octets, direction)
    )
    return arrived - needed


@attrs.frozen
class Wire:
    """Connections to one server, all in memory."""

    server: PeerServer
    nursery: trio.Nursery
    scripts: Scripts
    ends: list[tuple[Tap, Tap]] = attrs.Factory(list)
    """Of each connection, in order: the client's end and the server's."""

    async def connect(self, host: str, port: int, *, timeout: float) -> Transport:
        """See `plasmastream.peer.Connect`."""
        await trio.lowlevel.checkpoint()
        client, server = map(Tap, memory_transports(script=self.scripts(len(self.ends))))
        self.ends.append((client, server))
        self.nursery.start_soon(self.server.serve_connection, server)
        return client

    def heard(self, direction: Direction) -> list[bytes]:
        """What has arrived in one direction of each connection."""
        return [bytes(client.read if direction is Direction.TO_CLIENT else server.read) for client, server in self.ends]


@attrs.define
class Conversation:
    """A transfer, and what it has brought about."""

    kind: Kind
    objects: Objects
    source: EmbeddedStore
    target: EmbeddedStore
    wrong: list[str] = attrs.Factory(list)
    """What must never happen."""
    reported: list[str] = attrs.Factory(list)
    """What was logged."""
    results: Sequence[Result] = ()
    error: PlasmastreamError | None = None
    wire: Wire | None = None
    left: Objects = attrs.Factory(dict)
    """What the source has in the end."""
    arrived: Objects = attrs.Factory(dict)
    """What the target has in the end."""

    def heard(self, direction: Direction) -> list[bytes]:
        """What has arrived in one direction of each connection that could be spoilt."""
        assert self.wire is not None
        return self.wire.heard(direction)

    @property
    def triggered(self) -> list[Triggered]:
        """What has gone wrong."""
        assert self.wire is not None
        return [seen for client, _ in self.wire.ends for seen in client.triggered]

    @property
    def sent_twice(self) -> int:
        """Bytes of payloads that have arrived where the objects go to, beyond what they have."""
        direction = Direction.TO_SERVER if self.kind is Kind.PUT else Direction.TO_CLIENT
        return sent_twice(self.objects, self.heard(direction), direction)

    def check_healed(self) -> None:
        """All objects have arrived, and a source that is to delete its own has done so."""
        assert self.error is None, self.error
        assert [str(result) for result in self.results if not result.is_success] == []
        assert len(self.results) == len(self.objects)
        assert self.arrived == self.objects
        assert self.left == ({} if self.kind.deletes or self.kind is Kind.PUT else self.objects)

    def close(self) -> None:
        """Note what there is at the end: nothing wrong, nothing lost, and nothing half done."""
        self.left, self.arrived = contents(self.source), contents(self.target)
        assert self.wrong == []
        assert self.arrived.items() <= self.objects.items()
        assert self.kind is Kind.PUT or self.left | self.arrived == self.objects
        for store in (self.source, self.target):
            assert_untouched(store)

    def watch(self) -> None:
        """Look at everything that is sealed or removed from now on."""
        self.source.core.add_listener(_Watch(self, self.source, self.target))
        self.target.core.add_listener(_Watch(self, self.target, self.source))


@attrs.frozen(eq=False)
class _Watch:
    """Looks at every change of a store: see `StoreListener`."""

    conversation: Conversation
    store: EmbeddedStore
    other: EmbeddedStore

    def sealed(self, entries: Sequence[Entry]) -> None:
        """What can be read from now on is right."""
        for entry in entries:
            data, metadata = self.store.core.memory_of(entry)
            if self.conversation.objects.get(entry.object_id) != (bytes(data), bytes(metadata)):
                self.conversation.wrong.append(f"{entry.object_id} was sealed with wrong bytes")

    def removed(self, entry: Entry) -> None:
        """What is gone here is sealed in the other store."""
        if self.other.core.table.find_sealed(entry.object_id) is None:
            self.conversation.wrong.append(f"nobody has {entry.object_id} any more")


class _Notes(logging.Handler):
    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.INFO)
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        self._notes.append(record.getMessage())


@contextmanager
def noting(notes: list[str]) -> Iterator[None]:
    """Write down what the package logs."""
    logger, handler = logging.getLogger("plasmastream"), _Notes(notes)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.setLevel(level)
        logger.removeHandler(handler)


async def converse(
    kind: Kind, scripts: Scripts = _unspoilt, *, objects: Objects = OBJECTS, version: int | None = 2
) -> Conversation:
    """Carry out a transfer; wait until no task, token or connection of it is left; see that nothing was lost.

    Args:
        kind: what to ask for.
        scripts: what goes wrong.
        objects: what is moved.
        version: which one the client speaks.
    """
    with EmbeddedStore(CAPACITY) as source, EmbeddedStore(CAPACITY) as target:
        made = Conversation(kind, objects, source, target)
        if kind is not Kind.PUT:
            fill(source, objects)
        made.watch()
        with noting(made.reported), trio.fail_after(_MOST_SECONDS):
            async with trio.open_nursery() as nursery:
                servers = await _transfer(made, nursery, scripts, version)
        for server in servers:
            assert_nothing_claimed(server)
        made.close()
    return made


async def _transfer(
    made: Conversation, nursery: trio.Nursery, scripts: Scripts, version: int | None
) -> Sequence[PeerServer]:
    """Ask for it, and close all that would wait for more; returns the servers."""
    kind, ids = made.kind, list(made.objects)
    source = PeerServer(made.source, limits2=LIMITS)
    to_source = Wire(source, nursery, _unspoilt if kind is Kind.ASKED else scripts)
    target = PeerServer(made.target, limits2=LIMITS, connect=to_source.connect)
    to_target = Wire(target, nursery, _unspoilt if kind is Kind.SYNC else scripts)
    made.wire = to_target if kind in (Kind.PUT, Kind.ASKED) else to_source
    wire = to_source if kind in (Kind.COPY, Kind.TAKE) else to_target
    client = PeerClient("server", 1, version=version, limits=LIMITS, connect=wire.connect)
    try:
        match kind:
            case Kind.COPY | Kind.TAKE:
                made.results = await client.fetch(TransferKind[kind.name], ids, made.target, timeout=_PATIENCE)
            case Kind.PUT:
                news = [NewObject(object_id, *parts) for object_id, parts in made.objects.items()]
                made.results = await client.put(news, timeout=_PATIENCE)
            case _:
                request = PeerRequest(TransferKind.TAKE, ipaddress.IPv4Address("192.0.2.1"), 1, tuple(ids))
                (made.results,) = await client.sync_each([request], timeout=_PATIENCE)
    except PlasmastreamError as error:
        made.error = error
    await client.aclose()
    target._dispatcher.close()
    return source, target


def spoil_one(number: int, direction: Direction, *faults: Fault) -> Scripts:
    """Let things go wrong in one direction of one connection."""
    script = Script(to_server=faults) if direction is Direction.TO_SERVER else Script(to_client=faults)
    return lambda connection: script if connection == number else Script()
