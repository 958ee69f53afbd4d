"""Both machines are gone for a while: the link between two nodes is taken down in the midst of a transfer, then up.

What must hold in every version of the protocol: when the link is back, the request can be made to succeed, every byte
is right, and a TAKE has had a whole object somewhere all the time.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plasmastream import ObjectID, blocking
from plasmastream.peer import TransferKind
from tests.apache import short_directory
from tests.interop.namespaces import Link, Side, open_link
from tests.interop.nodes import MIB, Node, wait_until

pytestmark = pytest.mark.usefixtures("namespaces")

OBJECT = ObjectID.from_name("large")
SIZE, BEGUN, SLOW = 64 * MIB, MIB, 4 * MIB
SIZE_WHERE_NOTHING_IS_SLOW = 768 * MIB
PATIENCE = 90.0


def pattern(size: int) -> bytes:
    """Bytes that are not the same when parts of them are missing, or stand elsewhere."""
    tile = bytes(range(251)) * 4093  # its length divides no block's
    return (tile * (size // len(tile) + 1))[:size]


@contextlib.contextmanager
def two_nodes(link: Link, memory: int) -> Iterator[tuple[Node, Node]]:
    """A node on each side."""
    with contextlib.ExitStack() as stack:
        source, destination = (
            stack.enter_context(
                Node(
                    stack.enter_context(short_directory()) / "plasma",
                    memory,
                    arguments=["--host", side.address],
                    within=side.within,
                )
            )
            for side in link.sides
        )
        yield source, destination
        for node in (source, destination):
            assert "Traceback" not in node.stderr(), node.stderr()


class Watch:
    """Looks all the time whether an object is sealed in one of two stores: in `source`, or else in `destination`."""

    def __init__(self, source: Node, destination: Node) -> None:
        self.looks = self.nowhere = 0
        self._paths = source.socket_path, destination.socket_path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        # In this order: what was not at the source any more must have been at the destination before.
        with blocking.open_store(self._paths[0]) as source, blocking.open_store(self._paths[1]) as destination:
            while not self._ended.wait(0.002):
                self.looks += 1
                self.nowhere += source.contains([OBJECT]) == destination.contains([OBJECT]) == [False]

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(20)


@pytest.mark.parametrize("kind", list(TransferKind), ids=lambda kind: kind.name)
@pytest.mark.parametrize("downtime", [1.5])
def test_the_link_is_down_for_a_while(kind: TransferKind, downtime: float) -> None:
    with open_link() as link:
        is_slow = link.throttle(SLOW)
        size = SIZE if is_slow else SIZE_WHERE_NOTHING_IS_SLOW
        content = pattern(size)
        with (
            two_nodes(link, size + MIB) as (source, destination),
            blocking.open_store(source.socket_path) as at_source,
            blocking.open_store(destination.socket_path) as at_destination,
        ):
            at_source.put(content, b"about it", object_id=OBJECT)
            here = link.sides[1]
            request = [kind.name, f"{link.sides[0].address}:{source.port}", OBJECT.hex()]
            server = ["--server", f"{here.address}:{destination.port}"]
            command = [*here.within, sys.executable, "-m", "plasmastream", "sync", *server, *request]
            with Watch(source, destination) as watch:
                sync = subprocess.Popen(command)
                try:
                    wait_until(lambda: here.bytes_received > BEGUN, 30, "the transfer has begun")
                    link.take_down()
                    assert at_destination.contains([OBJECT]) == [False] or not is_slow
                    time.sleep(downtime)
                    link.release()
                    link.take_up()
                    status = sync.wait(PATIENCE)
                finally:
                    sync.kill()
                    sync.wait()
                deadline = time.monotonic() + PATIENCE
                while status:
                    assert time.monotonic() < deadline, "the request goes on to fail"
                    done = here.plasmastream("sync", *server, *request)
                    print(done.stdout, done.stderr)
                    status = done.returncode
                (lease,) = at_destination.get([OBJECT])
                assert lease is not None
                with lease:
                    assert bytes(lease.metadata) == b"about it"
                    assert bytes(lease.data) == content
                if kind is TransferKind.TAKE:
                    wait_until(lambda: at_source.contains([OBJECT]) == [False], 30, "the source has deleted its own")
                else:
                    assert at_source.contains([OBJECT]) == [True]
            assert watch.looks
            assert watch.nowhere == 0
            for store in (at_source, at_destination):
                assert all(info.digest for info in store.list_objects()), "something is left unsealed"


# What the tests above stand on


def processes_in(namespaces: set[str]) -> set[str]:
    """Ids of the processes in these network namespaces."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "ns/net") in namespaces:
                found.add(entry.name)
    return found


def namespace_of(side: Side) -> str:
    return side.run("readlink", "/proc/self/ns/net").stdout.strip()


def test_a_link_joins_two_namespaces_and_can_be_taken_down_and_up() -> None:
    def reaches() -> bool:
        script = f"import socket; socket.create_connection(({second.address!r}, 2021), 5)"
        return "ConnectionRefusedError" in first.run(sys.executable, "-c", script).stderr

    with open_link() as link:
        first, second = link.sides
        namespaces = {os.readlink("/proc/self/ns/net"), namespace_of(first), namespace_of(second)}
        assert len(namespaces) == 3
        assert reaches()
        before = second.bytes_received
        link.take_down()
        assert not reaches()
        assert second.bytes_received == before
        link.take_up()
        assert reaches()


@pytest.mark.parametrize("end", ["error", "SIGINT", "SIGKILL"])
def test_nothing_is_left_however_it_ends(end: str) -> None:
    script = (
        "import subprocess, sys, time\n"
        "from tests.interop.namespaces import open_link\n"
        "with open_link() as link:\n"
        "    for side in link.sides:\n"
        "        subprocess.Popen([*side.within, 'sleep', '600'])\n"
        "    for side in link.sides:\n"
        "        print(side.run('readlink', '/proc/self/ns/net').stdout, end='', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    raise OSError\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as user:
        assert user.stdout is not None
        namespaces = {user.stdout.readline().decode().strip() for _ in range(2)}
        assert len(processes_in(namespaces)) >= 4
        if end == "error":
            assert user.stdin is not None
            user.stdin.close()
        else:
            user.send_signal(signal.Signals[end])
        wait_until(lambda: not processes_in(namespaces), 20, "every process in them has ended, and so have they")
        user.wait(20)
