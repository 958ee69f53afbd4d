"""Fixtures for all tests: Apache's own store and client, network namespaces, and short paths for sockets."""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import pytest

from tests.apache import (
    REQUIRE_APACHE,
    ApacheClient,
    ApacheStore,
    ClientFactory,
    StoreFactory,
    missing_reason,
    short_directory,
)
from tests.interop import namespaces as network

_PROCESSES = pytest.StashKey[list[ApacheClient | ApacheStore]]()


@pytest.fixture
def socket_directory() -> Iterator[Path]:
    """A directory for Unix sockets, whose path is short enough for them."""
    with short_directory() as path:
        yield path


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skip where there can be no network namespaces."""
    reason = network.missing_reason()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def apache_parts() -> None:
    """Skip without Apache's parts, or fail where they are required."""
    reason = missing_reason()
    if reason and REQUIRE_APACHE:
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def apache_store(request: pytest.FixtureRequest, apache_parts: None) -> Iterator[StoreFactory]:
    """Start Apache's store: `apache_store(memory)`, then `.socket_path`."""
    with contextlib.ExitStack() as stack:

        def start(memory: int = 100_000_000, arguments: Sequence[str] = ()) -> ApacheStore:
            path = stack.enter_context(short_directory()) / "plasma"
            store = stack.enter_context(ApacheStore(path, memory, arguments))
            request.node.stash.setdefault(_PROCESSES, []).append(store)
            return store

        yield start


@pytest.fixture
def apache_client(request: pytest.FixtureRequest, apache_parts: None) -> Iterator[ClientFactory]:
    """Connect Apache's client to a store: `apache_client(socket_path)`."""
    with contextlib.ExitStack() as stack:

        def connect(socket_path: str | Path, *, timeout: float = 30, num_retries: int = 50) -> ApacheClient:
            client = stack.enter_context(ApacheClient(socket_path, timeout=timeout, num_retries=num_retries))
            request.node.stash.setdefault(_PROCESSES, []).append(client)
            return client

        yield connect


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what Apache's processes wrote to standard error when their test fails."""
    report = yield
    if report.when == "call" and report.failed:
        for process in item.stash.get(_PROCESSES, []):
            report.sections.append((f"{process.name} ({process.pid}), standard error", process.stderr()))
    return report
