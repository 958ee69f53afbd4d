"""The small parts that say how much and how long: budget, admission, persistence, ranges, results."""

import random
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from plasmastream import (
    LocalProtocolError,
    ObjectExistsError,
    PeerError,
    PlasmastreamError,
    RemoteProtocolError,
    StoreError,
    StoreFullError,
    TransferError,
)
from plasmastream.peer import IncompleteError, Outcome, PeerStalledError, RefusedError, Result, Status, UnreachableError
from plasmastream.peer._admission import Admission, BusyError
from plasmastream.peer._budget import Budget
from plasmastream.peer._incoming import Ranges
from plasmastream.peer._persistence import Persistence
from plasmastream.peer._results import check_results, outcome_of, status_of
from plasmastream.wire.stream.v2 import DamagedError
from tests.store.helpers import name

# Budget


class Spenders:
    """Tasks that spend of a budget, each until it is told to stop."""

    def __init__(self, budget: Budget, nursery: trio.Nursery) -> None:
        self.budget, self.nursery = budget, nursery
        self.at_work: list[str] = []
        self.scopes: dict[str, trio.CancelScope] = {}

    async def start(self, who: str, nbytes: int) -> None:
        self.nursery.start_soon(self._spend, who, nbytes)
        await wait_all_tasks_blocked()

    async def stop(self, who: str) -> None:
        self.scopes[who].cancel()
        await wait_all_tasks_blocked()

    async def _spend(self, who: str, nbytes: int) -> None:
        with trio.CancelScope() as self.scopes[who]:
            async with self.budget.spend(nbytes):
                self.at_work.append(who)
                try:
                    await trio.sleep_forever()
                finally:
                    self.at_work.remove(who)


async def test_a_budget_is_spent_in_order() -> None:
    budget = Budget(100)
    async with trio.open_nursery() as nursery:
        spenders = Spenders(budget, nursery)
        for who, nbytes in (("a", 60), ("b", 40), ("c", 50), ("d", 1)):
            await spenders.start(who, nbytes)
        assert (spenders.at_work, budget.spent) == (["a", "b"], 100)
        await spenders.stop("b")
        assert spenders.at_work == ["a"]  # a small one does not overtake: else a large one might wait for ever
        await spenders.stop("c")  # who no longer waits is in nobody's way
        assert spenders.at_work == ["a", "d"]
        await spenders.start("e", 1000)
        await spenders.start("f", 1)
        await spenders.stop("a")
        assert (spenders.at_work, budget.spent) == (["d"], 1)
        await spenders.stop("d")
        assert (spenders.at_work, budget.spent) == (["e"], 1000)  # more than all, and so alone
        await spenders.stop("e")
        assert (spenders.at_work, budget.spent) == (["f"], 1)
        await spenders.stop("f")
    assert budget.spent == 0


async def test_who_is_cancelled_as_the_turn_comes_gives_it_back() -> None:
    budget = Budget(1)
    async with trio.open_nursery() as nursery:
        spenders = Spenders(budget, nursery)
        for who in "abc":
            await spenders.start(who, 1)
        spenders.scopes["a"].cancel()
        spenders.scopes["b"].cancel()
        await wait_all_tasks_blocked()
        assert (spenders.at_work, budget.spent) == (["c"], 1)
        await spenders.stop("c")
    assert budget.spent == 0


# Admission


async def test_each_peer_has_so_many_requests_at_work_and_waiting(autojump_clock: MockClock) -> None:
    admission = Admission(at_work=2, waiting=2, patience=20)
    at_work: list[str] = []
    refused: list[tuple[str, float, float]] = []
    scopes: dict[str, trio.CancelScope] = {}

    async def request(who: str) -> None:
        with trio.CancelScope() as scopes[who]:
            try:
                async with admission.admit(who[0]):
                    at_work.append(who)
                    try:
                        await trio.sleep_forever()
                    finally:
                        at_work.remove(who)
            except BusyError as error:
                refused.append((who, trio.current_time() - start, error.retry_after))

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for who in ("a1", "a2", "a3", "a4", "a5", "b1"):
            nursery.start_soon(request, who)
            await wait_all_tasks_blocked()
        assert at_work == ["a1", "a2", "b1"]  # one peer is not another's concern
        assert refused == [("a5", 0, 1)]
        scopes["a1"].cancel()
        await wait_all_tasks_blocked()
        assert at_work == ["a2", "b1", "a3"]
        nursery.start_soon(request, "a6")
        await wait_all_tasks_blocked()
        scopes["a6"].cancel()  # while it waits
        await wait_all_tasks_blocked()
        await trio.sleep(21)
        assert refused == [("a5", 0, 1), ("a4", 20, 1)]
        scopes["a2"].cancel()
        await wait_all_tasks_blocked()
        nursery.start_soon(request, "a7")
        await wait_all_tasks_blocked()
        assert at_work == ["b1", "a3", "a7"]
        nursery.cancel_scope.cancel()
    assert admission.is_empty


async def test_who_is_cancelled_as_its_turn_comes_hands_it_on() -> None:
    admission = Admission(at_work=1, waiting=5, patience=20)
    scopes = [trio.CancelScope() for _ in range(3)]
    at_work: list[int] = []

    async def request(number: int) -> None:
        with scopes[number]:
            async with admission.admit("a"):
                at_work.append(number)
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(request, number)
            await wait_all_tasks_blocked()
        scopes[0].cancel()
        scopes[1].cancel()
        await wait_all_tasks_blocked()
        assert at_work == [0, 2]
        scopes[2].cancel()
    assert admission.is_empty


# Persistence


class LongestWaits(random.Random):
    """No chance at all: nothing is taken off."""

    def uniform(self, a: float, b: float) -> float:
        return b


async def test_waits_double_and_begin_anew_with_progress(autojump_clock: MockClock) -> None:
    persistence = Persistence(60, None, LongestWaits())
    waits = []
    for _ in range(8):
        start = trio.current_time()
        assert await persistence.pause()
        waits.append(trio.current_time() - start)
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])
    assert persistence.seconds_stuck == pytest.approx(sum(waits))
    persistence.progressed()
    assert persistence.has_progressed
    assert persistence.seconds_stuck == 0
    start = trio.current_time()
    assert await persistence.pause()
    assert trio.current_time() - start == pytest.approx(0.1)
    start = trio.current_time()
    assert await persistence.pause(at_least=7)
    assert trio.current_time() - start == pytest.approx(7)


async def test_waits_are_shortened_at_random_by_up_to_half(autojump_clock: MockClock) -> None:
    waits = []
    for seed in range(100):
        persistence = Persistence(60, None, random.Random(seed))
        start = trio.current_time()
        assert await persistence.pause()
        waits.append(trio.current_time() - start)
    assert min(waits) >= 0.05 - 1e-9
    assert max(waits) <= 0.1 + 1e-9
    assert max(waits) - min(waits) > 0.04


@pytest.mark.parametrize(("patience", "timeout", "seconds"), [(60, None, 60), (60, 10, 10), (3, 10, 3), (0, None, 0)])
async def test_it_ends_in_time_and_does_not_wait_for_the_end(
    patience: float, timeout: float | None, seconds: float, autojump_clock: MockClock
) -> None:
    start = trio.current_time()
    persistence = Persistence(patience, timeout)
    while await persistence.pause():
        assert trio.current_time() - start <= seconds
    assert trio.current_time() - start >= seconds - 5
    before = trio.current_time()
    assert not await persistence.pause(at_least=100)
    assert trio.current_time() == before


async def test_it_knows_whether_there_was_any_progress() -> None:
    assert not Persistence(60, None).has_progressed


async def test_progress_does_not_move_the_deadline(autojump_clock: MockClock) -> None:
    persistence = Persistence(60, 10)
    start = trio.current_time()
    while await persistence.pause():
        persistence.progressed()
    assert trio.current_time() - start == pytest.approx(10, abs=0.2)


# Ranges

places = st.integers(0, 30)
steps = st.lists(st.tuples(st.sampled_from(["add", "remove", "covers"]), places, places))


@given(size=places, calls=steps)
def test_ranges_are_sets_of_bytes(size: int, calls: list[tuple[str, int, int]]) -> None:
    ranges, model = Ranges((0, size)), set(range(size))
    for call, *ends in calls:
        start, end = sorted(ends)
        some = set(range(start, end))
        if call == "covers":
            assert not some or ranges.covers(start, end) == (some <= model)
        elif start < end:
            getattr(ranges, call)(start, end)
            model = model | some if call == "add" else model - some
        found = list(ranges)
        assert {byte for first, last in found for byte in range(first, last)} == model
        assert ranges.nbytes == len(model)
        assert bool(ranges) == bool(model)
        assert all(first < last for first, last in found)
        assert all(last < first for (_, last), (first, _) in pairwise(found))


# Results


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RefusedError("", Outcome.BUSY, 1.0), Outcome.BUSY),
        (RefusedError("", 200), Outcome.REFUSED),
        (RefusedError("", Outcome.DAMAGED), Outcome.BROKEN_OFF),
        (TransferError("", Status.NOT_FOUND), Outcome.NOT_FOUND),
        (TransferError("", 0xEE), Outcome.REFUSED),
        (PeerStalledError(""), Outcome.STALLED),
        (UnreachableError(""), Outcome.UNREACHABLE),
        (PeerError(""), Outcome.BROKEN_OFF),
        (DamagedError(""), Outcome.BROKEN_OFF),
        (RemoteProtocolError(""), Outcome.REFUSED),
        (LocalProtocolError(""), Outcome.REFUSED),
        (ObjectExistsError(""), Outcome.BEING_WRITTEN),
        (StoreFullError(""), Outcome.NO_ROOM),
        (StoreError(""), Outcome.STORE_ERROR),
        (PlasmastreamError(""), Outcome.REFUSED),
    ],
)
def test_every_error_has_an_outcome(error: PlasmastreamError, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.DONE, Status.SUCCESS),
        (Outcome.PRESENT, Status.SUCCESS),
        (Outcome.NOT_FOUND, Status.NOT_FOUND),
        (Outcome.BEING_TAKEN, Status.SCHEDULED_FOR_DELETION),
        (Outcome.NO_ROOM, Status.STORE_ERROR),
        (Outcome.DIFFERENT, Status.ALREADY_PRESENT),
        (Outcome.UNREACHABLE, Status.PEER_FAILED),
        (200, Status.PEER_FAILED),
    ],
)
def test_the_first_failure_is_the_status_of_all(outcome: int, status: Status) -> None:
    done, result = Result(name("a"), Outcome.DONE), Result(name("b"), outcome)
    last = Result(name("c"), Outcome.BUSY)
    assert status_of([done, result]) == status
    assert status_of([done, result, last]) == (Status.PEER_FAILED if result.is_success else status)
    assert result.is_success == (status == Status.SUCCESS)


def test_what_failed_is_raised_with_what_became_of_all() -> None:
    done, present = Result(name("a"), Outcome.DONE), Result(name("b"), Outcome.PRESENT)
    missing, dead = Result(name("c"), Outcome.NOT_FOUND), Result(name("d"), Outcome.UNREACHABLE, "nobody there")
    check_results([], "peer")
    check_results([done, present], "peer")
    with pytest.raises(IncompleteError, match=rf"peer: 1 of 3 objects failed; the first, object {name('c')}") as caught:
        check_results([done, missing, present], "peer")
    assert caught.value.results == (done, missing, present)
    assert caught.value.status == Status.NOT_FOUND
    with pytest.raises(IncompleteError, match=rf"^peer: object {name('c')}: "):
        check_results([missing], "peer")
    with pytest.raises(UnreachableError, match=rf"^object {name('d')} and 1 more: nobody there; see that"):
        check_results([dead, dead], "peer")
    with pytest.raises(UnreachableError, match=rf"^object {name('d')}: nobody there; "):
        check_results([dead], "peer")
    with pytest.raises(IncompleteError, match="1 of 2"):
        check_results([done, dead], "peer")
