"""The servers that scripts are sent to: a store, and a peer server beside its own store.

Each knows how to make the script of a number, how to start its process, who is its healthy client, and what must be
true in the end: nothing unsealed, nothing held, the bytes accounted for.
"""

import socket
import tempfile
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from ipaddress import IPv4Address
from typing import ClassVar, Final

import attrs

from plasmastream import ObjectExistsError, ObjectID, RemoteProtocolError, StoreFullError
from plasmastream.blocking import Lease, StoreClient, open_store
from plasmastream.wire.plasma import (
    ErrorCode,
    GetDebugStringReply,
    GetDebugStringRequest,
    SubscribeRequest,
    encode,
)
from plasmastream.wire.stream import (
    NEED_DATA,
    ServerConnection,
    SyncRequested,
    TransferKind,
    TransferRequested,
    Version2Offered,
)
from tests.fuzz import corpus
from tests.fuzz.live import (
    DESCRIPTORS,
    End,
    Healthy,
    Piece,
    Script,
    ServerFault,
    Talks,
    Watch,
    tcp_connector,
    unix_connector,
)
from tests.fuzz.mutate import Mutator
from tests.interop.nodes import MIB, FakePeer, Node, RawPeer, StoreProcess, transfer_bytes

_MEMORY = 64 * MIB
_SIZES = (0, 1, 100, 5_000, 200_000)
_PATIENCE = 20.0  # inputs may hold all of the store's memory for as long as their connections last

OWN_MEMORY_GROWTH: Final = 64 * MIB
"""A server's own memory may grow by so much from its start to its end, in bytes, whatever it is sent."""

DESCRIPTOR_GROWTH: Final = 8
"""And so many more descriptors it may have open in the end: what event loops and thread pools open when first used."""


class Server(ABC):
    """A server under fuzzing, in a process of its own."""

    name: ClassVar[str]

    def __init__(
        self, process: StoreProcess | Node, connect: Callable[[], socket.socket], healthy: StoreClient
    ) -> None:
        self.watch = Watch(process)
        self.talks = Talks(connect, self.watch)
        self.client = healthy
        self.healthy = Healthy(self.round)

    @classmethod
    @abstractmethod
    def started(cls, seed: int) -> AbstractContextManager["Server"]:
        """Start one, for a `with` block."""

    @abstractmethod
    def script(self, seed: int, number: int) -> Script:
        """Make an input."""

    def scripts(self, seed: int, numbers: range) -> Iterator[Script]:
        """Make inputs, and look after the healthy client meanwhile."""
        for number in numbers:
            if number % 500 == 0:
                self.healthy.check()
            yield self.script(seed, number)

    def round(self, number: int) -> None:
        """What the healthy client does again and again: put, get, delete."""
        object_id = ObjectID.random()
        data, metadata = number.to_bytes(8) * (_SIZES[number % len(_SIZES)] // 8), b"of %d" % number
        lease = self._put(object_id, data, metadata)
        (again,) = self.client.get([object_id])
        with lease:
            assert again is not None
            assert (bytes(again.data), bytes(again.metadata)) == (data, metadata)
            again.release()
            assert self.client.delete([object_id]) == [ErrorCode.OBJECT_IN_USE]
            assert bytes(lease.data) == data
        assert self.client.get([object_id]) == [None]

    def _put(self, object_id: ObjectID, data: bytes, metadata: bytes) -> Lease:
        """Put an object that nobody can evict, not even between two calls: somebody holds it all the time."""
        with self.client.create(object_id, len(data), metadata, timeout=_PATIENCE) as unsealed:
            unsealed.data[:] = data
            unsealed.seal()
            (lease,) = self.client.get([object_id])
        assert lease is not None
        return lease

    def check_end(self) -> None:
        """Check what must be true when all connections but the healthy client's have ended.

        Raises:
            ServerFault: it is not.
        """
        kept = {ObjectID.random(): size for size in (0, 10, 5000)}
        with ExitStack() as leases:
            for object_id, size in kept.items():
                leases.enter_context(self._put(object_id, bytes(size), b""))
            expected = dict.fromkeys(kept, 1)
            _eventually(self._held, expected, "unsealed or held in the end")
            _eventually(self._left, expected, "in the store in the end")
            _eventually(self._allocated, sum(kept.values()), "bytes allocated in the end")
            self.client.delete(list(expected))
        self.client.get(list(expected))  # so that the store hears of the leases that have ended
        _eventually(self._allocated, 0, "bytes allocated at last")
        self._check_resources()

    def _held(self) -> dict[ObjectID, int]:
        found = self.client.list_objects()
        return {info.object_id: info.ref_count for info in found if info.ref_count or info.construct_duration < 0}

    def _left(self) -> dict[ObjectID, int]:
        self.client.evict(1 << 62)  # each time, since fetching from peers goes on when who asked for it has gone
        return {info.object_id: info.ref_count for info in self.client.list_objects()}

    def _allocated(self) -> int:
        self.client.evict(1 << 62)
        figures = self.client._call(GetDebugStringRequest(), GetDebugStringReply).debug_string.splitlines()
        assert figures[0] == "num clients with quota: 0", figures
        return next(int(line.rpartition(" ")[2]) for line in figures if line.startswith("allocated bytes"))

    def _check_resources(self) -> None:
        watch = self.watch
        watch.check()
        if watch.private_peak - watch.private_at_start > OWN_MEMORY_GROWTH:
            raise ServerFault(f"the server's memory has grown: {watch.figures()}")
        try:
            _eventually(lambda: watch.descriptors_left(DESCRIPTOR_GROWTH), False, "few descriptors")
        except ServerFault:
            raise ServerFault(f"the server has descriptors left: {watch.figures()}") from None


def _eventually(look: Callable[[], object], expected: object, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while (found := look()) != expected:
        if time.monotonic() > deadline:
            raise ServerFault(f"{what}: {found}, which should be {expected}")
        time.sleep(0.01)


# The store

_SUBSCRIBE: Final = encode(SubscribeRequest())
_REQUESTS: Final = [encode(message) for messages in corpus.CONVERSATIONS for message in messages]


class Store(Server):
    """`plasmastream store`."""

    name = "store"

    @classmethod
    @contextmanager
    def started(cls, seed: int) -> Iterator["Store"]:
        with ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="plasmastream-fuzz-"))
            process = stack.enter_context(StoreProcess(f"{directory}/store", _MEMORY))
            client = stack.enter_context(open_store(process.socket_path))
            yield cls(process, unix_connector(process.socket_path), client)

    def script(self, seed: int, number: int) -> Script:
        mutator = Mutator(seed, number)
        frames = [encode(message) for message in mutator.one_of(corpus.CONVERSATIONS)]
        if mutator.chance(3):
            frames += [encode(message) for message in mutator.one_of(corpus.CONVERSATIONS)]
        if not mutator.chance(10):  # now and then all is as it should be
            at = mutator.below(len(frames))
            frames[at] = mutator.spoil(frames[at], corpus.FRAMES if mutator.chance(4) else _REQUESTS)
        if mutator.chance(8):
            frames = frames * mutator.one_of((2, 5))
        pieces: list[Piece] = []
        for frame in frames:
            if frame == _SUBSCRIBE:
                pieces += Piece(frame), Piece(b"\x14", (mutator.one_of(DESCRIPTORS),))
            elif mutator.chance(40):
                pieces.append(Piece(frame, tuple(mutator.one_of(DESCRIPTORS) for _ in range(1 + mutator.below(3)))))
            elif mutator.chance(10):
                cut = mutator.below(len(frame))
                pieces += Piece(frame[:cut]), Piece(frame[cut:])
            else:
                pieces.append(Piece(frame))
        merged = _merged(pieces) if mutator.chance(2) else pieces
        return Script(tuple(piece for piece in merged if piece.data), _end(mutator))


def _merged(pieces: list[Piece]) -> Iterator[Piece]:
    """Send at once what brings no descriptors."""
    plain = b""
    for piece in pieces:
        plain += piece.data
        if piece.descriptors:
            yield Piece(plain, piece.descriptors)
            plain = b""
    yield Piece(plain)


def _end(mutator: Mutator) -> End:
    return mutator.one_of((End.HALF, End.HALF, End.HALF, End.CLOSE, End.CLOSE, End.STALL))


# The peer server

_NOBODY: Final = IPv4Address("127.83.21.8"), 2021


class Peer(Server):
    """`plasmastream serve`, with peers to fetch from that answer with spoilt answers."""

    name = "peer"

    def __init__(self, node: Node, client: StoreClient, fake: FakePeer) -> None:
        super().__init__(node, tcp_connector(node.port), client)
        self._node, self._fake = node, fake

    @classmethod
    @contextmanager
    def started(cls, seed: int) -> Iterator["Peer"]:
        with ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="plasmastream-fuzz-"))
            node = stack.enter_context(Node(f"{directory}/store", _MEMORY))
            client = stack.enter_context(open_store(node.socket_path))
            fake = stack.enter_context(FakePeer(lambda sock: _answer_badly(seed, sock)))
            yield cls(node, client, fake)

    def scripts(self, seed: int, numbers: range) -> Iterator[Script]:
        for script in super().scripts(seed, numbers):
            self._fill()
            yield script

    def _fill(self) -> None:
        """Have something there to be asked for: inputs take it away."""
        if len(self.talks.recent) % 20 == 0:
            for i, object_id in enumerate(corpus.IDS[:6]):
                try:
                    self.client.put(bytes(i * 3000), b"m" * i, object_id=object_id)
                except (ObjectExistsError, StoreFullError):
                    continue

    def round(self, number: int) -> None:
        super().round(number)
        object_id = ObjectID.random()
        expected = corpus.answer((b"meta", b"copied" * 1000))
        with (
            self._put(object_id, b"copied" * 1000, b"meta"),
            RawPeer(self._node.port, timeout=_PATIENCE) as peer,
        ):
            assert peer.ask(transfer_bytes([object_id]), len(expected)) == expected
            self.client.delete([object_id])

    def script(self, seed: int, number: int) -> Script:
        mutator = Mutator(seed, number)
        requests = [self._request(mutator) for _ in range(mutator.one_of((1, 1, 2, 3)))]
        spoilt = list(requests)
        if not mutator.chance(10):
            at = mutator.below(len(requests))
            spoilt[at] = mutator.spoil(requests[at], [*corpus.TRANSFERS, *requests])
        if not self._is_safe(b"".join(spoilt)):
            spoilt = requests
        pieces = tuple(Piece(request) for request in spoilt if request)
        return Script(pieces if mutator.chance(2) else (Piece(b"".join(spoilt)),), _end(mutator))

    def _request(self, mutator: Mutator) -> bytes:
        if mutator.chance(2):
            return mutator.one_of(corpus.TRANSFERS)
        ids = corpus.IDS[:]
        mutator.random.shuffle(ids)
        kind = mutator.one_of(list(TransferKind))
        requests = [corpus.peer_request(self._fake.port, *ids[: 1 + mutator.below(3)], kind=kind)]
        if mutator.chance(4):
            requests.append(attrs.evolve(requests[0], address=_NOBODY[0], port=_NOBODY[1], object_ids=(ids[5],)))
        return corpus.sync(*requests)

    def _is_safe(self, data: bytes) -> bool:
        """Whether the server, which would believe any address, is sent to none but those made for it."""
        allowed = {(IPv4Address("127.0.0.1"), self._fake.port), _NOBODY}
        parser = ServerConnection()
        if data:
            parser.receive_data(data)
        try:
            while (event := parser.next_event()) is not NEED_DATA:
                match event:
                    case SyncRequested(peer_requests):
                        if any((request.address, request.port) not in allowed for request in peer_requests):
                            return False
                        parser.answer_sync([0x41] * len(peer_requests))
                    case TransferRequested():
                        parser.refuse(0x71)
                    case Version2Offered():
                        return False
        except RemoteProtocolError:
            pass
        return True


def _answer_badly(seed: int, sock: socket.socket) -> None:
    """Answer a transfer with a spoilt answer; which one depends on the request alone."""
    request = sock.recv(1 << 16)
    mutator = Mutator(seed, zlib.crc32(request))
    answers = [*corpus.ANSWERS[2:], b"\x00", b"\x60"]
    answer = mutator.one_of(answers)
    sock.sendall(answer if mutator.chance(4) else mutator.spoil(answer, answers))


SERVERS: Final[dict[str, type[Server]]] = {server.name: server for server in (Store, Peer)}
