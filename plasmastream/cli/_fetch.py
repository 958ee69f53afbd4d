"""What `copy` and `take` do."""

import sys
import time
from collections.abc import Sequence

from plasmastream._object_id import ObjectID
from plasmastream._progress import in_words, is_shown, show_progress
from plasmastream.cli._here import open_store_here
from plasmastream.cli._peer import check_outcomes, connected_to, what_was_there
from plasmastream.cli._run import complain
from plasmastream.cli._types import Address
from plasmastream.cli._waits import watching
from plasmastream.peer import TransferKind


async def fetch(
    kind: TransferKind,
    source: Address,
    object_ids: Sequence[ObjectID],
    path: str,
    *,
    timeout: float | None,
    compression: str | None,
    version: int | None,
) -> int:
    """Fetch objects from a peer into the store at a socket, and show on a terminal how far it has come.

    Returns:
        The exit status; each object that failed has a line of its own, and those that were there already have one.
    """
    received = 0
    started = time.perf_counter()
    async with open_store_here(path) as store, connected_to(source, version=version) as peer, watching(source) as watch:
        with show_progress(f"{kind.name} from {source.host}", len(object_ids)) as show:

            def report(objects: int, nbytes: int) -> None:
                nonlocal received
                received += nbytes
                watch.moved()
                show(objects, nbytes)

            results = await peer.fetch(
                kind, object_ids, store, timeout=timeout, compression=compression, on_progress=report
            )
    status = check_outcomes(source, results)
    for sentence in what_was_there(kind, results):
        complain("plasmastream", sentence)
    if is_shown():
        seconds = time.perf_counter() - started
        count = sum(result.is_success for result in results)
        noun = "object" if count == 1 else "objects"
        print(f"{count:,} {noun}, {in_words(received)}, {seconds:.3f} s", file=sys.stderr)
    return status
