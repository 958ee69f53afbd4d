"""Alarms, waits for sockets that have an end, and tasks beside a request that takes long."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from math import inf
from typing import Any

import anyio
import pytest
import trio
from trio.testing import MockClock

from plasmastream.peer._companion import Companion
from plasmastream.peer._event_loop import call_at, now, running_loop
from plasmastream.peer._transport import PeerStalledError, TcpTransport
from tests.peer.helpers import tcp_pair


async def test_alarms_ring_in_their_time_and_not_when_cancelled(autojump_clock: MockClock) -> None:
    rung, began = [], trio.current_time()

    def ring(name: str) -> None:
        rung.append((name, round(trio.current_time() - began)))

    call_at(began + 5, partial(ring, "late"))
    await trio.sleep(1)
    call_at(began + 2, partial(ring, "early"))  # though the first one is awaited already
    call_at(began - 1, partial(ring, "at once"))
    call_at(inf, partial(ring, "never"))
    call_at(began + 3, partial(ring, "cancelled")).cancel()
    await trio.sleep(10)
    assert rung == [("at once", 1), ("early", 2), ("late", 5)]


async def wait_in_vain() -> None:
    loop = running_loop()
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.setblocking(False)
        assert not await loop.wait_readable(ours, now() + 0.01)
        theirs.send(b"x")
        assert await loop.wait_readable(ours, now() + 60)
        assert ours.recv(10) == b"x"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(close_soon, ours))
            assert not await loop.wait_readable(ours, inf)


async def close_soon(sock: socket.socket) -> None:
    await anyio.sleep(0.01)
    anyio.notify_closing(sock)
    sock.close()


RUNS: dict[str, Callable[[Callable[[], Coroutine[Any, Any, object]]], object]] = {
    "trio": trio.run,
    "asyncio": lambda main: asyncio.run(main()),  # which tells anyio of tasks alone what loop runs, not of callbacks
    "anyio": partial(anyio.run, backend="asyncio"),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=list(RUNS))
def test_a_wait_ends_with_its_time_or_its_socket(run: Callable[..., object]) -> None:
    run(wait_in_vain)


@pytest.mark.parametrize("run", RUNS.values(), ids=list(RUNS))
def test_a_connection_may_be_kept_from_one_run_to_the_next(run: Callable[..., object]) -> None:
    ours, theirs = tcp_pair()
    with theirs:
        transport = TcpTransport(ours)

        async def read_in_vain() -> None:
            with pytest.raises(PeerStalledError), memoryview(bytearray(1)) as buffer:
                await transport.receive_into(buffer, timeout=0.01)

        async def close() -> None:
            await read_in_vain()
            transport.close()

        run(read_in_vain)
        run(close)


def test_asyncio_may_be_the_host_of_trio() -> None:
    async def main() -> None:
        over = asyncio.get_running_loop().create_future()
        is_seen = trio.Event()
        trio.lowlevel.start_guest_run(
            is_seen.wait,
            run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
            done_callback=over.set_result,
        )
        await wait_in_vain()
        trio.lowlevel.current_trio_token().run_sync_soon(is_seen.set)
        await over

    asyncio.run(main())


@pytest.mark.parametrize("has_waited", [True, False])
def test_what_is_finalized_at_the_end_of_a_run_has_deadlines_too(has_waited: bool) -> None:
    ended: list[bool] = []

    async def finalize_late() -> AsyncIterator[None]:
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await wait_in_vain()
                ended.append(True)

    left_open = finalize_late()

    async def main() -> None:
        if has_waited:
            await wait_in_vain()
        await anext(left_open)

    trio.run(main)
    assert ended


async def test_what_wakes_a_writer_does_not_give_a_reader_more_time(autojump_clock: MockClock) -> None:
    ours, theirs = tcp_pair()
    with theirs:
        transport, began = TcpTransport(ours), trio.current_time()

        async def excuse() -> bool:
            return True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(transport.send, [bytes(50 << 20)], timeout=0.5, excuse=excuse))
            with pytest.raises(PeerStalledError), memoryview(bytearray(1)) as buffer:
                await transport.receive_into(buffer, timeout=2)
            assert trio.current_time() - began == pytest.approx(2)
            nursery.cancel_scope.cancel()
        transport.abort()


async def test_where_nothing_is_due_no_alarm_is_either(autojump_clock: MockClock) -> None:
    """A clock that jumps to what comes next stands still then."""
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.setblocking(False)
        with trio.move_on_after(5):
            await running_loop().wait_readable(ours, now() + 1000)
        began = trio.current_time()
        await trio.to_thread.run_sync(time.sleep, 0.05)
        assert trio.current_time() == began


async def test_the_end_of_one_wait_is_not_that_of_another(autojump_clock: MockClock) -> None:
    """One task reads, another one writes: what wakes the one may wake the other, early, but not end its time."""
    loop, began = running_loop(), trio.current_time()
    ours, theirs = tcp_pair()
    with ours, theirs:
        ours.setblocking(False)
        woken: list[tuple[int, bool]] = []

        async def wait() -> None:
            while True:
                is_there = await loop.wait_readable(ours, began + 5)
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
            assert not await loop.wait_writable(ours, began + 2)
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
        async with Companion(nursery, 2, beside.work):
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
            async with Companion(nursery, 2, beside.work):
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
            async with Companion(nursery, 2, beside.work):
                await trio.sleep_forever()
        assert trio.current_time() - began == pytest.approx(2.5)
        assert not nursery.child_tasks
    assert not beside.sent
