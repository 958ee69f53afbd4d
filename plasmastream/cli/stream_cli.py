"""`plasma-stream-cli`: the first implementation's client, by its flags."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._sync import sync_line_by_line
from plasmastream.cli._types import Address, Server
from plasmastream.peer import DEFAULT_PORT


async def stream_cli(
    *,
    address: Annotated[Server, Parameter(name=("--address", "-a"))] = Address("127.0.0.1", DEFAULT_PORT),  # noqa: B008
) -> int:
    """Have a server carry out each line of standard input: COPY|TAKE HOST:PORT ID [ID...].

    Prints the time that each took, or its error.

    Parameters
    ----------
    address
        The server that fetches, as HOST:PORT. What it is to fetch is read from standard input, one request a line:
        COPY|TAKE HOST:PORT ID [ID...].
    """
    return await sync_line_by_line("plasma-stream-cli", address)
