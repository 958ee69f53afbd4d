"""The desk serves whoever has something to say, one after the other, and sends away who has to wait."""

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from plasmastream.store._desk import Desk

Pair = tuple[socket.socket, socket.socket]


@asynccontextmanager
async def open_desk() -> AsyncIterator[Desk]:
    with Desk() as desk:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.run)
            yield desk
            nursery.cancel_scope.cancel()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Our end, and theirs."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def words(sock: socket.socket) -> Callable[[], bytes | None]:
    """Serves by reading, until the word is "end"."""

    def serve() -> bytes | None:
        try:
            word = sock.recv(3)
        except BlockingIOError:
            return None
        return word if word == b"end" else None

    return serve


async def test_whoever_has_something_to_say_is_served_until_something_is_left_to_do(pair: Pair) -> None:
    ours, theirs = pair
    async with open_desk() as desk, trio.open_nursery() as nursery:
        theirs.send(b"one")
        nursery.start_soon(desk.attend, ours.fileno(), words(ours))
        for word in (b"two", b"end"):
            await wait_all_tasks_blocked()
            with pytest.raises(BlockingIOError):
                ours.recv(1)
            assert nursery.child_tasks
            theirs.send(word)
        with trio.fail_after(5):
            while nursery.child_tasks:
                await trio.lowlevel.checkpoint()


async def test_what_is_left_to_do_at_once_is_returned_at_once(pair: Pair) -> None:
    ours, _ = pair
    async with open_desk() as desk:
        assert await desk.attend(ours.fileno(), lambda: 42) == 42


@pytest.mark.parametrize("calls", [1, 2])
async def test_an_error_reaches_the_task_that_it_belongs_to(calls: int, pair: Pair) -> None:
    ours, theirs = pair
    left = iter(range(calls - 1))

    def serve() -> None:
        if next(left, None) is None:
            raise ValueError("spoilt")

    async with open_desk() as desk:
        theirs.send(b"one")
        with pytest.raises(ValueError, match="spoilt"):
            await desk.attend(ours.fileno(), serve)


async def test_who_was_cancelled_is_served_no_more_and_may_come_again(pair: Pair) -> None:
    ours, theirs = pair
    async with open_desk() as desk:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(desk.attend, ours.fileno(), words(ours))
                await wait_all_tasks_blocked()
                scope.cancel()
        theirs.send(b"two")
        await wait_all_tasks_blocked()
        assert ours.recv(3) == b"two"
        theirs.send(b"end")
        assert await desk.attend(ours.fileno(), words(ours)) == b"end"


async def test_who_is_done_at_the_desk_is_not_served_before_its_own_task_has_run(pair: Pair) -> None:
    ours, theirs = pair
    calls: list[int] = []

    def serve() -> int | None:
        calls.append(1)
        return 42 if len(calls) > 1 else None

    async with open_desk() as desk, trio.open_nursery() as nursery:

        async def attend() -> None:
            assert await desk.attend(ours.fileno(), serve) == 42
            assert len(calls) == 2

        nursery.start_soon(attend)
        await wait_all_tasks_blocked()
        theirs.send(b"what nobody reads")


async def test_who_always_has_something_to_say_leaves_others_their_turn(pair: Pair) -> None:
    ours, theirs = pair
    steps: list[int] = []

    def serve() -> None:
        steps[-1] += 1  # and nothing is read

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            steps.append(0)

    second, their_second = socket.socketpair()
    trio.lowlevel.add_instrument(Steps())
    with second, their_second:
        second.setblocking(False)
        async with open_desk() as desk, trio.open_nursery() as nursery:
            await trio.lowlevel.checkpoint()
            theirs.send(b"on and on")
            nursery.start_soon(desk.attend, ours.fileno(), serve)
            await trio.lowlevel.checkpoint()
            their_second.send(b"end")
            with trio.fail_after(5):
                assert await desk.attend(second.fileno(), words(second)) == b"end"
                for _ in range(10):
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert 1 < max(steps) <= 16
