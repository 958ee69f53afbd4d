"""One simulated world: a client and two servers, each beside a store, and everything that goes wrong between them.

First there is trouble: operations run, at once or one after the other, while connections fail, programs are killed and
started again, machines are unplugged for a while, and calls are cancelled. Then all is well: what did not arrive is
asked for once more, and has to. When nothing has happened for long, nothing may be left. What must hold, whatever the
version:

- Whenever an object is sealed, it has the right bytes; and in the end.
- Whenever an object is removed from a store, another store has it sealed.
- What an operation says has arrived is at its target; each operation ends in time.
- When all is well, an operation succeeds, and a successful TAKE leaves nothing at the source. (What a version promises
  in trouble, it says.)
- Where a version persists, an operation with a long timeout succeeds if the trouble ends in time.
- Where a version resumes, nothing is received twice, but for a chunk per connection.
- In the end no task runs that was started for a connection or an operation, no connection is open, and nothing is
  held, unsealed, awaited or claimed.
"""

import logging
import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import attrs
import trio
from trio.testing import MockClock

from plasmastream import ObjectID, PlasmastreamError
from plasmastream.peer import TransferKind
from plasmastream.store import EmbeddedStore
from plasmastream.store._table import Entry
from tests.peer.helpers import Objects, contents, fill
from tests.simulation.attempts import Attempt, draw_attempts
from tests.simulation.chance import determined, drawn, log_uniform
from tests.simulation.faults import Weather
from tests.simulation.ledger import kept
from tests.simulation.machine import Machine, Slowness
from tests.simulation.network import Network
from tests.simulation.operations import LONG, Done, Operation, Version
from tests.simulation.trace import Trace
from tests.store.helpers import assert_untouched

_CAPACITY = 1 << 20
_DEADLINE = 900.0
"""Seconds that an operation may take, in the worst weather."""
_LATE = 60.0
"""Seconds that an operation may take beyond its timeout."""
_TOKEN = 30.0
"""Seconds that a server remembers what was put."""
_QUIET = 1_000.0
"""Seconds after which nothing may be left: longer than the servers' patience with idle connections."""


@attrs.frozen
class Report:
    """What became of a world."""

    seed: int
    failures: Sequence[str]
    story: Sequence[str]
    """What happened, a line each."""
    digest: str
    """The story in short."""
    counts: Counter[str]
    """Of operations in trouble: how many succeeded, failed, were cancelled, and so on."""


class World:
    """The world of a seed. Use `simulate`.

    Args:
        seed: decides everything.
        version: makes the protocol's version from a source of chance.
        lies: whether connections lie although the version believes it.
    """

    def __init__(self, seed: int, version: Callable[[random.Random], Version], *, lies: bool = False) -> None:
        self.seed = seed
        self.trace = Trace()
        self.counts: Counter[str] = Counter()
        self._chance = drawn(seed, "world")
        self._version = version(drawn(seed, "version"))
        weather = Weather(self._chance.choice([0.0, 0.3, 0.6, 0.9]), lies=lies or self._version.promises.sees_lies)
        self._network = Network(drawn(seed, "network"), weather, self.trace)
        self._machines: dict[str, Machine] = {}
        self._objects: Objects = {}
        self._labels: dict[ObjectID, str] = {}
        self._is_fair = True  # apart from connections
        self._is_calmed = False
        self._taken_in_trouble: list[Operation] = []
        self._taken_in_peace: list[Operation] = []

    def run(self) -> Report:
        """Let it happen."""
        with ExitStack() as stack:
            for number, name in enumerate(("client", "north", "south")):
                store = stack.enter_context(EmbeddedStore(_CAPACITY))
                slowness = Slowness(self._chance.choice([0.0, 0.0, 0.0, 0.1]), drawn(self.seed, f"calls at {name}"))
                self._is_fair = self._is_fair and not slowness.share
                machine = Machine(name, f"10.0.0.{number + 1}", store, self._network, self._version, slowness)
                self._machines[name] = machine
                for method in ("create", "put_many"):
                    keeps = partial(getattr(store.core, method), evict=False)
                    stack.enter_context(mock.patch.object(store.core, method, keeps))
                store.core.add_listener(_Watch(machine, self))
            stack.enter_context(self._version.conditions())
            self._ledger = stack.enter_context(kept())
            stack.enter_context(_logged(self.trace))
            stack.enter_context(determined(self.seed))
            try:
                trio.run(self._live, clock=MockClock(autojump_threshold=0))
            except Exception:  # nothing may escape from any part of it
                self.trace.failures.append(traceback.format_exc())
        trace = self.trace
        return Report(self.seed, trace.failures, trace.lines(), trace.digest(), self.counts)

    async def _live(self) -> None:
        attempts = draw_attempts(self._chance, self._machines, puts=self._version.promises.puts)
        self._provide(attempts)
        async with trio.open_nursery() as nursery:
            for machine in self._machines.values():
                await nursery.start(machine.run)
            async with trio.open_nursery() as trouble:
                self._draw_accidents(trouble)
                if self._chance.random() < 0.5:
                    self._is_calmed = True
                    trouble.start_soon(self._calm, log_uniform(self._chance, 0.1, 60), trouble)
                async with trio.open_nursery() as operations:
                    for attempt in attempts:
                        operations.start_soon(self._try, attempt)
                trouble.cancel_scope.cancel()
            self._check_ledger(attempts)
            was_fair = self._network.is_fair and self._is_fair
            self._network.calm()
            await trio.sleep(_QUIET)
            self._network.cut_unfair()
            self.trace.note("all is well from here on")
            for attempt in attempts:
                await self._finish(attempt.operation)
            await self._settle()
            self._check_end(was_fair)
            nursery.cancel_scope.cancel()

    # What happens

    def _provide(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            is_hurried = attempt.is_cancelled or attempt.operation.timeout not in (None, LONG)
            self._is_fair = self._is_fair and not is_hurried
            self._objects |= attempt.objects
            operation = attempt.operation
            for index, object_id in enumerate(attempt.objects):
                self._labels[object_id] = f"{operation.number}.{index}"
            fill(operation.source.store, attempt.objects)
            fill(operation.target.store, attempt.present)

    def _draw_accidents(self, trouble: trio.Nursery) -> None:
        chance = self._chance
        for _ in range(chance.choice([0, 0, 0, 1, 2])):
            self._is_fair = False
            machine = self._machines[chance.choice(["client", "north", "south"])]
            seconds = log_uniform(chance, 0.001, 100)
            fills_up = partial(trouble.start_soon, machine.fill_up, seconds)
            kills = partial(machine.kill, seconds)
            strikes = chance.choice([kills, kills, partial(machine.unplug, seconds), fills_up])
            if chance.random() < 0.7:
                self._network.at_event(int(log_uniform(chance, 1, 150)), strikes)
            else:
                trouble.start_soon(_later, log_uniform(chance, 0.001, 60), strikes)

    async def _calm(self, after: float, trouble: trio.Nursery) -> None:
        """End the trouble while operations run."""
        await trio.sleep(after)
        self.trace.note("no more trouble")
        self._network.calm()
        self._network.cut_unfair()
        trouble.cancel_scope.cancel()

    async def _try(self, attempt: Attempt) -> None:
        operation = attempt.operation
        await trio.sleep(attempt.begins_at)
        scope = trio.CancelScope()
        if attempt.cancelled_at_event is not None:
            self._network.at_event(self._network.events + attempt.cancelled_at_event, scope.cancel)
        promises = self._version.promises
        client = self._machines["client"].program
        done = await self._perform(operation, scope, attempt.cancelled_after)
        left = set(operation.object_ids) - set(done.arrived)
        if left and self._is_fair and self._network.is_fair and (attempt.is_alone or promises.finishes):
            self.trace.fail(f"{operation} has failed, although all was well")
        has_lived = client is not None and not client.door.is_closed and not attempt.is_cancelled
        if (
            left.difference(done.excused)
            and promises.persists
            and self._is_calmed
            and operation.timeout == LONG
            and has_lived
        ):
            self.trace.fail(f"{operation} has failed, although the trouble was over soon")
        self._taken_in_trouble.append(operation.of(done.arrived))

    async def _finish(self, operation: Operation) -> None:
        """Ask for what did not arrive, once more and with success."""
        promises = self._version.promises
        is_there = operation.target.store.core.table.find_sealed
        missing = [object_id for object_id in operation.object_ids if promises.finishes or not is_there(object_id)]
        if missing:
            again = attrs.evolve(operation.of(missing), timeout=None, is_again=True)
            done = await self._perform(again, trio.CancelScope(), None)
            if set(done.arrived) != set(missing):
                self.trace.fail(f"{again} has failed, although all is well")
            self._taken_in_peace.append(again.of(done.arrived))

    async def _perform(self, operation: Operation, scope: trio.CancelScope, timeout: float | None) -> Done:
        """Have the client's program carry out an operation."""
        program = self._machines["client"].program
        if program is None:
            self._count("not begun", operation)
            return Done(())
        done = Done(())
        over = trio.Event()

        async def perform() -> None:
            nonlocal done
            outcome = "died"
            deadline = _DEADLINE
            if operation.timeout is not None and self._version.promises.persists:
                deadline = operation.timeout + _LATE
            try:
                with trio.move_on_after(deadline) as limit, scope:
                    if timeout is not None:
                        scope.deadline = trio.current_time() + timeout
                    outcome = "cancelled"
                    try:
                        done = await self._version.perform(operation, program)
                        outcome = "done" if len(done.arrived) == len(operation.object_ids) else "partly done"
                    except PlasmastreamError as error:
                        outcome = "failed"
                        self.trace.note(f"{operation}: {error}")
                if limit.cancelled_caught:
                    self.trace.fail(f"{operation} did not end within {deadline:g} s")
            finally:
                self._count("died" if program.door.is_closed else outcome, operation)
                over.set()

        self.trace.note(f"{operation} begins")
        program.nursery.start_soon(perform)
        await over.wait()
        for object_id in done.arrived:
            if operation.target.store.core.table.find_sealed(object_id) is None:
                self.trace.fail(f"{self.label(object_id)} has arrived at {operation.target.name}, but is not there")
        return done

    def _count(self, outcome: str, operation: Operation) -> None:
        self.counts[outcome] += 1
        self.trace.note(f"{operation}: {outcome}")

    # What must hold

    def label(self, object_id: ObjectID) -> str:
        """A short name of an object."""
        return self._labels.get(object_id) or f"unknown object {object_id}"

    def check_bytes(self, machine: Machine, entry: Entry) -> None:
        """A sealed object has the right bytes."""
        data, metadata = machine.store.core.memory_of(entry)
        if self._objects.get(entry.object_id) != (bytes(data), bytes(metadata)):
            self.trace.fail(f"{machine.name} has sealed wrong bytes as {self.label(entry.object_id)}")

    def check_copies(self, object_id: ObjectID) -> None:
        """An object that there ever was is sealed somewhere."""
        if object_id in self._objects and not any(
            machine.store.core.table.find_sealed(object_id) for machine in self._machines.values()
        ):
            self.trace.fail(f"nobody has {self.label(object_id)} any more")

    def _check_ledger(self, attempts: Sequence[Attempt]) -> None:
        """Nothing came twice, but for a chunk per connection."""
        chunk_size = self._version.promises.chunk_size
        if chunk_size is None or not all(map(self._resumes, attempts)):
            return
        needed = 0
        for operation in (attempt.operation for attempt in attempts):
            for data, metadata in (self._objects[object_id] for object_id in operation.object_ids):
                needed += len(data) * self._version.in_chunks(len(data) + len(metadata), operation.source)
        twice = self._ledger.twice(needed)
        self.trace.note(f"received twice: {twice} bytes")
        if twice > chunk_size * self._network.connections:
            self.trace.fail(f"{twice} bytes were received twice, over {self._network.connections} connections")

    def _resumes(self, attempt: Attempt) -> bool:
        operation, client = attempt.operation, self._machines["client"]
        is_sync = client not in (operation.source, operation.target)
        has_lapsed = operation.source is client and trio.current_time() > _TOKEN
        kills = client.kills + operation.target.kills
        return not (kills or attempt.is_cancelled or has_lapsed or (is_sync and not operation.detaches))

    async def _settle(self) -> None:
        client = self._machines["client"].program
        assert client is not None
        await client.close_clients()
        await trio.sleep(_QUIET)

    def _check_end(self, was_fair: bool) -> None:
        for machine in self._machines.values():
            machine.store.core.settle()  # what was held until nobody looked through a view of it any more
            for entry in machine.store.core.table:
                self.check_bytes(machine, entry)
            for what in self._left_over(machine):
                self.trace.fail(f"left over at {machine.name}: {what}")
        for object_id in self._objects:
            self.check_copies(object_id)
        must_be_gone = list(self._taken_in_peace)
        if was_fair or self._version.promises.finishes:
            must_be_gone += self._taken_in_trouble
        for operation in must_be_gone:
            there = contents(operation.source.store) if operation.kind is TransferKind.TAKE else {}
            for object_id in operation.object_ids:
                if object_id in there:
                    self.trace.fail(f"{operation} has left {self.label(object_id)} at {operation.source.name}")

    def _left_over(self, machine: Machine) -> Iterator[str]:
        program = machine.program
        if program is None:
            yield "nothing: it was never started again"
            return
        yield from sorted(f"the task {task.name}" for task in program.nursery.child_tasks)
        yield from sorted(f"the connection {transport.name} to {transport.peer}" for transport in program.transports)
        yield from self._version.left_over(program)
        try:
            assert_untouched(machine.store)
        except AssertionError as error:
            yield f"something unsealed, held or awaited: {error or traceback.format_exc()}"


@attrs.frozen(eq=False)
class _Watch:
    """Looks at every change of a store: see `StoreListener`."""

    machine: Machine
    world: World

    def sealed(self, entries: Sequence[Entry]) -> None:
        """Objects can be read from now on."""
        for entry in entries:
            if trio.lowlevel.in_trio_run():  # those that are there from the beginning are no event
                self.world.trace.note(f"{self.machine.name} seals {self.world.label(entry.object_id)}")
            self.world.check_bytes(self.machine, entry)

    def removed(self, entry: Entry) -> None:
        """An object is gone."""
        self.world.trace.note(f"{self.machine.name} removes {self.world.label(entry.object_id)}")
        self.world.check_copies(entry.object_id)


async def _later(after: float, strikes: Callable[[], None]) -> None:
    await trio.sleep(after)
    strikes()


@contextmanager
def _logged(trace: Trace) -> Iterator[None]:
    """What the package logs goes into the story, and nowhere else."""
    logger = logging.getLogger("plasmastream")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(trace)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.setLevel(level)
        logger.removeHandler(trace)


def simulate(seed: int, version: Callable[[random.Random], Version], *, lies: bool = False) -> Report:
    """The world of a seed, from its beginning to its end."""
    return World(seed, version, lies=lies).run()
