"""Help, versions, wrong usage, sizes; and what is not imported."""

import subprocess
import sys

import pytest

import plasmastream
from plasmastream import ObjectID
from plasmastream.cli._peer import exit_status
from plasmastream.cli._types import read_size
from plasmastream.peer import Outcome, PeerClient, RefusedError, Result
from tests.cli.processes import run, run_here


@pytest.mark.parametrize("program", ["plasmastream", "plasma-stream-server", "plasma-stream-cli"])
def test_help_and_version(program: str) -> None:
    help_text = run("--help", program=program).succeeds().text
    assert help_text.startswith(f"Usage: {program}")
    assert "Exit statuses: 0 done" in help_text
    assert run("--version", program=program).succeeds().text.strip() == plasmastream.__version__


def test_help_of_commands() -> None:
    commands = ["store", "serve", "put", "get", "ls", "rm", "copy", "take", "sync", "bench", "demo"]
    for command in commands:
        assert run_here(command, "--help").succeeds().text.startswith(f"Usage: plasmastream {command}")
    listed = run_here("--help").text
    assert not [command for command in commands if f" {command} " not in listed]


def test_help_shows_what_values_mean() -> None:
    shown = run_here("store", "--help").text
    for option in ("--memory SIZE", "--directory -d DIR", "--socket-mode MODE", "--max-clients N", "-socket -s PATH"):
        assert option in shown
    assert run_here("put", "--help").text.startswith("Usage: plasmastream put [OPTIONS] FILE...\n")
    assert run_here("copy", "--help").text.startswith("Usage: plasmastream copy [OPTIONS] HOST:PORT ID...\n")


def test_help_waits_for_no_event_loop() -> None:
    script = "import sys; from plasmastream.cli import plasmastream_app; plasmastream_app()(['--help'], "
    script += "result_action='return_value'); print(*{'trio', 'anyio', 'asyncio'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == ""


def test_wrong_usage() -> None:
    run("fly").fails(2, "fly")
    run_here("ls", "--nope").fails(2, "--nope")
    run_here("store", "--memory", "lots").fails(2, "4GiB", "'lots'")
    run_here("store", "--memory", "0").fails(2, "4GiB")
    run_here("serve", "--port", "65536").fails(2, "--port")
    run_here("serve", "--max-connections", "0").fails(2, "--max-connections")
    run_here("serve", "--grace", "-1").fails(2, "--grace")
    run_here("-t", "soon", program="plasma-stream-server").fails(2, "-t", program="plasma-stream-server")


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ([], 0),
        ([Outcome.DONE, Outcome.PRESENT], 0),
        ([Outcome.DONE, Outcome.OUT_OF_TIME, Outcome.UNREACHABLE, Outcome.BROKEN_OFF], 3),
        ([Outcome.STALLED, Outcome.BUSY, Outcome.CANCELLED], 3),
        ([Outcome.STALLED, Outcome.NOT_FOUND], 1),
        ([99], 1),
    ],
)
def test_exit_statuses_of_outcomes(outcomes: list[int], status: int) -> None:
    assert exit_status([Result(ObjectID.random(), outcome) for outcome in outcomes]) == status


@pytest.mark.parametrize(("outcome", "status"), [(Outcome.REFUSED, 1), (Outcome.NO_ROOM, 1), (Outcome.BUSY, 3)])
def test_exit_statuses_of_what_is_refused_as_a_whole(
    outcome: Outcome, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise RefusedError("it says no", outcome)

    monkeypatch.setattr(PeerClient, "list_objects", refuse)
    run_here("ls", "--at", "127.0.0.1:1").fails(status, "it says no")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("4GiB", 4 << 30),
        ("256MiB", 256 << 20),
        ("10GB", 10 * 1000**3),
        ("1.5 kib", 1536),
        ("2TB", 2 * 1000**4),
        ("0.1GB", 100_000_000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "GiB", "4G", "4 Gi B", "1e9", "0x10", "4GiBs", "0.1", "²", "9" * 30])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="a size is written as 4GiB"):
        read_size(text)
