"""A store that goes while objects are on their way into it ends the fetch, soon, and the peer is not to blame."""

from pathlib import Path

import pytest
import trio

from plasmastream import StoreConnectionError
from plasmastream.peer import Limits2, PeerClient, TransferKind
from plasmastream.store import EmbeddedStore, open_store
from tests.peer.helpers import CAPACITY, Objects, fill, objects_of, serving
from tests.store.helpers import served


@pytest.mark.parametrize(
    "objects",
    [objects_of([(4_000_000, 5)]), objects_of([(200_000, 5)] * 20), objects_of([(100, 0)] * 5000)],
    ids=["one that is large", "several", "small ones"],
)
@pytest.mark.parametrize("version", [1, 2])
async def test_a_store_that_goes_ends_a_fetch(socket_directory: Path, objects: Objects, version: int) -> None:
    path, going, arrived = socket_directory / "store", trio.CancelScope(), 0

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        with going:
            async with served(path, CAPACITY):
                task_status.started()
                await trio.sleep_forever()

    def note(number: int, nbytes: int) -> None:
        nonlocal arrived
        arrived += nbytes
        going.cancel()

    with EmbeddedStore(CAPACITY) as source:
        fill(source, objects)
        async with serving(source, limits2=Limits2(chunk_size=4096)) as server, trio.open_nursery() as nursery:
            await nursery.start(serve)
            async with open_store(path) as store, PeerClient(*server.address, version=version) as client:
                with pytest.raises(StoreConnectionError, match=f"^(no store answers at|the store at) {path}"):
                    await client.fetch(TransferKind.COPY, list(objects), store, on_progress=note)
    assert version == 1 or 0 < arrived < sum(len(data) for data, _ in objects.values()) / 2
