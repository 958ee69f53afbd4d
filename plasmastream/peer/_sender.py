"""One direction: objects out of a store, to whoever asked for them."""

from collections.abc import Sequence

from plasmastream.peer._transport import Transport
from plasmastream.store._object_store import Lease
from plasmastream.wire.stream import ServerConnection

_GATHER = 256 << 10
_COPIED = 16 << 10  # below that, to copy an object takes less time than to begin and end a look at it


def contents(lease: Lease) -> tuple[bytes | memoryview, bytes | memoryview]:
    """The data and the metadata of an object that is to be sent."""
    return lease.copied() if lease.size <= _COPIED else (lease.data, lease.metadata)


async def send_objects(
    connection: ServerConnection, transport: Transport, leases: Sequence[Lease], *, timeout: float, is_take: bool
) -> bool:
    """Answer a transfer request with BEGIN and these objects.

    All is copied into the socket, not handed to it by reference as `sendfile` would do: version 1 has no word by which
    a peer says that it has read, and pages that are under way while their memory becomes another object's would arrive
    as that object's bytes. Small objects are gathered into few large writes.

    To a TAKE, the last byte waits until it was seen that nothing had arrived from the peer: who asks for more, or ends
    its half of the connection, before all has left, shows nothing by it.

    Returns:
        Whether what comes from the peer from now on shows that it has read the answer; of a COPY, nobody asks.

    Raises:
        PeerError: the connection broke, or nothing moved for `timeout` seconds.
    """
    connection.begin()
    queued = 1
    for lease in leases:
        if queued >= _GATHER:
            await transport.send(connection.data_to_send(), timeout=timeout)
            queued = 0
        data, metadata = contents(lease)
        connection.send_object(metadata, data)
        queued += lease.size
    if not is_take:
        await transport.send(connection.data_to_send(), timeout=timeout)
        return False
    *pieces, last = connection.data_to_send()
    # Let go of at a known line: an error on its way up would keep slices of a lease's data, and so its object.
    with memoryview(last) as whole, whole[:-1] as most, whole[-1:] as end:
        await transport.send([*pieces, most], timeout=timeout)
        went_ahead = connection.has_read_ahead or not transport.is_quiet()
        await transport.send([end], timeout=timeout)
    return not went_ahead
