"""Have one server fetch objects from another one, watch it, and see what became of each: on asyncio.

    python examples/move_objects.py SERVER SOURCE ID [ID...]

SERVER and SOURCE are HOST:PORT, and SOURCE is an IP address, as SERVER sees it. The ids are split in halves, one to
be copied, the other one to be taken. The objects go straight from SOURCE to SERVER, not through this process.
"""

import asyncio
import ipaddress
import sys
from collections.abc import Sequence

from plasmastream import ObjectID, PlasmastreamError
from plasmastream.peer import PeerRequest, TransferKind, open_peer, parse_address


def show(amounts: Sequence[tuple[int, int]]) -> None:
    """Show how far it has come; called at least every second."""
    objects = sum(objects for objects, _ in amounts)
    nbytes = sum(nbytes for _, nbytes in amounts)
    print(f"so far {objects:,} objects, {nbytes:,} bytes", file=sys.stderr)


async def move(server: str, source: str, object_ids: list[ObjectID]) -> bool:
    """Copy the first half of the objects, take the others, and print what became of each.

    Returns:
        Whether all of it went well.
    """
    source_host, source_port = parse_address(source)
    address = ipaddress.ip_address(source_host)
    middle = (len(object_ids) + 1) // 2
    parts = {TransferKind.COPY: object_ids[:middle], TransferKind.TAKE: object_ids[middle:]}
    requests = [PeerRequest(kind, address, source_port, tuple(ids)) for kind, ids in parts.items() if ids]
    async with open_peer(*parse_address(server)) as peer:
        outcomes = await peer.sync_each(requests, timeout=600, on_progress=show)
    for request, results in zip(requests, outcomes, strict=True):
        for result in results:
            print(f"{request.kind.name}: {result}")
    return all(result.is_success for results in outcomes for result in results)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        print("usage: python examples/move_objects.py SERVER SOURCE ID [ID...]", file=sys.stderr)
        sys.exit(2)
    try:
        succeeded = asyncio.run(move(sys.argv[1], sys.argv[2], [ObjectID.from_hex(text) for text in sys.argv[3:]]))
    except PlasmastreamError as error:
        sys.exit(f"nothing is known to have moved: {error}")
    sys.exit(0 if succeeded else 1)
