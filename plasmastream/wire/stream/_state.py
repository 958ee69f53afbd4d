"""What a server owes its client: the states, and which call leads from one to another.

A call that a state does not list is a `LocalProtocolError`. Clients need no table: what they may do follows
from the parser that is running.
"""

from enum import Enum
from typing import Final


class Owed(Enum):
    """What the server owes; the value says it in words, for errors."""

    NOTHING = "no request waits for an answer"
    TRANSFER = "a COPY or TAKE waits for begin() or refuse()"
    OBJECTS = "objects are to be sent with send_object() or send_header()"
    SYNC = "a SYNC waits for answer_sync()"
    REST = "the connection goes on in version 2, after take_rest()"

    __hash__ = object.__hash__  # that of an enum is written in Python


NEXT: Final[dict[Owed, dict[str, Owed]]] = {
    Owed.NOTHING: {"transfer requested": Owed.TRANSFER, "sync requested": Owed.SYNC, "version 2 offered": Owed.REST},
    Owed.TRANSFER: {"refuse": Owed.NOTHING, "begin": Owed.OBJECTS},
    Owed.OBJECTS: {"send_object": Owed.OBJECTS, "send_header": Owed.OBJECTS, "last object": Owed.NOTHING},
    Owed.SYNC: {"answer_sync": Owed.NOTHING},
    Owed.REST: {"take_rest": Owed.NOTHING},
}
