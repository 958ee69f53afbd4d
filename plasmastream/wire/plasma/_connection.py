"""Both ends of a client's connection to the store, without the socket: bytes and descriptors in, events out.

The loop of an I/O layer reads into `get_buffer`, says so with `advance`, and takes `next_event` until that is
`NEED_DATA`; whatever `data_to_send` gives, it sends.

A descriptor travels with a byte of its own behind the frame that it belongs to (plasma-ipc 3.1). The kernel
joins that byte with plain bytes before it, never with bytes behind it, so a descriptor belongs to the *last*
byte of the read that brought it. Each is remembered with that byte's position in the stream, and must be
found exactly where the conversation calls for one; anywhere else it is an error. Descriptors that nobody was
given wait in `take_unclaimed_descriptors`, so that none leaks, whatever the other side does.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, Generic

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream.wire._scratch import Scratch
from plasmastream.wire.plasma import _messages as m
from plasmastream.wire.plasma._codec import decode, encode
from plasmastream.wire.plasma._events import (
    CONNECTION_CLOSED,
    NEED_DATA,
    D,
    Outgoing,
    Reply,
    Signal,
    Subscription,
)
from plasmastream.wire.plasma._frames import HEADER, HEADER_SIZE, MAX_BODY_SIZE, check_header
from plasmastream.wire.plasma._large import LargeBody
from plasmastream.wire.plasma._rules import EXTENSION_OF, REPLY_TO, check_reply, segments_of

DEFAULT_MAX_BODY_SIZE: Final = 64 << 20
"""Largest body accepted unless told otherwise, in bytes; Arrow's own tests send 20 MB (plasma-ipc 11.2)."""

_SCRATCH_SIZE = 64 << 10
_MERGE_SIZE = 64 << 10  # larger frames are not copied just to save a system call
_MAX_WAITING_DESCRIPTORS = 64  # what one client may make a busy store hold open, out of perhaps 1024
_FRAMES_OF_MANY = {
    m.MessageType.GET_REQUEST,
    m.MessageType.DELETE_REQUEST,
    m.MessageType.CREATE_AND_SEAL_BATCH_REQUEST,
    m.MessageType.REFRESH_LRU_REQUEST,
}
_REQUESTS: dict[int, m.MessageType] = {int(known): known for known in REPLY_TO}
_DESCRIPTOR_BYTE = b"\x14"  # what the original happens to send; nobody looks at it


class _Connection(ABC, Generic[D]):
    """What both ends share: the stream of frames and descriptors, and the queue of things to send."""

    def __init__(self, max_body_size: int = DEFAULT_MAX_BODY_SIZE) -> None:
        if not 0 < max_body_size <= MAX_BODY_SIZE:
            raise ValueError(f"a limit of {max_body_size} bytes is not between 1 and {MAX_BODY_SIZE}")
        self._max_body_size = max_body_size
        self._scratch = Scratch(_SCRATCH_SIZE)
        self._sink: Scratch | LargeBody = self._scratch  # what is read into
        self._backlog: deque[memoryview] = deque()  # from receive_data, waiting for room
        self._received = 0  # bytes of the stream that arrived, and that were parsed
        self._parsed = 0
        self._descriptors: deque[tuple[int, D]] = deque()  # each with the position of its byte
        self._eof = False
        self._error: RemoteProtocolError | None = None
        self._outgoing: list[Outgoing[D]] = []

    def get_buffer(self) -> memoryview:
        """Return writable memory to read into. A query: changes nothing.

        It is never empty when `next_event` has just said `NEED_DATA`. Before that it may be: then there is no
        room, and a read into it would look like the end of the stream.
        """
        if self._backlog or self._error is not None:
            return self._scratch.tail()[:0]
        return self._sink.tail()

    def advance(self, nbytes: int, descriptors: Sequence[D] = ()) -> None:
        """Say that `nbytes` of `get_buffer` are now filled, and which descriptors came with them.

        Raises:
            LocalProtocolError: so many cannot have been read, or the end was reported before. The descriptors
                are taken all the same.
        """
        self._arrived(nbytes, descriptors)
        if self._backlog and nbytes:
            raise LocalProtocolError("bytes cannot have been read while there was no room")
        self._sink.advance(nbytes)

    def receive_data(self, data: bytes | bytearray | memoryview, descriptors: Sequence[D] = ()) -> None:
        """Take bytes by copying, any number of them, and the descriptors that came with their last one.

        Raises:
            LocalProtocolError: the end was reported before. The descriptors are taken all the same.
        """
        self._arrived(len(data), descriptors)
        self._backlog.append(memoryview(bytes(data)))

    def receive_eof(self) -> None:
        """Take note that nothing more will arrive."""
        self._eof = True

    def data_to_send(self) -> list[Outgoing[D]]:
        """Hand over everything that waits to be sent, in order, with neighbours merged where that is allowed.

        A piece with a descriptor is one byte long and must go out with a `sendmsg` of its own. The descriptor
        still belongs to whoever gave it to `send`.
        """
        outgoing, self._outgoing = self._outgoing, []
        if len(outgoing) < 2:
            return outgoing
        pieces: list[Outgoing[D]] = []
        plain: list[bytes] = []
        for piece in outgoing:
            if piece.descriptor is None and len(piece.data) <= _MERGE_SIZE:
                plain.append(piece.data)
                continue
            if plain:
                pieces.append(Outgoing(b"".join(plain)))
                plain = []
            pieces.append(piece)
        if plain:
            pieces.append(Outgoing(b"".join(plain)))
        return pieces

    def take_unclaimed_descriptors(self) -> list[D]:
        """Hand over the descriptors that arrived and are in no event, to be closed at the end or after an error."""
        unclaimed = [descriptor for _, descriptor in self._descriptors]
        self._descriptors.clear()
        return unclaimed

    @abstractmethod
    def _check_type(self, message_type: int) -> m.MessageType:
        """Refuse a frame by its header, before room is made for its body."""

    def _arrived(self, nbytes: int, descriptors: Sequence[D]) -> None:
        if descriptors:
            last = self._received + nbytes - 1
            self._descriptors.extend([(last, descriptor) for descriptor in descriptors])
            if len(self._descriptors) > _MAX_WAITING_DESCRIPTORS and self._error is None:
                self._error = RemoteProtocolError("too many descriptors came before events were taken")
        if self._eof:
            raise LocalProtocolError("data after the end")
        self._received += nbytes

    def _refill(self) -> bool:
        """Move bytes of the backlog to where they are parsed, and tell whether there were any."""
        if not self._backlog:
            return False
        data = self._backlog.popleft()
        space = self._sink.tail()
        nbytes = min(len(data), len(space))
        space[:nbytes] = data[:nbytes]
        self._sink.advance(nbytes)
        if nbytes < len(data):
            self._backlog.appendleft(data[nbytes:])
        return True

    def _next_frame(self) -> m.Message | None:
        """Take the next frame from the stream; None if it is not there as a whole.

        Descriptors are refused as soon as they are seen: otherwise, a frame that never ends could bring any
        number of them.
        """
        scratch = self._scratch
        while self._parsed < self._received:
            sink = self._sink
            if isinstance(sink, LargeBody):
                self._refuse_descriptors(self._parsed + HEADER_SIZE + sink.size)
                if sink.is_complete:
                    self._sink = scratch
                    self._parsed += HEADER_SIZE + sink.size
                    return decode(sink.type, sink.memory)
                sink.make_room()
            elif (header := scratch.unpack_whole(HEADER)) is None:
                if self._descriptors:
                    self._refuse_descriptors(self._parsed + HEADER_SIZE)
            else:
                number, size = check_header(header, self._max_body_size)
                message_type = self._check_type(number)
                if self._descriptors:
                    self._refuse_descriptors(self._parsed + HEADER_SIZE + size)
                body = scratch.take_whole(size, HEADER_SIZE)
                if body is not None:
                    self._parsed += HEADER_SIZE + size
                    return decode(message_type, body)
                if HEADER_SIZE + size > scratch.capacity:
                    self._sink = LargeBody(message_type, size, scratch.take(len(scratch) - HEADER_SIZE, HEADER_SIZE))
            if not self._backlog or not self._refill():
                return None
        return None

    def _next_descriptor(self) -> D | None:
        """Take a descriptor, and its byte from the stream; None if they have not arrived."""
        if not len(self._scratch) and not self._refill():
            self._refuse_descriptors(self._parsed)
            return None
        self._refuse_descriptors(self._parsed)
        if not self._descriptors or self._descriptors[0][0] != self._parsed:
            raise RemoteProtocolError("a byte that should bring a descriptor came without")
        if len(self._descriptors) > 1 and self._descriptors[1][0] == self._parsed:
            raise RemoteProtocolError("more than one descriptor came with a byte")
        self._scratch.consume(1)
        self._parsed += 1
        return self._descriptors.popleft()[1]

    def _refuse_descriptors(self, position: int) -> None:
        if self._descriptors and self._descriptors[0][0] < position:
            raise RemoteProtocolError("a descriptor came where none belongs")


class ServerConnection(_Connection[D]):
    """The store's end: requests come in, replies go out in the order of the requests.

    Args:
        max_body_size: the largest request accepted, in bytes.
    """

    def __init__(self, max_body_size: int = DEFAULT_MAX_BODY_SIZE) -> None:
        super().__init__(max_body_size)
        self._transferred: set[int] = set()  # the U of plasma-ipc 3.2
        self._unanswered: deque[m.MessageType] = deque()
        self._subscribing = False
        self._closed = False

    @property
    def has_long_frame(self) -> bool:
        """Whether `next_event` has much to do: a frame that names very many objects is there as a whole."""
        sink = self._sink
        return isinstance(sink, LargeBody) and sink.is_complete and sink.type in _FRAMES_OF_MANY

    def next_event(self) -> m.Message | Subscription[D] | Signal:
        """Return the next request, or `NEED_DATA`, or `CONNECTION_CLOSED`.

        A subscription comes as `Subscription`. A client may hang up anywhere, also in the middle of a frame.

        Raises:
            RemoteProtocolError: the client sent what it must not. It is raised again by every later call.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._next_event()
        except RemoteProtocolError as error:
            self._error = error
            raise

    def send(self, message: m.Message, descriptors: Mapping[int, D] | None = None) -> None:
        """Queue the reply to the oldest request that has none yet.

        Args:
            descriptors: by `store_fd`, the segments that the reply names. Those that this client has already
                are not sent again, and need not be there.

        Raises:
            LocalProtocolError: no such reply is due, a descriptor is missing, or the message cannot be sent.
        """
        if not self._unanswered or message.type != self._unanswered[0]:
            due = self._unanswered[0].name if self._unanswered else "nothing"
            raise LocalProtocolError(f"a {message.type.name} cannot be sent while {due} is due")
        named = segments_of(message)
        if named and isinstance(message, m.CreateReply) and message.store_fd is None:
            raise LocalProtocolError("a successful reply must name the object's segment")
        frame = encode(message)
        new = dict.fromkeys([store_fd for store_fd, _ in named if store_fd not in self._transferred]) if named else ()
        try:
            follow = [Outgoing(_DESCRIPTOR_BYTE, (descriptors or {})[store_fd]) for store_fd in new]
        except KeyError as error:
            raise LocalProtocolError(f"no descriptor given for segment {error}, new to this client") from None
        self._unanswered.popleft()
        self._outgoing.append(Outgoing(frame))
        if follow:
            self._transferred.update(new)
            self._outgoing += follow

    def _check_type(self, message_type: int) -> m.MessageType:
        known = _REQUESTS.get(message_type)
        if known is None:
            raise RemoteProtocolError(f"{message_type} is not the type of a request")
        return known

    def _next_event(self) -> m.Message | Subscription[D] | Signal:
        if self._closed:
            return CONNECTION_CLOSED
        if self._subscribing:
            return self._next_subscription()
        message = self._next_frame()
        if message is None:
            return CONNECTION_CLOSED if self._eof else NEED_DATA
        if message.type is m.MessageType.DISCONNECT_CLIENT:
            self._closed = True
            return CONNECTION_CLOSED
        if message.type is m.MessageType.SUBSCRIBE_REQUEST:
            self._subscribing = True
            return self._next_subscription()
        reply_type = REPLY_TO[message.type]
        if reply_type is not None:
            self._unanswered.append(reply_type)
        return message

    def _next_subscription(self) -> Subscription[D] | Signal:
        descriptor = self._next_descriptor()
        if descriptor is None:
            return CONNECTION_CLOSED if self._eof else NEED_DATA
        self._subscribing = False
        return Subscription(descriptor)


class ClientConnection(_Connection[D]):
    """A program's end: requests go out, and their replies come in, in the same order.

    A store may answer one request before it reads the next, and wait meanwhile until its answers are read: whoever
    sends many before reading should know that both directions hold them.

    Args:
        max_body_size: the largest reply accepted, in bytes.
    """

    def __init__(self, max_body_size: int = DEFAULT_MAX_BODY_SIZE) -> None:
        super().__init__(max_body_size)
        self._extensions = 0
        self._segments: dict[int, int] = {}  # store_fd: mmap_size; its keys are the U of plasma-ipc 3.2
        self._requests: deque[m.Message] = deque()  # those that wait for their replies
        self._reply: m.Message | None = None  # complete, but some of its descriptors are still to come
        self._awaited: deque[int] = deque()
        self._collected: dict[int, D] = {}

    def send(self, request: m.Message, descriptor: D | None = None) -> None:
        """Queue a request.

        Args:
            descriptor: for a `SubscribeRequest`, the socket to which the store will write notifications.

        Raises:
            LocalProtocolError: the connection is broken, the store does not understand this, or it is no request that
                can be sent.
        """
        if self._error is not None:
            raise LocalProtocolError("the connection is broken")
        if request.type not in REPLY_TO:
            raise LocalProtocolError(f"a {request.type.name} is not a request")
        if not self.is_understood(request):
            raise LocalProtocolError(f"the store has not announced that it understands a {request.type.name}")
        if (request.type is m.MessageType.SUBSCRIBE_REQUEST) != (descriptor is not None):
            raise LocalProtocolError("a descriptor goes with a SUBSCRIBE_REQUEST, and with nothing else")
        frame = encode(request)
        if REPLY_TO[request.type] is not None:
            self._requests.append(request)  # first: who is interrupted here finds a reply due, and not one too many
        self._outgoing.append(Outgoing(frame))
        if descriptor is not None:
            self._outgoing.append(Outgoing(_DESCRIPTOR_BYTE, descriptor))

    def is_understood(self, request: m.Message | type[m.Message]) -> bool:
        """Whether the store knows a request, or a kind of them: one of ours, only when its `ConnectReply` said so."""
        extension = EXTENSION_OF.get(request.type)
        return extension is None or extension in m.Extension(self._extensions)

    @property
    def is_owed_a_reply(self) -> bool:
        """Whether something was asked, the answer to which was not taken yet."""
        return bool(self._requests)

    def next_event(self) -> Reply[D] | Signal:
        """Return the reply with all its descriptors, or `NEED_DATA`, or `CONNECTION_CLOSED`.

        Raises:
            RemoteProtocolError: the store sent what it must not, or hung up inside of a reply. It is raised
                again by every later call.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._next_event()
        except RemoteProtocolError as error:
            self._error = error
            raise

    def take_unclaimed_descriptors(self) -> list[D]:
        unclaimed = [*self._collected.values(), *super().take_unclaimed_descriptors()]
        self._collected = {}
        return unclaimed

    def _check_type(self, message_type: int) -> m.MessageType:
        expected = REPLY_TO[self._requests[0].type] if self._requests else None
        if expected is None or message_type != expected:
            due = "nothing" if expected is None else f"a {expected.name}"
            raise RemoteProtocolError(f"the store sent type {message_type} when {due} was due")
        return expected

    def _next_event(self) -> Reply[D] | Signal:
        if self._reply is None:
            reply = self._next_frame()
            if reply is None:
                return self._nothing_more()
            self._begin_reply(reply)
        return self._next_reply()

    def _begin_reply(self, reply: m.Message) -> None:
        for store_fd, mmap_size in segments_of(reply):
            if store_fd not in self._segments:
                self._segments[store_fd] = mmap_size
                self._awaited.append(store_fd)
            elif self._segments[store_fd] != mmap_size:  # a number used again: the client's mapping is stale
                raise RemoteProtocolError(f"segment {store_fd} has changed its size to {mmap_size}")
        check_reply(self._requests[0], reply, self._segments)
        if isinstance(reply, m.ConnectReply):
            self._extensions = reply.extensions
        self._reply = reply

    def _next_reply(self) -> Reply[D] | Signal:
        while self._awaited:
            descriptor = self._next_descriptor()
            if descriptor is None:
                return self._nothing_more()
            self._collected[self._awaited.popleft()] = descriptor
        assert self._reply is not None
        event = Reply(self._reply, self._collected)
        self._requests.popleft()
        self._reply, self._collected = None, {}
        return event

    def _nothing_more(self) -> Signal:
        if not self._eof:
            return NEED_DATA
        if self._reply is not None or self._parsed < self._received:
            raise RemoteProtocolError("the store hung up inside of a reply")
        return CONNECTION_CLOSED
