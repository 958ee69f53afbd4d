"""Whether a copy that was here before a TAKE is a reason to delete the source's: whether it will stay.

What a TAKE has sealed itself will. What was here before may be what another TAKE is about to delete, because it relies
on the very copy that we would have deleted: such a TAKE holds it as long as that is so. And what somebody has deleted
while others held it goes when they let go.
"""

from collections.abc import Callable, Sequence

from plasmastream._errors import NotSupportedError
from plasmastream._object_id import ObjectID
from plasmastream.peer._wanted import Wanted
from plasmastream.store._object_store import ObjectStore
from plasmastream.wire.plasma import ObjectStatus
from plasmastream.wire.stream.v2 import Outcome

_MOST_TIMES_HELD = 5
_WAS_HERE = "both have it: it was here already"


async def doubts(
    present: Sequence[Wanted], store: ObjectStore, is_claimed: Callable[[ObjectID], bool]
) -> list[tuple[Wanted, Outcome, str]]:
    """The objects that cannot be relied on, with the outcome of that and the reason.

    Args:
        present: objects that we hold, and did not bring.
        store: where they are.
        is_claimed: whether somebody is taking an object from this store, as far as this process knows.
    """
    try:
        found = await store.inspect([wanted.object_id for wanted in present])
    except NotSupportedError:
        reason = f"{_WAS_HERE}, and the store cannot tell whether it stays"
        return [(wanted, Outcome.NOT_DROPPED, reason) for wanted in present]
    known = {status.object_id: status for status in found}
    judged = [(wanted, _doubt(wanted, known.get(wanted.object_id), is_claimed)) for wanted in present]
    return [(wanted, *doubt) for wanted, doubt in judged if doubt is not None]


def _doubt(
    wanted: Wanted, status: ObjectStatus | None, is_claimed: Callable[[ObjectID], bool]
) -> tuple[Outcome, str] | None:
    if status is None or status.delete_when_released:
        return Outcome.NOT_DROPPED, f"{_WAS_HERE}, and is about to be deleted here"
    if status.holder_count <= 1 and not is_claimed(wanted.object_id):
        return None
    wanted.times_held += 1
    outcome = Outcome.NOT_DROPPED if wanted.times_held >= _MOST_TIMES_HELD else Outcome.BEING_TAKEN
    return outcome, f"{_WAS_HERE}, and others hold it: one of them may be taking it"
