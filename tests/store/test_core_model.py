"""The whole core against a plain model, step by step.

Freed memory is poisoned before anything else may use it, and all bytes of all objects are compared after each step, so
an object whose memory was freed too early shows.
"""

from collections.abc import Callable, Sequence

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plasmastream import ObjectExistsError, ObjectID, ObjectNotFoundError, StoreFullError
from plasmastream.store._allocator import block_size
from plasmastream.store._core import PendingGet, StoreCore
from plasmastream.store._debug import debug_string
from plasmastream.store._embedded import describe
from plasmastream.store._table import Client, Entry
from plasmastream.wire.plasma import ErrorCode, ObjectInfo
from tests.store.helpers import names
from tests.store.model import OK, Model, Waiting, thorough

CAPACITY = 2000
MAX_OBJECTS = 9
IDS = names(12)
CLIENTS = 4

ids = st.sampled_from(IDS)
some_ids = st.lists(ids, max_size=5)
who = st.integers(0, CLIENTS - 1)
sizes = st.one_of(st.integers(0, 500), st.integers(0, CAPACITY + 10), st.sampled_from([0, 1, 399, 400, 401, CAPACITY]))
evict = st.integers(0, 3).map(bool)  # mostly


class Log:
    """A listener that remembers what a subscriber would be told."""

    def __init__(self) -> None:
        self.told: list[tuple[ObjectInfo, ...]] = []

    def sealed(self, entries: Sequence[Entry]) -> None:
        self.told.append(tuple(ObjectInfo(e.object_id, e.data_size, e.metadata_size, digest=e.digest) for e in entries))

    def removed(self, entry: Entry) -> None:
        self.told.append((ObjectInfo(entry.object_id, is_deletion=True),))


@attrs.define(eq=False)
class Get:
    """A get that waits, in the core and in the model."""

    pending: PendingGet
    waiting: Waiting
    answers: list[None]


class CoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.core = StoreCore(CAPACITY, max_objects=MAX_OBJECTS, clock=lambda: self.now)
        self.model = Model(CAPACITY, MAX_OBJECTS, lambda: self.now)
        self.clients = [Client(str(number)) for number in range(CLIENTS)]
        for number in range(CLIENTS):
            self.model.connect(number)
        self.log = Log()
        self.core.add_listener(self.log)
        self.calls = self.calls_seen = 0
        self.core.watch_room(self.room_made)
        self.room_seen = CAPACITY
        free = self.core.heap.free

        def poison(offset: int, nbytes: int) -> None:
            self.core.heap.view(offset, nbytes)[:] = b"\xdd" * nbytes
            free(offset, nbytes)

        self.core.heap.free = poison  # type: ignore[method-assign]
        self.gets: list[Get] = []
        self.fill = 0

    def room_made(self) -> None:
        self.calls += 1

    def content(self, size: int) -> bytes:
        self.fill = self.fill % 200 + 1
        return bytes([self.fill]) * size

    @property
    def digest(self) -> bytes:
        return bytes([self.fill]) * 8

    @initialize(
        share=st.sampled_from([None, 900, 1400]),
        new=st.lists(st.tuples(who, ids, st.integers(250, 450)), min_size=6, max_size=9, unique_by=lambda one: one[1]),
    )
    def begin(self, share: int | None, new: list[tuple[int, ObjectID, int]]) -> None:
        """With a store that is nearly full, where requests matter more."""
        if share is not None:
            self.grant(0, share)
        for number, object_id, size in new:
            self.put_idle(number if share is None else number // 2, object_id, size)

    # What clients do

    @rule(number=who, object_id=ids, data_size=sizes, metadata_size=st.integers(0, 60), evict=evict)
    def create(self, number: int, object_id: ObjectID, data_size: int, metadata_size: int, evict: bool) -> None:
        made: list[Entry] = []

        def create() -> None:
            client = self.clients[number]
            made.append(self.core.create(client, object_id, data_size, metadata_size, evict=evict))

        code = self.model.create(number, object_id, data_size, metadata_size, evict)
        assert code_of(create) is code
        if code is not OK:
            return
        content = self.content(data_size + metadata_size)
        data, metadata = self.core.memory_of(made[0])
        assert (len(data), len(metadata)) == (data_size, metadata_size)
        data[:], metadata[:] = content[:data_size], content[data_size:]
        self.model.objects[object_id].content = content

    @rule(object_id=ids)
    def seal(self, object_id: ObjectID) -> None:
        """By anybody: the store does not ask who."""
        code = self.model.seal(object_id, self.digest)
        assert code_of(lambda: self.core.seal(object_id, self.digest)) is code

    @rule(number=who, sizes=st.lists(st.tuples(ids, st.integers(0, 500)), max_size=5), evict=evict)
    def put_many(self, number: int, sizes: list[tuple[ObjectID, int]], evict: bool) -> None:
        new = [(object_id, self.content(size), b"m", self.digest) for object_id, size in sizes]
        made: list[Entry] = []
        code = self.model.put_many(number, new, evict)
        assert code_of(lambda: made.extend(self.core.put_many(self.clients[number], new, evict=evict))) is code
        assert [entry.object_id for entry in made] == ([object_id for object_id, _ in sizes] if code is OK else [])

    @rule(number=who, object_id=ids, size=st.integers(200, 500))
    def put_idle(self, number: int, object_id: ObjectID, size: int) -> None:
        """What fills a store, so that something must go."""
        self.put_many(number, [(object_id, size)], True)
        self.release(number, object_id)

    @rule(number=who, asked=some_ids)
    def get(self, number: int, asked: list[ObjectID]) -> None:
        found = self.model.get(number, asked)
        entries = self.core.get(self.clients[number], asked)
        assert [entry and entry.object_id for entry in entries] == [known and known.object_id for known in found]

    @rule(number=who, asked=some_ids)
    def wait_for(self, number: int, asked: list[ObjectID]) -> None:
        answers: list[None] = []
        waiting = self.model.wait_for(number, asked)
        pending = self.core.wait_for(self.clients[number], asked, lambda: answers.append(None))
        if waiting is None or pending is None:
            assert (waiting, pending) == (None, None)
        else:
            self.gets.append(Get(pending, waiting, answers))

    @precondition(lambda self: self.gets)
    @rule(data=st.data())
    def stop_waiting(self, data: st.DataObject) -> None:
        get = self.gets.pop(data.draw(st.integers(0, len(self.gets) - 1)))
        for _ in range(2):
            self.core.stop_waiting(get.pending)
        self.model.stop_waiting(get.waiting)

    @rule(number=who, object_id=ids)
    def release(self, number: int, object_id: ObjectID) -> None:
        self.core.release(self.clients[number], object_id)
        self.model.release(number, object_id)

    @rule(number=who)
    def release_all(self, number: int) -> None:
        """Otherwise a store of few bytes is soon full of what is held."""
        held = self.model.held[number].copy()
        self.core.release_many(self.clients[number], list(held))
        for object_id in held:
            self.model.release(number, object_id)

    @rule(number=who, object_id=ids)
    def give_back(self, number: int, object_id: ObjectID) -> None:
        self.core.give_back(self.clients[number], [object_id])
        self.model.given_back.append((number, object_id))

    @rule()
    def settle(self) -> None:
        self.core.settle()
        self.model.settle()

    @rule(number=who, object_id=ids)
    def abort(self, number: int, object_id: ObjectID) -> None:
        assert self.core.abort(self.clients[number], object_id) == self.model.abort(number, object_id)

    @rule(object_id=ids)
    def delete(self, object_id: ObjectID) -> None:
        assert self.core.delete(object_id) is self.model.delete(object_id)

    @rule(nbytes=sizes)
    def evict(self, nbytes: int) -> None:
        assert self.core.evict(nbytes) == self.model.evict(nbytes)

    @rule(asked=some_ids)
    def refresh(self, asked: list[ObjectID]) -> None:
        self.core.table.refresh(asked)
        self.model.refresh(asked)

    @rule(number=who, nbytes=st.sampled_from([-1, 0, 300, 500, 900, 1400, 1401]))
    def grant(self, number: int, nbytes: int) -> None:
        assert self.core.table.grant(self.clients[number], nbytes) == self.model.grant(number, nbytes)

    @rule(number=who)
    def disconnect(self, number: int) -> None:
        for get in [get for get in self.gets if get.waiting.who == number]:
            self.core.stop_waiting(get.pending)
            self.gets.remove(get)
        self.core.disconnect(self.clients[number])
        self.model.disconnect(number)
        self.clients[number] = Client("again")
        self.model.connect(number)
        self.model.given_back = [(who, object_id) for who, object_id in self.model.given_back if who != number]

    @rule(seconds=st.sampled_from([0.25, 0.75, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # What must be true at every moment

    @invariant()
    def the_table_is_the_model(self) -> None:
        table, model = self.core.table, self.model
        assert [describe(entry) for entry in table] == [known.listed for known in model.objects.values()]
        assert len(table) == len(model.objects) <= MAX_OBJECTS
        assert table.allocated == model.allocated <= CAPACITY == self.core.capacity
        assert (list(table.idle), table.idle.nbytes) == (model.idle, model.size(model.idle))
        for entry in table:
            known = model.objects[entry.object_id]
            assert entry.delete_when_released == known.doomed
            assert entry.holders.keys() == {self.clients[number] for number in known.holders}
            assert entry.owner is (None if known.owner is None else self.clients[known.owner])

    @invariant()
    def clients_hold_what_is_held_by_them(self) -> None:
        assert {number: list(client.held) for number, client in enumerate(self.clients)} == self.model.held

    @invariant()
    def quotas_are_accounted(self) -> None:
        for client, (number, share) in zip(self.core.table.quotas, self.model.shares.items(), strict=True):
            quota = client.quota
            assert client is self.clients[number]
            assert quota is not None
            assert (list(quota.owned), quota.owned.nbytes) == (share.owned, self.model.size(share.owned))
            assert quota.owned.nbytes <= quota.nbytes
        assert debug_string(self.core) == self.model.debug_string()

    @invariant()
    def no_byte_of_a_live_object_changes(self) -> None:
        for entry in self.core.table:
            content = self.model.objects[entry.object_id].content
            assert content is not None
            assert self.core.heap.view(entry.offset, entry.size) == content

    @invariant()
    def memory_is_accounted(self) -> None:
        allocator = self.core.heap.allocator
        used = sum(block_size(known.size) for known in self.model.objects.values())
        assert allocator.top - allocator.free_bytes == used

    @invariant()
    def listeners_were_told_in_order(self) -> None:
        assert self.log.told == self.model.told

    @invariant()
    def each_get_is_answered_once_when_all_is_there(self) -> None:
        for get in self.gets:
            assert get.pending.missing == get.waiting.missing
            assert len(get.answers) == (not get.waiting.missing)

    @invariant()
    def who_waits_for_room_is_told(self) -> None:
        assert self.calls > self.calls_seen or self.model.room <= self.room_seen
        self.calls_seen, self.room_seen = self.calls, self.model.room

    def teardown(self) -> None:
        for get in self.gets:
            self.core.stop_waiting(get.pending)
        for client in self.clients:
            self.core.disconnect(client)
        self.core.evict(CAPACITY + 1)
        for entry in list(self.core.table):  # empty objects that nothing needed to go for
            assert self.core.delete(entry.object_id) is OK
        assert self.core.table.allocated == 0
        assert not self.core._pending, "a get that nobody waits for is remembered"
        assert self.core.heap.used_bytes == 0
        self.core.close()


def code_of(call: Callable[[], object]) -> ErrorCode:
    """What the protocol calls the outcome of a call."""
    try:
        call()
    except ObjectExistsError:
        return ErrorCode.OBJECT_EXISTS
    except ObjectNotFoundError:
        return ErrorCode.OBJECT_NOT_FOUND
    except StoreFullError:
        return ErrorCode.OUT_OF_MEMORY
    return OK


TestCore = CoreMachine.TestCase
TestCore.settings = thorough(150, steps=50)
