"""How long small objects take while a large one is under way: 64 clients of one node, from which another fetches 4 GiB.

Each client asks for one object of 1 KiB after the other. Rounds alternate: with nothing else under way, and with the
large transfer. The figure is the ratio of the median delays.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import cyclopts
import trio

from plasmastream import ObjectID
from plasmastream.peer import PeerClient, PeerRequest, TransferKind, parse_address
from plasmastream.store import EmbeddedStore, NewObject, open_store

_SMALL = 1024
_OBJECTS = 256
_IDLE_SECONDS = 3.0
_READY = b"peer server ready at "


@asynccontextmanager
async def _node(directory: Path, name: str, memory: int) -> AsyncIterator[tuple[str, str, int]]:
    """A node in a process of its own: its store's socket, its host and port."""
    socket = str(directory / name)
    command = [sys.executable, "-m", "plasmastream", "serve", "--port", "0", "--grace", "0"]
    command += ["--plasma-socket", socket, "--memory", str(memory)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        said = b""
        async for more in process.stdout:
            said += more
            if _READY in said and said.partition(_READY)[2].count(b"\n"):
                break
        host, port = parse_address(said.partition(_READY)[2].split()[0].decode())
        yield socket, host, port
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _ask(client: PeerClient, ids: Sequence[ObjectID], until: trio.Event, delays: list[float]) -> None:
    """Fetch one object after the other, and note how long each took, in seconds."""
    with EmbeddedStore(1 << 20) as store:
        number = 0
        while not until.is_set():
            object_id = ids[number % len(ids)]
            began = trio.current_time()
            await client.copy([object_id], store)
            delays.append(trio.current_time() - began)
            await store.delete([object_id])
            number += 1


async def _measure(clients: Sequence[PeerClient], ids: Sequence[ObjectID], until: trio.Event) -> list[float]:
    delays: list[float] = []
    async with trio.open_nursery() as nursery:
        for index, client in enumerate(clients):
            nursery.start_soon(_ask, client, [*ids[index:], *ids[:index]], until, delays)
    return delays


async def _set_after(seconds: float, event: trio.Event) -> None:
    await trio.sleep(seconds)
    event.set()


async def _compare(clients: int, size: int, rounds: int) -> None:
    small = [ObjectID.from_name(f"small {index}") for index in range(_OBJECTS)]
    large = ObjectID.from_name("large")
    memory = size + (64 << 20)
    with tempfile.TemporaryDirectory() as directory:
        async with (
            _node(Path(directory), "a", memory) as (source, host, port),
            _node(Path(directory), "b", memory) as (destination, host_b, port_b),
            open_store(source) as store,
            open_store(destination) as store_b,
        ):
            await store.put_many([NewObject(object_id, bytes(_SMALL)) for object_id in small])
            async with store.create(large, size) as unsealed:
                await unsealed.seal(bytes(8))
            asking = [PeerClient(host, port) for _ in range(clients)]
            fetcher = PeerClient(host_b, port_b)
            request = PeerRequest(TransferKind.COPY, host, port, (large,))
            ratios = []
            for _ in range(rounds):
                over = trio.Event()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_set_after, _IDLE_SECONDS, over)
                    idle = await _measure(asking, small, over)
                over = trio.Event()

                async def transfer(over: trio.Event = over) -> None:
                    began = trio.current_time()
                    ((result,),) = await fetcher.sync_each([request])
                    assert result.is_success, result
                    print(f"{size / (1 << 20) / (trio.current_time() - began):,.0f} MiB/s", end="  ")
                    over.set()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(transfer)
                    busy = await _measure(asking, small, over)
                await store_b.delete([large])
                medians = statistics.median(idle), statistics.median(busy)
                ratios.append(medians[1] / medians[0])
                print(
                    f"idle {medians[0] * 1e3:.2f} ms of {len(idle):,}, busy {medians[1] * 1e3:.2f} ms of {len(busy):,},"
                    f" longest {max(busy) * 1e3:.0f} ms, ratio {ratios[-1]:.2f}"
                )
            print(f"median ratio {statistics.median(ratios):.2f}")
            for client in (*asking, fetcher):
                await client.aclose()


def main(
    clients: Annotated[int, cyclopts.Parameter(help="Clients that ask at once.")] = 64,
    size: Annotated[int, cyclopts.Parameter(help="Bytes of the large object.")] = 4 << 30,
    rounds: int = 3,
) -> None:
    """Compare the delay of small objects with and without a large transfer beside them."""
    trio.run(_compare, clients, size, rounds)


if __name__ == "__main__":
    cyclopts.run(main)
