"""Alarms, waits for sockets that have an end, and tasks beside a request that takes long."""

import socket
from functools import partial
from math import inf

import anyio
import pytest
import trio
from trio.testing import MockClock

from plasmastream.peer._companion import Companion
from plasmastream.peer._event_loop import running_loop
from tests.peer.helpers import tcp_pair


async def test_alarms_ring_in_their_time_and_not_when_cancelled(autojump_clock: MockClock) -> None:
    loop, rung, began = running_loop(), [], trio.current_time()

    def ring(name: str) -> None:
        rung.append((name, round(trio.current_time() - began)))

    loop.call_at(began + 5, partial(ring, "late"))
    await trio.sleep(1)
    loop.call_at(began + 2, partial(ring, "early"))  # though the first one is awaited already
    loop.call_at(began - 1, partial(ring, "at once"))
    loop.call_at(inf, partial(ring, "never"))
    loop.call_at(began + 3, partial(ring, "cancelled")).cancel()
    await trio.sleep(10)
    assert rung == [("at once", 1), ("early", 2), ("late", 5)]


async def wait_in_vain() -> None:
    loop = running_loop()
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.setblocking(False)
        assert not await loop.wait(loop.wait_readable, ours, loop.now() + 0.01)
        theirs.send(b"x")
        assert await loop.wait(loop.wait_readable, ours, loop.now() + 60)
        assert ours.recv(10) == b"x"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(close_soon, ours))
            assert not await loop.wait(loop.wait_readable, ours, inf)


async def close_soon(sock: socket.socket) -> None:
    await anyio.sleep(0.01)
    running_loop().notify_closing(sock)
    sock.close()


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_a_wait_ends_with_its_time_or_its_socket(backend: str) -> None:
    anyio.run(wait_in_vain, backend=backend)


async def test_the_end_of_one_wait_is_not_that_of_another(autojump_clock: MockClock) -> None:
    """One task reads, another one writes: what wakes the one may wake the other, early, but not end its time."""
    loop, began = running_loop(), trio.current_time()
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.setblocking(False)
        woken: list[tuple[int, bool]] = []

        async def wait() -> None:
            while True:
                is_there = await loop.wait(loop.wait_readable, ours, began + 5)
                woken.append((round(trio.current_time() - began), is_there))
                if not is_there:
                    return

        while True:
            try:
                ours.send(bytes(1 << 16))
            except BlockingIOError:
                break
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            assert not await loop.wait(loop.wait_writable, ours, began + 2)
        assert woken == [(2, True), (5, False)]


class Beside:
    """What a companion does: it sends for a second, again and again."""

    def __init__(self) -> None:
        self.sent: list[float] = []

    async def work(self, companion: Companion) -> None:
        while True:
            async with companion.sending:
                await trio.sleep(1)
                self.sent.append(trio.current_time())
            await trio.sleep(1)


@pytest.mark.parametrize(("seconds", "sent"), [(1, 0), (2.5, 1), (3.5, 1), (4.5, 2)])
async def test_a_companion_comes_late_and_ends_what_it_sends(
    seconds: float, sent: int, autojump_clock: MockClock
) -> None:
    beside = Beside()
    async with trio.open_nursery() as nursery:
        async with Companion(running_loop(), nursery, 2, beside.work):
            await trio.sleep(seconds)
        assert len(beside.sent) == sent
        assert not nursery.child_tasks
        await trio.sleep(10)
        assert len(beside.sent) == sent


async def test_a_companion_of_what_fails_ends_what_it_sends(autojump_clock: MockClock) -> None:
    """There is something to be said yet: that it failed."""
    beside = Beside()
    async with trio.open_nursery() as nursery:

        async def fail() -> None:
            async with Companion(running_loop(), nursery, 2, beside.work):
                await trio.sleep(2.5)
                raise ValueError("too late")

        with pytest.raises(ValueError, match="too late"):
            await fail()
        assert len(beside.sent) == 1
        assert not nursery.child_tasks


async def test_a_companion_of_what_is_cancelled_is_stopped_at_once(autojump_clock: MockClock) -> None:
    beside = Beside()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(2.5):
            async with Companion(running_loop(), nursery, 2, beside.work):
                await trio.sleep_forever()
        assert trio.current_time() - began == pytest.approx(2.5)
        assert not nursery.child_tasks
    assert not beside.sent
