"""Too few descriptors, too little memory: errors that say so, nothing lost, and no restart needed afterwards."""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from plasmastream import ObjectID, blocking
from tests.apache import ApacheError, ClientFactory, short_directory
from tests.interop.conftest import NodeFactory, OurStoreFactory
from tests.interop.nodes import MIB, InThread, RawPeer, StoreProcess, descriptor_count, put, sync_bytes, wait_until

A = ObjectID.from_name("A")
REMEDY = "(ulimit -n)"
PIECE = MIB // 4
STORE = [sys.executable, "-u", "-m", "plasmastream", "store"]


def limited(descriptors: int) -> list[str]:
    """What runs a command with so many descriptors."""
    return ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh"]


def fragment(client: blocking.StoreClient) -> list[blocking.Lease]:
    """Fill a store of 4 MiB so that half of it is free, and no hole is larger than `PIECE`."""
    ids = [client.put(bytes([number]) * PIECE) for number in range(16)]
    leases = [lease for lease in client.get(ids[::2]) if lease is not None]
    client.delete(ids[1::2])
    return leases


def are_whole(leases: list[blocking.Lease]) -> bool:
    return [bytes(lease.data) for lease in leases] == [bytes([2 * number]) * PIECE for number in range(8)]


@contextlib.contextmanager
def connections(path: str, count: int) -> Iterator[None]:
    """Clients that connect, and say nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(path)
        yield


def test_a_store_without_a_descriptor_left(apache_client: ClientFactory) -> None:
    with short_directory() as place, StoreProcess(place / "plasma", 4 * MIB, within=limited(64)) as store:
        path = store.socket_path
        with blocking.open_store(path) as client:
            leases = fragment(client)
            apache, subscriber = apache_client(path), apache_client(path)
            with connections(path, 100):
                wait_until(lambda: "no connection can be accepted" in store.stderr(), 20, "none is left")
                client.put(b"data", object_id=A)
                assert apache.get([A]) == [(b"data", b"")]
                apache.delete([A])
                client.put(bytes(2 * PIECE))  # there is no hole, but pages move to where it fits
                assert are_whole(leases)
                assert len(client.list_objects()) == 9
                subscriber.subscribe()  # the descriptor that it sends is lost
                with pytest.raises(ApacheError):
                    subscriber.get_next_notification()
                newcomer = InThread(put, path, {A: (b"of a newcomer", b"")})
                limit = f"this process may have 64 of them; close some, or raise the limit {REMEDY}"
                lost = f"a descriptor that arrived was lost: {limit}"
                wait_until(lambda: lost in store.stderr(), 20, "the store has said so")
                text = store.stderr()
                assert f"no connection can be accepted for now: Too many open files: {limit}" in text
                assert text.count("no connection can be accepted") < 5
                assert not newcomer.ended()
            wait_until(newcomer.ended, 20, "the newcomer has been served")
            assert newcomer.outcome is None
            assert apache.get([A]) == [(b"of a newcomer", b"")]
            client.put(bytes(2 * PIECE))
            assert are_whole(leases)
        assert "Traceback" not in store.stderr()
        assert store.terminate() == 0


def test_a_node_without_a_descriptor_left(node: NodeFactory) -> None:
    source, destination = node(10 * MIB), node(10 * MIB)
    put(source.socket_path, {A: (b"data", b"")})
    request = sync_bytes([source.request([A])])
    with RawPeer(destination.port) as client, contextlib.ExitStack() as stack:
        assert client.ask(sync_bytes([source.request([ObjectID.from_name("missing")])])) == b"\x71"
        resource.prlimit(destination.pid, resource.RLIMIT_NOFILE, (64, 64))
        for _ in range(80):
            stack.enter_context(RawPeer(destination.port))
        wait_until(lambda: "no connection can be accepted" in destination.stderr(), 20, "none is left")
        assert client.ask(request) == b"\x90"
        assert REMEDY in destination.stderr()
        stack.close()
        wait_until(lambda: descriptor_count(destination.pid) < 40, 20, "it has noticed that they are gone")
        assert client.ask(request) == b"\x41"


def test_a_start_with_too_few_descriptors() -> None:
    with short_directory() as place:
        command = [*limited(10), *STORE, "--plasma-socket", str(place / "plasma"), "--memory", "1MiB"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    assert f"may have 10 of them; close some, or raise the limit {REMEDY}" in done.stderr


# A client process with room for `more` descriptors does one thing, then has room, and does it again.
STARVED = """
import contextlib, json, os, resource, sys, trio
from plasmastream import ObjectID, PlasmastreamError, blocking
from plasmastream.store import open_store

path, kind, work, more = *sys.argv[1:4], int(sys.argv[4])
shared, new = ObjectID.from_name("A"), ObjectID.from_name("new")
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)


@contextlib.contextmanager
def starved():
    highest = max(map(int, os.listdir("/proc/self/fd")))
    fillers = []
    while (filler := os.dup(0)) < highest:
        fillers.append(filler)
    fillers.append(filler)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(filler, highest) + 1 + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for filler in fillers:
            os.close(filler)


async def on_trio():
    async with open_store(path) as store:
        for limit in (starved, contextlib.nullcontext):
            try:
                with limit():
                    if work == "get":
                        (lease,) = await store.get([shared])
                        with lease:
                            print(json.dumps(bytes(lease.data).decode()))
                    else:
                        print(json.dumps(str(await store.put(b"data", object_id=new))))
            except PlasmastreamError as error:
                print(json.dumps([type(error).__name__, str(error)]))
        print(json.dumps(len(await store.list_objects())))


def blockingly():
    with blocking.open_store(path) as store:
        for limit in (starved, contextlib.nullcontext):
            try:
                with limit():
                    if work == "get":
                        (lease,) = store.get([shared])
                        with lease:
                            print(json.dumps(bytes(lease.data).decode()))
                    else:
                        print(json.dumps(str(store.put(b"data", object_id=new))))
            except PlasmastreamError as error:
                print(json.dumps([type(error).__name__, str(error)]))
        print(json.dumps(len(store.list_objects())))


trio.run(on_trio) if kind == "trio" else blockingly()
"""


@pytest.mark.parametrize("kind", ["trio", "blocking"])
def test_a_client_without_a_descriptor_left(kind: str, our_store: OurStoreFactory) -> None:
    """The first one is for the store's memory, the second for its map; whoever writes maps it once more."""
    store = our_store(1_000_000)
    with blocking.open_store(store.socket_path) as client:
        client.put(b"shared", object_id=A)
        lost, unmapped = "a descriptor that arrived was lost", "memory that cannot be mapped"
        for work, more, words in (
            ("get", 0, lost), ("get", 1, unmapped), ("put", 0, lost), ("put", 1, unmapped), ("put", 2, "for writing")
        ):  # fmt: skip
            command = [sys.executable, "-c", STARVED, store.socket_path, kind, work, str(more)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
            assert (done.returncode, done.stderr) == (0, "")
            (error, message), again, objects = map(json.loads, done.stdout.splitlines())
            assert error in ("StoreError", "StoreConnectionError")
            assert words in message
            assert message.endswith(REMEDY)
            new = ObjectID.from_name("new")
            assert (again, objects) == (("shared", 1) if work == "get" else (str(new), 2))
            wait_until(lambda: not any(info.ref_count for info in client.list_objects()), 10, "nothing is held")
            client.delete([new])


# Memory


def mounted(commands: str) -> list[str]:
    """What runs a command where other file systems are mounted, for it alone; skip where that is not allowed."""
    options = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
    command = ["unshare", *options, "sh", "-c", f'{commands} && exec "$@"', "sh"]
    try:
        done = subprocess.run([*command, "true"], capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("the command unshare is not here")
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    return command


SMALL = "mount -t tmpfs -o size=8m none /dev/shm"


def refused(within: list[str], *options: str) -> str:
    """Have a store refuse to start; return the one line that says why."""
    with short_directory() as place:
        command = [*within, *STORE, "--plasma-socket", str(place / "plasma"), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    return done.stderr


def test_a_small_dev_shm_limits_whom_it_must() -> None:
    within = mounted(SMALL)
    message = refused(within, "--memory", "20MiB", "--directory", "/dev/shm")
    assert f"{20 * MIB:,} bytes" in message
    assert f"the file system of /dev/shm has {8 * MIB:,} left; give the store less memory" in message
    with (
        short_directory() as place,
        StoreProcess(place / "plasma", 20 * MIB, within=within) as store,
        blocking.open_store(store.socket_path) as client,
    ):
        client.put(b"x" * 20 * MIB, object_id=A)
        (lease,) = client.get([A])
        assert lease is not None
        assert lease.data == b"x" * 20 * MIB


def test_a_dev_shm_that_fills_up_beside_the_store(apache_client: ClientFactory) -> None:
    """What was reserved can be written to the last byte, wherever it fits; and it is enough."""
    arguments = ["--directory", "/dev/shm"]
    with short_directory() as place, StoreProcess(place / "plasma", 4 * MIB, arguments, mounted(SMALL)) as store:
        path = store.socket_path
        apache = apache_client(path)
        with (
            blocking.open_store(path) as client,
            open(f"/proc/{store.pid}/root/dev/shm/ballast", "wb", buffering=0) as ballast,
        ):
            with contextlib.suppress(OSError):
                while ballast.write(bytes(1 << 16)):
                    pass
            leases = fragment(client)
            client.put(bytes(2 * PIECE))  # there is no hole, but pages move to where it fits
            apache.create_and_seal(A, b"data")
            assert are_whole(leases)
            ballast.truncate(0)
            client.put(bytes(2 * PIECE))
            assert are_whole(leases)
            assert apache.get([A]) == [(b"data", b"")]
            leases.clear()
            # A release has no reply, so this client's next request may overtake that of the other one.
            wait_until(lambda: not any(info.ref_count for info in client.list_objects()), 10, "nothing is held")
            client.put(b"x" * 4 * MIB)
        assert "Traceback" not in store.stderr()


def test_memory_that_a_container_has_not() -> None:
    limits = "mount -t tmpfs none /sys/fs/cgroup && cd /sys/fs/cgroup && echo 134217728 > memory.max"
    message = refused(mounted(f"{limits} && echo 33554432 > memory.current"), "--memory", "256MiB")
    assert f"{256 * MIB:,} bytes of shared memory were asked for, and this machine has {96 * MIB:,} left" in message
    assert "give the store less memory" in message


def test_more_memory_than_the_machine_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert f"{total:,} bytes of shared memory were asked for" in refused([], "--memory", str(total))
