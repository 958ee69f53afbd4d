"""Servers and stores of this project in processes of their own, and a relay that holds a transfer where told.

A process is ended by whoever started it, by its own pid. Everything waits to a deadline.
"""

import contextlib
import functools
import ipaddress
import re
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import trio

import plasmastream
from plasmastream import ObjectID
from plasmastream.peer import PeerRequest, TransferKind
from plasmastream.store import open_store
from tests.apache import ApacheClient, Digest, _Process

_MAIN = Path(__file__).with_name("node_main.py")
_COMMANDS = Path(plasmastream.__file__).parent / "cli"
_READY = re.compile(r"peer server ready at \S*?:(\d+)\b")

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def _has_command(name: str) -> bool:
    return (_COMMANDS / f"{name}.py").exists()


def wait_until(condition: Callable[[], object], within: float, what: str) -> None:
    """Look every few milliseconds whether something has come true.

    Raises:
        AssertionError: it has not, `within` so many seconds.
    """
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.005)


class InThread:
    """A call that blocks, in a thread; `outcome` is its result, or what it raised."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.outcome: Any = None
        self._call = function, args
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        function, args = self._call
        try:
            self.outcome = function(*args)
        except BaseException as error:
            self.outcome = error

    def ended(self) -> bool:
        """Whether it has returned or raised."""
        return not self._thread.is_alive()


class StoreProcess(_Process):
    """`plasmastream store`: our store alone, at `socket_path` with `memory` bytes.

    `arguments` are further options; `within` is a command that runs the store's own, which follows it.
    """

    def __init__(
        self, socket_path: str | Path, memory: int, arguments: Sequence[str] = (), within: Sequence[str] = ()
    ) -> None:
        self.socket_path = str(socket_path)
        options = ["--plasma-socket", self.socket_path, "--memory", str(memory), *arguments]
        if _has_command("store"):
            command = [sys.executable, "-u", "-m", "plasmastream", "store", *options]
        else:
            command = [sys.executable, "-u", str(_MAIN), "--store-only", *options]
        super().__init__("our store", [*within, *command])
        _await_ready(self, lambda: answers(socket.AF_UNIX, self.socket_path))


class Node(_Process):
    """`plasmastream serve`: a peer server, beside the store at `socket_path` or with one of `memory` bytes there.

    `arguments` are further options; `within` is a command that runs the server, as it follows. `timeouts` are those of
    `node_main.py`, which is started instead where they are given.
    """

    def __init__(
        self,
        socket_path: str | Path,
        memory: int | None = None,
        *,
        port: int = 0,
        max_connections: int = 128,
        arguments: Sequence[str] = (),
        within: Sequence[str] = (),
        **timeouts: float,
    ) -> None:
        self.socket_path = str(socket_path)
        options = ["--plasma-socket", self.socket_path, "--port", str(port), "--max-connections", str(max_connections)]
        options += ["--external-store"] if memory is None else ["--memory", str(memory)]
        options += arguments
        if _has_command("serve") and not timeouts:
            command = [sys.executable, "-u", "-m", "plasmastream", "serve", *options]
        else:
            further = [f"--{name.replace('_', '-')}={value}" for name, value in timeouts.items()]
            command = [sys.executable, "-u", str(_MAIN), *options, *further]
        super().__init__("our server", [*within, *command])
        _await_ready(self, lambda: _READY.search(self.stderr()))
        found = _READY.search(self.stderr())
        assert found is not None
        self.port = int(found[1])

    def request(self, object_ids: Iterable[ObjectID], kind: TransferKind = TransferKind.COPY) -> PeerRequest:
        """A part of a SYNC that names this server as the source."""
        return peer_request(self.port, object_ids, kind)


def _await_ready(process: _Process, is_ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    try:
        while not is_ready():
            if process.exit_status is not None:
                raise process._failure(f"ended with status {process.exit_status}")
            if time.monotonic() > deadline:
                raise process._failure("is not ready after 20 s")
            time.sleep(0.01)
    except BaseException:
        process.close()
        raise


def answers(family: socket.AddressFamily, address: Any) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


def peer_request(port: int, object_ids: Iterable[ObjectID], kind: TransferKind = TransferKind.COPY) -> PeerRequest:
    """A part of a SYNC that names a port of this machine as the source."""
    return PeerRequest(kind, ipaddress.IPv4Address("127.0.0.1"), port, tuple(object_ids))


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


# Version 1 on raw sockets, written from the document and not from our code.


def transfer_bytes(object_ids: Iterable[bytes], kind: int = 2) -> bytes:
    """A COPY (2) or TAKE (3), as plasma-stream.md A2 lays it out."""
    ids = list(object_ids)
    return struct.pack("<BH", kind, len(ids)) + b"".join(ids)


def sync_bytes(peer_requests: Iterable[PeerRequest]) -> bytes:
    """A SYNC of IPv4 peers, as plasma-stream.md A2 lays it out."""
    requests = list(peer_requests)
    parts = [struct.pack("<BH", 1, len(requests))]
    for request in requests:
        parts.append(struct.pack("<BBH", request.kind, 4, request.port) + request.address.packed)
        parts.append(struct.pack("<H", len(request.object_ids)) + b"".join(request.object_ids))
    return b"".join(parts)


class RawPeer:
    """A blocking TCP connection to a server, with a deadline for each call."""

    def __init__(self, port: int, *, timeout: float = 20, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        self.sock.connect(("127.0.0.1", port))

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.sock.sendall(data)

    def read(self, nbytes: int) -> bytes:
        """Read so many bytes, fewer only at the end of the stream."""
        data = bytearray()
        while len(data) < nbytes and (piece := self.sock.recv(min(nbytes - len(data), MIB))):
            data += piece
        return bytes(data)

    def ask(self, data: bytes, nbytes: int = 1) -> bytes:
        """Send a request, and read so many bytes of the answer."""
        self.send(data)
        return self.read(nbytes)

    def is_closed(self) -> bool:
        """Whether the server ends or breaks the connection, without another byte, before the time-out."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        """End the connection."""
        self.sock.close()

    def reset(self) -> None:
        """Break the connection, as the kernel does for a process that dies with bytes unread."""
        reset(self.sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def reset(sock: socket.socket) -> None:
    """Close a socket by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class FakePeer:
    """A listener whose connections are served by a function in a thread: peers which misbehave."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._ended = False
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.port: int = self._listener.getsockname()[1]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._ended:
            with contextlib.suppress(TimeoutError):
                sock, _ = self._listener.accept()
                sock.settimeout(20)
                thread = threading.Thread(target=self._guard, args=(sock,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _guard(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            self._serve(sock)

    def request(self, object_ids: Iterable[ObjectID], kind: TransferKind = TransferKind.COPY) -> PeerRequest:
        """A part of a SYNC that names this peer as the source."""
        return peer_request(self.port, object_ids, kind)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for thread in self._threads:
            thread.join(25)
        self._listener.close()


_RELAY_BUFFER = 1 << 20


class Relay:
    """A TCP relay in front of a server, which stops after `hold_after` bytes of answers until it is released.

    Ends are passed on as what they are: a clean end as one, a reset as one. While it holds, only what has been passed
    on can be at the receiver, so that whoever is killed is killed in the middle.
    """

    def __init__(self, target_port: int, hold_after: int) -> None:
        self._target_port = target_port
        self._hold_after = hold_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.passed = 0
        self.held = threading.Event()
        self._released = threading.Event()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def request(self, object_ids: Iterable[ObjectID], kind: TransferKind = TransferKind.COPY) -> PeerRequest:
        """A part of a SYNC that names the server behind the relay as the source."""
        return peer_request(self.port, object_ids, kind)

    def wait_until_held(self, within: float = 30) -> None:
        """Wait until the bytes before the hold have been passed on."""
        assert self.held.wait(within), f"the relay has passed on {self.passed:,} bytes only"

    def release(self) -> None:
        """Let the rest pass."""
        self._released.set()
        self._wake_writer.send(b"r")

    def _run(self) -> None:
        """One connection after the other: each test has one, and perhaps a second for the repetition."""
        while True:
            select.select([self._listener, self._wake_reader], [], [])
            if select.select([self._wake_reader], [], [], 0)[0]:
                if self._wake_reader.recv(1) == b"e":
                    return
                continue
            receiver, _ = self._listener.accept()
            source = socket.socket()
            # With what the kernel may choose, all of an answer might be under way to us when its sender is killed.
            source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RELAY_BUFFER)
            source.connect(("127.0.0.1", self._target_port))
            with receiver, source, contextlib.suppress(OSError):
                if not self._pass_on(receiver, source):
                    return

    def _pass_on(self, receiver: socket.socket, source: socket.socket) -> bool:
        """Pass on both ways until both have ended; False where the relay itself is closed."""
        open_ends = {receiver: source, source: receiver}
        while open_ends:
            holding = not self._released.is_set() and self.passed >= self._hold_after
            if holding:
                self.held.set()
            watched = [end for end in open_ends if not (holding and end is source)]
            for ready in select.select([*watched, self._wake_reader], [], [])[0]:
                if ready is self._wake_reader:
                    if ready.recv(1) == b"e":
                        reset(receiver)
                        reset(source)
                        return False
                    continue
                other = source if ready is receiver else receiver
                most = MIB
                if ready is source and not self._released.is_set():
                    most = min(MIB, self._hold_after - self.passed)
                try:
                    data = ready.recv(most) if most else b""
                    if most and not data:
                        del open_ends[ready]
                        other.shutdown(socket.SHUT_WR)
                    other.sendall(data)
                except OSError:
                    reset(receiver)
                    reset(source)
                    return True
                if ready is source:
                    self.passed += len(data)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wake_writer.send(b"e")
        self._thread.join(10)
        for sock in (self._listener, self._wake_reader, self._wake_writer):
            sock.close()


# What a store shows


@functools.cache
def pattern_digest(seed: int, size: int, metadata: bytes = b"") -> Digest:
    """`Digest.of_pattern`, computed once: 1 GiB takes a second."""
    return Digest.of_pattern(seed, size, metadata)


def unsealed(client: ApacheClient) -> list[bytes]:
    """The objects in a store that are not sealed."""
    return [object_id for object_id, entry in client.list().items() if entry["state"] != "sealed"]


def wait_until_clean(client: ApacheClient, *, without: Iterable[ObjectID] = ()) -> None:
    """Wait, for the 5 seconds that it may take, until nothing is unsealed and none of these is left."""
    absent = set(without)
    wait_until(lambda: not unsealed(client) and absent.isdisjoint(client.list()), 5, "an unsealed object is left")
    assert not any(client.contains(object_id) for object_id in absent)


def private_bytes(pid: int) -> int:
    """Memory of a process that is its own, outside files and shared memory."""
    return _status_field(pid, "RssAnon")


def _status_field(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def descriptor_count(pid: int) -> int:
    """How many file descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@contextlib.contextmanager
def peak_private_growth(pid: int) -> Iterator[list[int]]:
    """Sample a process's own memory; the list has the growth of its peak, in bytes, once the block is left."""
    before = peak = private_bytes(pid)
    ended = threading.Event()
    growth: list[int] = []

    def sample() -> None:
        nonlocal peak
        while not ended.wait(0.002):
            peak = max(peak, private_bytes(pid))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield growth
    finally:
        ended.set()
        thread.join()
        growth.append(peak - before)


def run_trio(function: Callable[[], Any], timeout: float = 60) -> Any:
    """Run an async function from a test that is otherwise blocking."""

    async def bounded() -> Any:
        with trio.fail_after(timeout):
            return await function()

    return trio.run(bounded)


def put(socket_path: str, objects: dict[ObjectID, tuple[bytes, bytes]]) -> None:
    """Put objects, given as (data, metadata), into a store through our client."""

    async def put_all() -> None:
        async with open_store(socket_path) as store:
            for object_id, (data, metadata) in objects.items():
                await store.put(data, metadata, object_id=object_id)

    run_trio(put_all)


def states(socket_path: str) -> dict[ObjectID, bool]:
    """Every object in a store, and whether it is sealed, as our client sees it."""

    async def find() -> dict[ObjectID, bool]:
        async with open_store(socket_path) as store:
            return {info.object_id: info.digest != b"" for info in await store.list_objects()}

    found: dict[ObjectID, bool] = run_trio(find)
    return found


def read(socket_path: str, object_ids: Iterable[ObjectID]) -> list[tuple[bytes, bytes] | None]:
    """Copies of objects in a store, as (data, metadata)."""

    async def get() -> list[tuple[bytes, bytes] | None]:
        async with open_store(socket_path) as store:
            found: list[tuple[bytes, bytes] | None] = []
            for lease in await store.get(list(object_ids)):
                if lease is None:
                    found.append(None)
                else:
                    with lease:
                        found.append((bytes(lease.data), bytes(lease.metadata)))
            return found

    copies: list[tuple[bytes, bytes] | None] = run_trio(get)
    return copies
