"""Accepting connections: limits, resources that run out, and errors that stay with their connection."""

import errno
import logging
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from plasmastream._listening import accept_connections


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        sock.setblocking(False)
        yield sock


class FailingListener:
    """A listener whose first accepts fail, each by one of the given errors."""

    def __init__(self, real: socket.socket, errors: list[OSError]) -> None:
        self.real = real
        self.errors = errors

    def accept(self) -> tuple[socket.socket, object]:
        if self.errors:
            raise self.errors.pop(0)
        return self.real.accept()

    def fileno(self) -> int:
        return self.real.fileno()


class Served:
    """Serves by noting the connection and waiting to be told to end."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.go = trio.Event()

    async def __call__(self, sock: socket.socket) -> None:
        self.sockets.append(sock)
        await self.go.wait()

    async def until(self, count: int) -> Self:
        """Wait until so many connections are being served."""
        with trio.fail_after(5):
            while len(self.sockets) < count:
                await trio.lowlevel.checkpoint()
        return self


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname())


async def test_each_connection_is_served_and_closed(listener: socket.socket) -> None:
    served = Served()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_connections, listener, served, nursery, 10, "it")
        with connect(listener) as first, connect(listener) as second:
            await served.until(2)
            served.go.set()
            await wait_all_tasks_blocked()
            assert first.recv(1) == second.recv(1) == b""
            assert [sock.fileno() for sock in served.sockets] == [-1, -1]
        nursery.cancel_scope.cancel()


async def test_at_the_limit_the_next_one_waits(listener: socket.socket) -> None:
    served = Served()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_connections, listener, served, nursery, 2, "it")
        clients = [connect(listener) for _ in range(3)]
        await served.until(2)
        await wait_all_tasks_blocked()
        assert len(served.sockets) == 2
        served.go.set()  # the two end, and the third gets a place
        await served.until(3)
        nursery.cancel_scope.cancel()
        for client in clients:
            client.close()


async def test_a_limit_that_is_reached_is_told_once(listener: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    ends: list[trio.Event] = []

    async def serve(sock: socket.socket) -> None:
        ends.append(trio.Event())
        await ends[-1].wait()

    async def told(served: int) -> int:
        """How often, when so many have been served."""
        with trio.fail_after(5):
            while len(ends) < served:
                await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        return len(caplog.records)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_connections, listener, serve, nursery, 2, "the store")
        with ExitStack() as clients:
            clients.enter_context(connect(listener))
            assert await told(1) == 0
            for _ in range(3):  # one of these is served
                clients.enter_context(connect(listener))
            assert await told(2) == 1
            ends[0].set()
            assert await told(3) == 1
            ends[1].set()
            assert await told(4) == 1
            ends[2].set()
            ends[3].set()
            assert await told(4) == 1
            for _ in range(2):
                clients.enter_context(connect(listener))
            assert await told(6) == 2
            nursery.cancel_scope.cancel()
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert caplog.records[0].message == "the store is at its limit of connections, 2: others wait until one ends"


async def test_an_unexpected_error_ends_one_connection_only(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    served = 0

    async def serve(sock: socket.socket) -> None:
        nonlocal served
        await trio.lowlevel.checkpoint()
        served += 1
        if served == 1:
            raise ZeroDivisionError
        sock.send(b"!")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_connections, listener, serve, nursery, 1, "it")
        with connect(listener) as first, connect(listener) as second:
            await wait_all_tasks_blocked(0.01)
            assert first.recv(1) == b""
            assert second.recv(1) == b"!"
        nursery.cancel_scope.cancel()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "report" in record.message
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
async def test_when_resources_run_out_accepting_goes_on_later(
    listener: socket.socket, code: int, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    served = Served()
    failing = cast("socket.socket", FailingListener(listener, [OSError(code, os.strerror(code))]))
    async with trio.open_nursery() as nursery:
        with connect(listener):
            nursery.start_soon(accept_connections, failing, served, nursery, 10, "it")
            await trio.sleep(1)
            assert served.sockets
        nursery.cancel_scope.cancel()
    assert os.strerror(code) in caplog.text


async def test_a_lasting_shortage_is_told_once(
    listener: socket.socket, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    served = Served()
    shortage = [OSError(errno.EMFILE, os.strerror(errno.EMFILE)) for _ in range(50)]
    failing = cast("socket.socket", FailingListener(listener, shortage))
    async with trio.open_nursery() as nursery:
        with connect(listener):
            nursery.start_soon(accept_connections, failing, served, nursery, 10, "it")
            await trio.sleep(60)
            assert served.sockets
        nursery.cancel_scope.cancel()
    (record,) = caplog.records
    assert f"this process may have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}" in record.message
    assert "ulimit -n" in record.message


async def test_a_client_that_gave_up_meanwhile_is_passed_over(listener: socket.socket) -> None:
    served = Served()
    failing = cast("socket.socket", FailingListener(listener, [ConnectionAbortedError(errno.ECONNABORTED, "gone")]))
    async with trio.open_nursery() as nursery:
        with connect(listener):
            nursery.start_soon(accept_connections, failing, served, nursery, 10, "it")
            await served.until(1)
        nursery.cancel_scope.cancel()


async def test_any_other_error_of_the_listener_is_raised(listener: socket.socket) -> None:
    failing = cast("socket.socket", FailingListener(listener, [OSError(errno.EBADF, "bad")]))
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="bad")):
        async with trio.open_nursery() as nursery:
            await accept_connections(failing, Served(), nursery, 10, "it")
