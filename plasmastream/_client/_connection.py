"""A program's end of a connection to a store, as far as nothing is waited for."""

import socket
from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

from plasmastream._client._lingering import Lingering
from plasmastream._client._socket import UnixSocket, close_descriptors
from plasmastream._errors import LocalProtocolError, NotSupportedError, RemoteProtocolError, StoreConnectionError
from plasmastream._object_id import ObjectID
from plasmastream._os_errors import reason_of
from plasmastream.wire.plasma import (
    CONNECTION_CLOSED,
    MAX_BODY_SIZE,
    MAX_RELEASED,
    NEED_DATA,
    ClientConnection,
    Message,
    ReleaseManyRequest,
    ReleaseRequest,
    Reply,
)

RETRY_FIRST, RETRY_LAST = 0.005, 0.1
"""Seconds between attempts at what can only be asked for again and again."""

_ReplyT = TypeVar("_ReplyT", bound=Message)
_SocketT = TypeVar("_SocketT", bound=UnixSocket, covariant=True)


class Connection(Generic[_SocketT]):
    """One connection to a store: requests go out one at a time. How a reply is waited for is a subclass's business."""

    def __init__(self, path: str, transport: _SocketT, reply_timeout: float) -> None:
        self.path = path
        self.reply_timeout = reply_timeout
        self._wire: ClientConnection[int] = ClientConnection(MAX_BODY_SIZE)
        self._transport = transport
        self.broken: str | None = None
        """Why it cannot be used any more."""
        self.is_busy = False
        """Whether a request waits for its reply."""
        self.unsealed: set[ObjectID] = set()
        """What somebody writes here: created over this connection, and neither sealed nor aborted."""
        self._kept_open: Lingering | None = None

    def post(self, messages: Iterable[Message]) -> None:
        """Queue messages; what has no reply is sent when the kernel takes it, with the next request at the latest.

        Raises:
            NotSupportedError: the store would not understand one.
            StoreConnectionError: the connection is broken.
        """
        if self.broken:
            raise StoreConnectionError(self.broken)
        for message in messages:
            try:
                self._wire.send(message)
            except LocalProtocolError:
                if self._wire.is_understood(message):
                    raise
                raise NotSupportedError(
                    f"the store at {self.path} does not tell who holds what: it is none of ours"
                ) from None
        self._transport.queue(self._wire.data_to_send())

    def ask(self, requests: Sequence[Message]) -> None:
        """Queue requests whose replies the caller waits for; nobody else may ask before these are taken.

        Raises:
            NotSupportedError: the store would not understand one.
            StoreConnectionError: the connection is broken, or somebody has left it without taking a reply.
        """
        if self._wire.is_owed_a_reply:  # which would be taken for the reply to this
            raise self.fail("was left in the midst of a request")
        self.is_busy = True
        self.post(requests)

    def releases(self, object_ids: Sequence[ObjectID]) -> list[Message]:
        """The messages that let go of objects, in as few as this store understands."""
        if len(object_ids) > 1 and self._wire.is_understood(ReleaseManyRequest):
            starts = range(0, len(object_ids), MAX_RELEASED)
            return [ReleaseManyRequest(tuple(object_ids[start : start + MAX_RELEASED])) for start in starts]
        return [ReleaseRequest(object_id) for object_id in object_ids]

    def flush_nowait(self) -> bool:
        """Send what the kernel takes, and tell whether that is all. A broken connection shows at the next call."""
        try:
            return self._transport.flush_nowait()
        except OSError as error:
            self.fail_by(error)
            return True  # nothing is left that could be sent

    def take_replies(self, kind: type[_ReplyT], count: int) -> list[tuple[_ReplyT, dict[int, int]]]:
        """The replies that have arrived, `count` at most, each with the descriptors that came with it.

        Raises:
            StoreConnectionError: no more will arrive.
        """
        replies: list[tuple[_ReplyT, dict[int, int]]] = []
        while len(replies) < count:
            try:
                event = self._wire.next_event()
            except RemoteProtocolError as error:
                raise self.fail(f"broke the protocol: {error}") from error
            if event is NEED_DATA:
                break
            if event is CONNECTION_CLOSED:
                raise self.fail("closed the connection")
            assert isinstance(event, Reply)
            message, descriptors = event
            if not isinstance(message, kind):
                raise self.fail(f"sent a {message.type.name} where a {kind.__name__} was due")
            replies.append((message, descriptors))
        return replies

    def take_in(self, nbytes: int, descriptors: Sequence[int]) -> None:
        """Say what was read into the parser's buffer; 0 bytes are the end."""
        if nbytes:
            self._wire.advance(nbytes, descriptors)
        else:
            close_descriptors(descriptors)
            self._wire.receive_eof()

    def fail(self, what: str) -> StoreConnectionError:
        """Mark the connection as unusable; the error says why, now and at each later call."""
        if not self.broken:
            self.broken = f"the store at {self.path} {what}"
        self.close()
        return StoreConnectionError(self.broken)

    def fail_interrupted(self, error: BaseException, what: str = "a request") -> None:
        """As `fail`, for what interrupts a request, or `what` else: nobody could tell whose the next reply is."""
        self.fail(f"was left in the midst of {what}, by a {type(error).__name__}")

    def fail_by(self, error: OSError) -> StoreConnectionError:
        """As `fail`, for what the kernel said."""
        return self.fail(f"broke the connection: {reason_of(error)}")

    def hand_over(self) -> UnixSocket | None:
        """Close this, but not the socket, which goes to the caller; None where that is of no use to anybody."""
        if self.broken or self.is_busy:
            return None
        heir = self._transport.hand_over()
        self.close()
        return heir

    def end_writing(self, object_id: ObjectID) -> None:
        """Take back what was created, and nobody writes any more."""
        self.unsealed.discard(object_id)
        self._close_for_writers()

    def close(self, why: str | None = None) -> None:
        """Close this: the store lets everything go that this connection held.

        It does not hear of that as long as somebody writes to its memory, which it would give to others.
        """
        self.broken = self.broken or why or f"this client of the store at {self.path} is closed"
        close_descriptors(self._wire.take_unclaimed_descriptors())
        if self.unsealed and self._transport.fileno() >= 0:
            self._kept_open = Lingering(self._transport.hand_over())
            self._kept_open.read_for_nobody()
        self._transport.close()
        self._close_for_writers()  # the last of them may have ended meanwhile, in another thread

    def _close_for_writers(self) -> None:
        if self._kept_open is not None and not self.unsealed:
            self._kept_open.close()


def connect(path: str) -> socket.socket:
    """Connect without waiting.

    Raises:
        OSError: nobody is there, or nobody accepts now.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock
