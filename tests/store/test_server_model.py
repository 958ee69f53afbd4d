"""A store that is served, against a plain model: many connections, every request, and every way to end a connection.

Requests are sent several at once and cut anywhere; gets wait, and more is sent behind them. Each reply and each
notification must be exactly what the model says. Memory is read through the descriptor that came along, after each
step; what was freed is poisoned at once.
"""

import struct
from contextlib import ExitStack
from functools import partial

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from plasmastream import ObjectID
from plasmastream.store._allocator import block_size
from plasmastream.store._conversation import _HANG_UP_POLL
from plasmastream.store._core import StoreCore
from plasmastream.store._embedded import describe
from plasmastream.wire.plasma import (
    EMPTY_SPEC,
    MISSING_SPEC,
    AbortReply,
    AbortRequest,
    ConnectReply,
    ConnectRequest,
    ContainsReply,
    ContainsRequest,
    CreateAndSealBatchReply,
    CreateAndSealBatchRequest,
    CreateAndSealReply,
    CreateAndSealRequest,
    CreateReply,
    CreateRequest,
    DeleteReply,
    DeleteRequest,
    DisconnectClient,
    ErrorCode,
    EvictReply,
    EvictRequest,
    Extension,
    GetDebugStringReply,
    GetDebugStringRequest,
    GetReply,
    GetRequest,
    ListReply,
    ListRequest,
    Message,
    ObjectInfo,
    ObjectSpec,
    RefreshLRUReply,
    RefreshLRURequest,
    ReleaseManyRequest,
    ReleaseRequest,
    SealReply,
    SealRequest,
    SetOptionsReply,
    SetOptionsRequest,
    SubscribeRequest,
)
from tests.apache import short_directory
from tests.store.helpers import names
from tests.store.model import OK, Known, Model, thorough
from tests.store.model_parts import Caller, Get, Request, StillStore, Subscriber

CAPACITY = 1 << 20
MAX_OBJECTS = 9
IDS = names(12)
CALLERS = 4

SEGMENT = 1
ALL = 1 << 30
TIMED = 1  # stands for a timeout that no other get has

ids = st.sampled_from(IDS)
some_ids = st.lists(ids, min_size=1, max_size=5).map(tuple)
callers = st.integers(0, CALLERS - 1)
evict = st.integers(0, 3).map(bool)  # mostly
digests = st.integers(0, 255).map(lambda number: bytes([number]) * 8)
sizes = st.one_of(
    st.integers(0, 1000),
    st.integers(0, CAPACITY + 10),
    st.sampled_from([0, 1, CAPACITY // 10, CAPACITY // 5, CAPACITY // 5 + 1, CAPACITY // 3, CAPACITY - 20, CAPACITY]),
)
impossible = st.sampled_from([CAPACITY + 1, 1 << 62, 1 << 63, (1 << 64) - 5])


def contents(largest: int) -> st.SearchStrategy[bytes]:
    return st.builds(lambda size, fill: bytes([fill]) * size, st.integers(0, largest), st.integers(1, 200))


def batches(largest: int) -> st.SearchStrategy[Message]:
    columns = st.lists(st.tuples(ids, contents(largest), contents(30), digests), min_size=1, max_size=5)
    return st.builds(
        lambda rows, evict: CreateAndSealBatchRequest(
            object_ids=tuple(row[0] for row in rows),
            evict_if_full=evict,
            data=tuple(row[1] for row in rows),
            metadata=tuple(row[2] for row in rows),
            digests=tuple(row[3] for row in rows),
        ),
        columns,
        evict,
    )


creates = st.builds(CreateRequest, ids, evict, sizes, st.integers(0, 20))
seals = st.builds(SealRequest, ids, digests)
gets = st.builds(GetRequest, st.lists(ids, max_size=5).map(tuple), st.sampled_from([0, 0, -1, -7, TIMED]))
waits = st.builds(GetRequest, some_ids, st.sampled_from([-1, TIMED]))
releases = st.builds(ReleaseRequest, ids) | st.builds(ReleaseManyRequest, st.lists(ids, max_size=5).map(tuple))
inline = st.builds(CreateAndSealRequest, ids, evict, contents(600), contents(30), digests)
requests: st.SearchStrategy[Message] = st.one_of(
    creates,
    creates,
    seals,
    seals,
    gets,
    gets,
    releases,
    releases,
    inline,
    batches(400),
    st.builds(CreateRequest, ids, evict, impossible, st.integers(0, 10)),
    st.builds(CreateRequest, ids, evict, st.integers(0, 100), st.just(0), st.just(1)),
    st.builds(AbortRequest, ids),
    st.builds(DeleteRequest, some_ids),
    st.builds(ContainsRequest, ids),
    st.builds(RefreshLRURequest, some_ids),
    st.builds(EvictRequest, st.one_of(sizes, st.sampled_from([1 << 63, (1 << 64) - 1]))),
    st.builds(
        SetOptionsRequest, st.sampled_from(["ä", "b"]), st.sampled_from([-1, 0, 300_000, 600_000, 734_003, 734_004])
    ),
    st.sampled_from([ListRequest(), ConnectRequest(), GetDebugStringRequest(), SubscribeRequest()]),
)
large = st.one_of(
    st.builds(CreateAndSealRequest, ids, evict, contents(CAPACITY), contents(30), digests), batches(CAPACITY // 4)
)
ways_to_end: st.SearchStrategy[Request | None] = st.sampled_from(
    [
        None,
        None,
        None,
        DisconnectClient(),
        struct.pack("<qqq", 1, 9, 0),  # another version
        struct.pack("<qqq", 0, 25, 0),  # no request
        struct.pack("<qqq", 0, 17, 0),  # no body
    ]
)


class ServerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.resources = ExitStack()
        directory = self.resources.enter_context(short_directory())
        self.now = 1000.0
        self.core = StoreCore(CAPACITY, max_objects=MAX_OBJECTS, clock=lambda: self.now)
        self.resources.callback(self.core.close)
        free = self.core.heap.free

        def poison(offset: int, nbytes: int) -> None:
            self.core.heap.view(offset, nbytes)[:] = b"\xdd" * nbytes
            free(offset, nbytes)

        self.core.heap.free = poison  # type: ignore[method-assign]
        self.model = Model(CAPACITY, MAX_OBJECTS, lambda: self.now)
        self.store = StillStore(self.core, str(directory / "plasma"))
        self.resources.callback(self.store.close)
        self.callers: list[Caller] = []
        self.subscribers: list[Subscriber] = []
        self.told = 0
        self.connected = 0
        self.timed = 0
        self.fill = 0

    @initialize(
        share=st.sampled_from([None, 500_000, 700_000]),
        new=st.lists(
            st.tuples(callers, ids, st.integers(CAPACITY // 8, CAPACITY // 4)),
            min_size=6,
            max_size=9,
            unique_by=lambda one: one[1],
        ),
    )
    def begin(self, share: int | None, new: list[tuple[int, ObjectID, int]]) -> None:
        """With a store that is nearly full, where requests matter more."""
        for _ in range(CALLERS):
            self.callers.append(self.connect())
        if share is not None:
            self.post(self.callers[0], [SetOptionsRequest("a", share)], 0)
        for number, object_id, size in new:
            self.make(number if share is None else number // 2, object_id, size)

    def connect(self) -> Caller:
        self.connected += 1
        self.model.connect(self.connected)
        caller = Caller(self.connected, self.store.path)
        self.store.do(lambda: None)
        return caller

    # What the store does, by the model

    def run(self, caller: Caller) -> None:
        """Answer what a caller has sent, and then whoever was kept waiting by what that changed."""
        self.answer_all(caller)
        while True:
            complete = [other for other in self.callers if other.get is not None and not other.get.waiting.missing]
            if not complete:
                return
            self.finish_get(complete[0])

    def answer_all(self, caller: Caller) -> None:
        while caller.queue and caller.get is None and not caller.is_over:
            self.answer(caller, caller.queue.popleft())
        if not caller.is_over and caller.get is None:
            caller.flush()

    def finish_get(self, caller: Caller) -> None:
        assert caller.get is not None
        request, caller.get = caller.get.request, None
        self.answer_get(caller, request)
        self.answer_all(caller)

    def answer_get(self, caller: Caller, request: GetRequest) -> None:
        found = self.model.get(caller.number, request.object_ids)
        used = any(known is not None for known in found)

        def reply(came: Message) -> Message:
            assert isinstance(came, GetReply)
            return GetReply(
                object_ids=request.object_ids,
                specs=tuple(
                    MISSING_SPEC if known is None else self.spec(known, spec)
                    for known, spec in zip(found, came.specs, strict=True)
                ),
                store_fds=(SEGMENT,) if used else (),
                mmap_sizes=(self.mmap_size,) if used else (),
            )

        caller.expect(reply)
        caller.flush()

    def end(self, caller: Caller) -> None:
        for object_id in self.model.held[caller.number].copy():
            if not self.model.abort(caller.number, object_id):
                self.model.release(caller.number, object_id)
        self.model.disconnect(caller.number)
        self.tell()
        caller.end()

    def tell(self) -> None:
        """Let the subscribers expect what is new."""
        for told in self.model.told[self.told :]:
            for subscriber in self.subscribers:
                if not subscriber.ends:
                    subscriber.tell(told)
        self.told = len(self.model.told)

    def spec(self, known: Known, came: ObjectSpec) -> ObjectSpec:
        """Where an object is: the first time as the store says, and then always there."""
        if known.offset is None:
            known.offset = came.data_offset
            assert known.offset % 64 == 0
        return ObjectSpec(
            segment_index=SEGMENT,
            data_offset=known.offset,
            data_size=known.data_size,
            metadata_offset=known.offset + known.data_size,
            metadata_size=known.metadata_size,
        )

    @property
    def mmap_size(self) -> int:
        return self.core.heap.segment.length + 8

    def answer(self, caller: Caller, request: Request) -> None:
        model, number = self.model, caller.number
        match request:
            case bytes() | DisconnectClient():
                self.end(caller)
            case ConnectRequest():
                caller.expect(ConnectReply(CAPACITY, Extension.INSPECT | Extension.RELEASE_MANY))
            case CreateRequest():
                self.create(caller, request)
            case CreateAndSealRequest(object_id, evict, data, metadata, digest):
                row = (object_id, bytes(data), bytes(metadata), digest)
                caller.expect(CreateAndSealReply(self.put(number, [row], evict)))
            case CreateAndSealBatchRequest(object_ids, evict, data, metadata, digests):
                rows = list(zip(object_ids, map(bytes, data), map(bytes, metadata), digests, strict=True))
                caller.expect(CreateAndSealBatchReply(self.put(number, rows, evict)))
            case SealRequest(object_id, digest):
                caller.expect(SealReply(object_id, model.seal(object_id, digest)))
            case AbortRequest(object_id):
                model.abort(number, object_id)
                caller.expect(AbortReply(object_id))
            case GetRequest():
                self.get(caller, request)
            case ReleaseRequest(object_id):
                model.release(number, object_id)
            case ReleaseManyRequest(object_ids):
                for object_id in object_ids:
                    model.release(number, object_id)
            case DeleteRequest():
                codes = tuple(model.delete(object_id) for object_id in request.object_ids)
                caller.expect(DeleteReply(request.object_ids, codes))
            case ContainsRequest(object_id):
                caller.expect(ContainsReply(object_id, model.find_sealed(object_id) is not None))
            case ListRequest():
                caller.expect(ListReply(tuple(known.listed for known in model.objects.values())))
            case EvictRequest(nbytes):
                caller.expect(EvictReply(model.evict(nbytes if nbytes < 1 << 63 else 0)))
            case RefreshLRURequest(object_ids):
                model.refresh(object_ids)
                caller.expect(RefreshLRUReply())
            case SetOptionsRequest(label, nbytes):
                model.labels[number] = label
                granted = model.grant(number, nbytes)
                caller.expect(SetOptionsReply(OK if granted else ErrorCode.OUT_OF_MEMORY))
            case GetDebugStringRequest():
                caller.expect(GetDebugStringReply(model.debug_string()))
            case SubscribeRequest():
                self.subscribe(caller)
            case _:
                raise AssertionError(request)

    def create(self, caller: Caller, request: CreateRequest) -> None:
        object_id = request.object_id
        code = ErrorCode.OUT_OF_MEMORY
        if not request.device_num:
            sizes = request.data_size, request.metadata_size
            code = self.model.create(caller.number, object_id, *sizes, request.evict_if_full)
        if code is not OK:
            caller.expect(CreateReply(object_id, EMPTY_SPEC, code))
            return
        known = self.model.objects[object_id]

        def reply(came: Message) -> Message:
            assert isinstance(came, CreateReply)
            expected = CreateReply(object_id, self.spec(known, came.spec), store_fd=SEGMENT, mmap_size=self.mmap_size)
            if self.model.objects.get(object_id) is known and not known.is_sealed:
                self.fill = self.fill % 200 + 1
                known.content = bytes([self.fill]) * known.size
                caller.write(known, known.content)
            return expected

        caller.expect(reply)

    def put(self, number: int, rows: list[tuple[ObjectID, bytes, bytes, bytes]], evict: bool) -> ErrorCode:
        code = self.model.put_many(number, rows, evict)
        if code is OK:
            for object_id, *_ in rows:
                self.model.release(number, object_id)
        return code

    def get(self, caller: Caller, request: GetRequest) -> None:
        waiting = self.model.wait_for(caller.number, request.object_ids) if request.timeout_ms else None
        if waiting is None:
            self.answer_get(caller, request)
            return
        caller.flush()
        if request.timeout_ms < -1:  # it is over at once
            self.model.stop_waiting(waiting)
            self.answer_get(caller, request)
            return
        timeout = float("inf") if request.timeout_ms == -1 else request.timeout_ms / 1000
        caller.get = Get(request, waiting, self.store.now + timeout)

    def subscribe(self, caller: Caller) -> None:
        self.tell()
        if caller.subscriber is not None:
            caller.subscriber.ends = True
        snapshot: list[tuple[ObjectInfo, ...]] = [
            (known.told,) for known in self.model.objects.values() if known.is_sealed
        ]
        caller.subscriber = Subscriber(caller.offered.popleft(), snapshot)
        self.subscribers.append(caller.subscriber)

    # What clients do

    def post(self, caller: Caller, new: list[Request], cut: int) -> None:
        """Send what was left and something new, but not the last `cut` bytes of it.

        The store answers one connection after another, in an order that is Trio's choice. So that the model knows it,
        only one connection at a time may have more than one request that others can set off.
        """
        self.now += 0.75
        if not all(other.is_light for other in self.callers if other is not caller):
            if not caller.is_light or caller.get is not None or caller.unsent:
                return
            new = new[:1]
        for request in new:
            if isinstance(request, GetRequest) and request.timeout_ms == TIMED:
                self.timed += 1  # such that no two gets are ever over at the same time
                request = attrs.evolve(request, timeout_ms=1000 << self.timed)
            caller.prepare(request)
        self.send(caller, caller.unsent_bytes - cut)

    def send(self, caller: Caller, nbytes: int) -> None:
        end = max(0, caller.unsent_bytes - max(nbytes, 0))
        while caller.unsent_bytes > end:
            before = caller.unsent_bytes
            self.store.do(partial(caller.send, before - end))
            if caller.unsent_bytes == before:
                break  # the store does not read on while a get waits, or has hung up
        self.run(caller)

    @rule(number=callers, new=st.lists(requests, max_size=6))
    def ask(self, number: int, new: list[Request]) -> None:
        self.post(self.callers[number], new, 0)

    @rule(number=callers, new=st.lists(requests, min_size=1, max_size=6), cut=st.sampled_from([1, 40, 200]))
    def ask_in_part(self, number: int, new: list[Request], cut: int) -> None:
        self.post(self.callers[number], new, cut)

    @rule(number=callers, request=st.one_of(gets, gets, waits, creates, inline, batches(CAPACITY // 10)))
    def ask_one(self, number: int, request: Request) -> None:
        """What changes the most."""
        if self.callers[number].get is None:
            self.post(self.callers[number], [request], 0)

    @rule(number=callers, request=large, cut=st.sampled_from([0, 0, 1000, 200_000]))
    def ask_for_much(self, number: int, request: Message, cut: int) -> None:
        caller = self.callers[number]
        if caller.get is None and not caller.unsent:
            self.post(caller, [request], cut)

    @rule(number=callers, object_id=ids, size=sizes)
    def make(self, number: int, object_id: ObjectID, size: int) -> None:
        """What a program does all the time."""
        self.post(self.callers[number], [CreateRequest(object_id, True, size, 3)], 0)
        self.check_all()
        self.post(self.callers[number], [SealRequest(object_id, b"12345678"), ReleaseRequest(object_id)], 0)

    @rule(number=callers)
    def release_all(self, number: int) -> None:
        """Otherwise a store is soon full of what is held."""
        caller = self.callers[number]
        self.post(caller, [ReleaseRequest(object_id) for object_id in self.model.held[caller.number]], 0)

    @precondition(lambda self: any(caller.get for caller in self.callers))
    @rule()
    def time_is_up(self) -> None:
        """For the get whose time is up next."""
        self.expire(float("inf"))

    def expire(self, before: float) -> bool:
        """The same, if that is before some time; whether there was one."""
        waiting = [caller for caller in self.callers if caller.get is not None and caller.get.deadline < before]
        waiting.sort(key=lambda caller: caller.get.deadline if caller.get else 0)
        if not waiting:
            return False
        caller = waiting[0]
        assert caller.get is not None
        self.store.jump(caller.get.deadline)
        self.model.stop_waiting(caller.get.waiting)
        self.finish_get(caller)
        self.run(caller)
        return True

    @precondition(lambda self: self.model.waiting)
    @rule(number=callers, evict=evict)
    def fulfil(self, number: int, evict: bool) -> None:
        """Put, or seal, what a get waits for."""
        missing = sorted(self.model.waiting[0].missing)
        new = [CreateAndSealRequest(object_id, evict, b"here", b"", b"12345678") for object_id in missing]
        self.post(self.callers[number], [*new, *(SealRequest(object_id, b"87654321") for object_id in missing)], 0)

    # And how they end

    @rule(number=callers, new=st.lists(requests, max_size=5), cut=st.sampled_from([0, 0, 1, 40]), how=ways_to_end)
    def leave(self, number: int, new: list[Request], cut: int, how: Request | None) -> None:
        """By saying so, or nonsense; by just closing; or by dying."""
        while self.expire(self.store.now + 2 * _HANG_UP_POLL):  # which `replace` lets pass
            pass
        caller = self.callers[number]
        if how is not None:
            self.say_what_ends_it(caller, how)
        elif new:
            self.die(caller, new, cut)
        else:  # perhaps in the midst of a frame, or while a get waits
            self.store.do(caller.close)
            self.replace(caller)

    def say_what_ends_it(self, caller: Caller, request: Request) -> None:
        """Behind what is queued, if a get waits."""
        if not caller.unsent:
            self.post(caller, [request], 0)

    def die(self, caller: Caller, new: list[Request], cut: int) -> None:
        """With requests on their way, of which nobody reads the replies; or in the midst of a frame."""
        if not caller.unsent:  # else the store may see the end before it has done the last of them
            for request in new:
                if not isinstance(request, SubscribeRequest):
                    caller.prepare(request)
        else:
            cut = caller.unsent_bytes

        def act() -> None:
            caller.send(caller.unsent_bytes - cut)
            caller.close()

        self.store.do(act)
        if caller.get is None:
            while caller.queue:
                request = caller.queue.popleft()
                self.answer(caller, request)
                if isinstance(request, GetRequest):
                    break  # the store finds out with the first reply that it sends
        self.replace(caller)

    def replace(self, caller: Caller) -> None:
        """Somebody else comes instead of who has gone.

        While a get waits, an end behind much that was read ahead is looked for now and then.
        """
        if caller.get is not None:
            self.store.jump(self.store.now + _HANG_UP_POLL)
        if not caller.is_over:
            self.end(caller)
        self.run(caller)
        self.callers[self.callers.index(caller)] = self.connect()

    # What must be true at every moment

    @invariant()
    def check_all(self) -> None:
        """All replies and notifications have come, and no others."""
        self.tell()
        for subscriber in list(self.subscribers):
            subscriber.check()
            if subscriber.ends:
                subscriber.sock.close()
                self.subscribers.remove(subscriber)
        for caller in list(self.callers):
            caller.check()
            if caller.is_over:
                caller.close()
                self.callers[self.callers.index(caller)] = self.connect()

    @invariant()
    def the_table_is_the_model(self) -> None:
        table, model = self.core.table, self.model
        assert [describe(entry) for entry in table] == [known.listed for known in model.objects.values()]
        assert table.allocated == model.allocated <= CAPACITY
        assert list(table.idle) == model.idle
        assert set(self.core._pending) == {object_id for waiting in model.waiting for object_id in waiting.missing}
        assert len(self.core._listeners) == len(self.subscribers)

    @invariant()
    def memory_is_accounted(self) -> None:
        allocator = self.core.heap.allocator
        used = sum(block_size(known.size) for known in self.model.objects.values())
        assert allocator.top - allocator.free_bytes == used

    @invariant()
    def no_byte_that_somebody_holds_changes(self) -> None:
        for caller in self.callers:
            for object_id in self.model.held[caller.number]:
                known = self.model.objects[object_id]
                seen = caller.read(known)
                if known.content is None and known.is_sealed:
                    known.content = seen  # sealed before it was written
                assert seen is None or known.content is None or seen == known.content

    def teardown(self) -> None:
        with self.resources:
            for caller in self.callers:
                self.store.do(caller.close)
            for subscriber in self.subscribers:
                subscriber.sock.close()
            self.store.jump(self.store.now + _HANG_UP_POLL)  # see `replace`
            assert not self.core._pending
            assert not self.core._listeners
            assert not self.core.table.quotas
            assert all(entry.is_sealed and not entry.holders for entry in self.core.table)
            for entry in list(self.core.table):
                assert self.core.delete(entry.object_id) is OK
            assert self.core.heap.used_bytes == 0


TestServer = ServerMachine.TestCase
TestServer.settings = thorough(55, steps=40)
