"""`put --to`, `get --from`, `ls --at` and `stat --at`: a peer's objects, without a store here."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plasmastream import ObjectID
from plasmastream.wire.stream import QUESTION
from tests.cli.processes import Node, command_line, get_object, put_object, run, run_here, shown_on_terminal


@pytest.fixture(autouse=True)
def no_store_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands would use if they wanted a store: there is none."""
    monkeypatch.setenv("PLASMA_SOCKET", "/nonexistent/plasma")


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[socket.socket, str]]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener, "{}:{}".format(*listener.getsockname())


@contextlib.contextmanager
def version_1_server() -> Iterator[str]:
    """A server that ends each connection at a first byte it does not know, and finds no object."""

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as connection:
                    if connection.recv(1) == b"\x02":
                        connection.recv(len(QUESTION) - 1, socket.MSG_WAITALL)
                        connection.sendall(b"\x71\x71")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield "{}:{}".format(*listener.getsockname())
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_files_go_there_and_come_back(there: Node, tmp_path: Path) -> None:
    contents = [os.urandom(3_000_000), b"", b"small"]
    paths = [tmp_path / str(index) for index in range(3)]
    for path, data in zip(paths, contents, strict=True):
        path.write_bytes(data)
    ids = run("put", "--to", there.address, *paths).succeeds().text.split()
    assert [get_object(there.socket, object_id) for object_id in ids] == contents
    assert run("get", "--from", there.address, ids[2]).succeeds().out == b"small"
    assert run("get", "--from", there.address, ids[1]).succeeds().out == b""
    run("get", ids[0], "--from", there.address, "-o", tmp_path / "out", "--timeout", "30").succeeds()
    assert (tmp_path / "out").read_bytes() == contents[0]


def test_a_put_that_is_compressed_and_may_last_so_long(there: Node, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3_000_000))
    for compression in ("zstd", "lz4"):
        put = ("put", path, "--to", there.address, "--timeout", "30", "--compress", compression)
        object_id = run(*put).succeeds().text.strip()
        assert get_object(there.socket, object_id) == bytes(3_000_000)
    for option in (("--timeout", "1"), ("--compress", "lz4")):
        run_here("put", str(path), *option).fails(2, "--timeout and --compress", "--to")
    for words in (("ls",), ("stat", object_id)):
        run_here(*words, "--timeout", "1").fails(2, "--timeout", "--at")
        run_here(*words, "--at", there.address, "--timeout", "30").succeeds()


def test_standard_input_with_an_id_and_metadata(there: Node) -> None:
    object_id = str(ObjectID.random())
    put = ("put", "-", "--to", there.address, "--id", object_id, "--metadata", "käse")
    assert run(*put, stdin=b"first").succeeds().text == f"{object_id}\n"
    again = run(*put, stdin=b"first")
    again.fails(0, object_id, "there already, the same")
    assert again.text == f"{object_id}\n"
    other = run(*put, stdin=b"other")
    other.fails(1, object_id, "another object of this id")
    assert other.out == b""
    for data, metadata, size in ((b"second", "käse", 6), (b"first", "ham", 5)):
        different = run(*put[:-1], metadata, stdin=data)
        put_size = f"{size} bytes of data and {len(metadata.encode())} of metadata"
        different.fails(1, object_id, "5 bytes of data and 5 of metadata", put_size)
        assert different.out == b""
    assert get_object(there.socket, object_id) == b"first"
    described = json.loads(run("stat", "--at", there.address, object_id, "--json").succeeds().text)
    assert (described["data_size"], described["metadata_size"], described["state"]) == (5, 5, "sealed")


def test_a_large_file_under_an_id_that_is_there(there: Node, tmp_path: Path) -> None:
    object_id, data = str(ObjectID.random()), os.urandom(3_000_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    put = ("put", path, "--to", there.address, "--id", object_id)
    run(*put).succeeds()
    run(*put).fails(0, object_id, f"the same as {path}")
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    run(*put).fails(1, str(path), object_id, "another object of this id")
    assert get_object(there.socket, object_id) == data


def test_what_cannot_be_put(there: Node, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"good")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 << 30)  # which fits into no memory here, but can be mapped
    result = run("put", "--to", there.address, tmp_path / "large", tmp_path / "good", tmp_path / "missing")
    large, missing = result.err.splitlines()
    assert result.status == 1
    assert large.startswith(f"plasmastream: {there.address}: {tmp_path / 'large'}: object ")
    assert str(32 << 20) in large.replace(",", "")
    assert missing == f"plasmastream: {tmp_path / 'missing'}: No such file or directory"
    assert get_object(there.socket, result.text.strip()) == b"good"
    run_here("put", "a", "b", "--to", there.address, "--id", str(ObjectID.random())).fails(2, "--id", "2 files")


def test_ls_and_stat(there: Node) -> None:
    object_id = put_object(there.socket, bytes(1234), b"about it")
    lines = [line.split("\t") for line in run("ls", "--at", there.address).succeeds().text.splitlines()]
    (line,) = [line for line in lines if line[0] == object_id]
    assert line[1:5] == ["1234", "8", "sealed", "0"]
    assert object_id in {entry["id"] for entry in json.loads(run_here("ls", "--at", there.address, "--json").text)}
    shown = run_here("stat", "--at", there.address, object_id).succeeds().text.splitlines()
    assert shown[:3] == [
        f"Object:    {object_id}",
        "Size:      1,234 bytes of data, 8 of metadata",
        "State:     sealed",
    ]


def test_what_is_not_there(there: Node) -> None:
    missing = str(ObjectID.random())
    run_here("stat", "--at", there.address, missing).fails(1, there.address, missing)
    run("get", "--from", there.address, missing).fails(1, there.address, missing)


def test_places_exclude_each_other(there: Node) -> None:
    object_id = str(ObjectID.random())
    for words in (("put", "-", "--to"), ("get", object_id, "--from"), ("ls", "--at"), ("stat", object_id, "--at")):
        run_here(*words, there.address, "-s", there.socket).fails(2, words[-1], "-s", "exclude each other")
        run_here(*words, "[::1:5").fails(2, "'[::1:5'")
    run_here("ls", "--long", "--at", there.address).fails(2, "--long")


def test_nobody_answers() -> None:
    with silent_server() as (_, address):
        run("get", "--from", address, str(ObjectID.random()), "--timeout", "0.2").fails(3, address, "0.2 s")
        for query in (("ls",), ("stat", str(ObjectID.random()))):
            run_here(*query, "--at", address, "--timeout", "0.2").fails(3, address, "within 0.2 s")
        run_here("put", "/dev/null", "--to", address, "--timeout", "0.2").fails(3, "/dev/null", address, "time")
    object_id = str(ObjectID.random())
    for words in (("put", "/dev/null", "--to"), ("get", object_id, "--from"), ("ls", "--at")):
        run_here(*words, address).fails(3, address, "refused", "see that")
    run_here("put", "/dev/null", "--to", address).fails(3, "/dev/null", "object ", address, "see that")
    for words in (("get", object_id, "--from"), ("stat", object_id, "--at")):
        run_here(*words, address).fails(3, object_id, address, "see that")


def test_what_it_waits_for_is_said_once(there: Node) -> None:
    object_id = str(ObjectID.random())
    with silent_server() as (_, silent), socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))  # and does not listen
        address = "{}:{}".format(*dead.getsockname())
        commands = [
            command_line("plasmastream", "copy", source, object_id, "-s", there.socket, "--timeout", "60")
            for source in (silent, address)
        ]
        sync = ("sync", "-a", there.address, "--timeout", "60", "COPY", silent, object_id)
        commands.append(command_line("plasmastream", *sync))
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(subprocess.Popen(words, stderr=subprocess.PIPE)) for words in commands]
            said = [process.stderr.readline().decode() for process in running if process.stderr is not None]
            for process in running:
                process.send_signal(signal.SIGINT)
            ends = [(process.communicate(timeout=20)[1], process.returncode) for process in running]
    assert said[0].startswith(f"plasmastream: waiting for {silent}: nothing has moved for 3 s")
    why = f"no connection to {address}: Connection refused; trying again for up to "
    assert said[1].startswith(f"plasmastream: waiting for {address}: nothing has moved for 3 s; {why}")
    assert said[2].startswith(f"plasmastream: waiting for {there.address}, which waits for {silent}: nothing has moved")
    assert ends == [(b"", 130)] * 3


def test_a_server_of_version_1() -> None:
    object_id = str(ObjectID.random())
    with version_1_server() as address:
        for words in (("put", "/dev/null", "--to"), ("get", object_id, "--from"), ("ls", "--at")):
            run_here(*words, address).fails(1, address, "version 1")


def test_put_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some")
    with silent_server() as (listener, address):
        command = command_line("plasmastream", "put", tmp_path / "file", "--to", address)
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as putting:
            with listener.accept()[0] as connection:
                assert connection.recv(8) == b"PLSTRM2\n"
                time.sleep(0.1)
                putting.send_signal(signal.SIGINT)
                _, err = putting.communicate(timeout=10)
            assert (putting.returncode, err) == (130, b"")


def test_progress_on_a_terminal(there: Node, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some")
    shown = shown_on_terminal("put", tmp_path / "file", "--to", there.address)
    assert "PUT to 127.0.0.1" in shown
    assert "1/1" in shown


def relay_and_cut_short(listener: socket.socket, server: str, path: Path) -> None:
    """Pass on what a client and a server say, and cut a file short when a part of it has left."""
    host, _, port = server.partition(":")

    def pass_on_answers() -> None:
        with contextlib.suppress(OSError):
            while chunk := behind.recv(1 << 16):
                before.sendall(chunk)

    try:
        before = listener.accept()[0]
    except OSError:
        return
    with before, socket.create_connection((host, int(port))) as behind:
        answers = threading.Thread(target=pass_on_answers)
        answers.start()
        passed = 0
        with contextlib.suppress(OSError):
            while chunk := before.recv(1 << 16):
                behind.sendall(chunk)
                passed += len(chunk)
                if passed > 1 << 18:
                    os.truncate(path, 1000)
        behind.shutdown(socket.SHUT_RDWR)
        answers.join()


def test_a_file_that_is_cut_short_while_it_is_put(there: Node, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(12 << 20))  # more than the kernel keeps for a connection that is not read
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        relay = threading.Thread(target=relay_and_cut_short, args=(listener, there.address, path))
        relay.start()
        try:
            result = run("put", path, "--to", "{}:{}".format(*listener.getsockname()))
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # should nobody have come
            relay.join()
    result.fails(1, f"plasmastream: {path}: ", "became shorter", "12,582,912 bytes")
    assert result.out == b""
