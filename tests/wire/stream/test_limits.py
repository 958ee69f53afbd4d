"""Every limit of A4, at the limit and one beyond, in both directions."""

from ipaddress import ip_address
from typing import Any

import pytest

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream._object_id import ObjectID
from plasmastream.wire.stream import (
    NEED_DATA,
    ClientConnection,
    Limits,
    ObjectReceived,
    PayloadStarted,
    PeerRequest,
    ServerConnection,
    Status,
    SyncRequested,
    TransferKind,
    TransferRequested,
)
from tests.wire.stream.helpers import asked_server, object_id, sent

COPY = TransferKind.COPY
HOME = ip_address("127.0.0.1")
ONE = object_id(1)
ASK_ONE = bytes.fromhex("02 0100") + ONE


def ids(count: int, start: int = 0) -> tuple[ObjectID, ...]:
    return tuple(map(object_id, range(start, start + count)))


def peer(*object_ids: ObjectID, port: int = 2021) -> PeerRequest:
    return PeerRequest(COPY, HOME, port, object_ids)


def peer_bytes(count: int, object_ids: bytes, port: int = 2021) -> bytes:
    return bytes([2, 4]) + port.to_bytes(2, "little") + HOME.packed + count.to_bytes(2, "little") + object_ids


def refused(data: bytes, match: str, limits: Limits | None = None) -> None:
    """Feed a request and expect it to be called invalid, now and ever after."""
    server = ServerConnection(limits)
    server.receive_data(data)
    for _ in range(3):
        with pytest.raises(RemoteProtocolError, match=match) as caught:
            server.next_event()
        assert caught.value.status is None
    assert not server.owes_answer


def test_65_536_objects_are_written_and_read_as_0() -> None:
    client = ClientConnection()
    client.request_transfer(COPY, ids(65_536))
    wire = sent(client)
    assert wire[:3] == bytes.fromhex("02 0000")
    assert len(wire) == 3 + 20 * 65_536
    server = ServerConnection()
    server.receive_data(wire)
    assert server.next_event() == TransferRequested(COPY, ids(65_536))
    assert server.objects_left == 65_536


def test_65_535_objects_are_written_as_themselves() -> None:
    client = ClientConnection()
    client.request_transfer(COPY, ids(65_535))
    assert sent(client)[:3] == bytes.fromhex("02 ffff")


def test_65_536_objects_in_a_peer_request() -> None:
    client = ClientConnection()
    client.request_sync([peer(*ids(65_536)), peer(object_id(70_000))])
    wire = sent(client)
    assert wire[11:13] == b"\0\0"
    server = ServerConnection()
    server.receive_data(wire)
    assert server.next_event() == SyncRequested((peer(*ids(65_536)), peer(object_id(70_000))))


@pytest.mark.parametrize("count", [0, 65_537])
def test_no_objects_or_too_many_are_not_sent(count: int) -> None:
    client = ClientConnection()
    with pytest.raises(LocalProtocolError, match=f"names {count} objects"):
        client.request_transfer(COPY, ids(count))
    with pytest.raises(LocalProtocolError, match=f"names {count} objects"):
        client.request_sync([peer(*ids(count))])
    assert not client.data_to_send()
    assert not client.awaits_answer


def test_a_lower_limit_of_objects() -> None:
    limits = Limits(max_objects=2)
    client = ClientConnection(limits)
    client.request_transfer(COPY, ids(2))
    with pytest.raises(LocalProtocolError, match="names 3 objects"):
        client.request_transfer(COPY, ids(3))
    server = ServerConnection(limits)
    server.receive_data(sent(client))
    assert server.next_event() == TransferRequested(COPY, ids(2))
    refused(bytes.fromhex("02 0300"), "names 3 objects", limits)
    refused(bytes.fromhex("02 0000"), "names 65536 objects", limits)
    refused(bytes.fromhex("01 0100") + peer_bytes(3, b""), "names 3 objects", limits)


def test_ids_are_distinct() -> None:
    client = ClientConnection()
    with pytest.raises(LocalProtocolError, match="twice"):
        client.request_transfer(COPY, [ONE, object_id(2), ONE])
    with pytest.raises(LocalProtocolError, match="twice"):
        client.request_sync([peer(ONE), peer(object_id(2), ONE)])
    assert not client.data_to_send()
    refused(bytes.fromhex("02 0300") + ONE + object_id(2) + ONE, "twice")
    refused(bytes.fromhex("01 0100") + peer_bytes(2, ONE + ONE), "twice")
    refused(bytes.fromhex("01 0200") + peer_bytes(1, ONE) + peer_bytes(2, object_id(2) + ONE), "twice")


def test_an_id_that_returns_in_a_later_read_is_noticed() -> None:
    server = ServerConnection()
    server.receive_data(bytes.fromhex("02 0300") + ONE)
    assert server.next_event() is NEED_DATA
    server.receive_data(ONE)
    with pytest.raises(RemoteProtocolError, match="twice"):
        server.next_event()


def test_ids_have_20_bytes() -> None:
    client = ClientConnection()
    odd: list[Any] = [b"a" * 19, b"b" * 21]
    with pytest.raises(LocalProtocolError, match="20 bytes"):
        client.request_transfer(COPY, odd)
    with pytest.raises(LocalProtocolError, match="20 bytes"):
        client.request_sync([PeerRequest(COPY, HOME, 2021, tuple(odd))])


def test_1_024_peer_requests() -> None:
    requests = tuple(peer(name) for name in ids(1_024))
    client = ClientConnection()
    client.request_sync(requests)
    server = ServerConnection()
    server.receive_data(sent(client))
    assert server.next_event() == SyncRequested(requests)
    assert server.objects_left == 1_024
    server.answer_sync([0x41] * 1_024)


def test_no_peer_requests_or_too_many() -> None:
    client = ClientConnection()
    for count in (0, 1_025):
        with pytest.raises(LocalProtocolError, match=f"{count} peer requests"):
            client.request_sync([peer(name) for name in ids(count)])
        refused(b"\x01" + count.to_bytes(2, "little"), f"{count} peer requests")
    refused(bytes.fromhex("01 0300"), "3 peer requests", Limits(max_peer_requests=2))
    assert not client.data_to_send()


def test_objects_of_all_peer_requests_together() -> None:
    limits = Limits(max_sync_objects=3)
    client = ClientConnection(limits)
    client.request_sync([peer(*ids(2)), peer(object_id(9))])
    server = ServerConnection(limits)
    server.receive_data(sent(client))
    assert server.next_event() == SyncRequested((peer(*ids(2)), peer(object_id(9))))
    with pytest.raises(LocalProtocolError, match="4 or more"):
        client.request_sync([peer(*ids(2)), peer(*ids(2, 10))])
    # The second count alone is enough: none of its ids needs to arrive.
    refused(bytes.fromhex("01 0200") + peer_bytes(2, b"".join(ids(2))) + peer_bytes(2, b""), "4 or more", limits)


@pytest.mark.parametrize("port", [0, 65_536, -1])
def test_ports(port: int) -> None:
    with pytest.raises(LocalProtocolError, match="port"):
        ClientConnection().request_sync([peer(ONE, port=port)])


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ("00", "unknown type 0"),
        ("04", "unknown type 4"),
        ("51", "begins like one of version 2"),
        ("61", "unknown type 97"),
        ("01 0100 01 04 e507", "unknown type 1"),
        ("01 0100 04 04 e507", "unknown type 4"),
        ("01 0100 02 05 e507", "unknown kind 5"),
        ("01 0100 02 04 0000", "port 0"),
    ],
)
def test_invalid_bytes(data: str, match: str) -> None:
    refused(bytes.fromhex(data), match)


def begun() -> ServerConnection:
    server = asked_server(ASK_ONE)
    server.begin()
    server.data_to_send()
    return server


def test_sizes_of_an_object_that_is_sent() -> None:
    server = begun()
    for metadata, data_size in ((bytes(65_536), 0), (b"", 2**44 + 1), (b"", -1)):
        with pytest.raises(LocalProtocolError, match="cannot be sent"):
            server.send_header(metadata, data_size)
    with pytest.raises(LocalProtocolError, match="cannot be sent"):
        server.send_object(bytes(65_536), b"")
    assert not server.data_to_send()
    assert server.objects_left == 1
    server.send_header(bytes(65_535), 2**44)
    assert sent(server) == bytes.fromhex("ffff 000000000010") + bytes(65_535)
    server = begun()
    server.send_object(bytes(65_535), b"x")
    assert len(sent(server)) == 8 + 65_535 + 1


def test_data_larger_than_the_limit_is_not_sent() -> None:
    server = ServerConnection(Limits(max_data_size=3))
    server.receive_data(ASK_ONE)
    server.next_event()
    server.begin()
    with pytest.raises(LocalProtocolError, match="cannot be sent"):
        server.send_object(b"", b"1234")
    server.send_object(b"", b"123")


@pytest.mark.parametrize(
    ("limits", "header", "status"),
    [
        (Limits(), "0000 010000000010", Status.DATA_TOO_LARGE),
        (Limits(), "0000 ffffffffffff", Status.DATA_TOO_LARGE),
        (Limits(max_data_size=10), "0000 0b0000000000", Status.DATA_TOO_LARGE),
        (Limits(max_metadata_size=10), "0b00 000000000000", Status.METADATA_TOO_LARGE),
    ],
)
def test_an_object_that_is_too_large_is_not_received(limits: Limits, header: str, status: Status) -> None:
    client = ClientConnection(limits)
    client.request_transfer(COPY, [ONE])
    client.receive_data(b"\x00" + bytes.fromhex(header))
    client.next_event()
    for _ in range(3):
        with pytest.raises(RemoteProtocolError, match=str(ONE)) as caught:
            client.next_event()
        assert caught.value.status == status


@pytest.mark.parametrize(
    ("limits", "header"),
    [(Limits(), "0000 000000000010"), (Limits(max_data_size=20_000, max_metadata_size=0), "0000 204e00000000")],
)
def test_the_largest_object_is_announced(limits: Limits, header: str) -> None:
    client = ClientConnection(limits)
    client.request_transfer(COPY, [ONE])
    client.receive_data(b"\x00" + bytes.fromhex(header))
    client.next_event()
    assert client.next_event() == PayloadStarted(ONE, b"", limits.max_data_size)


def test_check_sizes_names_the_status_to_refuse_with() -> None:
    limits = Limits()
    assert limits.check_sizes(65_535, 2**44) is None
    assert limits.check_sizes(65_536, 0) is Status.METADATA_TOO_LARGE
    assert limits.check_sizes(0, 2**44 + 1) is Status.DATA_TOO_LARGE


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("max_objects", 1, 65_536),
        ("max_peer_requests", 1, 65_535),
        ("max_data_size", 0, 2**48 - 1),
        ("max_metadata_size", 0, 65_535),
        ("inline_size", 0, 256 * 1024),
    ],
)
def test_limits_fit_their_fields(name: str, low: int, high: int) -> None:
    Limits(**{name: low})
    Limits(**{name: high})
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=name):
            Limits(**{name: value})


@pytest.mark.parametrize(("data_size", "whole"), [(16 * 1024 - 8, True), (16 * 1024 - 7, False)])
def test_inline_size_is_the_largest_that_is_delivered_whole(data_size: int, whole: bool) -> None:
    client = ClientConnection()
    client.request_transfer(COPY, [ONE])
    client.receive_data(b"\x00" + (data_size << 16).to_bytes(8, "little") + bytes(data_size - 1))
    client.next_event()
    assert (client.next_event() is NEED_DATA) == whole
    client.receive_data(b"x")
    assert (client.next_event() == ObjectReceived(ONE, b"", bytes(data_size - 1) + b"x")) == whole


@pytest.mark.parametrize("inline_size", [0, 8, 256 * 1024])
def test_inline_size_at_its_extremes(inline_size: int) -> None:
    client = ClientConnection(Limits(inline_size=inline_size))
    client.request_transfer(COPY, [ONE])
    client.receive_data(b"\x00" + (256 * 1024 - 8 << 16).to_bytes(8, "little") + bytes(256 * 1024 - 8))
    client.next_event()
    event = client.next_event()
    assert isinstance(event, PayloadStarted) == (inline_size < 256 * 1024)
