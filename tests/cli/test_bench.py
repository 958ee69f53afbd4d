"""`bench`: what it tells, and that nothing of it stays with the peer, whatever becomes of it. Nothing here is timed."""

import json
import signal

import pytest
import trio

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
)
from tests.cli.test_remote import silent_server, version_1_server

QUICK = ("--max-size", "64KiB", "--seconds", "0.03")
WAYS = ["put", "copy", "one_connection", "no_checksums", "take"]


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


def test_json(there: Node) -> None:
    kept = put_object(there.socket, b"somebody's")
    found = json.loads(run("bench", there.address, *QUICK, "--json").succeeds().text)
    assert found["peer"] == there.address
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


def test_tables_and_what_has_no_room() -> None:
    with short_directory() as directory, node(directory / "s", memory="4MiB") as there:
        result = run("bench", there.address, "--max-size", "5MiB", "--seconds", "0.2")
        result.fails(0, there.address, "5MiB and more are left out", f"{4 << 20:,}")
        ways = [line.split(":")[0].strip() for line in result.text.splitlines()[1:6]]
        assert [way.replace(" ", "_") for way in ways] == WAYS
        assert [line.split()[2] for line in result.text.splitlines()[-4:]] == ["1", "1KiB", "64KiB", "1MiB"]
        assert trio.run(objects_at, there.socket) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_interrupted(number: signal.Signals) -> None:
    with short_directory() as directory, node(directory / "s", memory="64MiB") as there:
        for size in ("1KiB", "48MiB"):
            command = command_line("plasmastream", "bench", there.address, "--max-size", size, "--seconds", "20")
            with Running(command) as bench:
                trio.run(some_object_at, there.socket, bench)
                bench.signal(number)
                bench.signal(number)
                assert (bench.wait(), bench.out, bench.err) == (130, "", "")
            assert trio.run(objects_at, there.socket) == []


def test_the_peer_goes() -> None:
    with short_directory() as directory, node(directory / "s") as there:
        command = command_line("plasmastream", "bench", there.address, "--seconds", "20")
        with Running(command) as bench:
            trio.run(some_object_at, there.socket, bench)
            there.process.signal(signal.SIGKILL)
            assert bench.wait() == 3
            assert there.address in bench.err
            assert bench.err.count("\n") == 1


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
