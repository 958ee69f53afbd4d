"""Scripts against a server in a process of its own: what each connection sends, and whether the server bears it.

A script is one connection: pieces, each sent with one call and perhaps with descriptors, and the way it ends. Some
dozens are under way at once. After a half-close the server must end its half: one that does not has hung. `Watch`
looks after the process: that it lives, that no error surprised it, what memory and descriptors it takes.
"""

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from enum import Enum
from pathlib import Path
from typing import Final

import attrs

from tests.apache import _Process
from tests.interop.nodes import descriptor_count, private_bytes

HANG: Final = 30.0
"""Seconds after which a connection that ought to have ended has hung."""

_CONNECTIONS = 24
_CHECK_EVERY = 1000
_SHOWN = 4000  # bytes of an error from the log
_REMEMBERED = _CHECK_EVERY + 200  # scripts that may have caused a failure that shows later


class End(Enum):
    """How a script ends, when all is sent."""

    HALF = "half"
    """Nothing more is sent; replies are read to their end."""
    CLOSE = "close"
    """At once, with replies unread."""
    STALL = "stall"
    """Nothing is sent or read while other connections come and go; then as `HALF`."""


@attrs.frozen
class Piece:
    """What goes out with one call, and the kinds of descriptors with it."""

    data: bytes
    descriptors: tuple[str, ...] = ()


@attrs.frozen
class Script:
    """One input: all that one connection sends."""

    pieces: tuple[Piece, ...]
    end: End

    def __str__(self) -> str:
        pieces = ["+".join((piece.data.hex(), *piece.descriptors)) for piece in self.pieces]
        return ":".join((self.end.value, *pieces))

    @classmethod
    def parse(cls, text: str) -> "Script":
        """Read what `str` wrote."""
        end, *pieces = text.split(":")
        split = [piece.split("+") for piece in pieces]
        return cls(tuple(Piece(bytes.fromhex(data), tuple(kinds)) for data, *kinds in split), End(end))


class ServerFault(Exception):
    """The server ended, hung, met an error that it did not expect, or kept what it should have let go."""


@attrs.define(eq=False)
class Watch:
    """An eye on a server's process."""

    process: _Process
    private_at_start: int = 0
    private_peak: int = 0
    descriptors_at_start: int = 0
    descriptors_peak: int = 0
    _read: int = 0

    def __attrs_post_init__(self) -> None:
        self.private_at_start = private_bytes(self.process.pid)
        self.descriptors_at_start = descriptor_count(self.process.pid)

    def check(self) -> None:
        """Look at it.

        Raises:
            ServerFault: it has ended, or logged an error that it did not expect.
        """
        if self.process.exit_status is not None:
            raise ServerFault(f"the server ended with status {self.process.exit_status}")
        with Path(self.process._log.name).open("rb") as log:
            log.seek(self._read)
            new = log.read()
        self._read += len(new)
        if (at := new.find(b"Traceback")) >= 0:
            raise ServerFault(f"the server met an error: {new[at : at + _SHOWN].decode(errors='replace')}")
        try:
            self.private_peak = max(self.private_peak, private_bytes(self.process.pid))
            self.descriptors_peak = max(self.descriptors_peak, descriptor_count(self.process.pid))
        except (AssertionError, OSError):  # it is just going
            raise ServerFault(f"the server ended with status {self.process.wait()}") from None

    def descriptors_left(self, more: int) -> bool:
        """Whether the server has more descriptors open than at its start, by more than so many."""
        return descriptor_count(self.process.pid) > self.descriptors_at_start + more

    def figures(self) -> str:
        """Memory and descriptors, in words."""
        now, descriptors = private_bytes(self.process.pid), descriptor_count(self.process.pid)
        return (
            f"own memory {self.private_at_start >> 10:,} KiB at the start, {self.private_peak >> 10:,} at most, "
            f"{now >> 10:,} at the end; descriptors {self.descriptors_at_start}, {self.descriptors_peak}, {descriptors}"
        )


class _Talk:
    """A script under way."""

    def __init__(self, sock: socket.socket, script: Script) -> None:
        self.sock = sock
        self.pieces = deque(script.pieces)
        self.end = script.end
        self.deadline = time.monotonic() + HANG
        self.others = ExitStack()  # the ends of descriptors that we keep

    def go_on(self) -> bool:
        """Send and read what can be now; True when it is over."""
        try:
            while self.pieces:
                self._send(self.pieces[0])
            if self.end is End.CLOSE:
                return True
            if self.end is End.HALF:
                self.end = End.STALL  # once only
                self.sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass  # the server wants to be read, or is busy
        except OSError:
            return True  # the server has ended it
        try:
            while self.sock.recv(1 << 18):
                pass
            return True
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """End it."""
        self.sock.close()
        self.others.close()

    def _send(self, piece: Piece) -> None:
        if not piece.descriptors:
            sent = self.sock.send(piece.data)
        else:
            with ExitStack() as stack:
                given = [self._descriptor(kind, stack) for kind in piece.descriptors]
                sent = socket.send_fds(self.sock, [piece.data], given)
        self.pieces.popleft()
        if sent < len(piece.data):
            self.pieces.appendleft(Piece(piece.data[sent:]))

    def _descriptor(self, kind: str, stack: ExitStack) -> int:
        match kind:
            case "stream" | "dgram":
                ours, theirs = socket.socketpair(type=getattr(socket, f"SOCK_{kind.upper()}"))
                self.others.enter_context(ours)
                return stack.enter_context(theirs).fileno()
            case "closed":
                ours, theirs = socket.socketpair()
                ours.close()
                return stack.enter_context(theirs).fileno()
            case "listener":
                return stack.enter_context(socket.create_server(("127.0.0.1", 0))).fileno()
            case "self":
                return self.sock.fileno()
            case _:
                return stack.enter_context(open("/dev/null", "r+b", buffering=0)).fileno()


DESCRIPTORS: Final = ("stream", "stream", "stream", "closed", "dgram", "listener", "self", "null")
"""Kinds of descriptors that may come with a piece."""


class Talks:
    """Scripts under way on one server; `recent` has the last ones, the oldest first."""

    def __init__(self, connect: Callable[[], socket.socket], watch: Watch) -> None:
        self.recent: deque[Script] = deque(maxlen=_REMEMBERED)
        self._connect = connect
        self._watch = watch
        self._selector = selectors.DefaultSelector()
        self._talks: set[_Talk] = set()
        self._stalled: deque[_Talk] = deque()

    def run(self, scripts: Iterable[Script], at_once: int = _CONNECTIONS) -> int:
        """Run scripts, and wait until the last connection has ended; returns how many there were.

        Raises:
            ServerFault: see there.
        """
        count = 0
        try:
            for script in scripts:
                self._begin(script)
                while len(self._talks) >= at_once:
                    self._turn()
                while len(self._stalled) > at_once // 2:
                    self._wake()
                count += 1
                if count % _CHECK_EVERY == 0:
                    self._watch.check()
            while self._stalled:
                self._wake()
            while self._talks:
                self._turn()
            self._watch.check()
            return count
        except OSError as error:
            self._watch.check()
            raise ServerFault(f"the server cannot be reached any more: {error}") from error
        finally:
            for talk in self._talks | set(self._stalled):
                talk.close()
            self._talks.clear()
            self._stalled.clear()

    def _begin(self, script: Script) -> None:
        self.recent.append(script)
        sock = self._connect()
        sock.setblocking(False)
        talk = _Talk(sock, script)
        if talk.go_on():
            talk.close()
        elif talk.end is End.STALL and script.end is End.STALL:
            self._stalled.append(talk)
        else:
            self._register(talk)

    def _wake(self) -> None:
        talk = self._stalled.popleft()
        talk.end = End.HALF
        talk.deadline = time.monotonic() + HANG
        if talk.go_on():
            talk.close()
        else:
            self._register(talk)

    def _register(self, talk: _Talk) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if talk.pieces else 0)
        self._selector.register(talk.sock, events, talk)
        self._talks.add(talk)

    def _turn(self) -> None:
        ready = self._selector.select(1)
        for key, _ in ready:
            talk: _Talk = key.data
            if talk.go_on():
                self._selector.unregister(talk.sock)
                self._talks.discard(talk)
                talk.close()
            elif not talk.pieces and key.events & selectors.EVENT_WRITE:
                self._selector.modify(talk.sock, selectors.EVENT_READ, talk)
        if not ready:
            self._watch.check()
            now = time.monotonic()
            if any(talk.deadline < now for talk in self._talks):
                raise ServerFault(f"a connection that we ended is still open after {HANG:g} s")


class Healthy:
    """A client that works all the time, in a thread, and must be served: `round` is what it does again and again."""

    def __init__(self, round: Callable[[int], None]) -> None:
        self.rounds = 0
        self.slowest = 0.0
        self._round = round
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            while not self._ended.wait(0.01):
                begin = time.monotonic()
                self._round(self.rounds)
                self.slowest = max(self.slowest, time.monotonic() - begin)
                self.rounds += 1
        except BaseException as error:
            self._failure = error

    def check(self) -> None:
        """Raise `ServerFault` unless it has been served."""
        if self._failure is not None:
            raise ServerFault(f"a healthy client was not served: {self._failure!r}") from self._failure

    def figures(self) -> str:
        """What it did, in words."""
        return f"a healthy client did {self.rounds:,} rounds, the slowest in {1000 * self.slowest:.0f} ms"

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work during the block; afterwards it must have been served."""
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join(2 * HANG)
        if self._thread.is_alive():
            raise ServerFault(f"a healthy client was not answered in {2 * HANG:g} s")
        self.check()
        if not self.rounds:
            raise ServerFault("a healthy client did not come to a single round")


def unix_connector(path: str) -> Callable[[], socket.socket]:
    """What connects to a Unix socket."""

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        with ExitStack() as stack:
            stack.enter_context(closing(sock))
            sock.settimeout(HANG)
            sock.connect(path)
            stack.pop_all()
        return sock

    return connect


def tcp_connector(port: int) -> Callable[[], socket.socket]:
    """What connects to a port of this machine."""
    return lambda: socket.create_connection(("127.0.0.1", port), HANG)
