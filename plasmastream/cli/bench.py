"""`plasmastream bench`."""

from typing import Annotated

from cyclopts import Parameter

from plasmastream.cli._types import Flag, PositiveSeconds, Server, Size

_MAX_SIZE = 16 << 20  # which few stores lack, however full


async def bench(
    server: Annotated[Server, Parameter(name="HOST[:PORT]")],
    /,
    *,
    max_size: Size = _MAX_SIZE,
    seconds: PositiveSeconds = 3.0,
    as_json: Annotated[Flag, Parameter(name="--json")] = False,
) -> int:
    """Measure how fast objects go from here to another machine, and back; see the first lines of what is printed.

    Objects of random ids are put into the store there, and are gone in the end, also after Ctrl-C. A full store there
    evicts for them what was not used for longest; how much that was is said in the end. No store is needed here, but
    memory for twice the largest object.

    Parameters
    ----------
    server
        The server beside the other's store.
    max_size
        The largest object: 256MiB, or bytes. Never are more than that in the other's store at once, and where
        that is full, about so much is evicted.
    seconds
        How long each size may take, about. Sizes of which a single object would take longer are left out.
    as_json
        Print JSON: times in seconds, sizes in bytes, and what each way is.
    """
    from plasmastream.cli._bench import run_bench

    return await run_bench(server, max_size=max_size, seconds=seconds, as_json=as_json)
