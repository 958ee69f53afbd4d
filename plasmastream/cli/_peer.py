"""Peers as commands meet them: how patient to be, and what to say of each object that failed."""

import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress

import attrs
import trio

from plasmastream._errors import PeerError, PlasmastreamError
from plasmastream.cli._run import ExitStatus, complain, printable
from plasmastream.cli._types import Address
from plasmastream.peer import (
    IncompleteError,
    OldPeerError,
    Outcome,
    PeerClient,
    PeerTimeouts,
    RefusedError,
    Result,
    TransferKind,
    check_results,
    describe_outcome,
)

NO_ANSWER = {
    Outcome.UNREACHABLE,
    Outcome.BROKEN_OFF,
    Outcome.STALLED,
    Outcome.OUT_OF_TIME,
    Outcome.CANCELLED,
    Outcome.BUSY,
}
"""What says nothing against the request: the same may go well another time."""


@asynccontextmanager
async def connected_to(
    server: Address,
    timeout: float | None = None,
    timeouts: PeerTimeouts | None = None,
    version: int | None = None,
) -> AsyncIterator[PeerClient]:
    """A client of a peer, which connects when it has to, and is not longer at it than `timeout` seconds.

    Raises:
        PlasmastreamError: the peer answers, and refuses a request as a whole.
    """
    timeouts = timeouts or PeerTimeouts()
    if timeout is not None:
        greeting = min(timeouts.greeting, timeout)
        timeouts = attrs.evolve(timeouts, connect=min(timeouts.connect, timeout), greeting=greeting)
    try:
        async with PeerClient(server.host, server.port, timeouts=timeouts, version=version) as client:
            yield client
    except RefusedError as error:
        if error.outcome in NO_ANSWER:
            raise
        raise PlasmastreamError(str(error)) from error


@asynccontextmanager
async def asking(
    server: Address, timeouts: PeerTimeouts | None = None, *, timeout: float | None = None
) -> AsyncIterator[PeerClient]:
    """A client for requests that version 1 of the protocol does not have, and for no more than `timeout` seconds.

    Raises:
        PeerError: the time is over.
        PlasmastreamError: the peer speaks no other.
    """
    try:
        with trio.move_on_after(math.inf if timeout is None else timeout) as scope:
            async with connected_to(server, timeouts=timeouts) as peer:
                yield peer
        if scope.cancelled_caught:
            raise PeerError(f"{server} did not answer within {timeout:g} s")
    except OldPeerError:
        message = f"{server} speaks version 1 of the protocol, which only copies and takes objects from store to store"
        raise PlasmastreamError(message) from None


def exit_status(results: Sequence[Result]) -> ExitStatus:
    """How a command ends: NOBODY_ANSWERS where no more than that was the matter with what failed."""
    outcomes = {result.outcome for result in results if not result.is_success}
    if not outcomes:
        return ExitStatus.DONE
    return ExitStatus.NOBODY_ANSWERS if outcomes <= NO_ANSWER else ExitStatus.FAILED


def check_outcomes(peer: object, results: Sequence[Result]) -> ExitStatus:
    """Write a line to standard error for each object that failed.

    Returns:
        The exit status.

    Raises:
        UnreachableError: nobody answers there; that is said once, and not for each object.
    """
    with suppress(IncompleteError):
        check_results(results, peer)
    for result in results:
        if not result.is_success:
            complain("plasmastream", f"{peer}: {result}")
    return exit_status(results)


def in_lines(request: str, kind: TransferKind, results: Sequence[Result]) -> Iterator[str]:
    """What became of a request: one line where it is the same for all of its objects, or else one for each failure."""
    failed = [result for result in results if not result.is_success]
    reasons = {_why(result) for result in failed}
    if not failed:
        yield "; ".join((f"{request}: success", *what_was_there(kind, results)))
    elif len(failed) == len(results) and len(reasons) == 1:
        more = f" and {len(failed) - 1:,} more" if len(failed) > 1 else ""
        yield f"{request}: failed: object {failed[0].object_id}{more}: {reasons.pop()}"
    else:
        yield f"{request}: {len(failed):,} failed"
        for result in failed:
            yield f"    {result.object_id}: {_why(result)}"


def what_was_there(kind: TransferKind, results: Sequence[Result]) -> Iterator[str]:
    """A sentence about those objects that nobody had to fetch, if there are any."""
    present = [result.object_id for result in results if result.outcome == Outcome.PRESENT]
    if not present:
        return
    names = f"object {present[0]} was" if len(present) == 1 else f"{len(present):,} objects were"
    # What is taken is compared before the source deletes its own.
    yield f"{names} there already" + (", not compared with the source's" if kind is TransferKind.COPY else "")


def _why(result: Result) -> str:
    return printable(result.reason or describe_outcome(result.outcome))
