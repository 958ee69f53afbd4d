"""Fixtures: nodes and stores of this project in processes, ended with their test."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

import pytest

from tests.apache import ApacheStore, _Process, short_directory
from tests.interop.nodes import Node, StoreProcess

_STARTED = pytest.StashKey[list[_Process]]()


class NodeFactory(Protocol):
    """The fixture `node`: a peer server beside a store, or with one of its own of so many bytes."""

    def __call__(
        self,
        store: StoreProcess | ApacheStore | int,
        *,
        port: int = 0,
        max_connections: int = 128,
        **timeouts: float,
    ) -> Node: ...


class OurStoreFactory(Protocol):
    """The fixture `our_store`: our store in a process of its own."""

    def __call__(self, memory: int = 100_000_000) -> StoreProcess: ...


@pytest.fixture
def node(request: pytest.FixtureRequest) -> Iterator[NodeFactory]:
    """Start a peer server: `node(store)` or `node(memory)`, then `.port` and `.socket_path`."""
    with contextlib.ExitStack() as stack:

        def start(
            store: StoreProcess | ApacheStore | int,
            *,
            port: int = 0,
            max_connections: int = 128,
            **timeouts: float,
        ) -> Node:
            if isinstance(store, int):
                path, memory = str(stack.enter_context(short_directory()) / "plasma"), store
                started = Node(path, memory, port=port, max_connections=max_connections, **timeouts)  # type: ignore[arg-type]
            else:
                started = Node(store.socket_path, None, port=port, max_connections=max_connections, **timeouts)  # type: ignore[arg-type]
            request.node.stash.setdefault(_STARTED, []).append(started)
            return stack.enter_context(started)

        yield start
        _report(request)


@pytest.fixture
def our_store(request: pytest.FixtureRequest) -> Iterator[OurStoreFactory]:
    """Start our store alone: `our_store(memory)`, then `.socket_path`."""
    with contextlib.ExitStack() as stack:

        def start(memory: int = 100_000_000) -> StoreProcess:
            path = stack.enter_context(short_directory()) / "plasma"
            store = stack.enter_context(StoreProcess(path, memory))
            request.node.stash.setdefault(_STARTED, []).append(store)
            return store

        yield start
        _report(request)


def _report(request: pytest.FixtureRequest) -> None:
    """Print what the processes wrote, which pytest shows when the test has failed; no traceback may be in it."""
    texts = [(process, process.stderr()) for process in request.node.stash.get(_STARTED, [])]
    for process, text in texts:
        print(f"--- {process.name} ({process.pid})\n{text}")
    for process, text in texts:
        assert "Traceback" not in text, f"{process.name} ({process.pid}) met an error that it did not expect:\n{text}"
