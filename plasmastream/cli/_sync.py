"""What `sync` and `plasma-stream-cli` do: requests in words, carried out by a server."""

import ipaddress
import socket
import sys
import time
from collections.abc import Iterable, Sequence

import attrs
import trio

from plasmastream._errors import PeerError, PlasmastreamError
from plasmastream._object_id import ObjectID
from plasmastream._progress import show_bars
from plasmastream.cli._peer import connected_to, exit_status, in_lines
from plasmastream.cli._run import ExitStatus, UsageError, complain
from plasmastream.cli._types import Address, read_address
from plasmastream.cli._waits import watching
from plasmastream.peer import PeerClient, PeerRequest, Status, TransferKind, describe_status, open_peer

_GRAMMAR = "a request is written as COPY|TAKE HOST:PORT ID [ID...]"


@attrs.frozen
class Request:
    """One peer request, its source still by name."""

    kind: TransferKind
    source: Address
    object_ids: tuple[ObjectID, ...]
    line: int | None = None
    """Which line of standard input it is of, counted from 1."""

    def __str__(self) -> str:
        count = len(self.object_ids)
        return f"{self.where}{self.kind.name} {self.source}, {count:,} object{'s' if count > 1 else ''}"

    @property
    def where(self) -> str:
        """What messages about it begin with."""
        return "" if self.line is None else f"line {self.line:,}: "


def read_requests(words: Iterable[str]) -> list[Request]:
    """Read requests, each of which begins with COPY or TAKE, in either case.

    Raises:
        UsageError: the words make no sense.
    """
    groups: list[list[str]] = []
    for word in words:
        if word.upper() in TransferKind.__members__:
            groups.append([word])
        elif not groups:
            raise UsageError(f"{_GRAMMAR}, and {word!r} begins none")
        else:
            groups[-1].append(word)
    return [_read_request(group) for group in groups]


def _read_request(words: Sequence[str]) -> Request:
    kind, *rest = words
    if len(rest) < 2:
        raise UsageError(f"{_GRAMMAR}, not as {' '.join(words)!r}")
    try:
        source = read_address(rest[0])
        return Request(TransferKind[kind.upper()], source, tuple(map(ObjectID.from_hex, rest[1:])))
    except ValueError as error:
        raise UsageError(str(error)) from None


def read_lines(lines: Iterable[str]) -> list[Request]:
    """Read requests, one a line; empty lines and those that begin with `#` are skipped.

    Raises:
        UsageError: a line makes no sense; it says which.
    """
    requests: list[Request] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words and not words[0].startswith("#"):
            try:
                requests += [attrs.evolve(request, line=number) for request in read_requests(words)]
            except UsageError as error:
                raise UsageError(f"line {number:,}: {error}") from None
    return requests


def _check_distinct(requests: Iterable[Request]) -> None:
    """See that no object is named twice.

    Raises:
        UsageError: one is; it says where.
    """
    named: dict[ObjectID, int | None] = {}
    for request in requests:
        for object_id in request.object_ids:
            if object_id in named:
                first = f" (first in line {named[object_id]:,})" if request.line else ""
                raise UsageError(f"{request.where}object {object_id} is named twice{first}; that takes two syncs")
            named[object_id] = request.line


async def resolve(request: Request) -> PeerRequest:
    """Look up where a request leads to: the protocol carries IP addresses only.

    Of several addresses, the first of IPv4 is taken: servers of the first implementation cannot read others.

    Raises:
        PeerError: there is no such host.
    """
    host, port = request.source.host, request.source.port
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no host can have this name"
        raise PeerError(f"{request.where}{host} is not a host that is known here: {reason}") from error
    first = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    address = ipaddress.ip_address(str(first[4][0]).partition("%")[0])
    return PeerRequest(request.kind, address, port, request.object_ids)


async def sync_all(
    server: Address,
    words: Sequence[str],
    *,
    timeout: float | None,
    detach: bool,
    max_bytes: int | None,
    compression: str | None,
) -> int:
    """Have a server carry out all requests at once, given as words, or else as lines of standard input.

    Prints a line with the outcome of each, and one for each object that failed; shows on a terminal how far they are.

    Returns:
        The exit status.

    Raises:
        UsageError: a request makes no sense, or there is none, or an object is named twice.
        PeerError: the server does not answer.
    """
    if not words and sys.stdin.isatty():
        complain("plasmastream", f"reading requests, one a line until Ctrl-D; {_GRAMMAR}")
    requests = read_requests(" ".join(words).split()) if words else read_lines(sys.stdin)
    if not requests:
        raise UsageError(f"nothing was asked for; {_GRAMMAR}")
    _check_distinct(requests)
    peer_requests = [await resolve(request) for request in requests]
    bars = [(f"{request.kind.name} {request.source}", len(request.object_ids)) for request in requests]
    async with connected_to(server, timeout) as peer, watching(server) as watch:
        with show_bars(bars) as show:

            def report(amounts: Sequence[tuple[int, int]]) -> None:
                watch.reached(amounts)
                show(amounts)

            outcomes = await peer.sync_each(
                peer_requests,
                timeout=timeout,
                detach=detach,
                max_bytes=max_bytes or 0,
                compression=compression,
                on_progress=report,
            )
    for request, results in zip(requests, outcomes, strict=True):
        print(*in_lines(str(request), request.kind, results), sep="\n")
    return exit_status([result for results in outcomes for result in results])


async def sync_line_by_line(program: str, server: Address) -> int:
    """Have a server carry out each line of standard input, one after the other, in version 1 of the protocol.

    Whoever reads what this prints counts on the answers of version 1: what is there already is an error in it.
    Prints the time that it took in milliseconds, or the error.

    Returns:
        The exit status: FAILED where a line did.
    """
    status = ExitStatus.DONE
    async with open_peer(server.host, server.port, version=1) as peer:
        for number, line in enumerate(sys.stdin, start=1):
            try:
                for request in read_lines([line]):
                    await _sync_one(peer, request)
            except (UsageError, PlasmastreamError) as error:
                complain(program, f"line {number}: {str(error).removeprefix('line 1: ')}")
                status = ExitStatus.FAILED
    return status


async def _sync_one(peer: PeerClient, request: Request) -> None:
    started = time.perf_counter()
    (status,) = await peer.sync([await resolve(request)])
    if status != Status.SUCCESS:
        raise PlasmastreamError(f"{request}: {describe_status(status)}")
    print(f"{1000 * (time.perf_counter() - started):.3f} ms", flush=True)
