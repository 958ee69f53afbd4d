"""`plasmastream sync`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._sync import sync_all
from plasmastream.cli._types import Address, Compression, Flag, Seconds, Server, Size
from plasmastream.peer import DEFAULT_PORT


async def sync(
    requests: Annotated[tuple[str, ...], Parameter(name="REQUEST", negative=())] = (),
    /,
    *,
    server: Annotated[Server, Parameter(name=("--server", "-a"))] = Address("127.0.0.1", DEFAULT_PORT),  # noqa: B008
    timeout: Annotated[Seconds | None, Parameter(show_default=False)] = None,
    detach: Flag = False,
    max_bytes: Annotated[Size | None, Parameter(show_default=False)] = None,
    compression: Compression = None,
) -> int:
    """Have a server fetch objects from other servers into its store: all requests at once.

    A request is written as COPY|TAKE HOST:PORT ID [ID...]; several may follow each other. Without any, they are read
    from standard input, one a line. No id may be named twice. The outcome of each is printed, and of each object that
    failed.

    Parameters
    ----------
    requests
        What to fetch from whom, each as COPY|TAKE HOST:PORT ID [ID...], HOST as the server sees it. Without any,
        requests are read from standard input, one a line.
    server
        The server that fetches, as HOST:PORT.
    timeout
        How long all of it may take, in seconds, and a peer that cannot be reached is tried again; without it, as long
        as something moves.
    detach
        Have the server go on, should this command end first, by Ctrl-C for instance; it stops otherwise.
    max_bytes
        How much of large objects may be under way at once; the server decides, unless given.
    compression
        What the objects are compressed with on their way, where both servers know it; nothing, unless given.
    """
    return await sync_all(
        server, requests, timeout=timeout, detach=detach, max_bytes=max_bytes, compression=compression
    )
