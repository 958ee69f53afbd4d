"""Sender and receiver: every size, every way of cutting the stream, and every point at which it can fail."""

import socket

import pytest
import trio
from trio.testing import MockClock

from plasmastream import ObjectExistsError, ObjectID, PeerError, RemoteProtocolError, StoreError, TransferError
from plasmastream.peer import Limits, PeerStalledError, Status, TransferKind
from plasmastream.peer._receiver import Receiver
from plasmastream.peer._sender import send_objects
from plasmastream.peer._transport import TcpTransport
from plasmastream.store import EmbeddedStore, Lease, Leases, NewObject
from plasmastream.wire.stream import ClientConnection, ServerConnection
from tests.peer.helpers import (
    CAPACITY,
    MIXED,
    Objects,
    ScriptedTransport,
    answer_with,
    contents,
    fill,
    objects_of,
    tcp_pair,
)
from tests.store.helpers import assert_untouched

# With payloads from 64 bytes on, a short answer has all kinds of object in it.
LIMITS = Limits(inline_size=64)
SHORT = [(10, 0), (0, 0), (100, 3), (5, 70), (0, 80), (60, 0), (64, 0), (150, 150)]


def receiver(
    transport: ScriptedTransport | TcpTransport,
    store: EmbeddedStore,
    objects: Objects,
    reports: list[tuple[int, int]] | None = None,
    limits: Limits = LIMITS,
) -> Receiver:
    connection = ClientConnection(limits)
    connection.request_transfer(TransferKind.COPY, list(objects))
    connection.data_to_send()
    report = None if reports is None else lambda objects, nbytes: reports.append((objects, nbytes))
    return Receiver(connection, transport, store, progress_timeout=30, store_timeout=5, on_progress=report)


def nbytes(objects: Objects) -> int:
    return sum(len(data) + len(metadata) for data, metadata in objects.values())


@pytest.mark.parametrize(
    ("sizes", "limits", "step"),
    [
        (SHORT, LIMITS, 1),
        (SHORT, LIMITS, 7),
        (SHORT, LIMITS, 1 << 20),
        (MIXED, Limits(), 1000),
        (MIXED, Limits(), 65_537),
        (MIXED, Limits(), 1 << 20),
        ([(100, 5)] * 2000, Limits(), 100_000),
        ([(10_000, 5)] * 300, Limits(), 1 << 20),
        ([(3 << 20, 65_535), (1, 0), (100_000, 1)], Limits(), 1 << 20),
    ],
)
async def test_objects_arrive_however_the_stream_is_cut(
    sizes: list[tuple[int, int]], limits: Limits, step: int
) -> None:
    objects = objects_of(sizes)
    with EmbeddedStore(CAPACITY) as store:
        reports: list[tuple[int, int]] = []
        transport = ScriptedTransport(answer_with(objects), step)
        await receiver(transport, store, objects, reports, limits).run()
        assert contents(store) == objects
        assert_untouched(store)
        assert sum(count for count, _ in reports) == len(objects)
        assert sum(size for _, size in reports) == nbytes(objects)
        assert all(count >= 0 and size >= 0 for count, size in reports)


@pytest.mark.parametrize("step", [5, 50])
@pytest.mark.parametrize("failure", ["cut", "stall", "break", "cancel"])
async def test_a_failure_at_any_read_leaves_nothing(failure: str, step: int) -> None:
    objects = objects_of(SHORT)
    answer = answer_with(objects)
    reads = -(-len(answer) // step)
    with EmbeddedStore(CAPACITY) as store:
        for at in range(1, reads + 1):
            transport = ScriptedTransport(answer, step, at, failure)
            with transport.scope:
                if failure == "cancel":
                    await receiver(transport, store, objects).run()
                    pytest.fail("it went well")
                with pytest.raises(PeerStalledError if failure == "stall" else PeerError, match="a script"):
                    await receiver(transport, store, objects).run()
            assert transport.scope.cancelled_caught == (failure == "cancel")
            assert contents(store) == {}
            assert_untouched(store)
            assert store.core.heap.used_bytes == 0
        await receiver(ScriptedTransport(answer, step), store, objects).run()
        assert contents(store) == objects


async def test_a_failure_tells_how_far_it_came() -> None:
    objects = objects_of([(200_000, 0)])
    (object_id,) = objects
    with EmbeddedStore(CAPACITY) as store:
        transport = ScriptedTransport(answer_with(objects), 100_009, 2, "stall")
        with pytest.raises(PeerStalledError, match=f"for 30 s after 100000 of 200000 bytes of object {object_id}"):
            await receiver(transport, store, objects, limits=Limits()).run()


@pytest.mark.parametrize("status", [Status.NOT_FOUND, Status.SCHEDULED_FOR_DELETION, 0xEE])
async def test_a_refusal_carries_its_status(status: int) -> None:
    with EmbeddedStore(CAPACITY) as store:
        with pytest.raises(TransferError) as caught:
            await receiver(ScriptedTransport(bytes([status]), 1), store, objects_of([(1, 1)])).run()
        assert caught.value.status == status
        assert_untouched(store)


async def test_an_object_beyond_the_limits_is_not_received() -> None:
    objects = objects_of([(10, 0), (1000, 0)])
    with EmbeddedStore(CAPACITY) as store:
        transport = ScriptedTransport(answer_with(objects), 1)
        with pytest.raises(RemoteProtocolError) as caught:
            await receiver(transport, store, objects, limits=Limits(max_data_size=999, inline_size=5)).run()
        assert caught.value.status == Status.DATA_TOO_LARGE
        assert contents(store) == {}


@pytest.mark.parametrize("index", range(len(SHORT)))
async def test_an_object_that_is_here_already_stops_all(index: int) -> None:
    objects = objects_of(SHORT)
    here = {object_id: content for number, (object_id, content) in enumerate(objects.items()) if number == index}
    with EmbeddedStore(CAPACITY) as store:
        fill(store, here)
        with pytest.raises(ObjectExistsError):
            await receiver(ScriptedTransport(answer_with(objects), 10), store, objects).run()
        assert contents(store) == here
        assert_untouched(store)


async def test_a_full_store_does_not_evict_what_has_just_arrived(autojump_clock: MockClock) -> None:
    objects = objects_of([(300_000, 0)] * 4)
    with EmbeddedStore(1_000_000) as store:
        with pytest.raises(StoreError, match="do not fit"):
            with trio.fail_after(30):
                await receiver(ScriptedTransport(answer_with(objects), 1 << 20), store, objects).run()
        assert contents(store) == {}
        assert_untouched(store)


class UnreliableStore(EmbeddedStore):
    """A store whose sealed objects vanish, and which may fail to delete."""

    async def get(self, object_ids: object, *, timeout: float | None = 0.0) -> Leases[Lease | None]:
        return Leases([None])

    async def delete(self, object_ids: object) -> list[object]:  # type: ignore[override]
        raise StoreError("gone")


async def test_an_object_that_vanishes_is_an_error_and_so_is_what_it_was() -> None:
    objects = objects_of([(100, 0)])
    with UnreliableStore(CAPACITY) as store, pytest.raises(StoreError, match="as soon as it was sealed"):
        await receiver(ScriptedTransport(answer_with(objects), 10), store, objects).run()


async def test_a_report_that_fails_ends_the_transfer() -> None:
    for size in (10, 100):
        objects = objects_of([(size, 0)])
        with EmbeddedStore(CAPACITY) as store:
            r = receiver(ScriptedTransport(answer_with(objects), 200), store, objects)

            def fail(objects: int, nbytes: int) -> None:
                raise ZeroDivisionError

            r._report = fail
            with pytest.raises(ZeroDivisionError):
                await r.run()
            assert contents(store) == {}
            assert_untouched(store)


# The sender


@pytest.mark.parametrize("sizes", [SHORT, MIXED, [(60_000, 1)] * 30, [(65_536, 0), (65_535, 0)], [(5 << 20, 9)]])
async def test_what_is_sent_is_what_arrives(sizes: list[tuple[int, int]]) -> None:
    objects = objects_of(sizes)
    ours, theirs = tcp_pair()
    with EmbeddedStore(CAPACITY) as source, EmbeddedStore(CAPACITY) as destination:
        fill(source, objects)
        leases = [lease for lease in await source.get(list(objects)) if lease is not None]
        connection = ServerConnection()
        connection.receive_data(b"\x02" + len(objects).to_bytes(2, "little") + b"".join(objects))
        connection.next_event()
        first, second = TcpTransport(ours), TcpTransport(theirs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receiver(second, destination, objects, limits=Limits()).run)
            await send_objects(connection, first, leases, timeout=5, is_take=False)
        for lease in leases:
            lease.release()
        first.close()
        second.close()
        assert contents(destination) == objects
        assert_untouched(source)
        assert_untouched(destination)


async def test_a_sender_whose_peer_stalls_lets_go(autojump_clock: MockClock) -> None:
    objects = objects_of([(60_000, 0)] * 50 + [(5 << 20, 0)])
    ours, theirs = tcp_pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with EmbeddedStore(16 << 20) as source, theirs:
        fill(source, objects)
        leases = [lease for lease in await source.get(list(objects)) if lease is not None]
        connection = ServerConnection()
        connection.receive_data(b"\x02" + len(objects).to_bytes(2, "little") + b"".join(objects))
        connection.next_event()
        transport = TcpTransport(ours)
        with pytest.raises(PeerStalledError):
            await send_objects(connection, transport, leases, timeout=5, is_take=False)
        for lease in leases:
            lease.release()
        transport.abort()
        assert_untouched(source)


async def test_small_objects_are_put_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = objects_of([(10_000, 0)] * 200)
    with EmbeddedStore(CAPACITY) as store:
        real, batches = store.put_many, []

        async def put_many(new: list[NewObject], *, timeout: float) -> Leases[Lease]:
            batches.append(len(new))
            return await real(new, timeout=timeout)

        monkeypatch.setattr(store, "put_many", put_many)
        await receiver(ScriptedTransport(answer_with(objects), 1 << 20), store, objects, limits=Limits()).run()
        assert sum(batches) == 200
        assert len(batches) < 20
        assert isinstance(next(iter(contents(store))), ObjectID)
