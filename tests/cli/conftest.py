"""Fixtures for the command line: nodes that run for one test, or for all tests of a module."""

from collections.abc import Iterator

import pytest

from tests.apache import short_directory
from tests.cli.processes import Node, node


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes with stores of their own; tests share them, and use ids of their own."""
    with short_directory() as directory, node(directory / "a") as first, node(directory / "b") as second:
        yield first, second


@pytest.fixture
def here(nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch) -> Node:
    """The first of them, whose store is the one that commands use by default."""
    monkeypatch.setenv("PLASMA_SOCKET", nodes[0].socket)
    return nodes[0]


@pytest.fixture
def there(nodes: tuple[Node, Node]) -> Node:
    """The second one."""
    return nodes[1]
