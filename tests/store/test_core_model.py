"""The whole store against a plain model: dictionaries and lists, and the rules of docs/plasma-ipc.md in few words.

Freed memory is poisoned before anything else may use it, so an object whose memory was freed too early shows.
"""

from collections.abc import Sequence

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from plasmastream import ObjectExistsError, ObjectID, ObjectNotFoundError, StoreFullError
from plasmastream.store._allocator import block_size
from plasmastream.store._core import PendingGet, StoreCore
from plasmastream.store._table import Client, Entry
from plasmastream.wire.plasma import NO_DIGEST, ErrorCode

CAPACITY = 2000
MAX_OBJECTS = 12
IDS = [ObjectID.from_name(str(number)) for number in range(16)]

ids = st.sampled_from(IDS)
some_ids = st.lists(ids, max_size=5)
who = st.integers(0, 2)
sizes = st.one_of(st.integers(0, 300), st.integers(0, CAPACITY + 10), st.sampled_from([0, 1, 399, 400, 401, CAPACITY]))


@attrs.define
class Model:
    """What is known of one object."""

    content: bytes
    metadata_size: int
    creator: int
    sealed: bool = False
    doomed: bool = False
    holders: set[int] = attrs.Factory(set)

    @property
    def size(self) -> int:
        return len(self.content)


@attrs.define(eq=False)
class Waiting:
    """A get that waits."""

    who: int
    missing: set[ObjectID]
    answers: list[None]
    pending: PendingGet | None = None


class Log:
    """A listener that remembers, in the form that the model writes too."""

    def __init__(self) -> None:
        self.told: list[tuple[str, tuple[ObjectID, ...]]] = []

    def sealed(self, entries: Sequence[Entry]) -> None:
        self.told.append(("sealed", tuple(entry.object_id for entry in entries)))

    def removed(self, entry: Entry) -> None:
        self.told.append(("removed", (entry.object_id,)))


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.core = StoreCore(CAPACITY, max_objects=MAX_OBJECTS, clock=self.clock)
        self.clients = [Client(str(number)) for number in range(3)]
        self.log = Log()
        self.core.add_listener(self.log)
        self.room = 0
        self.core.watch_room(self.room_made)
        free = self.core.heap.free

        def poison(offset: int, nbytes: int) -> None:
            self.core.heap.view(offset, nbytes)[:] = b"\xdd" * nbytes
            free(offset, nbytes)

        self.core.heap.free = poison  # type: ignore[method-assign]
        self.objects: dict[ObjectID, Model] = {}
        self.idle: list[ObjectID] = []
        self.held: list[list[ObjectID]] = [[], [], []]
        self.expected: list[tuple[str, tuple[ObjectID, ...]]] = []
        self.waiting: list[Waiting] = []
        self.fill = 0

    def clock(self) -> float:
        self.now += 0.25
        return self.now

    def room_made(self) -> None:
        self.room += 1

    # The model's moves

    def allocated(self) -> int:
        return sum(model.size for model in self.objects.values())

    def remove(self, object_id: ObjectID) -> None:
        if self.objects[object_id].sealed:
            self.expected.append(("removed", (object_id,)))
        for number in self.objects.pop(object_id).holders:
            self.held[number].remove(object_id)
        if object_id in self.idle:
            self.idle.remove(object_id)

    def hold(self, number: int, object_id: ObjectID) -> None:
        if object_id in self.idle:
            self.idle.remove(object_id)
        if number not in self.objects[object_id].holders:
            self.objects[object_id].holders.add(number)
            self.held[number].append(object_id)

    def let_go(self, number: int, object_id: ObjectID) -> None:
        model = self.objects[object_id]
        model.holders.remove(number)
        self.held[number].remove(object_id)
        if not model.holders:
            if model.doomed:
                self.remove(object_id)
            else:
                self.idle.append(object_id)

    def oldest(self, nbytes: int) -> list[ObjectID]:
        chosen: list[ObjectID] = []
        while sum(self.objects[known].size for known in chosen) < nbytes and len(chosen) < len(self.idle):
            chosen.append(self.idle[len(chosen)])
        return chosen

    def refusal(self, object_id: ObjectID, size: int, evict: bool) -> type[Exception] | None:
        """Why a create fails; where it does not, what must go is gone afterwards."""
        if object_id in self.objects:
            return ObjectExistsError
        needed = self.allocated() + size - CAPACITY
        if len(self.objects) == MAX_OBJECTS or size > CAPACITY:
            return StoreFullError
        if needed > 0:
            if not evict or sum(self.objects[known].size for known in self.idle) < needed:
                return StoreFullError
            for victim in self.oldest(max(needed, CAPACITY // 5)):
                self.remove(victim)
        return None

    def content(self, size: int) -> bytes:
        self.fill = self.fill % 200 + 1
        return bytes([self.fill]) * size

    def became_readable(self, object_id: ObjectID) -> None:
        for waiting in self.waiting:
            if object_id in waiting.missing:
                waiting.missing.remove(object_id)
                self.hold(waiting.who, object_id)

    # What clients do

    @rule(number=who, object_id=ids, data_size=sizes, metadata_size=st.integers(0, 60), evict=st.booleans())
    def create(self, number: int, object_id: ObjectID, data_size: int, metadata_size: int, evict: bool) -> None:
        size = data_size + metadata_size
        refusal = self.refusal(object_id, size, evict)
        if refusal is not None:
            with pytest.raises(refusal):
                self.core.create(self.clients[number], object_id, data_size, metadata_size, evict=evict)
            return
        entry = self.core.create(self.clients[number], object_id, data_size, metadata_size, evict=evict)
        content = self.content(size)
        data, metadata = self.core.memory_of(entry)
        assert (len(data), len(metadata)) == (data_size, metadata_size)
        data[:], metadata[:] = content[:data_size], content[data_size:]
        self.objects[object_id] = Model(content, metadata_size, number)
        self.hold(number, object_id)

    @rule(object_id=ids)
    def seal(self, object_id: ObjectID) -> None:
        """By anybody: the store does not ask who."""
        model = self.objects.get(object_id)
        if model is None or model.sealed:
            with pytest.raises(ObjectNotFoundError if model is None else ObjectExistsError):
                self.core.seal(object_id, NO_DIGEST)
            return
        self.core.seal(object_id, NO_DIGEST)
        model.sealed = True
        self.expected.append(("sealed", (object_id,)))
        self.became_readable(object_id)

    @rule(number=who, new=st.lists(st.tuples(ids, st.integers(0, 300)), max_size=5), evict=st.booleans())
    def put_many(self, number: int, new: list[tuple[ObjectID, int]], evict: bool) -> None:
        objects = [(object_id, self.content(size), b"m", NO_DIGEST) for object_id, size in new]
        made: list[ObjectID] = []
        refusal = None
        for object_id, data, metadata, _ in objects:
            refusal = self.refusal(object_id, len(data) + 1, evict)
            if refusal is not None:
                break
            made.append(object_id)
            self.objects[object_id] = Model(data + metadata, 1, number)
            self.hold(number, object_id)
        if refusal is not None:
            for object_id in made:
                self.remove(object_id)
            with pytest.raises(refusal):
                self.core.put_many(self.clients[number], objects, evict=evict)
            return
        entries = self.core.put_many(self.clients[number], objects, evict=evict)
        assert [entry.object_id for entry in entries] == made
        self.expected.append(("sealed", tuple(made)))
        for object_id in made:
            self.objects[object_id].sealed = True
        for object_id in made:
            self.became_readable(object_id)

    @rule(number=who, asked=some_ids)
    def get(self, number: int, asked: list[ObjectID]) -> None:
        entries = self.core.get(self.clients[number], asked)
        for object_id, entry in zip(asked, entries, strict=True):
            model = self.objects.get(object_id)
            assert (entry is not None) == (model is not None and model.sealed)
            if entry is not None:
                self.hold(number, object_id)

    @rule(number=who, asked=some_ids)
    def wait_for(self, number: int, asked: list[ObjectID]) -> None:
        waiting = Waiting(number, set(), [])
        for object_id in asked:
            if object_id in self.objects and self.objects[object_id].sealed:
                self.hold(number, object_id)
            else:
                waiting.missing.add(object_id)
        waiting.pending = self.core.wait_for(self.clients[number], asked, lambda: waiting.answers.append(None))
        assert (waiting.pending is None) == (not waiting.missing)
        if waiting.pending is not None:
            self.waiting.append(waiting)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def stop_waiting(self, data: st.DataObject) -> None:
        waiting = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        assert waiting.pending is not None
        self.core.stop_waiting(waiting.pending)
        self.core.stop_waiting(waiting.pending)
        waiting.missing.clear()

    @rule(number=who, object_id=ids)
    def release(self, number: int, object_id: ObjectID) -> None:
        self.core.release(self.clients[number], object_id)
        if object_id in self.held[number] and self.objects[object_id].sealed:
            self.let_go(number, object_id)

    @rule(number=who, object_id=ids)
    def abort(self, number: int, object_id: ObjectID) -> None:
        model = self.objects.get(object_id)
        may = model is not None and not model.sealed and model.creator == number
        assert self.core.abort(self.clients[number], object_id) == may
        if may:
            self.remove(object_id)

    @rule(object_id=ids)
    def delete(self, object_id: ObjectID) -> None:
        code = self.core.delete(object_id)
        model = self.objects.get(object_id)
        if model is None:
            assert code is ErrorCode.OBJECT_NOT_FOUND
        elif not model.sealed:
            assert code is ErrorCode.OBJECT_NOT_SEALED
            model.doomed = True
        elif model.holders:
            assert code is ErrorCode.OBJECT_IN_USE
            model.doomed = True
        else:
            assert code is ErrorCode.OK
            self.remove(object_id)

    @rule(nbytes=st.one_of(st.just(0), sizes))
    def evict(self, nbytes: int) -> None:
        victims = self.oldest(nbytes)
        assert self.core.evict(nbytes) == sum(self.objects[victim].size for victim in victims)
        for victim in victims:
            self.remove(victim)

    @rule(asked=some_ids)
    def refresh(self, asked: list[ObjectID]) -> None:
        self.core.table.refresh(asked)
        for object_id in asked:
            if object_id in self.idle:
                self.idle.remove(object_id)
                self.idle.append(object_id)

    @rule(number=who)
    def disconnect(self, number: int) -> None:
        for waiting in [waiting for waiting in self.waiting if waiting.who == number]:
            assert waiting.pending is not None
            self.core.stop_waiting(waiting.pending)
            self.waiting.remove(waiting)
        room = self.room
        self.core.disconnect(self.clients[number])
        assert self.room > room
        for object_id in list(self.held[number]):
            if self.objects[object_id].sealed:
                self.let_go(number, object_id)
            else:
                self.remove(object_id)
        self.clients[number] = Client("again")

    # What must be true at every moment

    @invariant()
    def the_table_is_the_model(self) -> None:
        table = self.core.table
        assert {entry.object_id for entry in table} == set(self.objects)
        assert len(table) == len(self.objects) <= MAX_OBJECTS
        assert table.allocated == self.allocated() <= CAPACITY == self.core.capacity
        assert list(table.idle) == self.idle
        assert table.idle.nbytes == sum(self.objects[object_id].size for object_id in self.idle)
        for entry in table:
            model = self.objects[entry.object_id]
            assert (entry.is_sealed, entry.delete_when_released) == (model.sealed, model.doomed)
            assert entry.holders.keys() == {self.clients[number] for number in model.holders}
            assert (entry.object_id in self.idle) == (model.sealed and not model.holders)

    @invariant()
    def clients_hold_what_is_held_by_them(self) -> None:
        assert [list(client.held) for client in self.clients] == self.held

    @invariant()
    def no_byte_of_a_live_object_changes(self) -> None:
        for entry in self.core.table:
            assert self.core.heap.view(entry.offset, entry.size) == self.objects[entry.object_id].content

    @invariant()
    def memory_is_accounted(self) -> None:
        allocator = self.core.heap.allocator
        used = sum(block_size(model.size) for model in self.objects.values())
        assert allocator.top - allocator.free_bytes == used

    @invariant()
    def listeners_were_told_in_order(self) -> None:
        assert self.log.told == self.expected

    @invariant()
    def each_get_is_answered_once_when_all_is_there(self) -> None:
        for waiting in self.waiting:
            assert waiting.pending is not None
            assert waiting.pending.missing == waiting.missing
            assert len(waiting.answers) == (not waiting.missing)

    def teardown(self) -> None:
        for waiting in self.waiting:
            assert waiting.pending is not None
            self.core.stop_waiting(waiting.pending)
        for client in self.clients:
            self.core.disconnect(client)
        self.core.evict(CAPACITY + 1)
        for entry in list(self.core.table):  # empty objects that nothing needed to go for
            assert self.core.delete(entry.object_id) is ErrorCode.OK
        assert self.core.table.allocated == 0
        assert not self.core._pending, "a get that nobody waits for is remembered"
        assert self.core.heap.used_bytes == 0
        self.core.close()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
