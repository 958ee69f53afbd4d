"""Clients that work until they are killed, forked one after the other from a process that has everything loaded.

`Victims` runs this file as a script, with a Python that has this project (`OURS`), or one that has only pyarrow and
numpy (`APACHES`). A line of standard input asks for a client, "ROLE SEED"; the answer is its process id, once it
has done its first piece of work where the seed is even, and at once where it is odd. "kill PID" kills it.

What is written can be verified by anybody: an object's bytes follow from its id.
"""

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OURS = ("writer", "batches", "reader", "waiter")
APACHES = ("apache_writer", "apache_reader", "apache_waiter", "apache_subscriber", "apache_quota")

_LARGEST = 200_000
_HELD_AT_MOST = 5


def content(object_id: bytes, size: int) -> bytes:
    """The data that an object of this id has."""
    return (bytes(object_id) * (size // len(object_id) + 1))[:size]


class Victims:
    """The process that forks them; whoever is alive at the end is killed.

    Raises:
        AssertionError: one of the clients ended before it was killed.
    """

    def __init__(self, python: str | Path, socket_path: str) -> None:
        self._process = subprocess.Popen(
            [python, __file__, socket_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.alive: list[tuple[int, str]] = []
        """Process ids, and what each is and does."""

    def start(self, role: str, seed: int) -> int:
        """Start a client, and return its process id."""
        pid = int(self._ask(f"{role} {seed}"))
        self.alive.append((pid, f"{role} {seed}"))
        return pid

    def kill(self, pid: int) -> None:
        """Kill a client, and wait until it is gone."""
        (who,) = [what for number, what in self.alive if number == pid]
        self.alive = [(number, what) for number, what in self.alive if number != pid]
        status = int(self._ask(f"kill {pid}"))
        assert status == -signal.SIGKILL, f"the client '{who}' had ended before it was killed: status {status}"

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        return self._process.stdout.readline()

    def __enter__(self) -> "Victims":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


# What they do: each takes its generator and what it calls after its first piece of work, and goes on for ever


def _writer(path: str, rng: random.Random, begun: Callable[[], object]) -> None:
    from plasmastream import ObjectID, StoreFullError, blocking

    with blocking.open_store(path) as store, store.create(ObjectID(rng.randbytes(20)), rng.randrange(_LARGEST)):
        begun()
        while True:
            object_id, size = ObjectID(rng.randbytes(20)), rng.randrange(_LARGEST)
            try:
                with store.create(object_id, size, object_id[: rng.randrange(20)]) as unsealed:
                    unsealed.data[:] = content(object_id, size)
                    if rng.random() < 0.8:
                        unsealed.seal()
            except StoreFullError:
                continue


def _batches(path: str, rng: random.Random, begun: Callable[[], object]) -> None:
    from plasmastream import ObjectID, StoreFullError, blocking

    with blocking.open_store(path) as store:
        while True:
            ids = [ObjectID(rng.randbytes(20)) for _ in range(rng.randrange(1, 20))]
            new = [blocking.NewObject(id_, content(id_, rng.randrange(3000))) for id_ in ids]
            try:
                leases = store.put_many(new)
                begun()
                for lease in leases:
                    lease.release()
                store.delete(rng.sample(ids, len(ids) // 2))
            except StoreFullError:
                continue


def _reader(path: str, rng: random.Random, begun: Callable[[], object]) -> None:
    from plasmastream import blocking

    with blocking.open_store(path) as store:
        held: list[blocking.Lease] = []
        while True:
            known = [info.object_id for info in store.list_objects() if info.digest]
            for lease in store.get(rng.choices(known, k=3)) if known else ():
                if lease is not None:
                    assert lease.data == content(lease.object_id, len(lease.data))
                    held.append(lease)
            if held:
                begun()
            while len(held) > _HELD_AT_MOST:
                held.pop(rng.randrange(len(held))).release()
            if known and rng.random() < 0.2:
                store.delete([rng.choice(known)])


def _waiter(path: str, rng: random.Random, begun: Callable[[], object]) -> None:
    """Holds what is there, by the get that waits for what never comes."""
    from plasmastream import ObjectID, blocking

    with blocking.open_store(path) as store:
        known = [info.object_id for info in store.list_objects() if info.digest]
        begun()
        while True:
            wanted = [*rng.sample(known, min(3, len(known))), ObjectID(rng.randbytes(20))]
            store.get(wanted, timeout=rng.random() * 0.02)
            if rng.random() < 0.2:
                store.get([ObjectID(rng.randbytes(20))], timeout=None)


def _connect(path: str) -> Any:
    from pyarrow import plasma

    return plasma, plasma.connect(path, 50)


def _known(client: Any) -> list[Any]:
    return [object_id for object_id, entry in client.list().items() if entry["state"] == "sealed"]


def _write_for_ever(plasma: Any, client: Any, rng: random.Random) -> None:
    while True:
        name, size = rng.randbytes(20), rng.randrange(_LARGEST)
        object_id = plasma.ObjectID(name)
        try:
            buffer = client.create(object_id, size, name[: rng.randrange(20)])
        except plasma.PlasmaStoreFull:
            continue
        memoryview(buffer).cast("B")[:] = content(name, size)
        client.seal(object_id)
        del buffer


def _apache_writer(path: str, rng: random.Random, begun: Callable[[], object]) -> None:
    plasma, client = _connect(path)
    kept = client.create(plasma.ObjectID(rng.randbytes(20)), rng.randrange(_LARGEST))
    begun()
    _write_for_ever(plasma, client, rng)
    del kept


def _apache_reader(path: str, rng: random.Random, begun: Callable[[], object]) -> None:
    _, client = _connect(path)
    held: list[Any] = []
    while True:
        known = _known(client)
        found = client.get_buffers(rng.choices(known, k=3), timeout_ms=0) if known else []
        held += [buffer for buffer in found if buffer is not None]
        if held:
            begun()
        while len(held) > _HELD_AT_MOST:
            held.pop(rng.randrange(len(held)))
        if known and rng.random() < 0.2:
            client.delete([rng.choice(known)])


def _apache_waiter(path: str, rng: random.Random, begun: Callable[[], object]) -> None:
    plasma, client = _connect(path)
    known = _known(client)
    begun()
    while True:
        wanted = [*rng.sample(known, min(3, len(known))), plasma.ObjectID(rng.randbytes(20))]
        client.get_buffers(wanted, timeout_ms=rng.choice([1, 5, 20, -1]))


def _apache_subscriber(path: str, rng: random.Random, begun: Callable[[], object]) -> None:
    """Reads at first, and then no more."""
    plasma, client = _connect(path)
    client.subscribe()
    begun()
    for _ in range(rng.randrange(5)):
        client.get_next_notification()
    _write_for_ever(plasma, client, rng)


def _apache_quota(path: str, rng: random.Random, begun: Callable[[], object]) -> None:
    plasma, client = _connect(path)
    client.set_client_options(f"owner {rng.random()}", rng.randrange(1, 500_000))
    begun()
    _write_for_ever(plasma, client, rng)


# The process that forks them


def _fork(path: str, role: str, seed: int) -> int:
    ready, begun = socket.socketpair()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            ready.close()
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            globals()[f"_{role}"](path, random.Random(seed), begun.close)
        except BaseException as error:
            print(f"the client '{role} {seed}': {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    begun.close()
    if seed % 2 == 0:
        ready.settimeout(20)
        ready.recv(1)  # the end, when it has begun or died
    ready.close()
    return pid


def main() -> None:
    """Do what standard input says; at its end, kill who is alive."""
    (path,) = sys.argv[1:]
    if sys.flags.isolated == 0:
        sys.path.insert(0, str(Path(__file__).parents[2]))
    try:
        import pyarrow.plasma  # noqa: F401
    except ImportError:
        import plasmastream.blocking  # noqa: F401
    alive: list[int] = []
    for line in sys.stdin:
        what, number = line.split()
        if what == "kill":
            pid = int(number)
            os.kill(pid, signal.SIGKILL)
            alive.remove(pid)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        else:
            alive.append(_fork(path, what, int(number)))
            print(alive[-1], flush=True)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
