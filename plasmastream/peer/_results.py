"""What became of each object, and which outcome an error stands for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import attrs

from plasmastream._errors import (
    ObjectExistsError,
    PeerError,
    PlasmastreamError,
    ProtocolError,
    RemoteProtocolError,
    StoreError,
    StoreFullError,
    TransferError,
)
from plasmastream._object_id import ObjectID
from plasmastream.peer._transport import PeerStalledError, UnreachableError
from plasmastream.wire.stream import Status
from plasmastream.wire.stream.v2 import DamagedError, Outcome, describe_outcome


def _known_or_number(outcome: int) -> int:
    known = Outcome.known(outcome)
    return outcome if known is None else known


@attrs.frozen
class Result:
    """What became of one object. As a string, it is a sentence that names the object."""

    object_id: ObjectID
    outcome: int = attrs.field(converter=_known_or_number)
    """An `Outcome`, or a number that only a later version of the protocol may know."""
    reason: str = ""
    """In words, where there is more to say than the outcome does."""

    @property
    def is_success(self) -> bool:
        """Whether the object is where it should be: sealed now, or there already."""
        return self.outcome in (Outcome.DONE, Outcome.PRESENT)

    def __str__(self) -> str:
        name, words = f"object {self.object_id}", self.reason or describe_outcome(self.outcome)
        return words if words.startswith(name) else f"{name}: {words}"  # as what stores say begins with


class IncompleteError(TransferError):
    """Some objects of a request are not where they should be; `results` has what became of each of all of them."""

    def __init__(self, message: str, results: Sequence[Result]) -> None:
        super().__init__(message, status_of(results))
        self.results = tuple(results)


class RefusedError(PeerError):
    """The peer answered a request as a whole with an outcome that is not success."""

    def __init__(self, message: str, outcome: int, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.retry_after = retry_after


def outcome_of(error: PlasmastreamError) -> Outcome:
    """The outcome that an error stands for."""
    match error:
        case RefusedError(outcome=Outcome.DAMAGED):  # a frame of ours, and so the connection
            return Outcome.BROKEN_OFF
        case RefusedError():
            return Outcome.known(error.outcome) or Outcome.REFUSED
        case TransferError():
            return _OUTCOME_OF.get(error.status, Outcome.REFUSED)
        case PeerStalledError():
            return Outcome.STALLED
        case UnreachableError():
            return Outcome.UNREACHABLE
        case DamagedError() | PeerError():
            return Outcome.BROKEN_OFF
        case ProtocolError():
            return Outcome.REFUSED
        case ObjectExistsError():
            return Outcome.BEING_WRITTEN
        case StoreFullError():
            return Outcome.NO_ROOM
        case StoreError():
            return Outcome.STORE_ERROR
        case _:
            return Outcome.REFUSED


_OUTCOME_OF: Final[dict[int, Outcome]] = {
    Status.SUCCESS: Outcome.DONE,
    Status.METADATA_TOO_LARGE: Outcome.TOO_LARGE,
    Status.DATA_TOO_LARGE: Outcome.TOO_LARGE,
    Status.STORE_ERROR: Outcome.STORE_ERROR,
    Status.PEER_STORE_ERROR: Outcome.STORE_ERROR,
    Status.SCHEDULED_FOR_DELETION: Outcome.BEING_TAKEN,
    Status.NOT_FOUND: Outcome.NOT_FOUND,
    Status.ALREADY_RECEIVING: Outcome.BEING_WRITTEN,
    Status.ALREADY_PRESENT: Outcome.PRESENT,
    Status.PEER_FAILED: Outcome.BROKEN_OFF,
}

_AGAIN: Final = "; ask again: the same request ends what it has begun"
_ADVICE: Final[dict[type[Exception], str]] = {
    UnreachableError: "; see that a server runs there, and that it can be reached from here",
    PeerStalledError: _AGAIN,
    PeerError: _AGAIN,
}

_WORTH_ANOTHER: Final = {Outcome.OUT_OF_TIME, *(outcome for outcome in Outcome if outcome.may_pass)}


def advice_on(outcome: int) -> str:
    """What to do about an object that was given up; nothing where it is of no use, or the peer cannot be reached.

    What to do about such a peer, `check_results` says once.
    """
    return "ask again" if outcome in _WORTH_ANOTHER and outcome != Outcome.UNREACHABLE else ""


_STATUS_OF: Final[dict[int, Status]] = {
    Outcome.DONE: Status.SUCCESS,
    Outcome.PRESENT: Status.SUCCESS,
    Outcome.NOT_FOUND: Status.NOT_FOUND,
    Outcome.BEING_TAKEN: Status.SCHEDULED_FOR_DELETION,
    Outcome.BEING_WRITTEN: Status.ALREADY_RECEIVING,
    Outcome.TOO_LARGE: Status.DATA_TOO_LARGE,
    Outcome.DIFFERENT: Status.ALREADY_PRESENT,
    Outcome.NO_ROOM: Status.STORE_ERROR,
    Outcome.STORE_ERROR: Status.STORE_ERROR,
}


def status_of(results: Sequence[Result]) -> int:
    """The one status byte of version 1 that says what became of several objects: the first failure's."""
    for result in results:
        if not result.is_success:
            return _STATUS_OF.get(result.outcome, Status.PEER_FAILED)
    return Status.SUCCESS


@contextmanager
def naming_objects(object_ids: Sequence[ObjectID]) -> Iterator[None]:
    """Have what fails as a whole in a `with` block name the objects, if there are any, and what can be done."""
    try:
        yield
    except (PeerError, RemoteProtocolError) as error:
        name = f"{_name(object_ids)}: " if object_ids else ""
        # Where no objects are named, nothing has begun that the same request would end.
        advice = _ADVICE.get(type(error), "") if name or isinstance(error, UnreachableError) else ""
        error.args = (f"{name}{error}{advice}",)  # the same error otherwise
        raise


def _name(object_ids: Sequence[ObjectID]) -> str:
    more = len(object_ids) - 1
    return f"object {object_ids[0]}" + (f" and {more:,} more" if more else "")


def check_results(results: Sequence[Result], peer: object) -> None:
    """See that all went well.

    Raises:
        UnreachableError: nothing did, since nobody answers there.
        IncompleteError: not all did.
    """
    failed = [result for result in results if not result.is_success]
    if not failed:
        return
    first = failed[0]
    if len(failed) == len(results) and all(result.outcome == Outcome.UNREACHABLE for result in results):
        with naming_objects([result.object_id for result in results]):
            raise UnreachableError(first.reason)
    message = f"{peer}: {first}"
    if len(results) > 1:
        message = f"{peer}: {len(failed):,} of {len(results):,} objects failed; the first, {first}"
    raise IncompleteError(message, results)
