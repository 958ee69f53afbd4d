"""The holes of Apache's store, row by row of plasma-ipc.md, section 12: here each of them hurts nobody else.

One store in a process of its own outlives all of it. Meanwhile a healthy client in another process works on; each of
its requests succeeds, and none takes 100 ms. (Time for which the kernel let the store or the client wait for a
processor is taken off: on a busy machine that says nothing about the store.)
"""

import array
import contextlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import flatbuffers
import pytest

from plasmastream import ObjectID
from plasmastream.wire.plasma import (
    EMPTY_DIGEST,
    NEED_DATA,
    AbortReply,
    AbortRequest,
    ConnectReply,
    ConnectRequest,
    ContainsReply,
    ContainsRequest,
    CreateAndSealBatchReply,
    CreateAndSealBatchRequest,
    CreateAndSealReply,
    CreateAndSealRequest,
    CreateReply,
    CreateRequest,
    DeleteReply,
    DeleteRequest,
    ErrorCode,
    EvictReply,
    EvictRequest,
    GetReply,
    GetRequest,
    ListReply,
    ListRequest,
    Message,
    NotificationParser,
    ObjectInfo,
    ReleaseRequest,
    SealReply,
    SealRequest,
    SetOptionsReply,
    SetOptionsRequest,
    SubscribeRequest,
    decode,
    encode,
)
from tests.apache import ApacheError, ClientFactory, _Process, short_directory
from tests.interop.nodes import answers, descriptor_count, wait_until

CAPACITY = 10_000_000
A, B, C, D = (ObjectID.from_name(letter) for letter in "ABCD")
OK, EXISTS, NOT_FOUND, FULL = (
    ErrorCode.OK, ErrorCode.OBJECT_EXISTS, ErrorCode.OBJECT_NOT_FOUND, ErrorCode.OUT_OF_MEMORY
)  # fmt: skip
MOST_DELAY = 0.1

_HEADER = struct.Struct("<qqq")
_ROOT = Path(__file__).parents[2]
_M = TypeVar("_M", bound=Message)


class Raw:
    """A socket to the store, and messages over it; each call has five seconds."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(path)
        self.segments: dict[int, int] = {}

    def send(self, *messages: Message) -> None:
        self.sock.sendall(b"".join(map(encode, messages)))

    def receive(self, kind: type[_M]) -> _M:
        version, number, length = _HEADER.unpack(self._take(_HEADER.size))
        message = decode(number, self._take(length))
        assert (version, type(message)) == (0, kind)
        fds: Sequence[int] = ()
        if isinstance(message, GetReply):
            fds = message.store_fds
        elif isinstance(message, CreateReply) and message.store_fd is not None:
            fds = [message.store_fd]
        for fd in fds:
            if fd not in self.segments:
                byte, (self.segments[fd],), _, _ = socket.recv_fds(self.sock, 1, 1)
                assert len(byte) == 1
        assert isinstance(message, kind)
        return message

    def ask(self, request: Message, kind: type[_M]) -> _M:
        self.send(request)
        return self.receive(kind)

    def _take(self, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:
            chunk = self.sock.recv(nbytes - len(data))
            if not chunk:
                raise ConnectionResetError("the store hung up")
            data += chunk
        return data

    # What most tests need

    def create(self, object_id: ObjectID, size: int = 10, metadata_size: int = 0, *, evict: bool = True) -> ErrorCode:
        return self.ask(CreateRequest(object_id, evict, size, metadata_size), CreateReply).error

    def seal(self, object_id: ObjectID) -> ErrorCode:
        return self.ask(SealRequest(object_id, EMPTY_DIGEST), SealReply).error

    def put(self, object_id: ObjectID, data: bytes = b"data", *, evict: bool = True) -> ErrorCode:
        return self.ask(CreateAndSealRequest(object_id, evict, data, b"", EMPTY_DIGEST), CreateAndSealReply).error

    def put_many(self, object_ids: Sequence[ObjectID]) -> ErrorCode:
        many = len(object_ids)
        columns = ((b"",) * many, (b"",) * many, (EMPTY_DIGEST,) * many)
        return self.ask(CreateAndSealBatchRequest(tuple(object_ids), True, *columns), CreateAndSealBatchReply).error

    def contains(self, object_id: ObjectID) -> bool:
        return self.ask(ContainsRequest(object_id), ContainsReply).has_object

    def get(self, *object_ids: ObjectID, timeout_ms: int = 0) -> list[bool]:
        specs = self.ask(GetRequest(object_ids, timeout_ms), GetReply).specs
        return [not spec.is_missing for spec in specs]

    def delete(self, *object_ids: ObjectID) -> tuple[ErrorCode, ...]:
        return self.ask(DeleteRequest(object_ids), DeleteReply).errors

    def objects(self) -> dict[ObjectID, ObjectInfo]:
        return {info.object_id: info for info in self.ask(ListRequest(), ListReply).objects}

    def subscribe(self, *, blocking: bool = False) -> socket.socket:
        """Subscribe as Apache's client does, and return the end to read from."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(blocking)
        self.send(SubscribeRequest())
        self.give(theirs)
        ours.settimeout(5)
        return ours

    def give(self, theirs: socket.socket) -> None:
        socket.send_fds(self.sock, [b"\x14"], [theirs.fileno()])
        theirs.close()

    def is_idle(self, within: float = 0.2) -> bool:
        """Whether nothing comes, not even an end."""
        return not select.select([self.sock], [], [], within)[0]

    def is_dropped(self) -> bool:
        """Whether the store hangs up, without another word."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()
        for fd in self.segments.values():
            os.close(fd)
        self.segments.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# The healthy client


class Delays:
    """How long requests take: all in all, and without the time for which there was no processor."""

    def __init__(self, store_pid: int) -> None:
        self._files = [f"/proc/{store_pid}/schedstat", "/proc/self/schedstat"]
        self.slowest = self.slowest_net = 0.0
        self.requests = 0

    def _waited(self) -> float:
        try:
            return sum(int(Path(file).read_text().split()[1]) for file in self._files) / 1e9
        except OSError:
            return 0.0

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        waited, begin = self._waited(), time.perf_counter()
        yield
        delay = time.perf_counter() - begin
        net = delay - (self._waited() - waited)
        self.slowest, self.slowest_net = max(self.slowest, delay), max(self.slowest_net, net)
        self.requests += 1


def work_on(path: str, store_pid: int) -> None:
    """Be the healthy client: work until standard input ends, and report and begin anew at each line of it."""
    delays = Delays(store_pid)
    failure = ""
    raw = Raw(path)
    memory: mmap.mmap | None = None
    number = 0
    print("ready", flush=True)
    while True:
        if select.select([sys.stdin], [], [], 0.001)[0]:
            if not sys.stdin.readline():
                return
            report = [delays.requests, delays.slowest, delays.slowest_net, failure]
            print(json.dumps(report), flush=True)
            delays = Delays(store_pid)
        if failure:
            continue
        number += 1
        object_id = ObjectID.from_name(f"healthy {number}")
        data = os.urandom(400)
        try:
            with delays.measure():
                created = raw.ask(CreateRequest(object_id, True, 400, 0), CreateReply)
            assert created.error is OK
            if memory is None:
                assert created.mmap_size is not None
                (fd,) = raw.segments.values()
                memory = mmap.mmap(fd, created.mmap_size - 8)
            place = slice(created.spec.data_offset, created.spec.data_offset + 400)
            memory[place] = data
            with delays.measure():
                assert raw.seal(object_id) is OK
            with delays.measure():
                assert raw.contains(object_id)
            with delays.measure():
                assert raw.get(object_id) == [True]
            assert memory[place] == data
            with delays.measure():
                assert raw.delete(object_id) == (ErrorCode.OBJECT_IN_USE,)  # and so never idle: nobody may evict it
            raw.send(ReleaseRequest(object_id))
            with delays.measure():
                assert not raw.contains(object_id)
        except Exception as error:
            failure = "".join(traceback.format_exception(error))


class Healthy:
    """`work_on`, in a process of its own."""

    def __init__(self, path: str, store_pid: int) -> None:
        program = f"from {__name__} import work_on; work_on({path!r}, {store_pid})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT
        )
        self.has_failed = False
        assert self._line() == "ready\n"

    def report(self) -> tuple[int, float, float, str]:
        """Requests, the slowest one, the same without waiting for a processor, and what failed, since the last call."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        requests, slowest, net, failure = json.loads(self._line())
        self.has_failed = bool(failure)
        return requests, slowest, net, failure

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 20)[0], "the healthy client hangs"
        return self.process.stdout.readline()


class Server(_Process):
    """`plasma-store-server` at a socket of its own; `before` is Python to be run first."""

    def __init__(self, socket_path: Path, memory: int = CAPACITY, before: str = "") -> None:
        self.socket_path = str(socket_path)
        program = f"{before}\nfrom plasmastream.cli import plasma_store_server; plasma_store_server()"
        super().__init__(
            "our store", [sys.executable, "-c", program, "-s", self.socket_path, "-m", str(memory)]
        )
        wait_until(lambda: answers(socket.AF_UNIX, self.socket_path) or self.exit_status, 20, "the store answers")

    def connect(self) -> Raw:
        return Raw(self.socket_path)


class Bench:
    """A store with its healthy client, which tests share; after one that has broken it, the next gets a new one."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.server: Server | None = None
        self.healthy: Healthy

    def get(self) -> tuple[Server, Healthy]:
        if self.server is None or self.server.exit_status is not None or self.healthy.has_failed:
            self.stack.close()
            directory = self.stack.enter_context(short_directory())
            self.server = self.stack.enter_context(Server(directory / "plasma"))
            self.healthy = Healthy(self.server.socket_path, self.server.pid)
            self.stack.callback(self.healthy.close)
        return self.server, self.healthy


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    with bench.stack:
        yield bench
        server, healthy = bench.get()
        healthy.close()
        assert server.terminate(5) == 0
        assert "Traceback" not in server.stderr()


def clear(server: Server) -> None:
    with server.connect() as raw:
        raw.ask(EvictRequest(1 << 62), EvictReply)
        left = [info for object_id, info in raw.objects().items() if info.data_size != 400]
        assert not left, f"somebody still holds {left}"


@pytest.fixture
def store(bench: Bench) -> Iterator[Server]:
    """The store, with the healthy client at work; nothing may be left of the test in the end."""
    server, healthy = bench.get()
    healthy.report()
    before = descriptor_count(server.pid)
    with _watched(server, healthy):
        yield server
        wait_until(lambda: descriptor_count(server.pid) == before, 5, "no descriptor is lost")
        clear(server)


@contextlib.contextmanager
def _watched(server: Server, healthy: Healthy) -> Iterator[None]:
    yield
    assert server.exit_status is None, server.stderr()
    time.sleep(0.02)
    requests, slowest, net, failure = healthy.report()
    print(f"healthy: {requests} requests, the slowest took {slowest * 1000:.1f} ms, {net * 1000:.1f} ms of its own")
    assert not failure
    assert requests
    assert net < MOST_DELAY, f"{slowest} s, of which {net} s were the store's"
    assert "Traceback" not in server.stderr(), server.stderr()


# Bytes that are wrong


def frame(kind: int, body: bytes = b"", *, version: int = 0, length: int | None = None) -> bytes:
    return _HEADER.pack(version, kind, len(body) if length is None else length) + body


def table(*slots: bytes | list[bytes] | int | None) -> bytes:
    """A body made by Google's library: strings, vectors of strings, int32, and None for what is left out."""
    builder = flatbuffers.Builder(256)
    offsets: list[Any] = []
    for slot in slots:
        if isinstance(slot, bytes):
            offsets.append(builder.CreateString(slot))
        elif isinstance(slot, list):
            strings = [builder.CreateString(text) for text in slot]
            builder.StartVector(4, len(strings), 4)
            for string in reversed(strings):
                builder.PrependUOffsetTRelative(string)
            offsets.append(builder.EndVector())
        else:
            offsets.append(slot)
    builder.StartObject(len(slots))
    for number, (slot, offset) in enumerate(zip(slots, offsets, strict=True)):
        if isinstance(slot, bytes | list):
            builder.PrependUOffsetTRelativeSlot(number, offset, 0)
        elif slot is not None:
            builder.PrependInt32Slot(number, slot, -4711)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


CONNECT = encode(ConnectRequest())
NAMED = {"abort": 5, "release": 11, "contains": 15}
BODIES = {"create": 1, "create and seal": 3, **NAMED, "seal": 7, "get": 9, "delete": 13, "set options": 28,
          "batch": 32, "refresh": 34}  # fmt: skip
REPLIES = [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 26, 29, 31, 33, 35]


def test_the_builder_of_wrong_bodies_can_make_right_ones(store: Server) -> None:
    with store.connect() as raw:
        raw.sock.sendall(frame(15, table(A)) + frame(13, table(1, [A])) + frame(7, table(A, bytes(8))))
        assert not raw.receive(ContainsReply).has_object
        assert raw.receive(DeleteReply).errors == (NOT_FOUND,)
        assert raw.receive(SealReply).error is NOT_FOUND


@pytest.mark.parametrize(
    "data",
    [
        *(pytest.param(frame(19, CONNECT[24:], version=v), id=f"version {v}") for v in (1, -1, 2**62)),
        *(pytest.param(frame(3, length=n), id=f"length {n}") for n in (-1, -(2**63), 2**31, 8 << 30, 2**62)),
        *(pytest.param(frame(n, CONNECT[24:]), id=f"type {n}") for n in (-1, 24, 25, 27, 36, 2**62, *REPLIES)),
        *(pytest.param(frame(n, bytes(8)), id=f"zeros as {name}") for name, n in BODIES.items()),
        *(pytest.param(frame(n, b"\xff\xff\xff\x7f" * 9), id=f"wild root, {name}") for name, n in BODIES.items()),
        *(pytest.param(frame(n), id=f"empty {name}") for name, n in BODIES.items()),
        *(pytest.param(frame(n, table(None)), id=f"{name} without id") for name, n in NAMED.items()),
        *(pytest.param(frame(n, table(b"x" * 1)), id=f"{name}, id of 1") for name, n in NAMED.items()),
        *(pytest.param(frame(n, table(b"x" * 21)), id=f"{name}, id of 21") for name, n in NAMED.items()),
        pytest.param(frame(1, table(None, 1)), id="create without id"),
        pytest.param(frame(1, table(b"x", 1)), id="create, id of 1"),
        pytest.param(frame(9, table([b"x" * 20, b"x"])), id="get, id of 1"),
        pytest.param(frame(9, table(None)), id="get without ids"),
        pytest.param(frame(13, table(3, [b"x" * 20])), id="delete, count beyond the vector"),
        pytest.param(frame(13, table(2**31 - 1, [])), id="delete, count of 2^31-1"),
        pytest.param(frame(7, table(b"x" * 20, bytes(7))), id="seal, digest of 7"),
        pytest.param(frame(7, table(b"x" * 20, None)), id="seal without digest"),
        pytest.param(frame(3, table(b"x" * 20, None, b"", b"", bytes(7))), id="create and seal, digest of 7"),
        *(
            pytest.param(frame(32, table(*(None if n is None else [size * b"x"] * n
                         for n, size in zip(counts, (20, 0, 1, 1, 8), strict=True)))), id=f"batch of {counts}")
            for counts in ((2, None, 1, 2, 2), (2, None, 2, 1, 2), (2, None, 2, 2, 1), (1, None, 2, 2, 2),
                           (2, None, 0, 2, 2), (2, None, None, 2, 2))
        ),
    ],
)  # fmt: skip
def test_what_breaks_the_protocol_is_dropped(store: Server, data: bytes) -> None:
    with store.connect() as other, store.connect() as raw:
        assert other.create(A) is OK  # whose bytes must not be taken for those that are missing
        assert raw.ask(ConnectRequest(), ConnectReply).memory_capacity == CAPACITY
        raw.sock.sendall(data)
        assert raw.is_dropped()
        assert other.seal(A) is OK
        assert other.get(A) == [True]


def test_a_body_may_have_20_mb(store: Server) -> None:
    with store.connect() as raw:
        assert raw.put(A, bytes(20_000_000)) is FULL
        assert raw.put(A, bytes(5_000_000)) is OK


@pytest.mark.parametrize(
    "data", [bytes(4), bytes(23), frame(3, length=60 << 20), frame(3, length=60 << 20) + bytes(1000), CONNECT[:-1]]
)
def test_who_stops_in_the_midst_of_a_frame_waits_alone(store: Server, data: bytes) -> None:
    with store.connect() as raw:
        raw.sock.sendall(data)
        assert raw.is_idle(0.3)


def test_sigterm_is_heard_whoever_stalls(socket_directory: Path) -> None:
    with Server(socket_directory / "plasma") as server, contextlib.ExitStack() as stack:
        waiting = [encode(GetRequest((A,), -1)), encode(SubscribeRequest())]
        for data in (b"", bytes(4), frame(3, length=60 << 20), *waiting):
            stack.enter_context(server.connect()).sock.sendall(data)
        unread = stack.enter_context(server.connect())
        unread.put_many([ObjectID.from_name(f"{number}") for number in range(3000)])
        unread.send(*[ListRequest()] * 3)
        time.sleep(0.2)
        begin = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait(5) == 0
        assert time.monotonic() - begin < 2
        assert "Traceback" not in server.stderr()


# Requests out of turn


def test_release_of_what_is_not_held(store: Server) -> None:
    with store.connect() as raw, store.connect() as other:
        assert other.create(A) is OK
        raw.send(ReleaseRequest(A), ReleaseRequest(B), ReleaseRequest(B))
        assert not raw.contains(A)
        assert other.seal(A) is OK
        raw.send(ReleaseRequest(A))
        assert raw.objects()[A].ref_count == 1
        other.send(ReleaseRequest(A), ReleaseRequest(A))
        assert other.objects()[A].ref_count == 0


def test_seal_of_what_is_unknown_or_sealed(store: Server) -> None:
    with store.connect() as raw:
        assert raw.seal(A) is NOT_FOUND
        assert raw.put(A) is OK
        assert raw.seal(A) is EXISTS
        assert raw.contains(A)


def test_abort_of_what_is_not_ones_own(store: Server) -> None:
    with store.connect() as raw, store.connect() as other:
        assert other.create(A) is OK
        assert raw.put(B) is OK
        for object_id in (A, B, C):
            assert raw.ask(AbortRequest(object_id), AbortReply).object_id == object_id
        assert other.seal(A) is OK
        assert raw.contains(B)
        assert other.ask(AbortRequest(A), AbortReply).object_id == A
        assert other.get(A, B, C) == [True, True, False]


SIZES = [(2**63, 0), (2**64 - 1, 0), (0, 2**63), (0, 2**64 - 1), (2**63 - 1, 2**63 - 1), (2**64 - 1, 1), (2**62, 2**62),
         (2**64 - 5, 10), (10, 2**64 - 5), (CAPACITY, 1), (1, CAPACITY)]  # fmt: skip


@pytest.mark.parametrize("sizes", SIZES)
def test_impossible_sizes(store: Server, sizes: tuple[int, int]) -> None:
    with store.connect() as raw:
        assert raw.put(B) is OK
        for evict in (True, False):
            assert raw.create(A, *sizes, evict=evict) is FULL
        assert A not in raw.objects()
        assert raw.contains(B)


def test_impossible_sizes_from_pyarrow(store: Server, apache_client: ClientFactory) -> None:
    client = apache_client(store.socket_path)
    for size in (-1, -5, 2**63 - 1, CAPACITY + 1):
        with pytest.raises(ApacheError) as caught:
            client.create(A, size, b"0123456789")
        assert caught.value.kind == "PlasmaStoreFull"
    client.create_and_seal(A, b"data")
    client.delete([A])
    client.close()


# Gets


def test_get_of_a_missing_id_twice_then_sealed(store: Server) -> None:
    with store.connect() as raw, store.connect() as other:
        raw.send(GetRequest((A, B, A), -1))
        assert raw.is_idle()
        assert [other.put(A), other.put(B)] == [OK, OK]
        specs = raw.receive(GetReply).specs
        assert specs[0] == specs[2] != specs[1]
        assert not any(spec.is_missing for spec in specs)
        assert raw.objects()[A].ref_count == 1


def test_get_of_a_present_id_twice(store: Server, apache_client: ClientFactory) -> None:
    with store.connect() as raw:
        assert raw.put(A) is OK
        assert raw.get(A, A, timeout_ms=-1) == [True, True]
        begin = time.monotonic()
        assert raw.get(A, A, B, timeout_ms=200) == [True, True, False]
        assert 0.19 < time.monotonic() - begin < 2
    client = apache_client(store.socket_path)
    assert client.get([A, A], -1) == [(b"data", b"")] * 2
    client.close()


def test_two_gets_in_a_row_then_the_end(store: Server) -> None:
    for requests in ([GetRequest((A,), -1)] * 2, [GetRequest((A,), -1), GetRequest((B,), 1000), ListRequest()]):
        raw = store.connect()
        raw.send(*requests)
        assert raw.is_idle(0.05)
        raw.close()
    with store.connect() as other:
        assert [other.put(A), other.put(B)] == [OK, OK]
        wait_until(lambda: not any(other.objects()[i].ref_count for i in (A, B)), 5, "none is held")


def test_two_gets_in_a_row_are_answered_in_order(store: Server) -> None:
    with store.connect() as raw, store.connect() as other:
        raw.send(GetRequest((A,), -1), GetRequest((B,), -1), ContainsRequest(C))
        assert other.put(B) is OK
        assert raw.is_idle()
        assert other.put(A) is OK
        assert [raw.receive(GetReply).object_ids for _ in range(2)] == [(A,), (B,)]
        assert raw.receive(ContainsReply).object_id == C


# Notifications


class Events:
    """Reads a subscriber's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.parser = NotificationParser()

    def take(self, count: int) -> list[ObjectInfo]:
        """The next events of objects that are not the healthy client's."""
        found: list[ObjectInfo] = []
        while len(found) < count:
            event = self.parser.next_event()
            if event is NEED_DATA:
                data = self.sock.recv(1 << 16)
                assert data, f"ended after {len(found)} of {count} events"
                self.parser.receive_data(data)
            else:
                assert isinstance(event, tuple)
                found += [info for info in event if info.object_id in self.known and info.data_size != 400]
        return found

    known: Sequence[ObjectID] = (A, B, C, D)


def test_subscribe_without_a_descriptor(store: Server) -> None:
    with store.connect() as raw, store.connect() as other:
        raw.send(SubscribeRequest())
        assert raw.is_idle(0.3)
        assert other.put(A) is OK
        ours, theirs = socket.socketpair()
        raw.give(theirs)
        ours.settimeout(5)
        with ours:
            (event,) = Events(ours).take(1)
            assert (event.object_id, event.data_size) == (A, 4)
        assert raw.contains(A)
    with store.connect() as raw:
        raw.send(SubscribeRequest(), ContainsRequest(A))
        assert raw.is_dropped()
    raw = store.connect()
    raw.send(SubscribeRequest())
    raw.close()


def test_subscribe_twice(store: Server, apache_client: ClientFactory) -> None:
    """Unlike what section 12 proposes, the newest socket replaces the older: it is the one that pyarrow reads."""
    with store.connect() as raw:
        with raw.subscribe() as older, raw.subscribe() as newer:
            assert raw.put(A) is OK
            assert Events(newer).take(1)[0].object_id == A
            while older.recv(1 << 16):
                pass
        with raw.subscribe() as third:
            assert Events(third).take(1)[0].object_id == A
        assert raw.delete(A) == (OK,)
    client = apache_client(store.socket_path)
    client.subscribe()
    client.subscribe()
    client.create_and_seal(B, b"from pyarrow")
    while (event := client.get_next_notification()).object_id != B:
        pass
    assert event.data_size == 12
    client.close()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_subscriber_that_does_not_read_for_a_while(store: Server, blocking: bool) -> None:
    ids = [ObjectID.from_name(f"one of many {number}") for number in range(4000)]
    with store.connect() as raw, raw.subscribe(blocking=blocking) as socket_:
        events = Events(socket_)
        events.known = set(ids)  # type: ignore[assignment]
        for first in range(0, 4000, 500):
            assert raw.put_many(ids[first : first + 500]) is OK
        time.sleep(0.2)
        assert [event.object_id for event in events.take(4000)] == ids
        for first in range(0, 4000, 500):
            assert raw.delete(*ids[first : first + 500]) == (OK,) * 500
        assert [(event.object_id, event.is_deletion) for event in events.take(4000)] == [(i, True) for i in ids]


def test_a_batch_of_4000_to_a_subscriber_that_does_not_read(store: Server) -> None:
    ids = [ObjectID.from_name(f"one of a batch {number}") for number in range(4000)]
    with store.connect() as raw, raw.subscribe() as socket_:
        assert raw.put_many(ids) is OK
        time.sleep(0.2)
        events = Events(socket_)
        events.known = set(ids)  # type: ignore[assignment]
        assert [event.object_id for event in events.take(4000)] == ids
        for first in range(0, 4000, 500):
            assert raw.delete(*ids[first : first + 500]) == (OK,) * 500


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_subscriber_that_never_reads_is_dropped(socket_directory: Path) -> None:
    """The store has a lower limit here than 64 MiB, only to be quicker."""
    lower = (
        "from plasmastream.store import ConnectionLimits\n"
        "made = ConnectionLimits.__init__\n"
        "made.__defaults__ = (*made.__defaults__[:-1], 1 << 20)"
    )
    ids = [ObjectID.from_name(f"again {number}") for number in range(500)]
    with Server(socket_directory / "plasma", before=lower) as server:
        healthy = Healthy(server.socket_path, server.pid)
        try:
            with _watched(server, healthy), server.connect() as raw, raw.subscribe() as never_read:
                before = resident_bytes(server.pid)
                for _ in range(20):
                    assert raw.put_many(ids) is OK
                    assert raw.delete(*ids) == (OK,) * 500
                assert "does not read its notifications" in server.stderr()
                assert resident_bytes(server.pid) - before < 20 << 20
                assert raw.put(A) is OK
                while never_read.recv(1 << 20):
                    pass
        finally:
            healthy.close()


def test_a_subscriber_that_is_closed_while_its_connection_goes_on(store: Server) -> None:
    with store.connect() as raw:
        assert not raw.contains(A)
        for _ in range(3):
            before = descriptor_count(store.pid)
            raw.subscribe().close()
            assert raw.put(A) is OK
            assert raw.delete(A) == (OK,)
            wait_until(lambda count=before: descriptor_count(store.pid) <= count, 5, "it is closed")  # type: ignore[misc]
        # Numbers that were given back are others' now, and must not be closed a second time.
        with contextlib.ExitStack() as stack:
            others = [stack.enter_context(store.connect()) for _ in range(10)]
            assert not any(other.contains(A) for other in others)
            raw.close()
            time.sleep(0.05)
            assert not any(other.contains(A) for other in others)


def test_a_subscription_to_what_is_no_socket(store: Server) -> None:
    reader, writer = os.pipe()
    with store.connect() as raw:
        raw.send(SubscribeRequest())
        socket.send_fds(raw.sock, [b"\x14"], [writer])
        assert raw.is_dropped()
    os.close(reader)
    os.close(writer)


# Memory, quotas, marks


def test_a_client_that_does_not_read_its_replies(store: Server) -> None:
    ids = [ObjectID.from_name(f"listed {number}") for number in range(3000)]
    with store.connect() as raw, store.connect() as other:
        for first in range(0, 3000, 500):
            assert other.put_many(ids[first : first + 500]) is OK
        raw.send(*[ListRequest()] * 3)
        time.sleep(0.5)
        for _ in range(3):
            assert len(raw.receive(ListReply).objects) >= 3000
        raw.send(*[ListRequest()] * 3)
        time.sleep(0.1)


def test_a_create_that_fails_evicts_nothing(store: Server) -> None:
    with store.connect() as raw, store.connect() as other:
        idle = [ObjectID.from_name(f"idle {number}") for number in range(5)]
        for object_id in idle:
            assert raw.put(object_id, bytes(1_000_000)) is OK
        assert other.create(A, 4_000_000) is OK
        for size, evict in ((CAPACITY + 1, True), (6_100_000, True), (3_000_000, False)):
            assert raw.create(B, size, evict=evict) is FULL
            assert set(idle) <= raw.objects().keys()
        assert raw.create(B, 5_500_000) is OK


@pytest.mark.parametrize("how", ["abort", "hang up"])
def test_a_delete_mark_ends_with_its_object(store: Server, how: str) -> None:
    with store.connect() as other:
        raw = store.connect()
        assert raw.create(A) is OK
        assert other.delete(A) == (ErrorCode.OBJECT_NOT_SEALED,)
        if how == "abort":
            raw.ask(AbortRequest(A), AbortReply)
        raw.close()
        wait_until(lambda: A not in other.objects(), 5, "it is gone")
        assert other.create(A) is OK
        assert other.seal(A) is OK
        other.send(ReleaseRequest(A))
        assert other.contains(A)
        assert other.get(A) == [True]
        other.send(ReleaseRequest(A))
        assert other.contains(A)


def test_quotas(store: Server) -> None:
    def grant(raw: Raw, nbytes: int) -> ErrorCode:
        return raw.ask(SetOptionsRequest("me", nbytes), SetOptionsReply).error

    with store.connect() as raw, store.connect() as other:
        for refused in (-1, -(2**63), 7_000_001, 2**63 - 1):
            assert grant(raw, refused) is FULL
        assert grant(raw, 1_000_000) is OK
        assert grant(raw, 1_000_000) is FULL  # there is one already
        assert grant(other, 6_500_000) is FULL  # what is left to all must be 30 %
        assert raw.put(A, bytes(700_000)) is OK
        assert raw.create(B, 400_000, evict=False) is FULL
        assert raw.contains(A)
        assert raw.create(B, 1_000_001) is FULL
        assert raw.contains(A)
        assert raw.create(B, 400_000) is OK
        assert not raw.contains(A)


def test_a_client_cannot_resize_the_segment(store: Server) -> None:
    with store.connect() as raw:
        assert raw.create(A) is OK
        (fd,) = raw.segments.values()
        for size in (0, 1, os.fstat(fd).st_size - 1, os.fstat(fd).st_size + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            os.posix_fallocate(fd, os.fstat(fd).st_size, 4096)


# Limits, and who may connect


def test_a_get_of_many_ids(store: Server) -> None:
    ids = tuple(ObjectID.from_name(f"missing {number}") for number in range(10_000))
    with store.connect() as raw:
        assert not any(raw.get(*ids))
        assert raw.delete(*ids) == (NOT_FOUND,) * len(ids)


def test_a_thousand_connections(store: Server) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(store.connect()) for _ in range(1000)]
        for number, client in enumerate(clients):
            client.sock.sendall((b"", bytes(4), CONNECT, CONNECT * 3)[number % 4])
        assert not clients[0].contains(A)


def test_the_socket_is_its_users_own(store: Server) -> None:
    """That the user of the other side is looked at, too: tests/cli/test_store_server.py."""
    assert os.stat(store.socket_path).st_mode & 0o777 == 0o600


def test_a_second_store_at_the_same_path(store: Server) -> None:
    with Server(Path(store.socket_path)) as second:
        assert second.wait() == 1
        assert "already being served" in second.stderr()
    with store.connect() as raw:
        assert raw.put(A) is OK


def test_many_at_once(store: Server) -> None:
    """All sorts of trouble together, from several threads."""

    def repeat(trouble: Callable[[Raw], object]) -> None:
        for _ in range(10):
            with store.connect() as raw, contextlib.suppress(OSError):
                trouble(raw)

    def half_frame(raw: Raw) -> None:
        raw.sock.sendall(bytes(4))
        time.sleep(0.01)

    def unread(raw: Raw) -> None:
        raw.send(*[ListRequest()] * 20)

    def leave_unsealed(raw: Raw) -> None:
        raw.create(ObjectID.random(), 100_000)

    def rights(raw: Raw) -> None:
        fds = array.array("i", [raw.sock.fileno()] * 3)
        raw.sock.sendmsg([CONNECT], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])

    def zeros(raw: Raw) -> None:
        raw.sock.sendall(frame(1, bytes(8)))

    def wait_in_vain(raw: Raw) -> None:
        raw.send(GetRequest((ObjectID.random(),), -1))

    kinds = [half_frame, unread, leave_unsealed, rights, zeros, wait_in_vain]
    threads = [threading.Thread(target=repeat, args=[trouble]) for trouble in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
