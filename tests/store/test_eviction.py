"""The queue of idle objects against an ordered list."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from plasmastream import ObjectID
from plasmastream.store._eviction import LRUQueue

IDS = [ObjectID.from_name(str(number)) for number in range(8)]


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = LRUQueue()
        self.model: list[tuple[ObjectID, int]] = []

    def index(self, object_id: ObjectID) -> int | None:
        return next((index for index, (known, _) in enumerate(self.model) if known == object_id), None)

    @rule(object_id=st.sampled_from(IDS), size=st.integers(0, 100))
    def add(self, object_id: ObjectID, size: int) -> None:
        if self.index(object_id) is None:
            self.queue.add(object_id, size)
            self.model.append((object_id, size))

    @rule(object_id=st.sampled_from(IDS))
    def discard(self, object_id: ObjectID) -> None:
        self.queue.discard(object_id)
        self.model = [entry for entry in self.model if entry[0] != object_id]

    @rule(object_id=st.sampled_from(IDS))
    def refresh(self, object_id: ObjectID) -> None:
        self.queue.refresh(object_id)
        index = self.index(object_id)
        if index is not None:
            self.model.append(self.model.pop(index))

    @rule(nbytes=st.integers(0, 400))
    def oldest(self, nbytes: int) -> None:
        chosen = self.queue.oldest(nbytes)
        assert chosen == [object_id for object_id, _ in self.model[: len(chosen)]]
        sizes = [size for _, size in self.model]
        assert sum(sizes[: len(chosen)]) >= nbytes or len(chosen) == len(self.model)
        assert not chosen or sum(sizes[: len(chosen) - 1]) < nbytes

    @invariant()
    def same_order_and_sum(self) -> None:
        assert list(self.queue) == [object_id for object_id, _ in self.model]
        assert len(self.queue) == len(self.model)
        assert self.queue.nbytes == sum(size for _, size in self.model)
        assert [object_id in self.queue for object_id in IDS] == [self.index(known) is not None for known in IDS]


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=100, deadline=None)


def test_asked_for_nothing_it_gives_nothing() -> None:
    queue = LRUQueue()
    queue.add(IDS[0], 0)
    assert queue.oldest(0) == []
    assert queue.oldest(1) == [IDS[0]]
