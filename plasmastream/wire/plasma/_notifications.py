"""The subscriber's socket: bare flatbuffers, each behind its length as an int64 (plasma-ipc 7)."""

import struct
from collections.abc import Iterable
from typing import Final

import attrs

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream.wire.plasma._codec import decode_body, encode_body
from plasmastream.wire.plasma._events import CONNECTION_CLOSED, NEED_DATA, Signal
from plasmastream.wire.plasma._messages import Notification, ObjectInfo

MAX_NOTIFICATION_SIZE: Final = 64 << 20
"""Bytes that a subscriber accepts in one message unless told otherwise: a batch of half a million objects."""

_LENGTH = struct.Struct("<q")


def encode_notification(objects: Iterable[ObjectInfo]) -> bytes:
    """Write one message, to be sent with one call: readers take the length and the rest with one `recv` each.

    Raises:
        LocalProtocolError: a field has a value that cannot be sent.
    """
    body = encode_body(Notification(tuple(objects)))
    return _LENGTH.pack(len(body)) + body


@attrs.define(eq=False)
class NotificationParser:
    """Reads what arrives on a subscriber's socket.

    `max_size` limits one message, in bytes.
    """

    max_size: int = MAX_NOTIFICATION_SIZE
    _buffer: bytearray = attrs.field(factory=bytearray, init=False, repr=False)
    _eof: bool = attrs.field(default=False, init=False)
    _error: RemoteProtocolError | None = attrs.field(default=None, init=False)

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes that arrived, any number of them.

        Raises:
            LocalProtocolError: the end was reported before.
        """
        if self._eof:
            raise LocalProtocolError("data after the end")
        self._buffer += data

    def receive_eof(self) -> None:
        """Take note that nothing more will arrive."""
        self._eof = True

    def next_event(self) -> tuple[ObjectInfo, ...] | Signal:
        """Return the objects of the next message, or `NEED_DATA`, or `CONNECTION_CLOSED`.

        Raises:
            RemoteProtocolError: that was no notification, or the stream ends inside of one. It is raised
                again by every later call.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._parse()
        except RemoteProtocolError as error:
            self._error = error
            raise

    def _parse(self) -> tuple[ObjectInfo, ...] | Signal:
        buffer = self._buffer
        if len(buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer)
            if not 0 <= size <= self.max_size:
                raise RemoteProtocolError(f"a notification of {size} bytes, {self.max_size} are allowed")
            end = _LENGTH.size + size
            if len(buffer) >= end:
                body = bytes(memoryview(buffer)[_LENGTH.size : end])
                del buffer[:end]
                return decode_body(Notification, body).objects
        if not self._eof:
            return NEED_DATA
        if buffer:
            raise RemoteProtocolError("the stream ends inside a notification")
        return CONNECTION_CLOSED
