"""`copy`, `take`, `sync`, and the first implementation's client, between two real nodes."""

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from threading import Thread

import pytest

from plasmastream import ObjectID
from plasmastream.wire.stream import QUESTION
from tests.cli.processes import Node, command_line, get_object, put_object, run, run_here, shown_on_terminal

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
    run("copy", here.address, held, missing, "-s", there.socket).fails(1, here.address, missing, "not in the source")
    assert get_object(there.socket, held) == b"abc"
    more = str(ObjectID.random())
    failed = run("take", here.address, missing, held, more, "-s", there.socket)
    assert failed.status == 1
    *lines, last = failed.err.splitlines()
    for line, object_id in zip(lines, (missing, more), strict=True):
        assert line == f"plasmastream: {here.address}: object {object_id}: it is not in the source's store"
    assert last == f"plasmastream: object {held} was there already"
    assert get_object(here.socket, held) is None
    dead = run("copy", dead_address(), missing, more, "-s", there.socket)
    dead.fails(3, f"{missing} and 1 more", "refused", "see that")
    run_here("copy", here.address, missing, missing, "-s", there.socket).fails(2, missing, "twice")
    run_here("copy", "no-such-host.invalid", held).fails(3, "no-such-host.invalid")
    for bad in ("[::1:5", "::1", "host:0", "host:70000", "host:x", ":5", ""):
        run_here("copy", bad, held).fails(2, repr(bad))
    run_here("copy", here.address).fails(2, "ID")
    run_here("copy").fails(2, "HOST:PORT")


def test_who_insists_on_version_2_does_not_fall_back(here: Node, there: Node) -> None:
    object_id = put_object(here.socket)
    run("copy", here.address, object_id, "-s", there.socket, "--protocol", "2").succeeds()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):  # until it is closed
                while True:
                    listener.accept()[0].close()

        silent = Thread(target=serve)
        silent.start()
        try:
            address = "{}:{}".format(*listener.getsockname())
            run("copy", address, str(ObjectID.random()), "-s", here.socket, "--protocol", "2", "--timeout", "2").fails(
                3, address, "before the greeting"
            )
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            silent.join()


def test_progress_on_a_terminal(here: Node, there: Node) -> None:
    object_id = put_object(here.socket)
    shown = shown_on_terminal("copy", here.address, object_id, "-s", there.socket)
    assert "1/1" in shown
    assert "1 object, 3 bytes, " in shown


def test_what_is_there_already_counts_as_fetched(here: Node) -> None:
    first, second = put_object(here.socket), put_object(here.socket)
    run("copy", here.address, first).fails(0, f"object {first} was there already, not compared")
    run("copy", here.address, first, second).fails(0, "2 objects were there already, not compared")


@pytest.mark.parametrize("name", ["zstd", "lz4"])
def test_compression_and_a_time_limit(here: Node, there: Node, name: str) -> None:
    data = bytes(2_000_000) + os.urandom(1_000_000)
    first, second = put_object(here.socket, data), put_object(here.socket, data)
    run("copy", here.address, first, "-s", there.socket, "--compress", name, "--timeout", "30").succeeds()
    words = ("--server", there.address, "--compress", name, "--timeout", "30", "--max-bytes", "1MiB", "--detach")
    run("sync", *words, "TAKE", here.address, second).succeeds()
    assert get_object(there.socket, first) == get_object(there.socket, second) == data
    run_here("copy", here.address, first, "--compress", "gzip").fails(2, "--compress", "gzip")


def test_a_fetch_that_lasts_too_long(there: Node) -> None:
    object_id = str(ObjectID.random())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "{}:{}".format(*silent.getsockname())
        run("copy", address, object_id, "-s", there.socket, "--timeout", "0.2").fails(3, address, object_id, "time")
        run("copy", dead_address(), object_id, "-s", there.socket, "--timeout", "0").fails(3, object_id, "time")


def test_a_fetch_in_version_1_that_lasts_too_long(there: Node) -> None:
    object_id = str(ObjectID.random())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(20)
        address = "{}:{}".format(*silent.getsockname())
        command = command_line("plasmastream", "copy", address, object_id, "-s", there.socket, "--timeout", "2")
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as copying:
            silent.accept()[0].close()  # the greeting of version 2
            with silent.accept()[0]:
                _, err = copying.communicate(timeout=20)
    assert copying.returncode == 3
    assert f"{object_id}: the time allowed for it is over, with {address}, which speaks version 1" in err


def test_sync_by_arguments(here: Node, there: Node) -> None:
    first, second, missing = put_object(here.socket, b"1"), put_object(here.socket, b"2"), str(ObjectID.random())
    port = here.address.rpartition(":")[2]
    words = ["copy", f"localhost:{port}", first, f"TAKE {here.address} {second} {missing}", "COPY", dead_address()]
    result = run("sync", "--server", there.address, *words, missing[::-1])
    lines = result.text.splitlines()
    assert lines[:3] == [
        f"COPY localhost:{port}, 1 object: success",
        f"TAKE {here.address}, 2 objects: 1 failed",
        f"    {missing}: it is not in the source's store",
    ]
    assert lines[3].startswith(f"COPY {words[-1]}, 1 object: failed: ")
    assert "refused" in lines[3]
    assert (result.status, result.err, len(lines)) == (1, "", 4)
    assert get_object(there.socket, first) == b"1"
    assert get_object(here.socket, second) is None


def test_sync_shows_a_bar_for_each_request(here: Node, there: Node) -> None:
    first, second = put_object(here.socket, b"1"), put_object(here.socket, b"22")
    words = ("sync", "-a", there.address, "COPY", here.address, first, "TAKE", here.address, second)
    shown = shown_on_terminal(*words)
    assert f"COPY {here.address}" in shown
    assert f"TAKE {here.address}" in shown
    assert shown.count("1/1") >= 2


def test_sync_by_lines(here: Node, there: Node) -> None:
    first, second, third = put_object(here.socket, b"1"), put_object(here.socket, b"2"), put_object(here.socket, b"3")
    lines = f"# two of them\n\nCOPY {here.address} {first} {second}\n  take {here.address} {third}\n"
    result = run("sync", "-a", there.address, stdin=lines.encode()).succeeds()
    assert result.text.splitlines() == [
        f"line 3: COPY {here.address}, 2 objects: success",
        f"line 4: TAKE {here.address}, 1 object: success",
    ]
    assert get_object(here.socket, third) is None
    again = run("sync", "-a", there.address, stdin=lines.encode()).succeeds().text.splitlines()
    compared = "2 objects were there already, not compared with the source's"
    there_already = (compared, f"object {third} was there already")
    assert again == [f"{line}; {words}" for line, words in zip(result.text.splitlines(), there_already, strict=True)]
    missing = str(ObjectID.random())
    failed = run("sync", "-a", there.address, stdin=f"{lines}\nCOPY {here.address} {missing}".encode())
    assert failed.text.splitlines()[2] == (
        f"line 6: COPY {here.address}, 1 object: failed: object {missing}: it is not in the source's store"
    )
    lines = f"\nCOPY no-such-host.invalid {missing}"
    run("sync", "-a", there.address, stdin=lines.encode()).fails(3, "line 2", "no-such-host.invalid")


def test_syncs_that_make_no_sense(here: Node, there: Node) -> None:
    object_id = put_object(here.socket)
    server = ("sync", "--server", there.address)
    run(*server).fails(2, "nothing was asked for")
    run_here(*server, "MOVE", here.address, object_id).fails(2, "'MOVE'")
    run_here(*server, "COPY", here.address).fails(2, "COPY|TAKE HOST:PORT ID")
    run_here(*server, "COPY", here.address, "abc").fails(2, "'abc'")
    run_here(*server, "COPY", here.address, object_id, "TAKE", here.address, object_id).fails(2, object_id, "twice")
    twice = f"COPY {here.address} {object_id}\n\nTAKE {here.address} {object_id}\n"
    run(*server, stdin=twice.encode()).fails(2, f"line 3: object {object_id}", "twice (first in line 1)")
    run(*server, stdin=f"\ncopy {here.address} xyz\n".encode()).fails(2, "line 2", "'xyz'")
    run_here(*server, "COPY", "no-such-host.invalid", object_id).fails(3, "no-such-host.invalid")
    dead = dead_address()
    run("sync", "--server", dead, "COPY", here.address, object_id).fails(3, object_id, dead, "refused", "see that")
    unreachable = run(*server, "COPY", dead, str(ObjectID.random()))
    assert (unreachable.status, unreachable.err) == (3, "")
    assert "refused" in unreachable.text
    itself = run_here(*server, "COPY", there.address, object_id)
    assert (itself.status, itself.err) == (1, "")
    assert f"{there.address} is this server itself" in itself.text


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


def test_a_detached_sync_goes_on_when_it_is_interrupted(there: Node) -> None:
    object_id = ObjectID.random()
    with socket.create_server(("127.0.0.1", 0)) as source:
        source.settimeout(20)
        address = "{}:{}".format(*source.getsockname())
        words = ("sync", "-a", there.address, "--detach", "--timeout", "60", "COPY", address, str(object_id))
        command = command_line("plasmastream", *words)
        with subprocess.Popen(command, stderr=subprocess.PIPE) as waiting, source.accept()[0] as connection:
            assert connection.recv(8) == b"PLSTRM2\n"
            waiting.send_signal(signal.SIGINT)
            _, err = waiting.communicate(timeout=20)
        assert (waiting.returncode, err) == (130, b"")
        while True:  # what hangs up on the greeting of version 2 is asked in version 1
            with source.accept()[0] as connection:
                asked = QUESTION + b"\x02\x01\x00" + object_id
                if connection.recv(len(asked), socket.MSG_WAITALL) == asked:
                    connection.sendall(b"\x71\x71\x00" + (4 << 16).to_bytes(8, "little") + b"late")
                    break
    assert run("get", str(object_id), "-s", there.socket, "--timeout", "20").succeeds().out == b"late"


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
    again = run("-a", there.address, program="plasma-stream-cli", stdin=f"COPY {here.address} {first}".encode())
    again.fails(1, "line 1", "in the local store already", program="plasma-stream-cli")
    refused = run("--address", dead_address(), program="plasma-stream-cli", stdin=lines.encode())
    refused.fails(3, "refused", program="plasma-stream-cli")
