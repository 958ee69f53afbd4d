"""Nodes: each `plasmastream serve`, told by SYNC to fetch from another, so that the work is done where users have it.

Version 1 or 2 of the protocol is that of the SYNC, and of the fetch that it leads to.
"""

import contextlib
import ipaddress
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import attrs
import trio

from benchmarks.processes import Command, free_port, process, wait_for_port, wait_for_socket
from plasmastream import ObjectID
from plasmastream.blocking import NewObject, StoreClient, open_store
from plasmastream.peer import PeerRequest, Status, TransferKind, open_peer

HOST = ipaddress.ip_address("127.0.0.1")


@attrs.frozen
class Node:
    """A node that runs."""

    port: int
    pid: int
    path: Path
    """Its store's socket."""
    store: StoreClient

    def give(self, count: int, size: int) -> list[ObjectID]:
        """Put so many objects of so many bytes into its store."""
        ids = [ObjectID.random() for _ in range(count)]
        if size < 1 << 20:
            for lease in self.store.put_many([NewObject(object_id, bytes(size)) for object_id in ids]):
                lease.release()
            return ids
        for object_id in ids:
            with self.store.create(object_id, size) as unsealed:
                for at in range(0, size, len(_CONTENT)):  # pages that nobody has written to are all the same one
                    unsealed.data[at : at + len(_CONTENT)] = _CONTENT[: size - at]
                unsealed.seal(digest=bytes(8))
        return ids

    def fetch(
        self, source: "Node", ids: Sequence[ObjectID], version: int, times: int = 1, *, keep: bool = False
    ) -> list[float]:
        """Seconds from each SYNC to its answer; what was fetched is deleted after each, unless it is to `keep` it."""
        return trio.run(partial(self.sync_from, source, ids, version, times, keep=keep))

    async def sync_from(
        self, source: "Node", ids: Sequence[ObjectID], version: int, times: int = 1, *, keep: bool = False
    ) -> list[float]:
        """Do what `fetch` does, on Trio."""
        request = PeerRequest(TransferKind.COPY, HOST, source.port, tuple(ids))
        taken: list[float] = []
        async with open_peer(str(HOST), self.port, version=version) as peer:
            for _ in range(times):
                start = time.perf_counter()
                (status,) = await peer.sync([request])
                taken.append(time.perf_counter() - start)
                assert status == Status.SUCCESS, status
                if not keep:
                    await trio.to_thread.run_sync(self.store.delete, list(ids))
        return taken

    def fetch_one_by_one(self, source: "Node", ids: Sequence[ObjectID], version: int) -> list[float]:
        """Seconds of a SYNC for each object, one right after the other; all are deleted in the end."""
        taken: list[float] = []

        async def fetch() -> None:
            async with open_peer(str(HOST), self.port, version=version) as peer:
                for object_id in ids:
                    request = PeerRequest(TransferKind.COPY, HOST, source.port, (object_id,))
                    start = time.perf_counter()
                    (status,) = await peer.sync([request])
                    taken.append(time.perf_counter() - start)
                    assert status == Status.SUCCESS, status

        trio.run(fetch)
        self.store.delete(ids)
        return taken

    def memory_growth(self, work: Callable[[], object]) -> float:
        """MiB by which its process grows, at most, while something is done; the store's shared memory apart."""
        before = peak = self._private_kib()
        over = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.005):
                peak = max(peak, self._private_kib())

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            work()
        finally:
            over.set()
            watching.join()
        return (peak - before) / 1024

    def _private_kib(self) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


_CONTENT = bytes(1 << 20)


@contextlib.contextmanager
def node(path: Path, memory: int | None) -> Iterator[Node]:
    """A node that runs with a store of so many bytes, or beside one that serves at `path` already."""
    port = free_port()
    command: Command = [sys.executable, "-m", "plasmastream", "serve", "--port", str(port), "-s", path]
    command += ["--external-store"] if memory is None else ["--memory", str(memory)]
    with process([*command, "--grace", "0"]) as started:
        wait_for_socket(path, started)
        wait_for_port(port, started)
        with open_store(path) as store:
            yield Node(port, started.popen.pid, path, store)
