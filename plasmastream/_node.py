"""A node: a store, and the peer server beside it, from its start to the signal that ends it.

What is ready is said on standard output, one fact a line; what happens later goes to the log.
"""

import gc
import ipaddress
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

import attrs
import trio

from plasmastream._errors import PeerError, PlasmastreamError, StoreConnectionError, StoreError
from plasmastream.peer import PeerServer, ServerTimeouts
from plasmastream.peer._transport import format_address
from plasmastream.store import (
    DEFAULT_MAX_CONNECTIONS,
    Access,
    ConnectionLimits,
    EmbeddedStore,
    ObjectStore,
    open_store,
    serve_store,
)
from plasmastream.store._spiller import Spiller

_log = logging.getLogger(__name__)

DEFAULT_MEMORY = 1 << 30
DEFAULT_GRACE = 10.0

# Who starts a store and a server together should not have to wait in between; the first implementation's client
# is about as patient.
_EXTERNAL_PATIENCE = 2.0


# A thread that reads or writes a long message gives way to the event loop so often, in seconds.
_SWITCH_INTERVAL = 0.001

# A full collection looks at every object of the store, for a tenth of a second per 100,000; and none of these is in
# any cycle. Young garbage is collected as ever, and old garbage once in ten million new things.
_COLLECTIONS = (20_000, 10, 50)


@attrs.frozen
class StoreOptions:
    """What a new store is made of."""

    memory: int = DEFAULT_MEMORY
    """Its capacity, in bytes."""
    directory: str | None = None
    """Keep the memory in a file without a name here."""
    huge_pages: bool = False
    spill: str | None = None
    """Move what is evicted to files in this directory."""
    spill_limit: int | None = None
    """Bytes of objects on disk."""
    spill_is_temporary: bool = False
    """Whether what is there goes with the store, however it ends."""
    persist: bool = False
    """In the end, have on disk what is in memory alone."""
    access: Access = attrs.Factory(Access)
    limits: ConnectionLimits = attrs.Factory(ConnectionLimits)
    max_clients: int = DEFAULT_MAX_CONNECTIONS
    """Connections at once."""


async def run_store(path: str, options: StoreOptions) -> None:
    """Serve a new store at a Unix socket until SIGINT or SIGTERM; then remove the socket and return.

    Raises:
        StoreError: a store is there already, or the socket cannot be made, or the directory cannot be used.
        StoreFullError: this machine, or the directory, has not so much memory.
    """
    async with _until_signalled() as ending, _embedded_store(path, options, ending):
        await trio.sleep_forever()


async def run_node(
    *,
    plasma_socket: str,
    new_store: StoreOptions,
    host: str,
    port: int,
    max_connections: int,
    external_store: bool = False,
    grace: float = DEFAULT_GRACE,
    timeouts: ServerTimeouts | None = None,
    fetch_version: int | None = None,
) -> None:
    """Serve a store's objects to other machines until SIGINT or SIGTERM.

    The first signal lets transfers under way end within `grace` seconds; a second one ends them at once. A store that
    goes away meanwhile ends nothing: requests are answered with a store error.

    Args:
        plasma_socket: the store's socket. Where no store answers, a new one is served there.
        new_store: what that is made of.
        host: the address to listen at.
        port: the TCP port; 0 lets the system choose.
        max_connections: connections of peers at once.
        external_store: fail rather than serve a new store.
        grace: in seconds.
        timeouts: how patient the server is.
        fetch_version: what to speak with peers that it fetches from: see `PeerServer`.

    Raises:
        StoreConnectionError: an external store was asked for, and none answers.
        StoreError: the new store's socket cannot be made, or the directory cannot be used.
        StoreFullError: this machine, or the directory, has not so much memory.
        PlasmastreamError: the address cannot be listened at.
    """
    async with AsyncExitStack() as stack:
        ending = await stack.enter_async_context(_until_signalled())
        start = partial(_embedded_store, plasma_socket, new_store, ending)
        store = await stack.enter_async_context(_store_at(plasma_socket, start, external_store))
        server = PeerServer(
            store,
            host=host,
            port=port,
            max_connections=max_connections,
            timeouts=timeouts,
            fetch_version=fetch_version,
        )

        def shut_down() -> None:
            _log.info("stopping; transfers under way have %g s, or until the next signal", grace)
            server.shut_down(grace)

        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(server.serve)
            except PeerError as error:  # no peer has any part in it
                raise PlasmastreamError(str(error)) from error
            ending.ask = shut_down
            _say(f"peer server ready at {format_address(server.address)}")
            if ipaddress.ip_address(server.address[0].partition("%")[0]).is_loopback:
                _say("other machines cannot reach it; plasmastream serve --host 0.0.0.0 lets them, unauthenticated")


class _Ending:
    """What SIGINT and SIGTERM do: the first one calls `ask`, and each later one cancels everything."""

    def __init__(self, everything: trio.CancelScope) -> None:
        self.ask: Callable[[], None] = everything.cancel
        self._everything = everything

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                ask, self.ask = self.ask, self._everything.cancel
                ask()


@asynccontextmanager
async def _until_signalled() -> AsyncIterator[_Ending]:
    """A block that ends at a signal, without an error; signals are heard until it has ended."""
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as everything:
            ending = _Ending(everything)
            await nursery.start(ending.watch)
            yield ending
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _store_at(
    path: str, new_store: Callable[[], AbstractAsyncContextManager[ObjectStore]], external_store: bool
) -> AsyncIterator[ObjectStore]:
    async with AsyncExitStack() as stack:
        store: ObjectStore | None = None
        try:
            patience = _EXTERNAL_PATIENCE if external_store else 0.0
            store = await stack.enter_async_context(open_store(path, connect_timeout=patience))
            _say(f"store found at {path}, capacity {store.capacity} bytes")
        except StoreConnectionError:
            if external_store:
                raise
        if store is None:
            _say(f"no store answers at {path}, starting one")
            store = await stack.enter_async_context(new_store())
        yield store


@asynccontextmanager
async def _embedded_store(path: str, options: StoreOptions, ending: _Ending) -> AsyncIterator[EmbeddedStore]:
    sys.setswitchinterval(_SWITCH_INTERVAL)
    gc.set_threshold(*_COLLECTIONS)
    make = partial(
        EmbeddedStore,
        options.memory,
        directory=options.directory,
        huge_pages=options.huge_pages,
        spill=options.spill,
        spill_limit=options.spill_limit,
        spill_is_temporary=options.spill_is_temporary,
    )
    # Reserving takes a fifth of a second and more per GiB; a signal need not wait for it.
    with await trio.to_thread.run_sync(make, abandon_on_cancel=True) as store:
        serve = partial(
            serve_store,
            store.core,
            path,
            max_connections=options.max_clients,
            access=options.access,
            limits=options.limits,
            spiller=store.spiller,
        )
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(store.run)
                await nursery.start(serve)
                if store.core.table.spilled:
                    _say(f"{store.core.table.spilled} objects found in {options.spill}")
                _say(f"store ready at {path}, capacity {store.capacity} bytes")
                yield store
                nursery.cancel_scope.cancel()
        finally:
            if options.persist and store.spiller is not None:
                await _persist(store.spiller, ending)


async def _persist(spiller: Spiller, ending: _Ending) -> None:
    """Have on disk what is in memory alone. The signal that ended the store is no reason to stop, nor is the next one.

    Raises:
        StoreError: objects are lost.
    """
    with trio.CancelScope(shield=True) as keeping:

        def warn() -> None:
            _log.warning("objects are being kept on disk; another signal gives up the rest")
            ending.ask = keeping.cancel

        ending.ask = warn
        await spiller.persist()
    if keeping.cancelled_caught and spiller.unsaved_objects:
        raise StoreError(f"{spiller.unsaved_objects:,} objects were not kept: a signal came first")


def _say(line: str) -> None:
    print(line, flush=True)
