"""What the peer client cannot mean is refused in words, before anything is sent."""

import math
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from plasmastream import ObjectID
from plasmastream.peer import PeerClient, PeerRequest, PeerTimeouts, ServerTimeouts, TransferKind
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


@pytest.mark.parametrize("kind", ["TAKE", None, 0])
async def test_what_is_no_kind_is_no_copy(kind: Any) -> None:
    with EmbeddedStore(1 << 20) as store, pytest.raises(ValueError, match="is not a valid TransferKind"):
        await PeerClient("127.0.0.1", 1).fetch(kind, [ONE], store)
    with pytest.raises(ValueError, match="is not a valid TransferKind"):
        PeerRequest(kind, IPv4Address("127.0.0.1"), 1, (ONE,))


@pytest.mark.parametrize("address", [(None, 1), (IPv4Address("127.0.0.1"), 1), ("127.0.0.1", "2021")])
def test_what_is_no_address(address: tuple[Any, Any]) -> None:
    with pytest.raises(TypeError, match="a host as text and a port as a number"):
        PeerClient(*address)


@pytest.mark.parametrize(
    ("seconds", "error"), [(math.nan, ValueError), (-1, ValueError), ("5", TypeError), (None, TypeError)]
)
def test_what_is_no_time_is_not_waited_for(seconds: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="retry"):
        PeerTimeouts(retry=seconds)
    with pytest.raises(error, match="token"):
        ServerTimeouts(token=seconds, fetching=PeerTimeouts(retry=0))
