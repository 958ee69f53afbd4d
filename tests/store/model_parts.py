"""What `test_server_model` stands on: a store that stands still between requests, and callers who know their due."""

import logging
import mmap
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TypeAlias, TypeVar
from unittest.mock import patch

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from plasmastream._client import UnixSocket
from plasmastream.store import _turns, serve_store
from plasmastream.store._core import StoreCore
from plasmastream.store._turns import Turns
from plasmastream.wire.plasma import (
    CONNECTION_CLOSED,
    NEED_DATA,
    ClientConnection,
    Extension,
    GetRequest,
    Message,
    NotificationParser,
    ObjectInfo,
    Reply,
    SubscribeRequest,
)
from tests.store.model import Known, Waiting

MESSAGE_SIZE = 128  # objects in one notification

Request: TypeAlias = Message | bytes
"""Bytes are what no store understands."""


_R = TypeVar("_R")


async def _at_once(_: Turns, work: Callable[[], _R]) -> _R:
    return work()


class StillStore:
    """A core that is served by a Trio loop in a thread, whose clock stands still.

    Between two calls of `do` the store has done all that it could, and touches nothing. Long requests do not make
    way for others, which they would after a time that nobody can foretell.
    """

    def __init__(self, core: StoreCore, path: str) -> None:
        self.path = path
        self.now = 0.0
        self._clock = MockClock()
        self._core = core
        self._started = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,), kwargs={"clock": self._clock})
        self._errors: list[str] = []
        self._handler = logging.Handler(logging.ERROR)
        self._handler.emit = lambda record: self._errors.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("plasmastream").addHandler(self._handler)
        self._patches = ExitStack()
        self._patches.enter_context(patch.object(Turns, "aside", _at_once))
        self._patches.enter_context(patch.object(_turns, "_SLICE", float("inf")))
        self._thread.start()
        assert self._started.wait(10)

    async def _serve(self) -> None:
        with trio.CancelScope() as self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_store, self._core, self.path)
                self._token = trio.lowlevel.current_trio_token()
                self._started.set()

    def do(self, action: Callable[[], object]) -> None:
        """Do something in one go, as the store sees it, and let the store do what follows from it."""

        async def act() -> None:
            action()
            await wait_all_tasks_blocked()

        trio.from_thread.run(act, trio_token=self._token)
        assert not self._errors, self._errors

    def jump(self, to: float) -> None:
        """Let the store's clock show a later time, in seconds."""
        self.do(lambda: self._clock.jump(to - self.now))
        self.now = to

    def close(self) -> None:
        """End the store as a signal would."""
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._patches.close()
        logging.getLogger("plasmastream").removeHandler(self._handler)
        assert not os.path.exists(self.path)


@attrs.define(eq=False)
class Subscriber:
    """The reader's end of a subscription, and what must come there."""

    sock: socket.socket
    due: list[tuple[ObjectInfo, ...]]
    ends: bool = False
    _parser: NotificationParser = attrs.field(factory=NotificationParser, init=False)

    def tell(self, objects: tuple[ObjectInfo, ...]) -> None:
        """Expect what was told by one request: it comes in messages of moderate size."""
        for first in range(0, len(objects), MESSAGE_SIZE):
            self.due.append(objects[first : first + MESSAGE_SIZE])

    def check(self) -> None:
        """Read what came: all that was due, no more, and the end if it is due."""
        ended = False
        with suppress(BlockingIOError):
            while data := self.sock.recv(1 << 20):
                self._parser.receive_data(data)
            ended = True
        came: list[tuple[ObjectInfo, ...]] = []
        while (event := self._parser.next_event()) is not NEED_DATA:
            assert isinstance(event, tuple)
            came.append(event)
        assert came == self.due
        self.due.clear()
        assert ended == self.ends


@attrs.define(eq=False)
class Get:
    """A get that the store has not answered yet."""

    request: GetRequest
    waiting: Waiting
    deadline: float


@attrs.define(eq=False)
class Piece:
    """Bytes that are still to be sent, with a descriptor or without; `request` is what they complete."""

    data: bytes
    request: Request | None
    passed: socket.socket | None = None


class Caller:
    """One connection, and what must come next on it. `number` is its name in the model."""

    def __init__(self, number: int, path: str) -> None:
        self.number = number
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect(path)
        self.sock = sock
        self.unsent: deque[Piece] = deque()
        self.queue: deque[Request] = deque()
        """What was sent behind a get that waits."""
        self.get: Get | None = None
        self.unflushed: list[Callable[[Message], Message]] = []
        self.due: deque[Callable[[Message], Message]] = deque()
        """What turns each reply that comes into the one that should."""
        self.is_over = False
        self.subscriber: Subscriber | None = None
        self.offered: deque[socket.socket] = deque()
        """Our ends of sockets for notifications, of which the store has not heard yet."""
        self._memory: mmap.mmap | None = None
        self._wire: ClientConnection[int] = ClientConnection()
        self._wire._extensions = sum(Extension)  # also before a reply says so
        self._transport = UnixSocket(sock)

    @property
    def is_light(self) -> bool:
        """Whether whatever the store does can have only one more request of this caller done."""
        return not self.queue and len(self.unsent) <= (not self.get)

    # Sending

    def prepare(self, request: Request) -> None:
        """Put a request behind what is to be sent."""
        if isinstance(request, bytes):
            self.unsent.append(Piece(request, request))
            return
        passed: socket.socket | None = None
        if isinstance(request, SubscribeRequest):
            ours, passed = socket.socketpair()
            ours.setblocking(False)
            self.offered.append(ours)
        self._wire.send(request, None if passed is None else passed.fileno())
        for outgoing in self._wire.data_to_send():
            self.unsent.append(Piece(outgoing.data, None, None if outgoing.descriptor is None else passed))
        self.unsent[-1].request = request

    def send(self, nbytes: int) -> None:
        """Send so many bytes, or as many as the kernel takes."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self.unsent and nbytes > 0:
                piece = self.unsent[0]
                if piece.passed is not None:
                    sent = socket.send_fds(self.sock, [piece.data], [piece.passed.fileno()])
                    piece.passed.close()
                else:
                    sent = self.sock.send(piece.data[:nbytes])
                nbytes -= sent
                piece.data = piece.data[sent:]
                if not piece.data:
                    self.unsent.popleft()
                    if piece.request is not None:
                        self.queue.append(piece.request)

    @property
    def unsent_bytes(self) -> int:
        return sum(len(piece.data) for piece in self.unsent)

    # Receiving

    def expect(self, reply: Callable[[Message], Message] | Message) -> None:
        """A reply is on its way, once the store flushes."""
        self.unflushed.append(reply if callable(reply) else lambda _: reply)

    def flush(self) -> None:
        """The store has sent all replies that it had."""
        self.due.extend(self.unflushed)
        self.unflushed.clear()

    def end(self) -> None:
        """The store hangs up; what was not flushed is lost."""
        self.is_over, self.get = True, None
        self.queue.clear()
        self.unflushed.clear()
        if self.subscriber is not None:
            self.subscriber.ends = True

    def check(self) -> None:
        """Read what came: all replies that are due, as they should be, and the end if it is due."""
        ended = False
        try:
            while self._read():
                self._take_replies()
            ended = True
            self._wire.receive_eof()
        except BlockingIOError:
            pass
        except ConnectionResetError:  # with requests unread
            ended = True
        self._take_replies()
        assert not self.due
        assert ended == self.is_over
        assert self._wire.next_event() in (NEED_DATA, CONNECTION_CLOSED), "there is more than was due"

    def _read(self) -> int:
        nbytes, descriptors = self._transport.receive_nowait(self._wire.get_buffer())
        self._wire.advance(nbytes, descriptors)
        return nbytes

    def _take_replies(self) -> None:
        while self.due:
            event = self._wire.next_event()
            if not isinstance(event, Reply):
                return
            expected = self.due.popleft()
            for descriptor in event.descriptors.values():
                assert self._memory is None, "the segment came twice"
                self._memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
                os.close(descriptor)
            assert event.message == expected(event.message)

    # Memory

    def write(self, known: Known, content: bytes) -> None:
        """Fill an object through this caller's own mapping."""
        if content:
            assert self._memory is not None
            assert known.offset is not None
            self._memory[known.offset : known.offset + known.size] = content

    def read(self, known: Known) -> bytes | None:
        """The bytes of an object, if this caller was told where it is."""
        if known.offset is None or self._memory is None:
            return None
        return self._memory[known.offset : known.offset + known.size]

    def close(self) -> None:
        """Hang up, in the midst of whatever there is."""
        self.sock.close()
        for offered in self.offered:
            offered.close()
        for piece in self.unsent:
            if piece.passed is not None:
                piece.passed.close()
        if self._memory is not None:
            self._memory.close()
