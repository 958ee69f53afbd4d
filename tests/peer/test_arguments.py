"""What is no list of ids is refused by the peer client in words, before anything is sent."""

from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address

import pytest

from plasmastream import ObjectID
from plasmastream.peer import PeerClient, PeerRequest, TransferKind
from plasmastream.store import EmbeddedStore

ONE = ObjectID.random()


async def copy(client: PeerClient, ids: ObjectID) -> None:
    with EmbeddedStore(1 << 20) as store:
        await client.copy(ids, store)  # type: ignore[arg-type]


async def stat(client: PeerClient, ids: ObjectID) -> None:
    await client.stat(ids)  # type: ignore[arg-type]


async def sync(client: PeerClient, ids: ObjectID) -> None:
    await client.sync_each([PeerRequest(TransferKind.COPY, IPv4Address("127.0.0.1"), 1, ids)])  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [copy, stat, sync])
async def test_one_id_is_no_list(call: Callable[[PeerClient, ObjectID], Awaitable[None]]) -> None:
    async with PeerClient("127.0.0.1", 1) as client:
        with pytest.raises(TypeError, match="a list of ObjectID is needed, not"):
            await call(client, ONE)
