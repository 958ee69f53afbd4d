"""A second opinion on Plasma's messages: see `tests.wire.oracle`."""

from pathlib import Path
from typing import Any

import plasmastream.wire.plasma
from plasmastream.wire.plasma import Message, MessageType
from tests.wire.oracle import Oracle

_ORACLE = Oracle(
    Path(plasmastream.wire.plasma.__file__).parent / "schema",
    "plasma.flatbuf",
    "tests.wire.plasma.generated",
    frozenset({"PlasmaError"}),
)
RECORDS = _ORACLE.records
schema_enum = _ORACLE.enum
generated = _ORACLE.generated
TYPE_NAMES = {number: name for name, number in schema_enum("MessageType").items()}
TYPE_NAMES |= {number: name for name, number in schema_enum("ExtensionMessageType").items()}
TYPE_NAMES[MessageType.CONNECT_REPLY] = "ExtendedConnectReply"


def plain_message(message: Message) -> Any:
    """Turn one of our messages into a plain value."""
    return _ORACLE.plain(message, TYPE_NAMES[message.type])


def read(message_type: MessageType, body: bytes) -> Any:
    """Read a body with the generated code."""
    return _ORACLE.read(TYPE_NAMES[message_type], body)


def write(message_type: MessageType, values: Any) -> bytes:
    """Write a body with the generated code."""
    return _ORACLE.write(TYPE_NAMES[message_type], values)
