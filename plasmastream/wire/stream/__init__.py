"""Plasma Stream, the protocol between machines, without I/O.

`ClientConnection` asks, `ServerConnection` answers. Feed bytes, take events, send what is queued; see
`_Connection` in `_connection.py` for the contract.
"""

from plasmastream.wire.stream._connection import ClientConnection, ServerConnection
from plasmastream.wire.stream._events import (
    NEED_BUFFER,
    NEED_DATA,
    PAUSED,
    AnswerBegun,
    AnswerComplete,
    AnswerRefused,
    ConnectionClosed,
    Event,
    ObjectReceived,
    PayloadFinished,
    PayloadStarted,
    Signal,
    SyncAnswered,
    SyncRequested,
    TransferRequested,
    Version2Offered,
)
from plasmastream.wire.stream._limits import Limits
from plasmastream.wire.stream._messages import PeerRequest, Status, TransferKind, describe_status
from plasmastream.wire.stream._proof import IS_NOT_OLD, IS_OLD, QUESTION, is_question

__all__ = [
    "IS_NOT_OLD",
    "IS_OLD",
    "NEED_BUFFER",
    "NEED_DATA",
    "PAUSED",
    "QUESTION",
    "AnswerBegun",
    "AnswerComplete",
    "AnswerRefused",
    "ClientConnection",
    "ConnectionClosed",
    "Event",
    "Limits",
    "ObjectReceived",
    "PayloadFinished",
    "PayloadStarted",
    "PeerRequest",
    "ServerConnection",
    "Signal",
    "Status",
    "SyncAnswered",
    "SyncRequested",
    "TransferKind",
    "TransferRequested",
    "Version2Offered",
    "describe_status",
    "is_question",
]
