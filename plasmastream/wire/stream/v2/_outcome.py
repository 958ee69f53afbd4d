"""What became of an object of a request."""

from enum import IntEnum
from typing import Final


class Outcome(IntEnum):
    """What became of an object, or of a request as a whole. The value is the one on the wire."""

    DONE = 0
    PRESENT = 1
    NOT_FOUND = 2
    BEING_TAKEN = 3
    BEING_WRITTEN = 4
    NO_ROOM = 5
    TOO_LARGE = 6
    DIFFERENT = 7
    DAMAGED = 8
    STORE_ERROR = 9
    UNREACHABLE = 10
    BROKEN_OFF = 11
    STALLED = 12
    OUT_OF_TIME = 13
    CANCELLED = 14
    BUSY = 15
    EXPIRED = 16
    NOT_DROPPED = 17
    REFUSED = 18

    @classmethod
    def known(cls, value: int) -> "Outcome | None":
        """The outcome of that value; None where only a later version knows it."""
        return _BY_NUMBER.get(value)

    @property
    def is_success(self) -> bool:
        """Whether the object is where it should be."""
        return self in (Outcome.DONE, Outcome.PRESENT)

    @property
    def may_pass(self) -> bool:
        """Whether the same may go well a moment later."""
        return self in _PASSING


_BY_NUMBER: Final = {int(outcome): outcome for outcome in Outcome}
_PASSING: Final = frozenset(
    {
        Outcome.BEING_TAKEN,
        Outcome.BEING_WRITTEN,
        Outcome.NO_ROOM,
        Outcome.UNREACHABLE,
        Outcome.BROKEN_OFF,
        Outcome.STALLED,
        Outcome.BUSY,
        Outcome.EXPIRED,
    }
)

_WORDS: Final[dict[Outcome, str]] = {
    Outcome.DONE: "done",
    Outcome.PRESENT: "it was there already",
    Outcome.NOT_FOUND: "it is not in the source's store",
    Outcome.BEING_TAKEN: "somebody else is taking it",
    Outcome.BEING_WRITTEN: "somebody else is writing an object of this id into the store that it goes to",
    Outcome.NO_ROOM: "the store is full of objects in use",
    Outcome.TOO_LARGE: "it is larger than the store, or than a limit, allows",
    Outcome.DIFFERENT: "there is another object of this id already; both stay where they are",
    Outcome.DAMAGED: "it was damaged on its way, again and again",
    Outcome.STORE_ERROR: "the store failed",
    Outcome.UNREACHABLE: "the peer cannot be reached",
    Outcome.BROKEN_OFF: "the connection to the peer broke off",
    Outcome.STALLED: "the peer stood still",
    Outcome.OUT_OF_TIME: "the time allowed for it is over",
    Outcome.CANCELLED: "it was cancelled",
    Outcome.BUSY: "the peer is busy",
    Outcome.EXPIRED: "the peer has let go of it",
    Outcome.NOT_DROPPED: "it has arrived, but the source may have it still: take it again",
    Outcome.REFUSED: "the peer refused the request",
}


def describe_outcome(outcome: int) -> str:
    """Say in words what an outcome means; one that is not known is shown as a number."""
    known = Outcome.known(outcome)
    return f"unknown outcome {outcome}" if known is None else _WORDS[known]
