"""Peers as commands meet them: how patient to be, and what to say of each object that failed."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import attrs

from plasmastream._errors import PlasmastreamError
from plasmastream.cli._run import ExitStatus, complain, printable
from plasmastream.cli._types import Address
from plasmastream.peer import (
    OldPeerError,
    Outcome,
    PeerClient,
    PeerTimeouts,
    Result,
    UnreachableError,
    describe_outcome,
)

LOST = (Outcome.UNREACHABLE, Outcome.BROKEN_OFF, Outcome.STALLED)


@asynccontextmanager
async def connected_to(
    server: Address, timeout: float | None = None, timeouts: PeerTimeouts | None = None
) -> AsyncIterator[PeerClient]:
    """A client of a peer, which connects when it has to, and is not longer at it than `timeout` seconds."""
    timeouts = timeouts or PeerTimeouts()
    if timeout is not None:
        greeting = min(timeouts.greeting, timeout)
        timeouts = attrs.evolve(timeouts, connect=min(timeouts.connect, timeout), greeting=greeting)
    client = PeerClient(server.host, server.port, timeouts=timeouts)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def asking(server: Address, timeouts: PeerTimeouts | None = None) -> AsyncIterator[PeerClient]:
    """A client for requests that version 1 of the protocol does not have.

    Raises:
        PlasmastreamError: the peer speaks no other.
    """
    try:
        async with connected_to(server, timeouts=timeouts) as peer:
            yield peer
    except OldPeerError:
        message = f"{server} speaks version 1 of the protocol, which only copies and takes objects from store to store"
        raise PlasmastreamError(message) from None


def check_outcomes(peer: object, results: Sequence[Result]) -> int:
    """Write a line to standard error for each object that failed.

    Returns:
        The exit status: NOBODY_ANSWERS where the peer was lost to all that failed, FAILED where something else was
        the matter with one of them.

    Raises:
        UnreachableError: nobody answers there; that is said once, and not for each object.
    """
    failed = [result for result in results if not result.is_success]
    if not failed:
        return ExitStatus.DONE
    if len(failed) == len(results) and all(result.outcome == Outcome.UNREACHABLE for result in failed):
        raise UnreachableError(failed[0].reason)
    for result in failed:
        complain("plasmastream", f"{peer}: {result}")
    is_lost = all(result.outcome in LOST for result in failed)
    return ExitStatus.NOBODY_ANSWERS if is_lost else ExitStatus.FAILED


def in_lines(request: str, results: Sequence[Result]) -> Iterator[str]:
    """What became of a request: one line where it is the same for all of its objects, or else one for each failure."""
    failed = [result for result in results if not result.is_success]
    reasons = {_why(result) for result in failed}
    if not failed:
        yield f"{request}: success"
    elif len(failed) == len(results) and len(reasons) == 1:
        yield f"{request}: failed: {reasons.pop()}"
    else:
        yield f"{request}: {len(failed):,} failed"
        for result in failed:
            yield f"    {result.object_id}: {_why(result)}"


def _why(result: Result) -> str:
    return printable(result.reason or describe_outcome(result.outcome))
