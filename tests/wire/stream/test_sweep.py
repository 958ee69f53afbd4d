"""Every state met with every call and every input: a known outcome or a named error, never anything else.

Each table row says what is allowed in a state; what is not listed must be a `LocalProtocolError` that changes nothing.
"""

from collections.abc import Callable
from ipaddress import ip_address

import pytest

from plasmastream._errors import LocalProtocolError, RemoteProtocolError
from plasmastream.wire.stream import (
    NEED_BUFFER,
    NEED_DATA,
    PAUSED,
    AnswerBegun,
    AnswerComplete,
    AnswerRefused,
    ClientConnection,
    ConnectionClosed,
    Event,
    ObjectReceived,
    PayloadFinished,
    PayloadStarted,
    PeerRequest,
    ServerConnection,
    Signal,
    SyncAnswered,
    SyncRequested,
    TransferKind,
    TransferRequested,
    Version2Offered,
)
from plasmastream.wire.stream._messages import MAGIC_OF_VERSION_2
from plasmastream.wire.stream._state import NEXT, Owed
from tests.wire.stream.helpers import object_id, sent

A, B = object_id(1), object_id(2)
COPY_AB = bytes.fromhex("02 0200") + A + B
PEER_A = PeerRequest(TransferKind.COPY, ip_address("10.0.0.1"), 2021, (A,))
SYNC_A = bytes.fromhex("01 0100 02 04 e507 0a000001 0100") + A
BIG = 200_000
HEADER = (BIG << 16).to_bytes(8, "little")

# --- the server ------------------------------------------------------------------------------------------------------


def server(data: bytes = b"", *calls: Callable[[ServerConnection], object]) -> ServerConnection:
    connection = ServerConnection()
    if data:
        connection.receive_data(data)
        connection.next_event()
    for call in calls:
        call(connection)
    return connection


def failed_server() -> ServerConnection:
    connection = ServerConnection()
    connection.receive_data(b"\xff")
    with pytest.raises(RemoteProtocolError):
        connection.next_event()
    return connection


def closed_server() -> ServerConnection:
    connection = ServerConnection()
    connection.receive_eof()
    assert connection.next_event() == ConnectionClosed()
    return connection


SERVER_STATES: dict[str, Callable[[], ServerConnection]] = {
    "idle": server,
    "inside a request": lambda: server(COPY_AB[:10]),
    "transfer asked": lambda: server(COPY_AB),
    "objects owed": lambda: server(COPY_AB, ServerConnection.begin),
    "last object owed": lambda: server(COPY_AB, ServerConnection.begin, lambda c: c.send_object(b"", b"")),
    "payload due": lambda: server(COPY_AB, ServerConnection.begin, lambda c: c.send_header(b"", 5)),
    "payload due at the end": lambda: server(
        COPY_AB, ServerConnection.begin, lambda c: c.send_object(b"", b""), lambda c: c.send_header(b"", 5)
    ),
    "sync asked": lambda: server(SYNC_A),
    "answered": lambda: server(COPY_AB, lambda c: c.refuse(0x71)),
    "inside the offer of version 2": lambda: server(MAGIC_OF_VERSION_2[:5]),
    "version 2 offered": lambda: server(MAGIC_OF_VERSION_2),
    "rest taken": lambda: server(MAGIC_OF_VERSION_2, ServerConnection.take_rest),
    "failed": failed_server,
    "closed": closed_server,
}

SERVER_CALLS: dict[str, Callable[[ServerConnection], object]] = {
    "refuse": lambda c: c.refuse(0x71),
    "begin": lambda c: c.begin(),
    "send_object": lambda c: c.send_object(b"m", b"d"),
    "send_header": lambda c: c.send_header(b"m", 7),
    "answer_sync": lambda c: c.answer_sync([0x41]),
    "take_rest": lambda c: c.take_rest(),
}

SERVER_ALLOWS = {
    "transfer asked": {"refuse": b"\x71", "begin": b"\x00"},
    "objects owed": {
        "send_object": bytes.fromhex("00 0100 010000000000 6d 64"),
        "send_header": bytes.fromhex("00 0100 070000000000 6d"),
    },
    "last object owed": {
        "send_object": bytes.fromhex("00 0000 000000000000 0100 010000000000 6d 64"),
        "send_header": bytes.fromhex("00 0000 000000000000 0100 070000000000 6d"),
    },
    "sync asked": {"answer_sync": b"\x41"},
    "version 2 offered": {"take_rest": b""},
}

SERVER_EVENTS: dict[str, Event | Signal | type[RemoteProtocolError]] = {
    "idle": NEED_DATA,
    "inside a request": NEED_DATA,
    "transfer asked": PAUSED,
    "objects owed": PAUSED,
    "last object owed": PAUSED,
    "payload due": PAUSED,
    "payload due at the end": NEED_DATA,
    "sync asked": PAUSED,
    "answered": NEED_DATA,
    "inside the offer of version 2": NEED_DATA,
    "version 2 offered": PAUSED,
    "rest taken": ConnectionClosed(),
    "failed": RemoteProtocolError,
    "closed": ConnectionClosed(),
}

SERVER_ENDS: dict[str, Event | Signal | type[RemoteProtocolError]] = SERVER_EVENTS | {
    "idle": ConnectionClosed(),
    "inside a request": RemoteProtocolError,
    "inside the offer of version 2": RemoteProtocolError,
    "payload due at the end": ConnectionClosed(),
    "answered": ConnectionClosed(),
}


@pytest.mark.parametrize("call", SERVER_CALLS)
@pytest.mark.parametrize("state", SERVER_STATES)
def test_server_calls(state: str, call: str) -> None:
    connection = SERVER_STATES[state]()
    allowed = SERVER_ALLOWS.get(state, {})
    if call in allowed:
        SERVER_CALLS[call](connection)
        assert sent(connection) == allowed[call]
        return
    untouched = SERVER_STATES[state]()
    with pytest.raises(LocalProtocolError, match=call):
        SERVER_CALLS[call](connection)
    assert (connection.owes_answer, connection.objects_left) == (untouched.owes_answer, untouched.objects_left)
    assert sent(connection) == sent(untouched)


def outcome(connection: ServerConnection | ClientConnection) -> Event | Signal | type[RemoteProtocolError]:
    try:
        return connection.next_event()
    except RemoteProtocolError as error:
        first = error
    with pytest.raises(RemoteProtocolError) as again:
        connection.next_event()
    assert (str(again.value), again.value.status) == (str(first), first.status)
    return RemoteProtocolError


@pytest.mark.parametrize("state", SERVER_STATES)
def test_server_events(state: str) -> None:
    connection = SERVER_STATES[state]()
    assert outcome(connection) == SERVER_EVENTS[state]
    assert outcome(connection) == SERVER_EVENTS[state]


@pytest.mark.parametrize("state", SERVER_STATES)
def test_server_end(state: str) -> None:
    connection = SERVER_STATES[state]()
    connection.receive_eof()
    connection.receive_eof()
    assert outcome(connection) == SERVER_ENDS[state]
    assert outcome(connection) == SERVER_ENDS[state]


@pytest.mark.parametrize("state", SERVER_STATES)
def test_server_reads_on_in_every_state(state: str) -> None:
    connection = SERVER_STATES[state]()
    begun = {"inside a request": COPY_AB[10:], "inside the offer of version 2": MAGIC_OF_VERSION_2[5:]}
    if state not in ("closed", "rest taken"):
        connection.receive_data(begun.get(state, COPY_AB))
    expected = SERVER_EVENTS[state]
    if state == "inside the offer of version 2":
        expected = Version2Offered()
    elif expected is NEED_DATA:
        expected = TransferRequested(TransferKind.COPY, (A, B))
    assert outcome(connection) == expected


def test_server_goes_on_after_the_payload_was_taken() -> None:
    connection = SERVER_STATES["payload due"]()
    connection.data_to_send()
    connection.send_object(b"", b"")
    assert not connection.owes_answer


def test_an_answer_does_not_overtake_the_payload_of_the_one_before() -> None:
    connection = SERVER_STATES["payload due at the end"]()
    connection.receive_data(COPY_AB)
    assert connection.next_event() == TransferRequested(TransferKind.COPY, (A, B))
    with pytest.raises(LocalProtocolError, match="overtake 5 bytes"):
        connection.begin()
    connection.data_to_send()
    connection.begin()


@pytest.mark.parametrize("status", [-1, 0, 256])
def test_refuse_with_a_status_that_is_none(status: int) -> None:
    connection = server(COPY_AB)
    with pytest.raises(LocalProtocolError, match="refused"):
        connection.refuse(status)
    assert not connection.data_to_send()
    connection.refuse(0x71)


@pytest.mark.parametrize("statuses", [[], [0x41, 0x41], [256], [-1]])
def test_answer_sync_with_wrong_statuses(statuses: list[int]) -> None:
    connection = server(SYNC_A)
    with pytest.raises(LocalProtocolError):
        connection.answer_sync(statuses)
    assert not connection.data_to_send()
    connection.answer_sync((0x41,))


def test_the_table_is_closed() -> None:
    assert set(NEXT) == set(Owed)
    assert {after for row in NEXT.values() for after in row.values()} == set(Owed)
    listed = {call for row in NEXT.values() for call in row}
    assert listed == {*SERVER_CALLS, "transfer requested", "sync requested", "version 2 offered", "last object"}


# --- the client ------------------------------------------------------------------------------------------------------


def client(data: bytes = b"", *, sync: bool = False, events: int = 0) -> ClientConnection:
    connection = ClientConnection()
    if sync:
        connection.request_sync([PEER_A])
    else:
        connection.request_transfer(TransferKind.COPY, [A, B])
    connection.data_to_send()
    if data:
        connection.receive_data(data)
    for _ in range(events):
        connection.next_event()
    return connection


def filling(before: int, direct: int = 0) -> ClientConnection:
    """In the middle of a payload: so many bytes came with its header, so many after a buffer was supplied."""
    connection = client(b"\x00" + HEADER + bytes(before), events=3)
    connection.supply_buffer(bytearray(BIG))
    if direct:
        connection.receive_data(bytes(direct))
    return connection


def discarding() -> ClientConnection:
    connection = client(b"\x00" + HEADER, events=3)
    connection.discard_payload()
    return connection


def discarding_late() -> ClientConnection:
    connection = filling(10, 20)
    connection.discard_payload()
    return connection


def failed_client() -> ClientConnection:
    connection = ClientConnection()
    connection.receive_data(b"?")
    with pytest.raises(RemoteProtocolError, match="nobody asked"):
        connection.next_event()
    return connection


def closed_client() -> ClientConnection:
    connection = ClientConnection()
    connection.receive_eof()
    assert connection.next_event() == ConnectionClosed()
    return connection


CLIENT_STATES: dict[str, Callable[[], ClientConnection]] = {
    "idle": ClientConnection,
    "asked": client,
    "asked for sync": lambda: client(sync=True),
    "begun": lambda: client(b"\x00", events=1),
    "inside a header": lambda: client(b"\x00" + HEADER[:7], events=1),
    "inside metadata": lambda: client(b"\x00\x09\x00" + bytes(6) + b"meta", events=1),
    "payload started": lambda: client(b"\x00" + HEADER + b"123", events=2),
    "filling": lambda: filling(5, 10),
    "almost filled": lambda: filling(BIG - 1),
    "filled": lambda: filling(5, BIG - 5),
    "discarding": discarding,
    "discarding late": discarding_late,
    "payload finished": lambda: client_after(filling(BIG), 1),
    "refused": lambda: client(b"\x71", events=1),
    "sync answered": lambda: client(b"\x41", sync=True, events=1),
    "failed": failed_client,
    "closed": closed_client,
}


def client_after(connection: ClientConnection, events: int) -> ClientConnection:
    for _ in range(events):
        connection.next_event()
    return connection


CLIENT_CALLS: dict[str, Callable[[ClientConnection], object]] = {
    "request_transfer": lambda c: c.request_transfer(TransferKind.TAKE, [A]),
    "request_sync": lambda c: c.request_sync([PEER_A]),
    "supply_buffer": lambda c: c.supply_buffer(bytearray(BIG)),
    "discard_payload": lambda c: c.discard_payload(),
}
PAYLOAD_STATES = {"filling", "almost filled", "filled", "discarding", "discarding late"}

CLIENT_EVENTS: dict[str, Event | Signal | type[RemoteProtocolError]] = {
    **dict.fromkeys(CLIENT_STATES, NEED_DATA),
    "payload started": NEED_BUFFER,
    "filled": PayloadFinished(A),
    "failed": RemoteProtocolError,
    "closed": ConnectionClosed(),
}

CLIENT_ENDS = {
    "asked": "before the answer",
    "asked for sync": "before the answer",
    "begun": f"before the header of object {A}",
    "inside a header": f"before the header of object {A}",
    "inside metadata": f"after 0 of 0 bytes of object {A}",
    "filling": f"after 15 of {BIG} bytes of object {A}",
    "almost filled": f"after {BIG - 1} of {BIG} bytes of object {A}",
    "discarding": f"after 0 of {BIG} bytes of object {A}",
    "discarding late": f"after 30 of {BIG} bytes of object {A}",
    "payload finished": f"before the header of object {B}",
}


@pytest.mark.parametrize("call", CLIENT_CALLS)
@pytest.mark.parametrize("state", CLIENT_STATES)
def test_client_calls(state: str, call: str) -> None:
    connection = CLIENT_STATES[state]()
    if call.startswith("request"):
        allowed = state not in ("failed", "closed")
    elif call == "supply_buffer":
        allowed = state == "payload started"
    else:
        allowed = state == "payload started" or state in PAYLOAD_STATES
    if allowed:
        CLIENT_CALLS[call](connection)
        assert bool(connection.data_to_send()) == call.startswith("request")
        return
    with pytest.raises(LocalProtocolError):
        CLIENT_CALLS[call](connection)
    assert not connection.data_to_send()
    assert outcome(connection) == CLIENT_EVENTS[state]


@pytest.mark.parametrize("state", CLIENT_STATES)
def test_client_events(state: str) -> None:
    connection = CLIENT_STATES[state]()
    assert outcome(connection) == CLIENT_EVENTS[state]


@pytest.mark.parametrize("state", CLIENT_STATES)
def test_client_end(state: str) -> None:
    connection = CLIENT_STATES[state]()
    connection.receive_eof()
    if state in CLIENT_ENDS:
        with pytest.raises(RemoteProtocolError, match=f"ended the connection {CLIENT_ENDS[state]}"):
            connection.next_event()
        assert outcome(connection) is RemoteProtocolError
    elif CLIENT_EVENTS[state] is NEED_DATA:
        assert outcome(connection) == ConnectionClosed()
        assert outcome(connection) == ConnectionClosed()
    else:
        assert outcome(connection) == CLIENT_EVENTS[state]


@pytest.mark.parametrize("state", CLIENT_STATES)
def test_progress(state: str) -> None:
    connection = CLIENT_STATES[state]()
    connection.next_event() if state not in ("failed", "closed", "filled") else None
    progress = connection.describe_progress()
    if state in CLIENT_ENDS:
        assert progress == CLIENT_ENDS[state]
        assert connection.awaits_answer
    elif state in ("payload started", "filled"):
        assert str(A) in progress
        assert connection.current_object == A
        assert connection.bytes_expected == BIG
        assert connection.bytes_received == (BIG if state == "filled" else 0)
    else:
        assert progress == "between requests"
        assert not connection.awaits_answer
        assert connection.current_object is None
        assert connection.bytes_expected is None
        assert connection.bytes_received == 0


def test_bytes_of_a_small_object_count_too() -> None:
    connection = client(b"\x00" + bytes.fromhex("0200 0a0000000000") + b"mm123", events=2)
    assert connection.describe_progress() == f"after 3 of 10 bytes of object {A}"
    connection.receive_data(b"4567890")
    assert connection.next_event() == ObjectReceived(A, b"mm", b"1234567890")


@pytest.mark.parametrize("data", [b"\x71?", b"\x00" + bytes(16) + b"?"])
def test_bytes_after_the_answer_are_an_error(data: bytes) -> None:
    connection = client(data)
    while not isinstance(connection.next_event(), AnswerRefused | AnswerComplete):
        pass
    with pytest.raises(RemoteProtocolError, match="1 bytes that nobody asked for"):
        connection.next_event()


def test_bytes_that_nobody_looked_at_before_a_request_pass_for_its_answer() -> None:
    # Nothing on the wire says otherwise.
    connection = ClientConnection()
    connection.receive_data(b"\x71")
    connection.request_transfer(TransferKind.COPY, [A])
    assert connection.next_event() == AnswerRefused(0x71)


# --- both ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [ClientConnection, ServerConnection])
def test_reading_is_checked(end: type[ClientConnection | ServerConnection]) -> None:
    connection = end()
    with connection.get_buffer() as buffer:
        assert not buffer.readonly
        size = len(buffer)
    for nbytes in (0, -1, size + 1):
        with pytest.raises(LocalProtocolError):
            connection.advance(nbytes)
    with pytest.raises(LocalProtocolError, match="receive_eof"):
        connection.receive_data(b"")
    assert connection.next_event() is NEED_DATA
    connection.receive_eof()
    with pytest.raises(LocalProtocolError, match="follow the end"):
        connection.advance(1)
    with pytest.raises(LocalProtocolError, match="follow the end"):
        connection.receive_data(b"x")
    assert connection.next_event() == ConnectionClosed()


def test_undigested_data_stops_reading() -> None:
    connection = ServerConnection()
    wire = COPY_AB * 3_000
    connection.receive_data(wire)
    assert len(connection.get_buffer()) == 0
    with pytest.raises(LocalProtocolError, match="take the events first"):
        connection.receive_data(b"x")
    with pytest.raises(LocalProtocolError, match="take the events first"):
        connection.advance(1)
    assert isinstance(connection.next_event(), TransferRequested)
    assert len(connection.get_buffer()) == 0  # the scratch has room again, but for the earlier data first
    connection.refuse(0x71)
    connection.receive_eof()
    for _ in range(2_999):
        assert isinstance(connection.next_event(), TransferRequested)
        connection.refuse(0x71)
    assert connection.next_event() == ConnectionClosed()


def test_the_callers_memory_is_not_used_later() -> None:
    wire = bytearray(COPY_AB * 3_000)
    connection = ServerConnection()
    connection.receive_data(wire)
    wire[:] = bytes(len(wire))
    wire.append(0)
    for _ in range(3_000):
        assert connection.next_event() == TransferRequested(TransferKind.COPY, (A, B))
        connection.refuse(0x71)
    names = [A, B]
    other = ClientConnection()
    other.request_transfer(TransferKind.COPY, names)
    names.reverse()
    other.receive_data(b"\x00" + bytes(16))
    assert other.next_event() == AnswerBegun()
    assert other.next_event() == ObjectReceived(A, b"", b"")


def test_any_buffer_is_data() -> None:
    connection = ServerConnection()
    connection.receive_data(bytearray(COPY_AB[:3]))
    connection.receive_data(memoryview(COPY_AB[3:]).cast("I"))
    assert connection.next_event() == TransferRequested(TransferKind.COPY, (A, B))


def test_events_in_order() -> None:
    connection = client(b"\x00" + bytes.fromhex("0000 020000000000") + b"ab" + HEADER + bytes(BIG))
    assert connection.next_event() == AnswerBegun()
    assert connection.next_event() == ObjectReceived(A, b"", b"ab")
    assert connection.next_event() == PayloadStarted(B, b"", BIG)
    connection.discard_payload()
    assert connection.next_event() == PayloadFinished(B)
    assert connection.next_event() == AnswerComplete()
    connection.request_sync([PEER_A])
    connection.receive_data(b"\x90")
    assert connection.next_event() == SyncAnswered((0x90,))


def test_server_events_in_order() -> None:
    connection = ServerConnection()
    connection.receive_data(SYNC_A + COPY_AB)
    assert connection.next_event() == SyncRequested((PEER_A,))
    connection.answer_sync([0x41])
    assert connection.next_event() == TransferRequested(TransferKind.COPY, (A, B))
