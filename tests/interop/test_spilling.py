"""Stores that spill, in processes of their own: under Apache's client, across restarts and kills, on full disks."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from plasmastream import ObjectID, StoreFullError
from plasmastream.blocking import StoreClient, open_store
from plasmastream.wire.plasma import ErrorCode
from tests.apache import ClientFactory, _Process
from tests.interop.nodes import MIB, Node, StoreProcess, answers, wait_until

CAPACITY = 4 * MIB
SIZE = CAPACITY // 10


def name(text: object) -> ObjectID:
    return ObjectID.from_name(str(text))


def content(object_id: ObjectID, size: int = SIZE) -> bytes:
    return (object_id * (size // len(object_id) + 1))[:size]


def put(client: StoreClient, object_id: ObjectID, size: int = SIZE, timeout: float = 0.0) -> None:
    with client.create(object_id, size, b"of " + object_id, timeout=timeout) as unsealed:
        unsealed.data[:] = content(object_id, size)
        unsealed.seal()


def is_whole(client: StoreClient, object_id: ObjectID) -> bool:
    """Whether an object is there; it is never there otherwise than whole."""
    (lease,) = client.get([object_id])
    if lease is None:
        return False
    with lease:
        assert bytes(lease.data) == content(object_id, len(lease.data))
        assert bytes(lease.metadata) == b"of " + object_id
    return True


def store_at(path: Path, directory: Path, *arguments: str) -> StoreProcess:
    return StoreProcess(path, CAPACITY, ["--spill", str(directory), *arguments])


def test_the_external_store_of_the_plasma_command(socket_directory: Path, apache_client: ClientFactory) -> None:
    """`-e hashtable://test` under Apache's own client, and with what aborts Apache's store: metadata."""
    path = socket_directory / "plasma"
    program = Path(sys.executable).with_name("plasma-store-server")
    command = [str(program), "-s", str(path), "-m", "1024000", "-e", "hashtable://test"]
    with _Process("plasma-store-server", [sys.executable, *command]) as store:
        wait_until(lambda: answers(socket.AF_UNIX, str(path)), 10, "the store answers")
        client = apache_client(path)
        ids = [name(number) for number in range(20)]
        for object_id in ids:
            client.create(object_id, 102400 - 20, b"of " + object_id[:17])
            client.write(object_id, content(object_id, 102400 - 20))
            client.seal(object_id)
        assert all(client.contains(object_id) for object_id in ids)
        for object_id in (*ids, *reversed(ids)):
            assert client.get([object_id], -1) == [(content(object_id, 102400 - 20), b"of " + object_id[:17])]
        assert client.get([name("unknown")], 100) == [None]
        client.delete(ids[:10])
        assert [client.contains(object_id) for object_id in ids] == [False] * 10 + [True] * 10
        store.signal(signal.SIGTERM)
        assert store.wait() == 0


def test_an_object_without_room_to_come_back(
    socket_directory: Path, tmp_path: Path, apache_client: ClientFactory
) -> None:
    """It counts as missing for as long as others have all memory in use; who waits gets it when there is room."""
    path = socket_directory / "plasma"
    with store_at(path, tmp_path):
        holder, reader = apache_client(path), apache_client(path)
        holder.create_and_seal(name("spilled"), content(name("spilled")), b"metadata")
        assert holder.evict(CAPACITY) == SIZE + 8
        holder.create(name("in use"), CAPACITY)
        assert reader.get([name("spilled")], 0) == [None]
        assert reader.get([name("spilled")], 50) == [None]
        waiting = reader.start("get", [name("spilled")], -1)
        holder.abort(name("in use"))
        assert waiting.result(20) == [(content(name("spilled")), b"metadata")]


def test_a_later_store_has_what_an_earlier_one_kept(socket_directory: Path, tmp_path: Path) -> None:
    path = socket_directory / "plasma"
    ids = [name(number) for number in range(25)]
    with store_at(path, tmp_path, "--persist") as store, open_store(path) as client:
        for object_id in ids:
            put(client, object_id, timeout=10)
        client.delete(ids[:5])
        with client.create(name("unsealed"), 10):
            store.signal(signal.SIGTERM)
            assert store.wait() == 0
    with store_at(path, tmp_path) as store, open_store(path) as client:
        assert [is_whole(client, object_id) for object_id in ids] == [False] * 5 + [True] * 20
        assert {info.object_id for info in client.list_objects()} == set(ids[5:])
        assert {info.ref_count for info in client.list_objects()} == {0}


def test_a_directory_has_one_store(socket_directory: Path, tmp_path: Path) -> None:
    with store_at(socket_directory / "a", tmp_path):
        command = [sys.executable, "-m", "plasmastream", "store", "-s", str(socket_directory / "b")]
        other = subprocess.run(
            [*command, "--spill", str(tmp_path)], check=False, capture_output=True, text=True, timeout=30
        )
    assert other.returncode == 1
    assert other.stderr == f"plasmastream: another store spills into {tmp_path}\n"


def test_kills_of_a_store_that_spills(socket_directory: Path, tmp_path: Path) -> None:
    """What comes back after a kill is whole, and all that had been evicted does; what was deleted long ago does not."""
    path = socket_directory / "plasma"
    generator = random.Random(11)
    present: set[ObjectID] = set()
    deleted: set[ObjectID] = set()
    for turn in range(6):
        store = store_at(path, tmp_path)
        with store, open_store(path) as client:
            for object_id in list(present):
                if not is_whole(client, object_id):
                    present.discard(object_id)
            assert not [object_id for object_id in deleted if is_whole(client, object_id)]
            victims = generator.sample(sorted(present), len(present) // 2)
            client.delete(victims)
            present.difference_update(victims)
            for number in range(generator.randrange(10, 40)):
                object_id = name(f"{turn} {number}")
                put(client, object_id, generator.randrange(SIZE), timeout=10)
                present.add(object_id)
            client.evict(CAPACITY)  # returns when all of it is on disk
            deleted.update(victims)
            kept = set(present)
            for number in range(generator.randrange(10)):  # of these, nobody knows
                object_id = name(f"{turn} late {number}")
                put(client, object_id, generator.randrange(SIZE), timeout=10)
                present.add(object_id)
            store.kill()
        with store_at(path, tmp_path) as later, open_store(path) as client:
            assert [object_id for object_id in kept if not is_whole(client, object_id)] == []
            later.signal(signal.SIGTERM)
            assert later.wait() == 0


def test_spilled_objects_go_to_other_machines(socket_directory: Path, tmp_path: Path) -> None:
    first, second = socket_directory / "a", socket_directory / "b"
    ids = [name(number) for number in range(20)]
    with (
        Node(first, CAPACITY, arguments=["--spill", str(tmp_path / "a")]) as source,
        Node(second, CAPACITY, arguments=["--spill", str(tmp_path / "b")]) as destination,
    ):
        with open_store(first) as client:
            for object_id in ids:
                put(client, object_id, timeout=10)
        for some in (ids[:8], ids[8:16], ids[16:]):
            command = [sys.executable, "-m", "plasmastream", "sync", "--server", f"127.0.0.1:{destination.port}"]
            command += ["TAKE", f"127.0.0.1:{source.port}", *(object_id.hex() for object_id in some)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        with open_store(first) as at_first, open_store(second) as at_second:
            assert at_first.contains(ids) == [False] * 20
            assert [is_whole(at_second, object_id) for object_id in ids] == [True] * 20


@contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Path]:
    """A file system of its own, of so many bytes."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", directory], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_full_disk_loses_nothing_and_is_got_over(socket_directory: Path, tmp_path: Path) -> None:
    path = socket_directory / "plasma"
    with small_disk(tmp_path / "disk", 3 * MIB) as disk:
        (disk / "ballast").write_bytes(bytes(MIB))
        with store_at(path, disk / "spill") as store, open_store(path) as client:
            made: list[ObjectID] = []

            def put_until_it_is_full() -> None:
                for number in range(100):
                    put(client, name(number))
                    made.append(name(number))

            with pytest.raises(StoreFullError):
                put_until_it_is_full()
            assert CAPACITY // SIZE <= len(made) < 20
            # What is on disk alone has no way back as long as memory is full of what has no way out.
            assert client.contains(made) == [True] * len(made)
            assert [is_whole(client, object_id) for object_id in made].count(True) >= CAPACITY // SIZE - 1
            (disk / "ballast").unlink()
            put(client, name("after"), timeout=30)
            made.append(name("after"))
            assert client.delete(made[:5]) == [ErrorCode.OK] * 5
            for number in range(3):
                put(client, name(f"more {number}"), timeout=30)
            assert [is_whole(client, object_id) for object_id in made[5:]] == [True] * len(made[5:])
        said = store.stderr()
        assert "No space left on device" in said
        assert "can be spilled into" in said
        assert said.count("nothing can be spilled") < 20


def test_a_directory_that_cannot_be_written(socket_directory: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "plasmastream", "store", "-s", str(socket_directory / "a"), "--spill"]
    for bad in ("/proc/spill", str(tmp_path / "file")):
        (tmp_path / "file").touch()
        result = subprocess.run([*command, bad], capture_output=True, text=True, timeout=30)
        assert result.returncode == 1
        assert result.stderr.startswith(f"plasmastream: the store cannot spill into {bad}: ")


def test_the_first_signals_do_not_keep_a_store_from_keeping_objects(socket_directory: Path, tmp_path: Path) -> None:
    """The one that ends it, and one more; a third gives up, and says what is lost."""
    path = socket_directory / "plasma"
    slowly = (
        "import threading\n"
        "from plasmastream.store._spill import SpillDirectory as S\n"
        "write = S.write\n"
        "S.write = lambda self, jobs: (threading.Event().wait(1), write(self, jobs))[1]\n"
        "from plasmastream.cli import main; main()"
    )
    options = ["store", "-s", str(path), "--memory", str(100 * MIB), "--spill", str(tmp_path), "--persist"]
    for status in (0, 1):
        with _Process("a slow store", [sys.executable, "-c", slowly, *options]) as store:
            wait_until(lambda: answers(socket.AF_UNIX, str(path)), 20, "the store answers")
            with open_store(path) as client:
                for number in range(3):
                    put(client, name(f"{status} {number}"), 20 * MIB)
            store.signal(signal.SIGTERM)
            wait_until(lambda: not path.exists(), 10, "the store has ended")
            while "another signal gives up the rest" not in store.stderr():
                store.signal(signal.SIGTERM)  # one that comes before it begins to keep objects changes nothing
                time.sleep(0.05)
            if status:
                store.signal(signal.SIGTERM)
            assert store.wait() == status
        assert ("objects were not kept: a signal came first" in store.stderr()) == (status == 1)
    with StoreProcess(path, 100 * MIB, ["--spill", str(tmp_path)]) as store, open_store(path) as client:
        assert [is_whole(client, name(f"0 {number}")) for number in range(3)] == [True] * 3
        assert client.contains([name(f"1 {number}") for number in range(3)]).count(True) < 3
        assert f"objects found in {tmp_path}" in store.stderr()
