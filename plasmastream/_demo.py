"""The demonstration: two nodes, objects moved from one to the other, every byte verified, nothing left behind."""

import ipaddress
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from plasmastream._errors import PlasmastreamError
from plasmastream._interruption import interruptible
from plasmastream._object_id import ObjectID
from plasmastream._progress import in_words, show_bars
from plasmastream.peer import PeerRequest, TransferKind, open_peer, parse_address
from plasmastream.store import NewObject, StoreClient, open_store

DEFAULT_SIZE = 256 << 20
DEFAULT_COUNT = 1000

_SMALL_SIZE = 1 << 10
_LARGE_METADATA = b"one large object"
_PIECE = 1 << 20
_ROOM = 64 << 20
_AT_ONCE = 65_536
_READY = re.compile(rb"^peer server ready at (\S+)$", re.MULTILINE)

_READY_WITHIN = 30.0
_DONE_WITHIN = 100.0  # with its set-up, `make demo` is promised to end within two minutes
_END_WITHIN = 5.0


@attrs.frozen
class _Node:
    """A node in a process of its own."""

    socket: str
    host: str
    port: int


@attrs.frozen
class _Row:
    """One line of the table."""

    name: str
    objects: int
    nbytes: int
    seconds: float


async def run_demo(size: int, count: int) -> None:
    """Put one object of `size` bytes and `count` small ones on a node, sync them to another, verify, print a table.

    Raises:
        PlasmastreamError: a node did not start, an object did not arrive, or it took too long.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP came; nothing is left behind then, either.
    """
    async with interruptible():
        with tempfile.TemporaryDirectory(prefix="plasmastream-") as directory:
            with trio.move_on_after(_DONE_WITHIN) as limit:
                await _show(Path(directory), size, count)
            if limit.cancelled_caught:
                raise PlasmastreamError(f"the demo is not done after {_DONE_WITHIN:g} s, and was ended")


async def _show(directory: Path, size: int, count: int) -> None:
    large = [ObjectID.from_name("the large one")]
    small = [ObjectID.from_name(f"small one {index}") for index in range(count)]
    memory = size + count * 2 * _SMALL_SIZE + _ROOM
    async with (
        _node("source", directory, memory) as source,
        _node("destination", directory, memory) as destination,
        open_store(source.socket) as source_store,
        open_store(destination.socket) as destination_store,
    ):
        _say(f"Two nodes, at {source.host}:{source.port} and {destination.host}:{destination.port}")
        await _put(source_store, large, small, size)
        _say(f"Put 1 object of {size:,} bytes and {count:,} of {_SMALL_SIZE:,} bytes on the first")
        seconds_large = await _sync(large, source, destination)
        seconds_small = await _sync(small, source, destination)
        _say("Synced all of them to the second, which verified each on its way")
        bytes_large = await _verify_large(destination_store, large, size)
        bytes_small = await _verify_small(destination_store, small)
        _say("Verified every byte of data and metadata there")
    _print_table(
        [
            _Row("large", 1, bytes_large, seconds_large),
            _Row("small", count, bytes_small, seconds_small),
            _Row("total", count + 1, bytes_large + bytes_small, seconds_large + seconds_small),
        ]
    )


@asynccontextmanager
async def _node(name: str, directory: Path, memory: int) -> AsyncIterator[_Node]:
    """A node that runs for the length of the block, and is gone afterwards."""
    path = directory / name
    log = directory / f"{name}.log"
    command = [sys.executable, "-m", "plasmastream", "serve", "--port", "0", "--grace", "0"]
    command += ["--plasma-socket", str(path), "--memory", str(memory)]
    process = await _start(command, log)
    try:
        host, port = await _ready_address(process, name, log)
        yield _Node(str(path), host, port)
    finally:
        with trio.CancelScope(shield=True):
            await _end(process)


async def _start(command: Sequence[str], log: Path) -> trio.Process:
    with log.open("wb") as stderr:
        return await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr
        )


async def _ready_address(process: trio.Process, name: str, log: Path) -> tuple[str, int]:
    assert process.stdout is not None
    said = b""
    with trio.move_on_after(_READY_WITHIN):
        async for chunk in process.stdout:
            said += chunk
            found = _READY.search(said)
            if found:
                return parse_address(found[1].decode())
    raise PlasmastreamError(f"the {name} node did not start: {_last_line(log)}")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() or ["it does not say why"]
    return lines[-1]


async def _end(process: trio.Process) -> None:
    process.terminate()
    with trio.move_on_after(_END_WITHIN):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
    assert process.stdout is not None
    await process.stdout.aclose()


async def _put(store: StoreClient, large: Sequence[ObjectID], small: Sequence[ObjectID], size: int) -> None:
    async with store.create(large[0], size, _LARGE_METADATA) as unsealed:
        for start, piece in _large_pieces(size):
            unsealed.data[start : start + len(piece)] = piece
            await trio.lowlevel.checkpoint()
        await unsealed.seal()
    for lease in await store.put_many([_small_object(object_id) for object_id in small]):
        lease.release()


async def _sync(object_ids: Sequence[ObjectID], source: _Node, destination: _Node) -> float:
    """Have one node fetch objects from the other; returns how many seconds it took."""
    address = ipaddress.ip_address(source.host)
    requests = [
        PeerRequest(TransferKind.COPY, address, source.port, tuple(object_ids[first : first + _AT_ONCE]))
        for first in range(0, len(object_ids), _AT_ONCE)
    ]
    bars = [("Syncing", len(request.object_ids)) for request in requests]
    async with open_peer(destination.host, destination.port) as peer:
        with show_bars(bars) as show:
            started = time.perf_counter()
            outcomes = await peer.sync_each(requests, on_progress=show)
            seconds = time.perf_counter() - started
    for results in outcomes:
        for result in results:
            if not result.is_success:
                raise PlasmastreamError(f"the destination node answered: {result}")
    return seconds


async def _verify_large(store: StoreClient, object_ids: Sequence[ObjectID], size: int) -> int:
    (lease,) = await store.get(object_ids)
    if lease is None:
        raise PlasmastreamError("the large object did not arrive")
    with lease:
        same = len(lease.data) == size and lease.metadata == _LARGE_METADATA
        for start, piece in _large_pieces(size):
            same = same and bytes(lease.data[start : start + len(piece)]) == piece
            await trio.lowlevel.checkpoint()
        if not same:
            raise PlasmastreamError("the large object did not arrive as it was")
        return lease.size


async def _verify_small(store: StoreClient, object_ids: Sequence[ObjectID]) -> int:
    nbytes = 0
    for object_id, lease in zip(object_ids, await store.get(object_ids), strict=True):
        if lease is None:
            raise PlasmastreamError(f"object {object_id} did not arrive")
        with lease:
            expected = _small_object(object_id)
            if lease.data != expected.data or lease.metadata != expected.metadata:
                raise PlasmastreamError(f"object {object_id} did not arrive as it was")
            nbytes += lease.size
    return nbytes


def _large_pieces(size: int) -> Iterator[tuple[int, bytes]]:
    """The bytes of the large object, always the same ones, as (offset, piece)."""
    generator = random.Random(size)
    for start in range(0, size, _PIECE):
        yield start, generator.randbytes(min(_PIECE, size - start))


def _small_object(object_id: ObjectID) -> NewObject:
    data = random.Random(bytes(object_id)).randbytes(_SMALL_SIZE)
    return NewObject(object_id, data, b"small: " + object_id[:4])


def _print_table(rows: Sequence[_Row]) -> None:
    _say(f"\n{'':8}{'objects':>10}{'bytes':>18}{'seconds':>10}{'rate':>14}")
    for row in rows:
        rate = in_words(row.nbytes / row.seconds)
        _say(f"{row.name:8}{row.objects:>10,}{row.nbytes:>18,}{row.seconds:>10.3f}{rate:>12}/s")


def _say(line: str) -> None:
    print(line, flush=True)
