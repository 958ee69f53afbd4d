"""`open_fault_proxy`: stands between clients and a server, and spoils their connections as scripted.

How a connection ends is passed on as it is: a clean end of one direction, or a reset. Where the server cannot be
reached, the client gets a reset. Bytes are read no faster than they are taken. All of it ends with the block.
"""

import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

import trio
from trio.socket import SocketType

from plasmastream._listening import accept_connections
from plasmastream.testing._faults import Direction, Fault, Script
from plasmastream.testing._passage import Changes, Passage, Triggered

Scripts: TypeAlias = Script | Sequence[Script] | Callable[[int], Script]
"""Scripts by connection, which are numbered from 0: one for the first, or for the first few (later ones are passed on
untouched), or a function that makes one for every number. Should it raise, that is logged, and the connection ends."""

_MAX_CONNECTIONS = 1024
_CONNECT_TIMEOUT = 30.0


class ProxiedConnection:
    """What has happened to one connection; it can be looked at while it stands, and afterwards.

    Attributes:
        number: 0 for the first connection, and so on.
        script: what is to go wrong with it.
        to_server: the bytes from client to server.
        to_client: the bytes from server to client.
        triggered: the faults that have happened, in order.
        error: why the server could not be reached; None if it was.
        is_over: whether both sides are closed.
    """

    def __init__(self, number: int, script: Script, log_limit: int) -> None:
        self.number = number
        self.script = script
        self.triggered: list[Triggered] = []
        self.error: OSError | None = None
        self.is_over = False
        self._changes = Changes()
        make = partial(Passage, triggered=self.triggered, changes=self._changes, log_limit=log_limit)
        self.to_server = make(Direction.TO_SERVER, script.to_server)
        self.to_client = make(Direction.TO_CLIENT, script.to_client)
        # Whatever else ends a connection, such as the end of the proxy, breaks it.
        self._by_reset = True
        self._scope = trio.CancelScope()

    def release(self) -> None:
        """Let go on what stalls now."""
        self.to_server.release()
        self.to_client.release()

    async def wait_triggered(self, fault: Fault) -> None:
        """Wait until a fault has happened."""
        await self._changes.wait_until(lambda: any(seen.fault == fault for seen in self.triggered))

    async def wait_passed(self, *, to_server: int = 0, to_client: int = 0) -> None:
        """Wait until at least so many bytes have been passed on."""
        await self._changes.wait_until(
            lambda: self.to_server.passed >= to_server and self.to_client.passed >= to_client
        )

    async def wait_over(self) -> None:
        """Wait until both sides are closed."""
        await self._changes.wait_until(lambda: self.is_over)

    async def _run(self, client: SocketType, host: str, port: int) -> None:
        with client:
            try:
                with trio.fail_after(_CONNECT_TIMEOUT):
                    server = (await trio.open_tcp_stream(host, port)).socket
            except (OSError, trio.TooSlowError) as error:
                self.error = error if isinstance(error, OSError) else TimeoutError(f"no answer from {host}:{port}")
                _close(client, by_reset=True)
            else:
                with server:
                    await self._join(client, server)
            finally:
                self.is_over = True
                self._changes.tell()

    async def _join(self, client: SocketType, server: SocketType) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.to_server.run, client, server, self._end)
                    nursery.start_soon(self.to_client.run, server, client, self._end)
            if not self._scope.cancel_called:
                self._by_reset = False
        finally:
            _close(client, self._by_reset)
            _close(server, self._by_reset)

    def _end(self, by_reset: bool) -> None:
        if not self._scope.cancel_called:
            self._by_reset = by_reset
            self._scope.cancel()

    def __repr__(self) -> str:
        return f"<ProxiedConnection {self.number}: {self.to_server}, {self.to_client}>"


class FaultProxy:
    """A proxy that runs: see `open_fault_proxy`.

    Attributes:
        address: host and port at which clients find it.
        connections: all connections so far, in the order in which they came.
    """

    def __init__(self, address: tuple[str, int], server: tuple[str, int], scripts: Scripts, log_limit: int) -> None:
        self.address = address
        self.connections: list[ProxiedConnection] = []
        self._server = server
        self._scripts = scripts
        self._log_limit = log_limit
        self._changes = Changes()

    def release(self) -> None:
        """Let every connection that stalls now go on."""
        for connection in self.connections:
            connection.release()

    async def wait_connection(self, number: int = 0) -> ProxiedConnection:
        """Wait for a connection, by its number from 0."""
        await self._changes.wait_until(lambda: len(self.connections) > number)
        return self.connections[number]

    def _script_of(self, number: int) -> Script:
        match self._scripts:
            case Script():
                return self._scripts if number == 0 else Script()
            case Sequence():
                return self._scripts[number] if number < len(self._scripts) else Script()
            case _:
                return self._scripts(number)

    async def _serve(self, sock: socket.socket) -> None:
        number = len(self.connections)
        connection = ProxiedConnection(number, self._script_of(number), self._log_limit)
        self.connections.append(connection)
        self._changes.tell()
        await connection._run(trio.socket.from_stdlib_socket(sock), *self._server)


@asynccontextmanager
async def open_fault_proxy(
    host: str, port: int, script: Scripts = (), *, listen_at: str = "127.0.0.1", log_limit: int = 0
) -> AsyncIterator[FaultProxy]:
    """A proxy before a server, on a free port; it ends, and breaks what still stands, when the block is left.

    Args:
        host: where the server is.
        port: its TCP port.
        script: what goes wrong with which connection; nothing, by default.
        listen_at: the IP address at which clients find the proxy.
        log_limit: how many bytes of each direction of each connection to keep, for `Passage.log`.

    Raises:
        OSError: the proxy cannot listen there.
    """
    family = socket.AF_INET6 if ":" in listen_at else socket.AF_INET
    failure: Exception | None = None
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        listener.bind((listen_at, 0))
        listener.listen(128)
        proxy = FaultProxy(listener.getsockname()[:2], (host, port), script, log_limit)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_connections, listener, proxy._serve, nursery, _MAX_CONNECTIONS, "the proxy")
            try:
                yield proxy
            except Exception as error:  # a test's own failure is raised as it is, not in a group
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _close(sock: SocketType, by_reset: bool) -> None:
    """End a connection, so that its other side reads a clean end, or gets an error."""
    try:
        if by_reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            # Closing alone would be a reset wherever bytes have come that were not read.
            sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it is broken already
    sock.close()
