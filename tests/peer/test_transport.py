"""TCP transports: pieces, stalls, ends, and how addresses are written."""

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import anyio
import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from plasmastream import PeerError
from plasmastream.peer import PeerStalledError, parse_address
from plasmastream.peer._transport import TcpTransport, connect, format_address
from tests.peer.helpers import tcp_pair


@pytest.fixture
async def pair() -> AsyncIterator[tuple[TcpTransport, socket.socket]]:
    ours, theirs = tcp_pair()
    theirs.setblocking(False)
    transport = TcpTransport(ours)
    with theirs:
        yield transport, theirs
    transport.close()


async def read_all(sock: socket.socket, step: int = 1 << 16) -> bytes:
    """What arrives until the end."""
    received = bytearray()
    while True:
        await trio.lowlevel.wait_readable(sock)
        data = sock.recv(step)
        if not data:
            return bytes(received)
        received += data


PIECES: list[list[bytes]] = [
    [],
    [b""],
    [b"a"],
    [b"a", b"", b"bc"],
    [bytes([i % 251]) * 100 for i in range(3000)],
    [b"x" * 600_000, b"y", b"z" * 600_000],
    [b"a" * 300_000, b"b" * 300_000, b"c" * 300_000],
    [b"s", b"l" * (1 << 20), b"s", b"", b"l" * (1 << 20)],
]


@pytest.mark.parametrize("pieces", PIECES)
async def test_pieces_of_all_sizes_arrive_in_order(
    pieces: list[bytes], pair: tuple[TcpTransport, socket.socket]
) -> None:
    transport, theirs = pair
    mixed = [piece if index % 2 else memoryview(piece) for index, piece in enumerate(pieces)]
    received = b""

    async def read() -> None:
        nonlocal received
        received = await read_all(theirs, 50_000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await transport.send(mixed, timeout=5)
        await transport.send([b"!"], timeout=5)
        transport.close()
    assert received == b"".join(pieces) + b"!"
    for piece in mixed:
        if isinstance(piece, memoryview):
            piece.release()  # nobody looks at it any more


async def test_a_peer_with_an_excuse_is_given_more_time(
    pair: tuple[TcpTransport, socket.socket], autojump_clock: MockClock
) -> None:
    transport, _ = pair
    excuses = iter([True, True, False])

    async def excuse() -> bool:
        return next(excuses)

    with pytest.raises(PeerStalledError, match="took nothing for 20 s"):
        await transport.send([bytes(64 << 20)], timeout=20, excuse=excuse)
    assert trio.current_time() == pytest.approx(3 * 20)


async def test_a_peer_that_stands_still_is_given_up(
    pair: tuple[TcpTransport, socket.socket], autojump_clock: MockClock
) -> None:
    transport, _ = pair
    start = trio.current_time()
    with pytest.raises(PeerStalledError, match="sent nothing for 30 s"):
        await transport.receive_into(memoryview(bytearray(10)), timeout=30)
    assert trio.current_time() - start == pytest.approx(30)
    with pytest.raises(PeerStalledError, match="took nothing for 20 s"):
        await transport.send([bytes(64 << 20)], timeout=20)


async def test_a_clean_end_is_an_empty_read(pair: tuple[TcpTransport, socket.socket]) -> None:
    transport, theirs = pair
    theirs.send(b"hello")
    theirs.close()
    buffer = memoryview(bytearray(10))
    assert await transport.receive_into(buffer, timeout=5) == 5
    assert await transport.receive_into(buffer, timeout=5) == 0


# Many bytes at once


@attrs.define
class Reading:
    """One read under way, and what came of it."""

    nbytes: int | None = None
    error: str = ""

    async def read(self, transport: TcpTransport, expected: int, timeout: float = 5, size: int = 1 << 20) -> None:
        """Read once."""
        try:
            self.nbytes = await transport.receive_into(memoryview(bytearray(size)), timeout=timeout, expected=expected)
        except PeerError as error:
            self.error = str(error)


@asynccontextmanager
async def reading_from(transport: TcpTransport, expected: int) -> AsyncIterator[Reading]:
    """A read that waits for bytes when the block begins, and is done when it has been left."""
    reading = Reading()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reading.read, transport, expected)
        await wait_all_tasks_blocked()
        yield reading


async def arrived(sock: socket.socket, nbytes: int) -> None:
    """Wait until the kernel has so many bytes for a socket."""
    while len(sock.recv(nbytes, socket.MSG_PEEK)) < nbytes:
        await trio.lowlevel.checkpoint()


async def test_a_reader_sleeps_until_what_it_expects_is_there(
    pair: tuple[TcpTransport, socket.socket], mock_clock: MockClock
) -> None:
    transport, theirs = pair
    async with reading_from(transport, 1000) as reading:
        for nbytes in (1, 998):
            theirs.send(bytes(nbytes))
            await wait_all_tasks_blocked()
        await arrived(transport._socket, 999)
        await wait_all_tasks_blocked(0.01)
        assert reading.nbytes is None
        theirs.send(bytes(1))
    assert reading.nbytes == 1000


async def test_what_is_slow_in_coming_is_read_all_the_same(
    pair: tuple[TcpTransport, socket.socket], autojump_clock: MockClock
) -> None:
    transport, theirs = pair
    start = trio.current_time()
    async with reading_from(transport, 1 << 20) as reading:
        theirs.send(b"a")
    assert reading.nbytes == 1
    assert trio.current_time() - start < 0.1

    async with reading_from(transport, 1 << 20) as reading:  # also if it comes long after
        await trio.sleep(3)
        theirs.send(b"ab")
    assert reading.nbytes == 2


@pytest.mark.parametrize("timeout", [0, 0.001, 0.02, 1])
async def test_a_peer_that_owes_much_is_given_up_no_later(
    timeout: float, pair: tuple[TcpTransport, socket.socket], autojump_clock: MockClock
) -> None:
    transport, theirs = pair
    start = trio.current_time()
    reading = Reading()
    await reading.read(transport, 1 << 20, timeout)
    assert f"sent nothing for {timeout:g} s" in reading.error
    assert trio.current_time() - start == pytest.approx(timeout, abs=1e-6)
    theirs.send(b"a")
    await reading.read(transport, 1 << 20, timeout)
    assert reading.nbytes == 1


@pytest.mark.parametrize("sent", [0, 5])
async def test_the_end_wakes_who_expects_more(sent: int, pair: tuple[TcpTransport, socket.socket]) -> None:
    transport, theirs = pair
    async with reading_from(transport, 1 << 20) as reading:
        theirs.send(bytes(sent))
        theirs.close()
    assert reading.nbytes == sent
    await reading.read(transport, 1 << 20)
    assert reading.nbytes == 0


async def test_a_reset_wakes_who_expects_more(
    pair: tuple[TcpTransport, socket.socket], mock_clock: MockClock
) -> None:
    transport, theirs = pair
    async with reading_from(transport, 1 << 20) as reading:
        TcpTransport(theirs).abort()
    assert "broke: Connection reset" in reading.error


async def test_a_close_wakes_who_expects_more(
    pair: tuple[TcpTransport, socket.socket], mock_clock: MockClock
) -> None:
    transport, _ = pair
    async with reading_from(transport, 1 << 20) as reading:
        transport.close()
    assert "was closed" in reading.error


async def test_who_expected_much_is_woken_by_one_byte_again(
    pair: tuple[TcpTransport, socket.socket], mock_clock: MockClock
) -> None:
    transport, theirs = pair
    for expected, nbytes in ((1 << 20, 1 << 19), (1, 1), (100, 100), (1, 1)):
        async with reading_from(transport, expected) as reading:
            theirs.setblocking(True)
            await trio.to_thread.run_sync(theirs.sendall, bytes(nbytes))
        assert reading.nbytes == nbytes


async def test_a_cancel_of_who_expects_more_loses_nothing(
    pair: tuple[TcpTransport, socket.socket], mock_clock: MockClock
) -> None:
    transport, theirs = pair
    with trio.CancelScope() as scope:
        async with reading_from(transport, 1000) as reading:
            theirs.send(b"abc")
            await arrived(transport._socket, 3)
            scope.cancel()
    assert reading.nbytes is None
    await reading.read(transport, 1)
    assert reading.nbytes == 3


async def test_an_abort_is_an_error_for_the_peer(pair: tuple[TcpTransport, socket.socket]) -> None:
    transport, theirs = pair
    transport.abort()
    transport.abort()
    transport.close()
    await trio.lowlevel.wait_readable(theirs)
    with pytest.raises(ConnectionResetError):
        theirs.recv(1)


@pytest.mark.parametrize("on", [True, False])
async def test_what_a_death_looks_like_can_be_chosen(on: bool, pair: tuple[TcpTransport, socket.socket]) -> None:
    transport, theirs = pair
    transport.break_on_death(True)
    transport.break_on_death(on)
    transport._socket.close()  # as the kernel does with a dead process's
    await trio.lowlevel.wait_readable(theirs)
    if on:
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
    else:
        assert theirs.recv(1) == b""


async def test_a_broken_connection_is_named(pair: tuple[TcpTransport, socket.socket]) -> None:
    transport, theirs = pair
    name = format_address(theirs.getsockname())
    assert transport.peer == name
    other = TcpTransport(theirs)
    other.abort()
    await wait_all_tasks_blocked()
    buffer = memoryview(bytearray(10))
    with pytest.raises(PeerError, match=f"connection to {name} broke: Connection reset"):
        await transport.receive_into(buffer, timeout=5)
    with pytest.raises(PeerError, match="broke"):
        await transport.send([b"x"], timeout=5)


async def test_who_waits_when_it_is_closed_is_told(pair: tuple[TcpTransport, socket.socket]) -> None:
    transport, _ = pair
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(PeerError, match="was closed"):
                await transport.receive_into(memoryview(bytearray(1)), timeout=5)

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        transport.close()


async def test_a_peer_that_is_gone_already_has_no_name() -> None:
    with socket.socket() as never_connected:
        assert TcpTransport(never_connected).peer == "a peer that is gone already"


async def test_a_connection_that_never_waits_lets_others_run(pair: tuple[TcpTransport, socket.socket]) -> None:
    transport, theirs = pair
    theirs.send(bytes(1000))
    await wait_all_tasks_blocked()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        buffer = memoryview(bytearray(1))
        for _ in range(500):
            await transport.receive_into(buffer, timeout=5)
        nursery.cancel_scope.cancel()
    assert turns >= 5


def test_it_works_on_asyncio_too() -> None:
    async def check() -> None:
        ours, theirs = tcp_pair()
        first, second = TcpTransport(ours), TcpTransport(theirs)
        buffer = memoryview(bytearray(5 << 20))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: first.send([bytes(4 << 20)], timeout=5))
            received = 0
            while received < 4 << 20:
                received += await second.receive_into(buffer, timeout=5)
        with pytest.raises(PeerStalledError):
            await second.receive_into(buffer, timeout=0.01)
        first.close()
        assert await second.receive_into(buffer, timeout=5) == 0
        second.close()

    anyio.run(check, backend="asyncio")


# Connecting


async def test_connect_finds_ipv4_and_ipv6() -> None:
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("localhost", socket.AF_INET)):
        with socket.socket(family) as listener:
            listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
            listener.listen()
            transport = await connect(host, listener.getsockname()[1], timeout=5)
            assert transport.local_address in ("127.0.0.1", "::1")
            transport.close()


async def test_nobody_listens_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(PeerError, match=rf"no connection to 127\.0\.0\.1:{port}: Connection refused"):
            await connect("127.0.0.1", port, timeout=5)


async def test_a_host_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*arguments: object, **options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(anyio, "getaddrinfo", unknown)
    with pytest.raises(PeerError, match=r"nowhere\.test is not a host that is known here: Name"):
        await connect("nowhere.test", 1, timeout=5)


async def test_a_host_that_does_not_answer(autojump_clock: MockClock) -> None:
    """Its queue of connections is full: the kernel lets further ones wait."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        code = 0
        while code != errno.EALREADY:
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
            code = one.connect_ex(listener.getsockname())
        began = trio.current_time()
        with pytest.raises(PeerError, match="did not answer within 3 s"):
            await connect("127.0.0.1", listener.getsockname()[1], timeout=3)
        assert trio.current_time() - began == pytest.approx(3)


@pytest.mark.parametrize("code", [0, errno.EINPROGRESS])
async def test_connecting_waits_for_the_handshake(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is made at once, as kernels may over loopback, or is under way."""
    real = socket.socket.connect_ex

    def connect_ex(self: socket.socket, address: tuple[str, int]) -> int:
        self.setblocking(True)
        real(self, address)
        self.setblocking(False)
        return code

    monkeypatch.setattr(socket.socket, "connect_ex", connect_ex)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        (await connect("127.0.0.1", listener.getsockname()[1], timeout=5)).close()


# Addresses


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("10.0.0.1", 2021), "10.0.0.1:2021"),
        (("::1", 80), "[::1]:80"),
        (("::ffff:10.0.0.1", 80, 0, 0), "10.0.0.1:80"),
        (("::ffff:a00:1", 80, 0, 0), "[::ffff:a00:1]:80"),
        (("fe80::1%eth0", 80, 0, 3), "[fe80::1%eth0]:80"),
        (("node", 1), "node:1"),
    ],
)
def test_addresses_are_written(address: tuple[str | int, ...], text: str) -> None:
    assert format_address(address) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node", ("node", 2021)),
        ("node:80", ("node", 80)),
        ("10.0.0.1", ("10.0.0.1", 2021)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("[::1]", ("::1", 2021)),
        ("[::1]:1", ("::1", 1)),
        ("[fe80::1%eth0]:7", ("fe80::1%eth0", 7)),
    ],
)
def test_addresses_are_read(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected
    assert parse_address(format_address(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", ":80", "node:", "node:0", "node:65536", "node:-1", "node:http", "node:\u0663"),
        *("::1", "::1:80", "a:b:80", "[]", "[]:1"),
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is written"):
        parse_address(text)


def test_another_default_port_can_be_given() -> None:
    assert parse_address("node", 7) == ("node", 7)
