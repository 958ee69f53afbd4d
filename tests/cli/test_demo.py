"""The demonstration: what it shows, and that nothing of it stays behind."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.cli.processes import Running, command_line, run, shown_on_terminal

SMALL = ("--size", "4MiB", "--count", "50")


def left_behind(directory: Path) -> list[str]:
    """Files in a directory, and processes that were told of it."""
    found = [str(path) for path in directory.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(directory).encode() in (process / "cmdline").read_bytes():
                found.append(f"process {process.name}")
        except OSError:
            continue
    return found


def test_it_shows_and_verifies(socket_directory: Path) -> None:
    result = run("demo", *SMALL, env={"TMPDIR": str(socket_directory)}).succeeds()
    assert "Verified every byte" in result.text
    heading, large, small, total = (line.split() for line in result.text.splitlines()[-4:])
    assert heading == ["objects", "bytes", "seconds", "rate"]
    assert large[:3] == ["large", "1", f"{(4 << 20) + 16:,}"]
    assert small[:3] == ["small", "50", f"{50 * (1024 + 11):,}"]
    assert total[:3] == ["total", "51", f"{(4 << 20) + 16 + 50 * (1024 + 11):,}"]
    assert total[-1].endswith("/s")
    assert not left_behind(socket_directory)


def test_it_shows_progress_on_a_terminal() -> None:
    assert "Syncing" in shown_on_terminal("demo", *SMALL)


def test_it_fails_in_one_line(socket_directory: Path) -> None:
    result = run("demo", "--size", "1TiB", env={"TMPDIR": str(socket_directory)})
    result.fails(1, "source node did not start", "memory")
    assert not left_behind(socket_directory)


@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("moment", [0.02, 0.4, "Two nodes", "Synced"])
def test_ctrl_c_leaves_nothing_behind(socket_directory: Path, moment: float | str, to_group: bool) -> None:
    command = command_line("plasmastream", "demo", "--size", "64MiB")
    with Running(command, env={"TMPDIR": str(socket_directory)}, own_group=True) as demo:
        if isinstance(moment, str):
            demo.wait_for(moment)
        else:
            time.sleep(moment)
        if to_group:
            os.killpg(demo.process.pid, signal.SIGINT)
        else:
            demo.signal(signal.SIGINT)
        status = demo.wait()
        # Before our own code runs, which may take a while, it is Python that answers the signal.
        is_ours = isinstance(moment, str)
        assert status == 130 or (not is_ours and status in (-signal.SIGINT, 1))
        assert not is_ours or demo.err == ""
    assert not left_behind(socket_directory)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_leave_nothing_behind(socket_directory: Path, number: signal.Signals) -> None:
    command = command_line("plasmastream", "demo", "--size", "64MiB")
    with Running(command, env={"TMPDIR": str(socket_directory)}, own_group=True) as demo:
        demo.wait_for("Two nodes")
        demo.signal(number)
        demo.signal(number)  # an impatient one
        assert demo.wait() == 130
    assert not left_behind(socket_directory)
