"""Every form of request and answer, byte for byte as the tables of Part A have it, written and read from one table."""

from ipaddress import ip_address

import pytest

from plasmastream.wire.stream import (
    AnswerBegun,
    AnswerComplete,
    AnswerRefused,
    ClientConnection,
    Event,
    ObjectReceived,
    PayloadFinished,
    PayloadStarted,
    PeerRequest,
    ServerConnection,
    Status,
    SyncAnswered,
    SyncRequested,
    TransferKind,
    TransferRequested,
)
from tests.wire.stream.helpers import Feeder, Note, asked_server, feed_copy, feed_place, object_id, read, sent

A, B, C = object_id(0xAAAAAAAA), object_id(0xBBBBBBBB), object_id(0xCCCCCCCC)
HEX_A, HEX_B, HEX_C = "aa" * 20, "bb" * 20, "cc" * 20

REQUESTS: dict[str, tuple[TransferRequested | SyncRequested, str]] = {
    "COPY of one": (TransferRequested(TransferKind.COPY, (A,)), f"02 0100 {HEX_A}"),
    "TAKE of two": (TransferRequested(TransferKind.TAKE, (B, A)), f"03 0200 {HEX_B} {HEX_A}"),
    "SYNC with IPv4": (
        SyncRequested((PeerRequest(TransferKind.COPY, ip_address("10.0.0.1"), 2021, (A,)),)),
        f"01 0100 02 04 e507 0a000001 0100 {HEX_A}",
    ),
    "SYNC with IPv6": (
        SyncRequested((PeerRequest(TransferKind.TAKE, ip_address("2001:db8::ff"), 0x1234, (A, B)),)),
        f"01 0100 03 06 3412 20010db80000000000000000000000ff 0200 {HEX_A} {HEX_B}",
    ),
    "SYNC with two": (
        SyncRequested(
            (
                PeerRequest(TransferKind.COPY, ip_address("192.168.1.2"), 1, (C, A)),
                PeerRequest(TransferKind.TAKE, ip_address("::1"), 65_535, (B,)),
            )
        ),
        f"01 0200 02 04 0100 c0a80102 0200 {HEX_C} {HEX_A} 03 06 ffff {'00' * 15}01 0100 {HEX_B}",
    ),
}

# Answers to a COPY of A, then B: (metadata, data) of each.
OBJECTS: dict[str, tuple[list[tuple[bytes, bytes]], str]] = {
    "plain": ([(b"", b"\x01\x02"), (b"m", b"\x03")], "00 0000 020000000000 0102 0100 010000000000 6d 03"),
    "empty": ([(b"", b""), (b"\xfe\xff", b"")], "00 0000 000000000000 0200 000000000000 feff"),
    "large": (
        [(b"m" * 0x0102, b"d" * 0x010203), (b"", b"e" * 0x4001)],
        f"00 0201 030201000000 {'6d' * 0x0102} {'64' * 0x010203} 0000 014000000000 {'65' * 0x4001}",
    ),
    "large metadata only": (
        [(b"m" * 65_535, b""), (b"", b"x")],
        f"00 ffff 000000000000 {'6d' * 65_535} 0000 010000000000 78",
    ),
}

FEEDS: dict[str, tuple[Feeder, int]] = {
    "whole": (feed_copy, 10**9),
    "byte by byte": (feed_copy, 1),
    "in place": (feed_place, 10**9),
    "byte by byte in place": (feed_place, 1),
}


def ask(client: ClientConnection, request: TransferRequested | SyncRequested) -> None:
    match request:
        case TransferRequested(kind, object_ids):
            client.request_transfer(kind, object_ids)
        case SyncRequested(peer_requests):
            client.request_sync(peer_requests)


def seen(objects: list[tuple[bytes, bytes]]) -> list[Note]:
    notes: list[Note] = [AnswerBegun()]
    for name, (metadata, data) in zip((A, B), objects, strict=True):
        if 8 + len(metadata) + len(data) <= 16 * 1024:
            notes.append(ObjectReceived(name, metadata, data))
        else:
            notes += [PayloadStarted(name, metadata, len(data)), PayloadFinished(name), data]
    return [*notes, AnswerComplete()]


@pytest.mark.parametrize("name", REQUESTS)
def test_request_is_written(name: str) -> None:
    request, wire = REQUESTS[name]
    client = ClientConnection()
    ask(client, request)
    assert sent(client) == bytes.fromhex(wire)
    assert sent(client) == b""


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("name", REQUESTS)
def test_request_is_read(name: str, feed: str) -> None:
    request, wire = REQUESTS[name]
    feeder, wish = FEEDS[feed]
    data = bytes.fromhex(wire)
    assert read(ServerConnection(), data, feeder, [wish] * len(data)) == [request]


@pytest.mark.parametrize("follower", REQUESTS)
@pytest.mark.parametrize("name", REQUESTS)
def test_request_is_read_up_to_the_next(name: str, follower: str) -> None:
    data = bytes.fromhex(REQUESTS[name][1] + REQUESTS[follower][1])
    assert read(ServerConnection(), data) == [REQUESTS[name][0], REQUESTS[follower][0]]


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_written(name: str) -> None:
    objects, wire = OBJECTS[name]
    server = asked_server(bytes.fromhex(f"02 0200 {HEX_A} {HEX_B}"))
    server.begin()
    for metadata, data in objects:
        server.send_object(metadata, data)
    assert sent(server) == bytes.fromhex(wire)


@pytest.mark.parametrize("name", OBJECTS)
def test_headers_are_written_and_data_is_left_to_the_caller(name: str) -> None:
    objects, wire = OBJECTS[name]
    server = asked_server(bytes.fromhex(f"03 0200 {HEX_A} {HEX_B}"))
    server.begin()
    stream = b""
    for metadata, data in objects:
        server.send_header(metadata, len(data))
        stream += sent(server) + data
    assert stream == bytes.fromhex(wire)


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_read(name: str, feed: str) -> None:
    objects, wire = OBJECTS[name]
    feeder, wish = FEEDS[feed]
    client = ClientConnection()
    client.request_transfer(TransferKind.COPY, [A, B])
    data = bytes.fromhex(wire)
    assert read(client, data, feeder, [wish] * len(data)) == seen(objects)


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_read_up_to_the_next_answer(name: str, feed: str) -> None:
    objects, wire = OBJECTS[name]
    feeder, wish = FEEDS[feed]
    client = ClientConnection()
    client.request_transfer(TransferKind.COPY, [A, B])
    client.request_transfer(TransferKind.COPY, [C])
    data = bytes.fromhex(wire + "71")
    assert read(client, data, feeder, [wish] * len(data)) == [*seen(objects), AnswerRefused(0x71)]


@pytest.mark.parametrize("status", sorted({*range(1, 256)} - {Status.SUCCESS}))
def test_refusal(status: int) -> None:
    server = asked_server(bytes.fromhex(f"02 0100 {HEX_A}"))
    server.refuse(status)
    assert sent(server) == bytes([status])
    client = ClientConnection()
    client.request_transfer(TransferKind.COPY, [A])
    assert read(client, bytes([status])) == [AnswerRefused(status)]
    assert not client.awaits_answer


@pytest.mark.parametrize("feed", FEEDS)
def test_sync_answer(feed: str) -> None:
    request, wire = REQUESTS["SYNC with two"]
    server = asked_server(bytes.fromhex(wire))
    server.answer_sync([0x41, 0xF3])
    assert sent(server) == b"\x41\xf3"
    client = ClientConnection()
    ask(client, request)
    client.request_transfer(TransferKind.COPY, [A])
    feeder, wish = FEEDS[feed]
    events: list[Event] = [SyncAnswered((0x41, 0xF3)), AnswerRefused(0x60)]
    assert read(client, b"\x41\xf3\x60", feeder, [wish] * 3) == events


def test_pieces_are_not_joined_and_payloads_are_the_callers_own() -> None:
    server = asked_server(bytes.fromhex(f"02 0100 {HEX_A}"))
    server.begin()
    metadata, data = b"meta", memoryview(bytearray(100))
    server.send_object(metadata, data)
    begin, header, sent_metadata, sent_data = server.data_to_send()
    assert (begin, header) == (b"\x00", bytes.fromhex("0400 640000000000"))
    assert sent_metadata is metadata
    assert sent_data is data


def test_the_size_of_a_view_is_counted_in_bytes() -> None:
    server = asked_server(bytes.fromhex(f"02 0100 {HEX_A}"))
    server.begin()
    server.send_object(memoryview(bytes(8)).cast("I"), memoryview(bytes(16)).cast("Q"))
    assert sent(server) == bytes.fromhex("00 0800 100000000000") + bytes(24)
