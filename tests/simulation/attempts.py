"""What a world's client tries, drawn from a source of chance: operations, their objects, and when they end early."""

import random
from collections.abc import Mapping

import attrs

from plasmastream import ObjectID
from plasmastream.peer import TransferKind
from tests.peer.helpers import Objects
from tests.simulation.chance import log_uniform
from tests.simulation.machine import Machine
from tests.simulation.operations import LONG, Operation

_SIZES = (0, 1, 20, 100, 1_000, 5_000, 16_000, 17_000, 40_000)


@attrs.frozen
class Attempt:
    """An operation in trouble."""

    operation: Operation
    objects: Objects
    """What is at the source before; nothing where an earlier attempt is for the same objects."""
    present: Objects
    """What of it is at the target, too."""
    is_alone: bool
    """Whether nothing that is there, and no other attempt, stands in its way."""
    begins_at: float
    cancelled_after: float | None = None
    """In seconds."""
    cancelled_at_event: int | None = None
    """Counted from its beginning."""

    @property
    def is_cancelled(self) -> bool:
        """Whether it may not come to its end."""
        return self.cancelled_after is not None or self.cancelled_at_event is not None


def draw_attempts(chance: random.Random, machines: Mapping[str, Machine], *, puts: bool) -> list[Attempt]:
    """One to three attempts; `puts` says whether clients can send objects of their own."""
    attempts: list[Attempt] = []
    for number in range(chance.choice([1, 1, 2, 3])):
        if attempts and chance.random() < 0.2:
            before = attempts[-1] = attrs.evolve(attempts[-1], is_alone=False)
            attempt = attrs.evolve(before, operation=_the_same(chance, before.operation), objects={}, present={})
        else:
            attempt = _draw_attempt(chance, machines, number, puts)
        after = at_event = None
        if chance.random() < 0.25:
            if chance.random() < 0.5:
                after = log_uniform(chance, 0.001, 100)
            else:
                at_event = int(log_uniform(chance, 1, 100))
        operation = attempt.operation
        if chance.random() < 0.5:
            timeout = chance.choice([LONG, LONG, log_uniform(chance, 0.01, 100)])
            operation = attrs.evolve(operation, timeout=timeout, detaches=chance.random() < 0.3)
        begins_at = chance.choice([0.0, log_uniform(chance, 0.001, 30)])
        attempts.append(
            attrs.evolve(
                attempt,
                operation=operation,
                begins_at=begins_at,
                cancelled_after=after,
                cancelled_at_event=at_event,
            )
        )
    return attempts


def _draw_attempt(chance: random.Random, machines: Mapping[str, Machine], number: int, puts: bool) -> Attempt:
    one, other = chance.sample(["north", "south"], 2)
    if puts and chance.random() < 0.25:
        kind, source, target = TransferKind.COPY, "client", other
    else:
        kind, source, target = _draw_kind(chance), one, chance.choice(["client", other])
    objects: Objects = {}
    for index in range(int(log_uniform(chance, 1, 13))):
        object_id = ObjectID.from_name(f"{number}/{index}")
        data = chance.randbytes(chance.choice(_SIZES))
        if chance.random() < 0.2:
            data = b"much the same, %d" % index * (len(data) // 20)
        objects[object_id] = data, chance.randbytes(chance.choice([0, 0, 3, 300]))
    present: Objects = {}
    if chance.random() < 0.2:
        present = {object_id: objects[object_id] for object_id in objects if chance.random() < 0.3}
    ids = tuple(objects)
    is_sync = "client" not in (source, target)
    cut = chance.randrange(len(ids)) if is_sync else 0
    parts = (ids[:cut], ids[cut:]) if cut else (ids,)
    shares = chance.random() < 0.5
    operation = Operation(number, kind, machines[source], machines[target], parts, shares_client=shares)
    return Attempt(operation, objects, present, is_alone=not present, begins_at=0.0)


def _the_same(chance: random.Random, operation: Operation) -> Operation:
    """An operation for the same objects, or some of them, between the same machines."""
    if chance.random() < 0.5:
        some = [object_id for object_id in operation.object_ids if chance.random() < 0.7]
        operation = operation.of(some or operation.object_ids)
    is_put = operation.source.name == "client"
    kind = TransferKind.COPY if is_put else _draw_kind(chance)
    return attrs.evolve(operation, number=operation.number + 1, kind=kind, timeout=None, detaches=False)


def _draw_kind(chance: random.Random) -> TransferKind:
    return chance.choice([TransferKind.COPY, TransferKind.TAKE])
