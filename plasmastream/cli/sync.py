"""`plasmastream sync`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._sync import sync_all
from plasmastream.cli._types import Address, Seconds, Server
from plasmastream.peer import DEFAULT_PORT


async def sync(
    requests: Annotated[tuple[str, ...], Parameter(name="REQUEST", negative=())] = (),
    /,
    *,
    server: Annotated[Server, Parameter(name=("--server", "-a"))] = Address("127.0.0.1", DEFAULT_PORT),  # noqa: B008
    timeout: Seconds | None = None,
) -> int:
    """Have a server fetch objects from other servers into its store: all requests at once.

    A request is written as COPY|TAKE HOST:PORT ID [ID...]; several may follow each other. Without any, they are read
    from standard input, one a line. The outcome of each is printed.

    Parameters
    ----------
    requests
        What to fetch from whom, each as COPY|TAKE HOST:PORT ID [ID...], HOST as the server sees it. Without any,
        requests are read from standard input, one a line.
    server
        The server that fetches, as HOST:PORT.
    timeout
        How long to wait for the answer, in seconds; without it, as long as it takes. Fetching goes on afterwards.
    """
    return await sync_all(server, requests, timeout)
