"""Messages to bytes and back: the tables of all messages, and whose fault it is when one does not fit."""

import struct
from typing import Final, TypeVar

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream._object_id import ObjectID
from plasmastream.wire._flat import Body, Pieces, Table
from plasmastream.wire.plasma import _extensions as x
from plasmastream.wire.plasma import _messages as m
from plasmastream.wire.plasma._frames import pack_header
from plasmastream.wire.plasma._templates import Template, make_templates

M = TypeVar("M", bound=m.Message)

_MESSAGES: Final[tuple[type[m.Message], ...]] = (
    m.CreateRequest,
    m.CreateReply,
    m.CreateAndSealRequest,
    m.CreateAndSealReply,
    m.AbortRequest,
    m.AbortReply,
    m.SealRequest,
    m.SealReply,
    m.GetRequest,
    m.GetReply,
    m.ReleaseRequest,
    m.ReleaseReply,
    m.DeleteRequest,
    m.DeleteReply,
    m.ContainsRequest,
    m.ContainsReply,
    m.ListRequest,
    m.ListReply,
    m.ConnectRequest,
    m.ConnectReply,
    m.EvictRequest,
    m.EvictReply,
    m.SubscribeRequest,
    m.DataRequest,
    m.DataReply,
    m.Notification,
    m.SetOptionsRequest,
    m.SetOptionsReply,
    m.GetDebugStringRequest,
    m.GetDebugStringReply,
    m.CreateAndSealBatchRequest,
    m.CreateAndSealBatchReply,
    m.RefreshLRURequest,
    m.RefreshLRUReply,
    x.InspectRequest,
    x.InspectReply,
    x.ReleaseManyRequest,
)

TABLES: Final[dict[int, Table[m.Message]]] = {cls.type: Table(cls) for cls in _MESSAGES}
"""The layout of each message that has one, by message type."""

_BARE: Final[dict[int, m.Message]] = {cls.type: cls() for cls in (m.DisconnectClient, m.UnsubscribeRequest)}

_ROOT = struct.Struct("<I")  # a body starts with the way to its root table, as if that were a field at 0


def encode(message: m.Message) -> bytes:
    """Write a message as a whole frame.

    Raises:
        LocalProtocolError: a field has a value that cannot be sent, or fields contradict each other.
    """
    template = _TEMPLATES.get(message.type)
    if template is not None:
        values = template.take(message)
        if values is not None and type(values[0]) is ObjectID:  # whose length is right
            try:
                return template.save(values)
            except struct.error:  # which the long way explains
                pass
    pieces, size = _encode(message)
    return b"".join((pack_header(message.type, size), *pieces))


def encode_body(message: m.Message) -> bytes:
    """Write a message without the header of its frame.

    Raises:
        LocalProtocolError: a field has a value that cannot be sent, or fields contradict each other.
    """
    return b"".join(_encode(message)[0])


def decode(message_type: int, body: Body) -> m.Message:
    """Read the body of a frame of that type.

    `data` and `metadata` fields become views of the body, so it must not be written to afterwards.

    Raises:
        RemoteProtocolError: there is no such type, or the body is not such a message.
    """
    template = _TEMPLATES.get(message_type)
    if template is not None and len(body) == template.size:
        known = template.load(body)
        if known is not None:
            return known
    table = TABLES.get(message_type)
    if table is None:
        if message_type not in _BARE:
            raise RemoteProtocolError(f"there is no message of type {message_type}")
        return _BARE[message_type]
    try:
        message = table.load(body, 0, *_ROOT.unpack_from(body))
        fault = message.fault()
    except struct.error:
        fault = "its offsets lead out of it"
    except RemoteProtocolError as error:
        fault = str(error)
    if fault is not None:
        name = m.MessageType(message_type).name
        raise RemoteProtocolError(f"a body of {len(body)} bytes is no {name}: {fault}") from None
    return message


def decode_body(cls: type[M], body: Body) -> M:
    """Read the body of a message of which the class is known.

    Raises:
        RemoteProtocolError: the body is not such a message.
    """
    message = decode(cls.type, body)
    assert isinstance(message, cls)
    return message


def _encode(message: m.Message) -> tuple[Pieces, int]:
    """Write a body as pieces, and tell its size in bytes."""
    table = TABLES.get(message.type)
    if table is None:
        return [], 0
    fault = message.fault()
    if fault is None:
        pieces: Pieces = [b""]
        try:
            root, size = table.save(message, 0, _ROOT.size, pieces)
            pieces[0] = _ROOT.pack(root)
            return pieces, size
        except (struct.error, LocalProtocolError) as error:
            fault = str(error)
    raise LocalProtocolError(f"a {message.type.name} cannot be sent: {fault}")


_TEMPLATES: Final[dict[int, Template]] = {template.type: template for template in make_templates(encode_body)}
