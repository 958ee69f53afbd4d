"""`bench`: what it tells, and that nothing of it stays with the peer, whatever becomes of it. Nothing here is timed."""

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from plasmastream.cli import _bench, _waits
from plasmastream.cli._bench import Gauge, NoRoomError, open_gauge
from plasmastream.cli._types import Address
from plasmastream.peer import PeerTimeouts
from plasmastream.store import open_store
from tests.apache import short_directory
from tests.cli.processes import (
    Node,
    Running,
    command_line,
    get_object,
    node,
    put_object,
    run,
    run_here,
    shown_on_terminal,
    without_waits,
)
from tests.cli.test_remote import silent_server, version_1_server

QUICK = ("--max-size", "64KiB", "--seconds", "0.03")
WAYS = ["put", "copy", "one_connection", "version_1", "take"]
HEADS = ["put", "copy", "one conn.", "version 1", "take"]
AN_ID = re.compile("[0-9a-f]{40}")


@pytest.fixture(autouse=True)
def no_store_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs none."""
    monkeypatch.setenv("PLASMA_SOCKET", "/nonexistent/plasma")


async def objects_at(socket: str) -> list[str]:
    """What is in a store, also unsealed."""
    async with open_store(socket) as store:
        return [str(info.object_id) for info in await store.list_objects()]


async def some_object_at(socket: str, bench: Running) -> None:
    """Wait until anything is in a store, also unsealed."""
    with trio.fail_after(60):
        async with open_store(socket) as store:
            while not await store.list_objects():
                assert bench.process.poll() is None, bench.err
                await trio.sleep(0.001)


def some_words_of(bench: Running, words: str) -> None:
    """Wait until it has said them on standard error."""

    async def wait() -> None:
        with trio.fail_after(60):
            while words not in bench.err:
                assert bench.process.poll() is None, bench.err
                await trio.sleep(0.01)

    trio.run(wait)


@contextlib.contextmanager
def resumed(there: Node) -> Iterator[Callable[[], None]]:
    """What stops a server, as a machine that hangs does, until the block is left."""

    def stop() -> None:
        there.process.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, there.process.process.pid, os.WSTOPPED)

    try:
        yield stop
    finally:
        there.process.signal(signal.SIGCONT)


def before_measuring(size: int, do: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something happen when it comes to objects of this size."""
    measure = Gauge.measure

    async def do_and_measure(gauge: Gauge, measured: int, *args: Any, **kwargs: Any) -> Any:
        if measured == size:
            do()
        return await measure(gauge, measured, *args, **kwargs)

    monkeypatch.setattr(Gauge, "measure", do_and_measure)


def test_json(there: Node) -> None:
    kept = put_object(there.socket, b"somebody's")
    found = json.loads(run("bench", there.address, *QUICK, "--json").succeeds().text)
    assert found["peer"] == there.address
    assert list(found["ways"]) == WAYS
    assert "no checksums" in found["ways"]["version_1"]
    assert [row["size"] for row in (found["latency"], *found["rates"])] == [100, 1, 1 << 10, 64 << 10]
    for row in (found["latency"], *found["rates"]):
        assert list(row["seconds"]) == WAYS
        assert row["rounds"] >= 3
        assert row["objects"] * row["size"] <= 64 << 10
        for figures in row["seconds"].values():
            assert 0 < figures["median"] <= figures["percentile_99"]
            assert figures["objects_per_second"] == pytest.approx(row["objects"] / figures["median"])
            assert figures["bytes_per_second"] == pytest.approx(row["objects"] * row["size"] / figures["median"])
    assert trio.run(objects_at, there.socket) == [kept]
    assert get_object(there.socket, kept) == b"somebody's"


@pytest.fixture
def however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out because it would take long: a slow machine has all the rows."""
    monkeypatch.setattr(_bench, "LARGE", 1 << 60)


@pytest.mark.usefixtures("however_long")
def test_tables_and_what_has_no_room() -> None:
    with short_directory() as directory, node(directory / "s", memory="4MiB") as there:
        result = run_here("bench", there.address, "--max-size", "5MiB", "--seconds", "0.05")
        result.fails(0, there.address, "5MiB and more are left out", f"{4 << 20:,}")
        lines = result.text.splitlines()
        assert [line.split(":")[0].strip() for line in lines[1:6]] == HEADS
        assert lines[7].split() == ["latency", "rounds", *" ".join(HEADS).split()]
        assert [line.split()[2] for line in lines[-4:]] == ["1", "1KiB", "64KiB", "1MiB"]
        assert all(int(line.partition("B")[2].split()[0]) >= 3 for line in lines[-4:])  # rounds
        assert not [line for line in lines if len(line) > 80]
        assert trio.run(objects_at, there.socket) == []


@pytest.mark.usefixtures("however_long")
def test_a_store_with_room_for_few_of_them() -> None:
    with short_directory() as directory, node(directory / "s", memory="256KiB") as there:
        result = run_here("bench", there.address, "--max-size", "2MiB", "--seconds", "0.03", "--json")
        result.fails(0, there.address, "1MiB and more are left out", "no room for an object of 1MiB")
        assert not AN_ID.search(result.err)
        last = json.loads(result.text)["rates"][-1]
        assert last["size"] == 64 << 10
        assert last["objects"] <= 4
        assert trio.run(objects_at, there.socket) == []


@pytest.mark.usefixtures("however_long")
def test_a_store_that_has_not_room_for_one_run() -> None:
    """It is not waited for room that only what is measured with has."""
    with short_directory() as directory, node(directory / "s", memory="4KiB") as there:
        result = run_here("bench", there.address, "--max-size", "8KiB", "--seconds", "0.03", "--json")
        why = f"the store of {there.address} has no room for an object of 8KiB: it has 8,192 bytes, and the store 4,096"
        assert (result.status, result.err) == (0, f"plasmastream: 8KiB and more are left out: {why}\n")
        row = json.loads(result.text)["rates"][-1]
        assert (row["size"], 1 <= row["objects"] <= 4) == (1 << 10, True)


async def test_a_machine_without_the_memory(there: Node) -> None:
    host, _, port = there.address.partition(":")
    async with open_gauge(Address(host, int(port)), 1 << 50) as gauge:
        with pytest.raises(NoRoomError, match=r"^this machine has no memory for them: [^;]*$"):
            await gauge.measure(1 << 50, 0.03, lambda share: None)
        assert not gauge.remaining


@pytest.mark.usefixtures("however_long")
def test_what_it_costs_in_a_full_store() -> None:
    async def fill(socket: str) -> None:
        async with open_store(socket) as store:
            for _ in range(20):
                await store.put(bytes(256 << 10))

    with short_directory() as directory, node(directory / "s", memory="4MiB") as there:
        trio.run(fill, there.socket)
        before = set(trio.run(objects_at, there.socket))
        result = run_here("bench", there.address, "--max-size", "1MiB", "--seconds", "0.03")
        after = set(trio.run(objects_at, there.socket))
        assert after < before
        gone = f"{len(before - after)} of the {len(before)} objects that were there before are gone: evicted, if"
        result.fails(0, f"{there.address}: {gone}")


def test_memory_is_taken_when_it_is_needed(there: Node) -> None:
    result = run("bench", there.address, "--max-size", "1TiB", "--seconds", "0.03")
    result.fails(0, " and more are left out: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_interrupted(number: signal.Signals) -> None:
    with short_directory() as directory, node(directory / "s", memory="64MiB") as there:
        for size in ("1KiB", "48MiB"):
            command = command_line("plasmastream", "bench", there.address, "--max-size", size, "--seconds", "20")
            with Running(command) as bench:
                trio.run(some_object_at, there.socket, bench)
                bench.signal(number)
                assert (bench.wait(), bench.out, without_waits(bench.err)[0]) == (130, "", "")
            assert trio.run(objects_at, there.socket) == []


@pytest.mark.parametrize("again", [True, False])
def test_it_is_interrupted_while_the_peer_hangs(again: bool) -> None:
    with short_directory() as directory, node(directory / "s") as there:
        command = command_line("plasmastream", "bench", there.address, "--max-size", "1KiB", "--seconds", "20")
        with Running(command) as bench:
            with resumed(there) as stop:
                trio.run(some_object_at, there.socket, bench)
                stop()
                bench.signal(signal.SIGINT)
                some_words_of(bench, "to clear what was measured with; Ctrl-C again leaves it there\n")
                if again:
                    bench.signal(signal.SIGINT)
                    assert bench.wait(60) == 130
            assert bench.wait(60) == 130
            said, waits = without_waits(bench.err)
            assert waits.count("Ctrl-C again") == 1
        stayed = f"plasmastream: {there.address}: of what was measured with, 1 object may have stayed there\n"
        assert said == (stayed if again else "")
        if not again:
            assert trio.run(objects_at, there.socket) == []


@pytest.mark.parametrize("as_json", [True, False])
def test_what_was_measured_before_it_was_interrupted(
    as_json: bool, there: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_measuring(1 << 10, lambda: signal.raise_signal(signal.SIGINT), monkeypatch)
    result = run_here("bench", there.address, *QUICK, *["--json"] * as_json)
    assert (result.status, result.err) == (130, "")
    if as_json:
        assert [row["size"] for row in json.loads(result.text)["rates"]] == [1]
    else:
        assert " x 1 B " in result.text.splitlines()[-1]


def test_nothing_was_measured_before_it_was_interrupted(there: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    before_measuring(100, lambda: signal.raise_signal(signal.SIGINT), monkeypatch)
    result = run_here("bench", there.address, *QUICK, "--json")
    assert (result.status, result.err) == (130, "")
    found = json.loads(result.text)
    assert (found["peer"], found["latency"], found["rates"]) == (there.address, None, [])


def test_the_peer_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bench, "_TIMEOUTS", PeerTimeouts(progress=3, greeting=3, retry=1))
    monkeypatch.setattr(_bench, "_CLEAR_WITHIN", 0.5)
    monkeypatch.setattr(_waits, "_QUIET", 0.2)
    with short_directory() as directory, node(directory / "s") as there, resumed(there) as stop:
        before_measuring(1 << 10, stop, monkeypatch)
        result = run_here("bench", there.address, *QUICK, "--json")
        result.fails(3, there.address)
        assert f"waiting for {there.address}: nothing has moved" in result.waits
        cause, stayed = result.err.split("; of what was measured with, ")
        assert re.search(" sent (nothing|too little) for ", cause)
        assert re.fullmatch(r"\d+ objects? may have stayed there\n", stayed)
        assert not AN_ID.search(cause)
        found = json.loads(result.text)
        assert [row["size"] for row in (found["latency"], *found["rates"])] == [100, 1]


def test_the_peer_goes() -> None:
    with short_directory() as directory, node(directory / "s") as there:
        command = command_line("plasmastream", "bench", there.address, "--seconds", "20")
        with Running(command) as bench:
            trio.run(some_object_at, there.socket, bench)
            there.process.signal(signal.SIGKILL)
            assert bench.wait(60) == 3
            said, _ = without_waits(bench.err)
            assert there.address in said
            assert "1 object may have stayed there" in said
            assert said.count("\n") == 1
            assert not AN_ID.search(said)


def test_who_cannot_be_measured() -> None:
    with version_1_server() as address:
        run_here("bench", address, *QUICK).fails(1, address, "version 1")
    with silent_server() as (_, address):
        pass
    nobody = run_here("bench", address, *QUICK)
    nobody.fails(3, address, "refused", "see that")
    assert "object" not in nobody.err
    run_here("bench", address, "--seconds", "0").fails(2, "--seconds")


def test_progress_on_a_terminal(there: Node) -> None:
    assert "Measuring to 127.0.0.1: " in shown_on_terminal("bench", there.address, *QUICK)
