"""`copy`, `take`, `sync`, and the first implementation's client, between two real nodes."""

import os
import pty
import signal
import socket
import subprocess
import time

import pytest

from plasmastream import ObjectID
from tests.cli.processes import Node, command_line, get_object, put_object, run, run_here

pytestmark = pytest.mark.usefixtures("here")


def dead_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return "{}:{}".format(*probe.getsockname())


def test_copy_and_take(here: Node, there: Node) -> None:
    first, second = put_object(here.socket, b"first"), put_object(here.socket, os.urandom(1_000_000))
    assert run("copy", here.address, first, second, "-s", there.socket).succeeds().out == b""
    third = put_object(here.socket, b"third")
    run("take", here.address, third, "-s", there.socket).succeeds()
    assert get_object(there.socket, first) == b"first"
    assert get_object(here.socket, second) == get_object(there.socket, second)
    assert get_object(there.socket, third) == b"third"
    assert get_object(here.socket, third) is None


def test_fetches_that_fail(here: Node, there: Node) -> None:
    held, missing = put_object(here.socket), str(ObjectID.random())
    run("copy", here.address, held, missing, "-s", there.socket).fails(1, here.address, missing)
    assert get_object(there.socket, held) == get_object(here.socket, held)  # the one does not suffer for the other
    run("copy", here.address, held).succeeds()  # it is there already
    run_here("copy", here.address, held, held, "-s", there.socket).fails(2, "twice")
    run("copy", dead_address(), held, "-s", there.socket).fails(3, "refused")
    run_here("copy", "no-such-host.invalid", held).fails(3, "no-such-host.invalid")
    for bad in ("[::1:5", "::1", "host:0", "host:70000", "host:x", ":5", ""):
        run_here("copy", bad, held).fails(2, repr(bad))
    run_here("copy", here.address).fails(2, "ID")
    run_here("copy").fails(2, "HOST:PORT")


def test_progress_on_a_terminal(here: Node, there: Node) -> None:
    object_id = put_object(here.socket)
    ours, theirs = pty.openpty()
    try:
        command = command_line("plasmastream", "copy", here.address, object_id, "-s", there.socket)
        subprocess.run(command, stderr=theirs, check=True)
        shown = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "1/1" in shown
    assert "1 object, 3 bytes, " in shown


def test_sync_by_arguments(here: Node, there: Node) -> None:
    first, second, missing = put_object(here.socket, b"1"), put_object(here.socket, b"2"), str(ObjectID.random())
    port = here.address.rpartition(":")[2]
    words = ["copy", f"localhost:{port}", first, f"TAKE {here.address} {second}", "COPY", dead_address(), missing]
    result = run("sync", "--server", there.address, *words)
    lines = result.text.splitlines()
    assert lines[:2] == [f"COPY localhost:{port}, 1 object: success", f"TAKE {here.address}, 1 object: success"]
    assert lines[2].endswith("the connection to the peer failed")
    assert (result.status, result.err) == (1, "")
    assert get_object(there.socket, first) == b"1"


def test_sync_by_lines(here: Node, there: Node) -> None:
    first, second, third = put_object(here.socket, b"1"), put_object(here.socket, b"2"), put_object(here.socket, b"3")
    lines = f"# two of them\n\nCOPY {here.address} {first} {second}\n  take {here.address} {third}\n"
    result = run("sync", "-a", there.address, stdin=lines.encode()).succeeds()
    assert result.text.splitlines() == [
        f"COPY {here.address}, 2 objects: success",
        f"TAKE {here.address}, 1 object: success",
    ]
    # What is there already is no failure, and a TAKE that is repeated finds that it was done.
    again = run("sync", "-a", there.address, stdin=lines.encode()).succeeds()
    assert again.text == result.text


def test_syncs_that_make_no_sense(here: Node, there: Node) -> None:
    object_id = put_object(here.socket)
    server = ("sync", "--server", there.address)
    run(*server).fails(2, "nothing was asked for")
    run_here(*server, "MOVE", here.address, object_id).fails(2, "'MOVE'")
    run_here(*server, "COPY", here.address).fails(2, "COPY|TAKE HOST:PORT ID")
    run_here(*server, "COPY", here.address, "abc").fails(2, "'abc'")
    run_here(*server, "COPY", here.address, object_id, "TAKE", here.address, object_id).fails(2, "twice")
    run(*server, stdin=f"\ncopy {here.address} xyz\n".encode()).fails(2, "line 2", "'xyz'")
    run_here(*server, "COPY", "no-such-host.invalid", object_id).fails(3, "no-such-host.invalid")
    run("sync", "--server", dead_address(), "COPY", here.address, object_id).fails(3, "refused")
    itself = run_here(*server, "COPY", there.address, object_id)
    assert (itself.status, itself.err) == (1, "")
    assert itself.text.startswith(f"COPY {there.address}, 1 object: ")


def test_a_sync_that_lasts_too_long_or_is_interrupted(there: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = ("sync", "COPY", there.address, str(ObjectID.random()))
        silent_address = "{}:{}".format(*silent.getsockname())
        run(*words, "--server", silent_address, "--timeout", "0.2").fails(3, silent_address)
        command = command_line("plasmastream", *words, "--server", silent_address)
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as waiting:
            silent.accept()[0].close()  # the first one's
            with silent.accept()[0]:
                time.sleep(0.2)
                waiting.send_signal(signal.SIGINT)
                _, err = waiting.communicate(timeout=10)
            assert (waiting.returncode, err) == (130, b"")


def test_the_old_client(here: Node, there: Node) -> None:
    first, second, missing = put_object(here.socket, b"1"), put_object(here.socket, b"2"), str(ObjectID.random())
    lines = f"COPY {here.address} {first}\nMOVE x\ncopy {here.address} {missing}\ntake {here.address} {second}\n"
    result = run("-a", there.address, program="plasma-stream-cli", stdin=lines.encode())
    assert result.status == 1
    assert [line.partition(" ")[2] for line in result.text.splitlines()] == ["ms", "ms"]
    errors = result.err.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith("plasma-stream-cli: line 2: ")
    assert errors[1].startswith("plasma-stream-cli: line 3: ")
    assert "not found" in errors[1]
    assert get_object(there.socket, second) == b"2"
    lines = f"COPY {here.address} {missing}"
    refused = run("--address", dead_address(), program="plasma-stream-cli", stdin=lines.encode())
    refused.fails(3, "refused", program="plasma-stream-cli")
