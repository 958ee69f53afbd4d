"""Clients that are killed at random moments, and the store itself: nothing is left behind, nothing is lost."""

import contextlib
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from plasmastream import ObjectID, StoreConnectionError, blocking
from plasmastream.blocking._connection import StoreConnection
from plasmastream.store import open_store
from plasmastream.wire.plasma import GetDebugStringReply, GetDebugStringRequest
from tests.apache import APACHE_PYTHON, ApacheError, ClientFactory, short_directory
from tests.interop.conftest import OurStoreFactory
from tests.interop.nodes import InThread, StoreProcess, descriptor_count, wait_until
from tests.interop.victims import APACHES, OURS, Victims, content

CAPACITY = 4_000_000
KILLS = int(os.environ.get("PLASMASTREAM_KILLS", "40"))
SEED = int(os.environ.get("PLASMASTREAM_KILLS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
AT_ONCE = 4
LONGEST = 0.03


def figures(path: str) -> dict[str, int]:
    """The numbers of the debug string."""
    connection = StoreConnection.open(path, 2, 20)
    try:
        reply, _ = connection.call(GetDebugStringRequest(), GetDebugStringReply)
    finally:
        connection.close()
    pairs = (line.rpartition(": ") for line in reply.debug_string.splitlines())
    return {name: int(value) for name, _, value in pairs if value.isdigit()}


def is_clean(path: str, client: blocking.StoreClient) -> bool:
    """Whether nothing is unsealed, nothing held, no quota given."""
    found = figures(path)
    return (
        all(info.digest and not info.ref_count for info in client.list_objects())
        and not found["pinned bytes"]
        and not found["num clients with quota"]
    )


def check(path: str, client: blocking.StoreClient) -> None:
    """Check the books of a store that nobody uses, and the bytes of every object in it."""
    objects = client.list_objects()
    found = figures(path)
    assert found["allocated bytes"] == sum(info.data_size + info.metadata_size for info in objects)
    assert found["(global lru) num objects"] == len(objects)
    assert found["quota map size"] == found["pinned quota map size"] == 0
    leases = client.get([info.object_id for info in objects])
    for info, lease in zip(objects, leases, strict=True):
        assert lease is not None
        assert lease.data == content(info.object_id, info.data_size)
        assert lease.metadata == content(info.object_id, info.metadata_size)
        lease.release()


@pytest.mark.parametrize("kind", ["ours", "apache"])
def test_clients_are_killed_at_random_moments(
    kind: str, our_store: OurStoreFactory, request: pytest.FixtureRequest
) -> None:
    """`PLASMASTREAM_KILLS` of each kind, `AT_ONCE` clients at once; `PLASMASTREAM_KILLS_SEED` repeats a failed run."""
    print(f"PLASMASTREAM_KILLS_SEED={SEED}")
    roles, python = (OURS, Path(sys.executable)) if kind == "ours" else (APACHES, APACHE_PYTHON)
    if kind == "apache":
        request.getfixturevalue("apache_parts")
    store = our_store(CAPACITY)
    path = store.socket_path
    rng = random.Random(SEED)
    seen = {"unsealed": 0, "held": 0, "quotas": 0}
    with blocking.open_store(path) as client, Victims(python, path) as victims:
        descriptors = descriptor_count(store.pid)
        for number in range(-(-KILLS // AT_ONCE)):
            for _ in range(20):
                object_id = ObjectID(rng.randbytes(20))
                client.put(content(object_id, rng.randrange(1000)), object_id=object_id)
            for place in range(AT_ONCE):
                # One with an even seed has begun: at first all of them, so that each kind is killed at its work.
                seed = 2 * rng.randrange(1 << 31) + (number >= len(roles) and rng.randrange(2))
                victims.start(roles[(number + place) % len(roles)], seed)
            infos, found = client.list_objects(), figures(path)
            seen["unsealed"] += any(not info.digest for info in infos)
            seen["held"] += any(info.digest and info.ref_count for info in infos)
            seen["quotas"] += found["num clients with quota"] > 0
            for pid in rng.sample([pid for pid, _ in victims.alive], AT_ONCE):
                time.sleep(rng.random() * LONGEST)  # the moment
                victims.kill(pid)
            wait_until(lambda: is_clean(path, client), 10, "nothing is left of those who were killed")
            check(path, client)
        print(f"before the kills, of {number + 1} rounds there were: {seen}")
        # Every byte can be had again.
        wait_until(lambda: descriptor_count(store.pid) <= descriptors, 10, "the store has closed its connections")
        with client.create(ObjectID.from_name("all of it"), CAPACITY) as unsealed:
            unsealed.seal(bytes(8))
        assert [info.data_size for info in client.list_objects()] == [CAPACITY]
    assert seen["unsealed"]
    assert seen["held"]
    assert seen["quotas"] or kind == "ours"


# The store is killed


class OnTrio:
    """The async client: holds a lease, waits for one object, and for room for another; then connects anew."""

    def __init__(self, path: str, held: ObjectID) -> None:
        self.errors: list[Exception] = []
        self.holds = threading.Event()
        self.go_on = threading.Event()
        self._path, self._held = path, held
        self.thread = InThread(trio.run, self._main)

    async def _main(self) -> str:
        async with open_store(self._path) as store:
            (lease,) = await store.get([self._held])
            assert lease is not None
            self.holds.set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait, store)
                nursery.start_soon(self._create, store)
            assert await trio.to_thread.run_sync(self.go_on.wait, 60)
            assert lease.data == content(self._held, FULL)
            await store.put(b"async", object_id=ObjectID.from_name("async"))
            assert lease.data == content(self._held, FULL)
            return "connected anew"

    async def _wait(self, store: Any) -> None:
        try:
            await store.get([ObjectID.from_name("missing")], timeout=None)
        except StoreConnectionError as error:
            self.errors.append(error)

    async def _create(self, store: Any) -> None:
        try:
            async with store.create(ObjectID.from_name("no room"), FULL, timeout=60):
                raise AssertionError("there was room")
        except StoreConnectionError as error:
            self.errors.append(error)


FULL = 3_000_000
HELD = ObjectID.from_name("held")


def create(client: blocking.StoreClient, timeout: float) -> None:
    with client.create(ObjectID.random(), FULL, timeout=timeout):
        pass


def segments(pid: int) -> set[tuple[int, int]]:
    """Device and inode of the files in a process that hold the memory of a store."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # some come and go
            state = entry.stat()
            if state.st_size >= CAPACITY:
                found.add((state.st_dev, state.st_ino))
    return found


@pytest.mark.parametrize("where", ["no directory", "/dev/shm", "a directory"])
def test_the_store_is_killed(where: str, apache_client: ClientFactory, tmp_path: Path) -> None:
    directory = {"no directory": None, "/dev/shm": Path(where), "a directory": tmp_path}[where]
    arguments = [] if directory is None else ["--directory", str(directory)]
    with short_directory() as place, contextlib.ExitStack() as stack:
        path = str(place / "plasma")
        with StoreProcess(path, CAPACITY, arguments) as store:
            files = segments(store.pid)
            assert len(files) == 1
            client, creator = (stack.enter_context(blocking.open_store(path)) for _ in range(2))
            client.put(content(HELD, FULL), object_id=HELD)
            (lease,) = client.get([HELD])
            assert lease is not None
            on_trio = OnTrio(path, HELD)
            assert on_trio.holds.wait(20)
            apache, apache_waiter = apache_client(path), apache_client(path)
            assert apache.hold([HELD]) == [True]
            apache_wait = apache_waiter.start("get", [HELD, ObjectID.from_name("missing")], -1)
            wait = InThread(lambda: client.get([ObjectID.from_name("missing")], timeout=None))
            creates = InThread(create, creator, 60)
            assert not apache_wait.done(within=0.2)  # time for all of them to begin to wait
            assert not any((wait.ended(), creates.ended()))
            assert not on_trio.errors
            begin = time.monotonic()
            store.kill()
            wait_until(lambda: len(on_trio.errors) == 2 and wait.ended() and creates.ended(), 5, "all are told")
            assert apache_wait.done(within=5)
            print(f"told after {time.monotonic() - begin:.3f} s")
        for error in (*on_trio.errors, wait.outcome, creates.outcome):
            assert isinstance(error, StoreConnectionError)
            assert path in str(error)
            print(error)
        with pytest.raises(ApacheError) as refused:
            apache_wait.result()
        print(refused.value)
        with pytest.raises(ApacheError):
            apache.contains(ObjectID.from_name("missing"))  # of what it holds, it does not ask
        for folder in {Path("/dev/shm"), directory or tmp_path}:
            assert not files & {(state.st_dev, state.st_ino) for state in map(os.lstat, folder.iterdir())}
        assert list(tmp_path.iterdir()) == []
        begin = time.monotonic()
        with StoreProcess(path, CAPACITY, arguments):
            print(f"a new store answered after {time.monotonic() - begin:.3f} s")
            with blocking.open_store(path) as other:
                other.put(b"\xff" * FULL)
            assert lease.data == content(HELD, FULL)
            assert apache.held(HELD) == content(HELD, FULL)
            with pytest.raises(StoreConnectionError):  # nothing had been asked over this connection since
                client.contains([HELD])
            assert client.get([HELD]) == [None]
            client.put(b"blocking")
            on_trio.go_on.set()
            wait_until(on_trio.thread.ended, 20, "the async client has connected anew")
            assert on_trio.thread.outcome == "connected anew"
            client.close()
            assert lease.data == content(HELD, FULL)
