"""Have one server fetch objects from others, from a script on asyncio: every request at once.

    python examples/move_objects.py SERVER SOURCE ID [ID...]

SERVER and SOURCE are HOST:PORT, and SOURCE is an IP address, as SERVER sees it. The ids are split in halves, one to
be copied, the other one to be taken. The objects go straight from SOURCE to SERVER, not through this process.
"""

import asyncio
import ipaddress
import sys

from plasmastream import ObjectID, PlasmastreamError
from plasmastream.peer import PeerRequest, Status, TransferKind, describe_status, open_peer, parse_address


async def move(server: str, source: str, object_ids: list[ObjectID]) -> bool:
    """Copy the first half of the objects, take the others, and print how it went.

    Returns:
        Whether all of it went well.
    """
    source_host, source_port = parse_address(source)
    address = ipaddress.ip_address(source_host)
    middle = (len(object_ids) + 1) // 2
    parts = {TransferKind.COPY: object_ids[:middle], TransferKind.TAKE: object_ids[middle:]}
    requests = [PeerRequest(kind, address, source_port, tuple(ids)) for kind, ids in parts.items() if ids]
    async with open_peer(*parse_address(server)) as peer:
        statuses = await peer.sync(requests, timeout=600)
    for request, status in zip(requests, statuses, strict=True):
        count = len(request.object_ids)
        print(f"{request.kind.name} of {count} object{'s' if count > 1 else ''}: {describe_status(status)}")
    return all(status == Status.SUCCESS for status in statuses)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        print("usage: python examples/move_objects.py SERVER SOURCE ID [ID...]", file=sys.stderr)
        sys.exit(2)
    try:
        succeeded = asyncio.run(move(sys.argv[1], sys.argv[2], [ObjectID.from_hex(text) for text in sys.argv[3:]]))
    except PlasmastreamError as error:
        sys.exit(f"nothing is known to have moved: {error}")
    sys.exit(0 if succeeded else 1)
