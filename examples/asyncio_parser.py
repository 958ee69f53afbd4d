"""Drive the parser of the peer protocol from plain asyncio streams: fetch objects, and say what arrived.

    python examples/asyncio_parser.py HOST:PORT ID [ID...]

`plasmastream.wire` does no I/O and knows no event loop; whatever brings bytes will do.
"""

import asyncio
import sys
from collections.abc import Sequence

from plasmastream import ObjectID, PlasmastreamError
from plasmastream.wire.stream import (
    NEED_DATA,
    AnswerBegun,
    AnswerComplete,
    AnswerRefused,
    ClientConnection,
    ObjectReceived,
    PayloadFinished,
    PayloadStarted,
    TransferKind,
    describe_status,
)


async def copy(host: str, port: int, object_ids: Sequence[ObjectID]) -> dict[ObjectID, tuple[bytes, bytes]]:
    """Fetch objects: (data, metadata) by id.

    Raises:
        PlasmastreamError: the server refused, or broke the protocol.
        OSError: the server cannot be reached, or the connection broke.
    """
    reader, writer = await asyncio.open_connection(host, port)
    connection = ClientConnection()
    connection.request_transfer(TransferKind.COPY, object_ids)
    writer.writelines(connection.data_to_send())
    arrived: dict[ObjectID, tuple[bytes, bytes]] = {}
    metadata, buffer = b"", bytearray()
    try:
        while True:
            match connection.next_event():
                case ObjectReceived() as small:  # header, metadata and data in one event
                    arrived[small.object_id] = bytes(small.data), small.metadata  # the view is for now
                case PayloadStarted() as large:  # we say where its data goes; it is read there piece by piece
                    metadata, buffer = large.metadata, bytearray(large.data_size)
                    connection.supply_buffer(buffer)
                case PayloadFinished() as large:
                    arrived[large.object_id] = bytes(buffer), metadata
                case AnswerBegun():
                    pass
                case AnswerRefused() as refused:
                    raise PlasmastreamError(f"the server refused: {describe_status(refused.status)}")
                case AnswerComplete():
                    return arrived
                case signal:
                    assert signal is NEED_DATA
                    if data := await reader.read(1 << 18):
                        connection.receive_data(data)
                    else:
                        connection.receive_eof()  # the parser knows whether it may end here
    finally:
        writer.close()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print("usage: python examples/asyncio_parser.py HOST:PORT ID [ID...]", file=sys.stderr)
        sys.exit(2)
    host, _, port = sys.argv[1].rpartition(":")
    ids = [ObjectID.from_hex(text) for text in sys.argv[2:]]
    try:
        objects = asyncio.run(copy(host, int(port), ids))
    except (PlasmastreamError, OSError) as error:
        sys.exit(f"nothing was copied: {error}")
    for object_id, (data, about) in objects.items():
        print(f"{object_id}: {len(data):,} bytes, metadata {about.decode(errors='replace')!r}")
