"""A peer's objects, for a machine without a store: what `put --to`, `get --from`, `ls --at`, `stat --at` do."""

import math
import os
import stat
from collections.abc import Sequence
from typing import BinaryIO

import trio

from plasmastream._errors import ObjectNotFoundError, PeerError
from plasmastream._object_id import ObjectID
from plasmastream._progress import show_progress
from plasmastream.cli._listing import print_infos
from plasmastream.cli._objects import STANDARD, check_one_id, naming, open_file, write_output
from plasmastream.cli._peer import asking, check_outcomes
from plasmastream.cli._run import ExitStatus, complain
from plasmastream.cli._status import print_info
from plasmastream.cli._types import Address
from plasmastream.cli._waits import Watch, watching
from plasmastream.peer import NewFile, Outcome, PeerClient, Result, TransferKind
from plasmastream.store import EmbeddedStore, NewObject
from plasmastream.wire.plasma import ObjectInfo


async def put_files_there(
    names: Sequence[str],
    object_id: ObjectID | None,
    metadata: bytes,
    server: Address,
    *,
    timeout: float | None,
    compression: str | None,
) -> int:
    """Put files into the store of a peer and print their ids, within `timeout` seconds; `-` is standard input.

    Returns:
        The exit status; what could not be put has a line of its own.

    Raises:
        UsageError: one id for several files.
        PlasmastreamError: the peer speaks version 1 alone.
    """
    check_one_id(object_id, names)
    worst = int(ExitStatus.DONE)
    deadline = math.inf if timeout is None else trio.current_time() + timeout
    async with asking(server) as peer, watching(server) as watch:
        with show_progress(f"PUT to {server.host}", len(names)) as show:

            def report(_: int, nbytes: int) -> None:
                watch.moved()
                show(0, nbytes)

            for name in names:
                made = object_id or ObjectID.random()
                with open_file(name) as file, naming(name):
                    new = _new_object(made, file, name, metadata)
                    left = None if timeout is None else max(0.0, deadline - trio.current_time())
                    (result,) = await peer.put([new], timeout=left, compression=compression, on_progress=report)
                    was_there = object_id is not None and result.outcome == Outcome.PRESENT
                    if was_there:
                        result = Result(made, Outcome.OUT_OF_TIME, "it was there already, and not compared in time")
                        with trio.move_on_at(deadline):
                            result = await peer.compare(new)
                    status = check_outcomes(f"{server}: {name}", [result])
                worst = max(worst, status)
                if status == ExitStatus.DONE:
                    show(1, 0)
                    print(made, flush=True)
                    if was_there:
                        complain("plasmastream", f"object {made} was there already, the same as {name}")
    return worst


def _new_object(object_id: ObjectID, file: BinaryIO, name: str, metadata: bytes) -> NewObject | NewFile:
    status = os.fstat(file.fileno())
    if name == STANDARD or not stat.S_ISREG(status.st_mode):  # its size shows at its end
        return NewObject(object_id, file.read(), metadata)
    return NewFile(object_id, file.fileno(), status.st_size, metadata)


async def get_object_from(object_id: ObjectID, output: str, timeout: float | None, server: Address) -> int:
    """Write an object of a peer to a file; `-` is standard output.

    It is verified as a whole, in a store of its size that nobody else sees, before any of it is written.

    Returns:
        The exit status.

    Raises:
        ObjectNotFoundError: the peer does not have it.
        PeerError: it did not come in time.
        StoreFullError: this machine has not so much memory.
        PlasmastreamError: the peer speaks version 1 alone.
    """
    with trio.move_on_after(math.inf if timeout is None else timeout):
        async with asking(server) as peer, watching(server) as watch:
            info = await _describe(peer, object_id)
            size = max(1, info.data_size + info.metadata_size)
            # Reserving takes a fifth of a second and more per GiB; a signal need not wait for it.
            with await trio.to_thread.run_sync(EmbeddedStore, size, abandon_on_cancel=True) as store:
                return await _copy_to(output, peer, object_id, store, watch)
    raise PeerError(f"{server} did not send object {object_id} within {timeout:g} s")


async def _copy_to(output: str, peer: PeerClient, object_id: ObjectID, store: EmbeddedStore, watch: Watch) -> int:
    with show_progress(f"COPY from {peer.host}", 1) as show:

        def report(objects: int, nbytes: int) -> None:
            watch.moved()
            show(objects, nbytes)

        status = check_outcomes(peer, await peer.fetch(TransferKind.COPY, [object_id], store, on_progress=report))
    (lease,) = await store.get([object_id])
    if lease is not None:
        with lease:
            write_output(output, lease.data)
    return status


async def print_objects_at(server: Address, *, timeout: float | None, as_json: bool) -> None:
    """List the objects of a peer, oldest first.

    Raises:
        PeerError: it does not answer, or not within `timeout` seconds.
        PlasmastreamError: it speaks version 1 alone.
    """
    async with asking(server, timeout=timeout) as peer, watching(server):
        infos = await peer.list_objects()
    print_infos(infos, as_json=as_json)


async def print_status_at(object_id: ObjectID, server: Address, *, timeout: float | None, as_json: bool) -> None:
    """Show what a peer tells of an object.

    Raises:
        ObjectNotFoundError: it does not have it.
        PeerError: it does not answer, or not within `timeout` seconds.
        PlasmastreamError: it speaks version 1 alone.
    """
    async with asking(server, timeout=timeout) as peer, watching(server):
        info = await _describe(peer, object_id)
    print_info(info, as_json=as_json)


async def _describe(peer: PeerClient, object_id: ObjectID) -> ObjectInfo:
    found = await peer.stat([object_id])
    if not found:
        raise ObjectNotFoundError(f"{peer}: object {object_id} is not in the store there")
    return found[0]
