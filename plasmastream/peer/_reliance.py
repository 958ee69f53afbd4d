"""Whether the copy of a TAKE here is a reason to delete the source's: whether it is here still, and will stay.

What the store held for us goes with the connection to it. What somebody has deleted while it was held goes when the
last one lets go. And what was here before the TAKE came may be what another TAKE is about to delete, because it relies
on the very copy that we would have deleted: such a TAKE holds it as long as that is so.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from plasmastream._errors import NotSupportedError, StoreError
from plasmastream._object_id import ObjectID
from plasmastream.peer._wanted import Wanted
from plasmastream.store._object_store import ObjectStore
from plasmastream.wire.plasma import ObjectStatus
from plasmastream.wire.stream.v2 import Outcome

Doubts: TypeAlias = list[tuple[Wanted, Outcome, str]]
"""Objects, each with the outcome and the reason that it has instead of success."""

_MOST_TIMES_HELD = 5


async def doubts(sealed: Sequence[Wanted], store: ObjectStore, is_claimed: Callable[[ObjectID], bool]) -> Doubts:
    """Find out which objects cannot be relied on, right before the source is asked to delete its own.

    Args:
        sealed: objects that we hold.
        store: where they are.
        is_claimed: whether somebody is taking an object from this store, as far as this process knows.
    """
    ids = [wanted.object_id for wanted in sealed]
    here: dict[ObjectID, ObjectStatus | None]
    try:
        try:
            here = {status.object_id: status for status in await store.inspect(ids)}
        except NotSupportedError:
            found = await store.contains(ids)
            here = {object_id: None for object_id, is_here in zip(ids, found, strict=True) if is_here}
    except StoreError as error:
        return [(wanted, Outcome.STORE_ERROR, _reason(wanted, f"the store here failed: {error}")) for wanted in sealed]
    doubtful: Doubts = []
    for wanted in sealed:
        if wanted.object_id not in here or not _is_held(wanted):
            doubtful.append((wanted, Outcome.STORE_ERROR, _reason(wanted, "the store here has lost it since")))
        elif (doubt := _doubt(wanted, here[wanted.object_id], is_claimed)) is not None:
            outcome, why = doubt
            doubtful.append((wanted, outcome, _reason(wanted, why)))
    return doubtful


def _doubt(
    wanted: Wanted, status: ObjectStatus | None, is_claimed: Callable[[ObjectID], bool]
) -> tuple[Outcome, str] | None:
    """Why an object that we hold cannot be relied on; there is no status where the store does not tell."""
    if status is not None and status.delete_when_released:
        return Outcome.NOT_DROPPED, "it is about to be deleted here"
    if not wanted.was_present:
        return None
    if status is None:
        return Outcome.NOT_DROPPED, "the store here cannot tell whether it stays"
    if status.holder_count <= 1 and not is_claimed(wanted.object_id):
        return None
    wanted.times_held += 1
    outcome = Outcome.NOT_DROPPED if wanted.times_held >= _MOST_TIMES_HELD else Outcome.BEING_TAKEN
    return outcome, "others hold it here, and one of them may be taking it"


def _reason(wanted: Wanted, why: str) -> str:
    how = "was here already" if wanted.was_present else "has arrived"
    return f"it {how}, but the source is not asked to delete its own: {why}"


async def losses(gone: Sequence[Wanted], store: ObjectStore) -> Doubts:
    """Find out which objects that the source does not have any more have been lost here as well, with the store.

    That somebody deletes here what has arrived is no loss.
    """
    reason = "it is not the one that had it"
    try:
        await store.contains([wanted.object_id for wanted in gone[:1]])  # whose answer tells of the connection
    except StoreError as error:
        reason = str(error)
    words = f"it had arrived, and the source has deleted its own, but the store here was lost: {reason}"
    return [(wanted, Outcome.STORE_ERROR, words) for wanted in gone if not _is_held(wanted)]


def _is_held(wanted: Wanted) -> bool:
    return wanted.lease is not None and wanted.lease.is_held
