"""What callers are told: which object, which peer, what was there already, and what is waited for."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock
from xxhash import xxh3_64_intdigest

from plasmastream import NotSupportedError, ObjectID, PeerError, PlasmastreamError, RemoteProtocolError
from plasmastream.peer import (
    NewFile,
    Outcome,
    PeerClient,
    PeerRequest,
    Result,
    TransferKind,
    UnreachableError,
)
from plasmastream.peer._channel import ClientChannel
from plasmastream.peer._comparison import Comparison
from plasmastream.peer._contents import content_of
from plasmastream.peer._persistence import Persistence
from plasmastream.store import EmbeddedStore, Lease, Leases, NewObject
from plasmastream.wire.plasma import ObjectStatus
from plasmastream.wire.stream.v2 import (
    ChunkSummed,
    Event,
    Message,
    ObjectDescribed,
    Outcomes,
    Progress,
    RunDamaged,
)
from tests.peer.helpers import CAPACITY, contents, fill, objects_of, serving
from tests.peer.world import open_world

SIZES = [(100, 5), (300_000, 5)]
"""One that travels in a RUN, and one that travels in chunks."""


class StoreThatDoesNotTell(EmbeddedStore):
    """As Apache's, which knows no `inspect`."""

    async def inspect(self, object_ids: Sequence[ObjectID] | None = None) -> list[ObjectStatus]:
        raise NotSupportedError("it does not tell")


@pytest.mark.parametrize("store_type", [EmbeddedStore, StoreThatDoesNotTell])
async def test_what_has_other_sizes_is_different(store_type: type[EmbeddedStore]) -> None:
    objects = objects_of(SIZES)
    with store_type(CAPACITY) as store:
        fill(store, objects)
        async with serving(store) as server, PeerClient(*server.address) as client:
            for more_data, more_metadata in ((b"", b""), (b"more", b""), (b"", b"more")):
                news = [NewObject(key, data + more_data, meta + more_metadata) for key, (data, meta) in objects.items()]
                is_same = not more_data + more_metadata
                for new, result in zip(news, await client.put(news), strict=True):
                    data, meta = objects[new.object_id]
                    there = f"with {len(data):,} bytes of data and {len(meta)} of metadata"
                    assert result.outcome == (Outcome.PRESENT if is_same else Outcome.DIFFERENT)
                    assert is_same or f"{there}; it has {len(new.data):,} bytes of data" in result.reason
        assert contents(store) == objects


async def test_what_somebody_puts_meanwhile_is_compared() -> None:
    objects = objects_of([(100, 5), (200, 0)])
    others = {object_id: (data[::-1], meta) for object_id, (data, meta) in objects.items()}
    same = dict(list(objects.items())[:1])

    class Overtaken(EmbeddedStore):
        """Somebody else puts objects just before the server does."""

        is_first = True

        async def put_many(self, objects: Sequence[NewObject], *, timeout: float = 0.0) -> Leases[Lease]:
            if self.is_first:
                self.is_first = False
                fill(self, {**others, **same})
            return await super().put_many(objects, timeout=timeout)

    with Overtaken(CAPACITY) as store:
        async with serving(store) as server, PeerClient(*server.address) as client:
            results = await client.put([NewObject(name, *content) for name, content in objects.items()])
        assert [result.outcome for result in results] == [Outcome.PRESENT, Outcome.DIFFERENT]
        assert contents(store) == {**others, **same}


async def test_what_is_there_is_compared_on_demand() -> None:
    objects = objects_of([(0, 0), (100, 5), (0, 200_000), (1_000_000, 5), (2_500_000, 0)])
    with EmbeddedStore(CAPACITY) as store:
        fill(store, objects)
        async with serving(store) as server, PeerClient(*server.address) as client:
            for object_id, (data, meta) in objects.items():
                compare = partial(_compare, client, object_id)
                assert await compare(data, meta) == Outcome.PRESENT
                for changed in (data + b"x", data[1:] + b"x", b"x" + data[1:]):
                    assert await compare(changed, meta) == Outcome.DIFFERENT
                assert await compare(data, meta[1:] + b"x") == Outcome.DIFFERENT
            missing = await client.compare(NewObject(ObjectID.from_name("missing"), b"x"))
            assert (missing.outcome, missing.reason) == (Outcome.NOT_FOUND, "there is no object of this id")
        for status in await store.inspect():
            assert status.holder_count == 0


class ScriptedChannel:
    """A channel whose other end answers each request with the next of some lists of events."""

    peer = "the peer"

    def __init__(self, *answers: Sequence[Event | Message]) -> None:
        self._answers = [list(answer) for answer in answers]
        self._answer: list[Event | Message] = []
        self._is_idle = True

    async def send(self, request: Message) -> None:
        """Ask, when the last answer has come to its end."""
        assert self._is_idle, f"{request} in the midst of an answer"
        self._answer = self._answers.pop(0) if self._answers else []
        self._is_idle = False

    async def answer(self) -> Event | Message | None:
        """What comes next."""
        self._is_idle = not self._answer
        return self._answer.pop(0) if self._answer else None


DESCRIBED = ObjectDescribed(index=0, data_size=3, metadata=b"", handle=7)
STORE_GONE = Outcomes(0, Outcome.STORE_ERROR, "the store is gone", (0,))


def comparison_with(answers: Sequence[Sequence[Event | Message]]) -> Comparison:
    """A comparison of three bytes, with what a channel says of them."""
    channel = cast("ClientChannel", ScriptedChannel(*answers))
    content = memoryview(b"abc"), memoryview(b"")
    return Comparison(channel, ObjectID.from_name("a"), content, Persistence(60, None))


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([[Progress(), RunDamaged()]], Outcome.DAMAGED),
        ([[Outcomes(0, Outcome.BEING_TAKEN, "it goes", (0,))]], Outcome.BEING_TAKEN),
        ([[DESCRIBED], [Outcomes(0, Outcome.EXPIRED, "", (0,))]], Outcome.EXPIRED),
        ([[DESCRIBED], [ChunkSummed(0, 0, 3, xxh3_64_intdigest(b"abc"))], [Progress()]], Outcome.PRESENT),
        ([[DESCRIBED], [ChunkSummed(0, 0, 3, 0)]], Outcome.DIFFERENT),
        ([[DESCRIBED], [ChunkSummed(0, 0, 2, xxh3_64_intdigest(b"ab")), STORE_GONE, Progress()]], Outcome.STORE_ERROR),
    ],
)
async def test_what_a_comparison_may_be_answered(answers: list[list[Event | Message]], outcome: Outcome) -> None:
    assert (await comparison_with(answers).run()).outcome == outcome


@pytest.mark.parametrize(
    "answers",
    [
        [[DESCRIBED], [ChunkSummed(0, 0, 2, xxh3_64_intdigest(b"ab"))]],
        [[DESCRIBED], [ChunkSummed(0, 0, 4, 0)]],
        [[DESCRIBED], [ChunkSummed(1, 0, 3, 0)]],
        [[DESCRIBED], [DESCRIBED]],
        [[ChunkSummed(0, 0, 3, 0)]],
        [[Outcomes(0, Outcome.PRESENT, "", (0,))]],
        [[Outcomes(0, Outcome.NOT_FOUND, "", (1,))]],
        [[DESCRIBED], [Outcomes(0, Outcome.DONE, "", (0,))]],
    ],
)
async def test_what_a_comparison_must_not_be_answered(answers: list[list[Event | Message]]) -> None:
    with pytest.raises(RemoteProtocolError, match="the peer"):
        await comparison_with(answers).run()


async def _compare(client: PeerClient, object_id: ObjectID, data: bytes, metadata: bytes) -> int:
    return (await client.compare(NewObject(object_id, data, metadata))).outcome


@contextmanager
def files_of(path: Path, contents: list[bytes]) -> Iterator[list[NewFile]]:
    """Files to be put, under ids that tell their order."""
    news = []
    try:
        for number, data in enumerate(contents):
            (path / str(number)).write_bytes(data)
            descriptor = os.open(path / str(number), os.O_RDWR)
            news.append(NewFile(ObjectID.from_name(str(number)), descriptor, len(data), b"about it"))
        yield news
    finally:
        for new in news:
            os.close(new.descriptor)


async def test_files_are_put_beside_objects(tmp_path: Path) -> None:
    data = [b"", b"small", os.urandom(70_000), os.urandom(3_000_000)]
    with EmbeddedStore(CAPACITY) as store, files_of(tmp_path, data) as news:
        async with serving(store) as server, PeerClient(*server.address) as client:
            results = await client.put([NewObject(ObjectID.from_name("memory"), b"in memory"), *news])
        assert {result.outcome for result in results} == {Outcome.DONE}
        expected = {new.object_id: (content, b"about it") for new, content in zip(news, data, strict=True)}
        assert contents(store) == {**expected, ObjectID.from_name("memory"): (b"in memory", b"")}


def test_a_file_is_named_by_its_descriptor(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=rf"descriptor of an open file.*not .*{tmp_path.name}"):
        NewFile(ObjectID.from_name("a"), tmp_path, 1)  # type: ignore[arg-type]


def test_outcomes_that_are_known_are_outcomes() -> None:
    done, unknown = Result(ObjectID.from_name("a"), 0), Result(ObjectID.from_name("a"), 99)
    assert done.outcome is Outcome.DONE
    assert (unknown.outcome, unknown.is_success) == (99, False)
    assert str(unknown).endswith("unknown outcome 99")


async def test_a_file_that_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, data = os.pread, os.urandom(5000)
    monkeypatch.setattr(os, "pread", lambda file, size, offset: whole(file, min(size, 1000), offset))
    with files_of(tmp_path, [data]) as (new,):
        assert content_of(new)[0][10:4990] == data[10:4990]


@pytest.mark.parametrize("size", [1000, 3_000_000])
async def test_a_file_that_is_shorter_than_was_said(tmp_path: Path, size: int) -> None:
    with EmbeddedStore(CAPACITY) as store, files_of(tmp_path, [bytes(size)]) as news:
        os.truncate(news[0].descriptor, 10)
        async with serving(store) as server, PeerClient(*server.address) as client:
            with pytest.raises(PlasmastreamError, match=rf"{news[0].object_id} became shorter: 10 of {size:,} bytes"):
                await client.put(news)
            assert not len(store.core.table)  # nor is anything begun


@pytest.mark.parametrize("offset", [0, 1 << 22])
async def test_a_file_that_changes_or_grows_while_it_is_put(tmp_path: Path, offset: int) -> None:
    def change(objects: int, nbytes: int) -> None:
        os.pwrite(changed.descriptor, b"x", offset)

    with EmbeddedStore(CAPACITY) as store, files_of(tmp_path, [bytes(3_000_000), b"small"]) as news:
        changed = news[0]
        os.utime(changed.descriptor, (0, 0))  # a change within the same tick of the clock would not show
        async with serving(store) as server, PeerClient(*server.address) as client:
            with pytest.raises(PlasmastreamError, match=f"{changed.object_id} changed while it was read"):
                await client.put(news, on_progress=change)
        assert changed.object_id not in contents(store)


async def test_requests_that_fail_as_a_whole_name_their_objects() -> None:
    ids = tuple(ObjectID.from_name(letter) for letter in "abc")
    with trio.socket.socket() as dead:
        await dead.bind(("127.0.0.1", 0))  # and does not listen
        host, port = dead.getsockname()
        requests = [PeerRequest(TransferKind.COPY, host, port, ids)]
        async with PeerClient(host, port) as client:
            for call in (lambda: client.sync_each(requests), lambda: client.sync(requests), lambda: client.stat(ids)):
                with pytest.raises(UnreachableError, match=rf"^object {ids[0]} and 2 more: no connection .*; see that"):
                    await call()
            with pytest.raises(UnreachableError, match=r"^no connection"):
                await client.sync_each([])
            with EmbeddedStore(CAPACITY) as store, pytest.raises(UnreachableError, match=rf"^object {ids[0]}: "):
                await client.copy(ids[:1], store)


@pytest.mark.parametrize("size", [50, 2500])
async def test_an_object_that_somebody_else_writes_here_is_named_once(size: int, autojump_clock: MockClock) -> None:
    objects = objects_of([(size, 0)])
    (object_id,) = objects
    async with open_world(near=objects) as world:
        async with world.here.create(object_id, size):
            (result,) = await world.client().fetch(TransferKind.COPY, [object_id], world.here, timeout=1)
        assert result.outcome == Outcome.BEING_WRITTEN
        assert "somebody else is writing" in str(result)
        assert str(result).count(str(object_id)) == 1
    assert str(Result(object_id, Outcome.NO_ROOM, f"object {object_id} of 9 bytes: no room")).count(str(object_id)) == 1


async def test_last_words_say_what_is_worth_a_word(autojump_clock: MockClock) -> None:
    persistence = Persistence(60, None)
    assert persistence.last_words("host:1", "no connection to host:1", "") == "no connection to host:1"
    assert persistence.last_words("host:1", "damaged", advice="ask again") == "damaged; the peer is host:1; ask again"
    await trio.sleep(2)
    assert persistence.last_words("host:1", "host:1 is late") == "host:1 is late; nothing has moved for 2 s"
    words = persistence.last_words("host:1", "no room", advice="ask again")
    assert words == "no room; nothing has moved to or from host:1 for 2 s; ask again"
    persistence.progressed()
    await trio.sleep(3)
    words = persistence.last_words("host:1", "damaged")
    assert words == "damaged; the last progress with host:1 was 3 s ago"


async def test_a_client_closes_its_connections_with_its_block() -> None:
    objects = objects_of(SIZES)
    with EmbeddedStore(CAPACITY) as store:
        fill(store, objects)
        async with serving(store) as server:
            async with PeerClient(*server.address) as client:
                assert len(await client.list_objects()) == len(objects)
                assert client._lanes.has_any
            assert not client._lanes.has_any


async def test_what_is_waited_for_is_logged_once(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    caplog.set_level(logging.INFO)
    persistence = Persistence(60, 20)
    for _ in range(3):
        persistence.failed(PeerError("it broke"))
        assert await persistence.pause()
    persistence.hindered("somebody writes it")
    assert await persistence.pause()
    assert await persistence.pause()
    persistence.progressed()
    persistence.failed(PeerError("it broke"))
    failed, told, hindered, again = caplog.messages
    assert failed == again == "an attempt has failed: it broke"
    assert told == "it broke; trying again for up to 20 s"
    assert hindered.startswith("somebody writes it; trying again for up to ")
