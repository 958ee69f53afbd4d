"""What several test modules of the store need: ids, descriptor counts, and a store that is served in a thread."""

import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import trio

from plasmastream import ObjectID
from plasmastream.store import ConnectionLimits, EmbeddedStore, serve_store
from plasmastream.store._table import Client
from plasmastream.wire.plasma import NO_DIGEST

CAPACITY = 1_000_000


def name(text: object) -> ObjectID:
    """An id that is the same in every run."""
    return ObjectID.from_name(str(text))


def names(count: int, prefix: str = "") -> list[ObjectID]:
    """Different ids."""
    return [name(f"{prefix}{number}") for number in range(count)]


def open_descriptors() -> set[str]:
    """The descriptors of this process, with what is behind them."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:  # the one of the listing itself
            continue
    return found


def put(store: EmbeddedStore, object_id: ObjectID, data: bytes = b"", metadata: bytes = b"") -> None:
    """Put an idle object into a store."""
    client = Client("put")
    store.core.put_many(client, [(object_id, data, metadata, NO_DIGEST)])
    store.core.disconnect(client)


def assert_untouched(store: EmbeddedStore) -> None:
    """Nothing is unsealed, nothing is held, nobody waits."""
    assert [entry for entry in store.core.table if not entry.is_sealed] == []
    assert [entry for entry in store.core.table if entry.holders] == []
    assert store.core._pending == {}
    assert store.core._room_watchers == set()


@contextmanager
def served_in_thread(path: Path, capacity: int = CAPACITY) -> Iterator[EmbeddedStore]:
    """A store served at `path` by a Trio loop in a thread of its own, for clients on any loop."""
    started = threading.Event()
    control: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def serve(store: EmbeddedStore) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_store, store.core, str(path))
                control.append((trio.lowlevel.current_trio_token(), scope))
                started.set()

    with EmbeddedStore(capacity) as store:
        thread = threading.Thread(target=trio.run, args=(serve, store))
        thread.start()
        try:
            assert started.wait(5)
            yield store
        finally:
            token, scope = control[0]
            token.run_sync_soon(scope.cancel)
            thread.join()


@asynccontextmanager
async def served(
    path: Path, capacity: int = CAPACITY, limits: ConnectionLimits | None = None
) -> AsyncIterator[EmbeddedStore]:
    """A store served at `path` by a task of this loop."""
    with EmbeddedStore(capacity) as store:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve_store, store.core, str(path), limits=limits))
            yield store
            nursery.cancel_scope.cancel()


class CallCounter:
    """Counts the calls that one task makes to a transport, and cancels a scope, or raises, at the n-th of them."""

    def __init__(self, at: int, scope: trio.CancelScope | None = None, error: Exception | None = None) -> None:
        self.at = at
        self.scope = scope
        self.error = error
        self.calls = 0
        self.task = trio.lowlevel.current_task()

    @property
    def reached(self) -> bool:
        """Whether there was an n-th call."""
        return self.calls >= self.at

    def __call__(self) -> None:
        """To be called before each call of the transport."""
        if trio.lowlevel.current_task() is not self.task:
            return
        self.calls += 1
        if self.calls == self.at:
            if self.scope is not None:
                self.scope.cancel()
            if self.error is not None:
                raise self.error
