"""The rules of the house, as tests: who may import whom, and what a package shows.

Imports point one way: cli -> peer -> store -> wire. `wire` does no I/O and knows no event loop.
"""

import ast
import functools
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import plasmastream

PACKAGE = Path(plasmastream.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)

FOUNDATION = {"plasmastream._errors", "plasmastream._object_id"}
IO_LIBRARY = {
    "_socket", "asyncio", "concurrent", "ctypes", "fcntl", "http", "io", "mmap", "multiprocessing", "os",
    "pathlib", "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl", "subprocess",
    "tempfile", "threading", "time", "urllib",
}  # fmt: skip
_PURE = ("_allocator", "_eviction", "_quota", "_record", "_table")
PURE_STORE_MODULES = {f"plasmastream.store.{name}" for name in _PURE}
OBJECT_STORE = "plasmastream.store._object_store"


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def modules_in(package: str) -> list[str]:
    return [module for module in MODULES if within(module, package)]


@functools.cache
def imports(module: str) -> frozenset[str]:
    """All that a module imports, wherever in it: module names, and those of modules imported by `from`."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                found.update(alias.name for alias in node.names)
            case ast.ImportFrom(level=0, module=str(source)):
                names = {f"{source}.{alias.name}" for alias in node.names} & set(MODULES)
                found.update(names or {source})
            case ast.ImportFrom():
                pytest.fail(f"{module} has a relative import")
    return frozenset(found)


def offences(module: str, allowed: set[str], forbidden: set[str] = IO_LIBRARY) -> Iterator[str]:
    """Imports of a module that are neither in the allowed packages nor in the harmless standard library."""
    for name in imports(module):
        top = name.partition(".")[0]
        if any(within(name, package) for package in allowed):
            continue
        if top in sys.stdlib_module_names and top not in forbidden:
            continue
        yield f"{module} imports {name}"


def test_the_foundation_stands_on_nothing() -> None:
    modules = [module for module in MODULES if module in FOUNDATION]
    assert modules
    # `os` is for the randomness of new ids.
    assert not [o for module in modules for o in offences(module, {"attrs", "os"} | FOUNDATION)]


def test_wire_does_no_io() -> None:
    allowed = {"attrs", "xxhash", "zstandard", "lz4", "plasmastream.wire"} | FOUNDATION
    assert not [o for module in modules_in("plasmastream.wire") for o in offences(module, allowed)]


@pytest.mark.parametrize("module", sorted(PURE_STORE_MODULES & set(MODULES)))
def test_the_pure_parts_of_the_store_do_no_io(module: str) -> None:
    # Pure parts may use each other, and modules that are as pure themselves.
    todo, seen = [module], set[str]()
    found: list[str] = []
    allowed = {"attrs", "plasmastream.wire", "plasmastream.store"} | FOUNDATION
    while todo:
        current = todo.pop()
        seen.add(current)
        found += offences(current, allowed)
        todo += [name for name in imports(current) if within(name, "plasmastream.store") and name not in seen]
    assert not found


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("plasmastream.wire", ["_client", "store", "blocking", "peer", "formats", "cli"]),
        ("plasmastream.testing", ["_client", "store", "blocking", "formats", "cli"]),
        ("plasmastream._client", ["store", "blocking", "peer", "cli"]),
        ("plasmastream.blocking", ["store", "peer", "formats", "cli"]),
        ("plasmastream.store", ["peer", "cli"]),
        ("plasmastream.peer", ["formats", "cli"]),
        ("plasmastream.formats", ["peer", "cli"]),
    ],
)
def test_imports_point_one_way(package: str, forbidden: list[str]) -> None:
    assert not [
        f"{module} imports {name}"
        for module in modules_in(package)
        for name in imports(module)
        if any(within(name, f"plasmastream.{other}") for other in forbidden)
    ]


def test_nobody_imports_the_command_line() -> None:
    assert not [
        module
        for module in set(MODULES) - set(modules_in("plasmastream.cli")) - {"plasmastream.__main__"}
        if any(within(name, "plasmastream.cli") for name in imports(module))
    ]


def test_nobody_imports_what_is_for_tests() -> None:
    assert not [
        module
        for module in set(MODULES) - set(modules_in("plasmastream.testing"))
        if any(within(name, "plasmastream.testing") for name in imports(module))
    ]


def test_the_peer_knows_the_store_by_one_protocol() -> None:
    assert not [
        f"{module} imports {name}"
        for module in modules_in("plasmastream.peer")
        for name in imports(module)
        if within(name, "plasmastream.store") and name != OBJECT_STORE
    ]


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("plasmastream.wire, plasmastream.wire.plasma, plasmastream.wire.stream", {"socket"}),
        ("plasmastream.blocking", {"plasmastream.store"}),
    ],
)
def test_what_needs_no_event_loop_loads_none(modules: str, unwanted: set[str]) -> None:
    unwanted = {"anyio", "asyncio", "trio"} | unwanted
    command = [sys.executable, "-c", f"import sys, {modules}; print(*({unwanted} & set(sys.modules)))"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("plasmastream.cli")])
def test_what_a_module_exports_is_there(module: str) -> None:
    loaded = importlib.import_module(module)
    exported = getattr(loaded, "__all__", None)
    if exported is None:
        return
    assert len(exported) == len(set(exported))  # their order is ruff's business (RUF022)
    assert not [name for name in exported if not hasattr(loaded, name)]
    if module.rpartition(".")[2].startswith("_") and not hasattr(loaded, "__path__"):
        foreign = [
            name for name in exported if getattr(getattr(loaded, name), "__module__", module) != module
        ]
        assert not foreign, "a private module exports only what it defines"
