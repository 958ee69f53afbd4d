"""What the tests of the peer room need: connected sockets, a scripted transport, servers in this process."""

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from plasmastream import ObjectID, PeerError
from plasmastream.peer import Excuse, Limits, PeerServer, PeerStalledError, PeerTimeouts
from plasmastream.peer._transport import Connect, TcpTransport, connect
from plasmastream.peer._version1 import Version1Client
from plasmastream.store import EmbeddedStore
from plasmastream.wire.stream import ServerConnection
from plasmastream.wire.stream.v2._frames import FrameType
from tests.store.helpers import put

CAPACITY = 8 << 20

Objects = dict[ObjectID, tuple[bytes, bytes]]
"""Data and metadata by id."""


def tcp_pair(host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        listener.listen()
        ours = socket.socket(family, socket.SOCK_STREAM)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


def objects_of(sizes: Sequence[tuple[int, int]], prefix: str = "") -> Objects:
    """Objects of (data, metadata) sizes, all of different bytes."""
    made: Objects = {}
    for index, (data_size, metadata_size) in enumerate(sizes):
        pattern = f"{prefix}{index}.".encode()
        object_id = ObjectID.from_name(f"{prefix}{index}")
        made[object_id] = (
            (pattern * (data_size // len(pattern) + 1))[:data_size],
            (pattern * (metadata_size // len(pattern) + 1))[:metadata_size],
        )
    return made


MIXED = [(10, 0), (0, 0), (500, 3), (5, 200), (70_000, 0), (0, 300), (200_000, 10), (1, 1)]
"""Sizes on both sides of every threshold of sender and receiver."""


def fill(store: EmbeddedStore, objects: Objects) -> None:
    """Put objects into a store."""
    for object_id, (data, metadata) in objects.items():
        put(store, object_id, data, metadata)


def contents(store: EmbeddedStore) -> Objects:
    """All sealed objects of a store."""
    found: Objects = {}
    for entry in store.core.table:
        if entry.is_sealed:
            data, metadata = store.core.memory_of(entry)
            found[entry.object_id] = bytes(data), bytes(metadata)
    return found


def answer_with(objects: Objects, limits: Limits | None = None) -> bytes:
    """The bytes of a successful answer."""
    server = ServerConnection(limits)
    server.receive_data(b"\x02" + len(objects).to_bytes(2, "little") + b"".join(objects))
    server.next_event()
    server.begin()
    for data, metadata in objects.values():
        server.send_object(metadata, data)
    return b"".join(server.data_to_send())


class ScriptedTransport:
    """Delivers prepared bytes, `step` at a time, and at the n-th read (from 1) does something else.

    Args:
        data: what the peer sends; then it ends the connection.
        step: bytes for each read.
        at: which read fails.
        failure: what it does: "cut" ends the connection, "stall" and "break" raise, "cancel" cancels `scope`.
    """

    peer = "a script"

    def __init__(self, data: bytes, step: int, at: int = 0, failure: str = "") -> None:
        self.data = memoryview(data)
        self.step = step
        self.at = at
        self.failure = failure
        self.scope = trio.CancelScope()
        self.reads = 0

    async def receive_into(self, buffer: memoryview, *, timeout: float, expected: int = 1) -> int:
        """See `Transport`."""
        self.reads += 1
        if self.reads == self.at:
            match self.failure:
                case "cut":
                    return 0
                case "stall":
                    raise PeerStalledError(f"{self.peer} sent nothing for {timeout:g} s")
                case "break":
                    raise PeerError(f"the connection to {self.peer} broke")
                case "cancel":
                    self.scope.cancel()
        await trio.lowlevel.checkpoint()
        nbytes = min(self.step, len(self.data), len(buffer))
        buffer[:nbytes] = self.data[:nbytes]
        self.data = self.data[nbytes:]
        return nbytes

    async def send(
        self,
        pieces: Sequence[bytes | memoryview],
        *,
        timeout: float,
        at_least: int = 1,
        excuse: Excuse | None = None,
    ) -> None:
        """See `Transport`; nothing is sent in these tests."""
        raise NotImplementedError

    def is_quiet(self) -> bool:
        """See `Transport`."""
        return True

    def break_on_death(self, on: bool) -> None:
        """See `Transport`."""

    def close(self) -> None:
        """See `Transport`."""

    def abort(self) -> None:
        """See `Transport`."""


@asynccontextmanager
async def serving(store: EmbeddedStore, **options: Any) -> AsyncIterator[PeerServer]:
    """A peer server on a free port, in a task of this loop."""
    server = PeerServer(store, port=0, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        yield server
        nursery.cancel_scope.cancel()


class _WatchedTransport(TcpTransport):
    """Says when a DROP is about to leave."""

    def __init__(self, sock: socket.socket, before_drop: Callable[[], None]) -> None:
        super().__init__(sock)
        self._before_drop = before_drop

    async def send(
        self,
        pieces: Sequence[bytes | memoryview],
        *,
        timeout: float,
        at_least: int = 1,
        excuse: Excuse | None = None,
    ) -> None:
        """See `Transport`."""
        if pieces and pieces[0][0] == FrameType.DROP:
            self._before_drop()
        await super().send(pieces, timeout=timeout, at_least=at_least, excuse=excuse)


def connect_watched(before_drop: Callable[[], None]) -> Connect:
    """Make a `connect` over TCP: `before_drop` is called before each DROP, which does not leave where it raises."""

    async def connect_and_watch(host: str, port: int, *, timeout: float) -> _WatchedTransport:
        return _WatchedTransport((await connect(host, port, timeout=timeout))._socket, before_drop)

    return connect_and_watch


def assert_nothing_claimed(server: PeerServer) -> None:
    """No object is marked as being taken or being received, and nothing is held for anybody."""
    assert server._taking.is_empty
    assert server._dispatcher._receiving.is_empty
    assert not len(server._services.holds)
    assert server._services.admission.is_empty


def version_1(
    host: str, port: int, *, timeouts: PeerTimeouts | None = None, limits: Limits | None = None
) -> Version1Client:
    """A client that knows nothing of version 2."""
    return Version1Client(host, port, timeouts=timeouts or PeerTimeouts(), connect=connect, limits=limits)


@asynccontextmanager
async def open_version_1(host: str, port: int) -> AsyncIterator[Version1Client]:
    """The same, connected, and closed when the block is left."""
    client = version_1(host, port)
    try:
        await client.connect()
        yield client
    finally:
        await client.aclose()
