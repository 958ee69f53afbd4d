"""What `copy` and `take` do."""

import sys
import time
from collections.abc import Sequence

from plasmastream._object_id import ObjectID
from plasmastream._progress import in_words, is_shown, show_progress
from plasmastream.cli._types import Address
from plasmastream.peer import TransferKind, open_peer
from plasmastream.store import open_store


async def fetch(kind: TransferKind, source: Address, object_ids: Sequence[ObjectID], path: str) -> None:
    """Fetch objects from a peer into the store at a socket, and show on a terminal how far it has come."""
    received = 0
    started = time.perf_counter()
    async with open_store(path) as store, open_peer(source.host, source.port) as peer:
        with show_progress(f"{kind.name} from {source.host}", len(object_ids)) as show:

            def report(objects: int, nbytes: int) -> None:
                nonlocal received
                received += nbytes
                show(objects, nbytes)

            transfer = peer.take if kind is TransferKind.TAKE else peer.copy
            await transfer(object_ids, store, on_progress=report)
    if is_shown():
        seconds = time.perf_counter() - started
        noun = "object" if len(object_ids) == 1 else "objects"
        print(f"{len(object_ids):,} {noun}, {in_words(received)}, {seconds:.3f} s", file=sys.stderr)
