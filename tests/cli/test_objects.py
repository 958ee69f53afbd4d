"""`put`, `get`, `ls` and `rm` against a real store."""

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import BinaryIO

import pytest

from plasmastream import ObjectID
from plasmastream.cli import _objects
from tests.cli.processes import Node, command_line, get_object, put_object, run, run_here

pytestmark = pytest.mark.usefixtures("here")


def put(data: bytes, *options: str) -> str:
    if not options:
        return put_object(os.environ["PLASMA_SOCKET"], data)
    return run("put", "-", *options, stdin=data).succeeds().text.strip()


def test_files_go_in_and_come_out(tmp_path: Path) -> None:
    contents = [os.urandom(1_000_000), b"", b"small"]
    paths = [tmp_path / str(index) for index in range(3)]
    for path, data in zip(paths, contents, strict=True):
        path.write_bytes(data)
    ids = run("put", *paths).succeeds().text.split()
    assert [run("get", object_id).succeeds().out for object_id in ids] == contents
    run("get", ids[0], "--output", tmp_path / "out").succeeds()
    assert (tmp_path / "out").read_bytes() == contents[0]


def test_an_id_may_be_given_once() -> None:
    object_id = str(ObjectID.random())
    assert put(b"first", "--id", object_id.upper()) == object_id
    run("put", "-", "--id", object_id, stdin=b"second").fails(1, "standard input", object_id, "exists")
    assert get_object(os.environ["PLASMA_SOCKET"], object_id) == b"first"


def test_one_id_does_not_name_several_files() -> None:
    run_here("put", "a", "b", "--id", str(ObjectID.random())).fails(2, "--id", "2 files")


def test_what_cannot_be_put(tmp_path: Path) -> None:
    run("put", tmp_path / "missing").fails(1, str(tmp_path / "missing"), "No such file")
    run("put", tmp_path).fails(1, str(tmp_path), "directory")
    (tmp_path / "large").write_bytes(bytes(33 << 20))
    run("put", tmp_path / "large").fails(1, f"plasmastream: {tmp_path / 'large'}: object ", "capacity")
    run_here("put").fails(2, "FILE")


def test_a_file_that_changes_while_it_is_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_and_change(file: BinaryIO, memory: memoryview) -> int:
        nbytes = read(file, memory)
        os.utime(tmp_path / "file", (0, 0))
        return nbytes

    (tmp_path / "file").write_bytes(b"some")
    read = _objects._read_into
    monkeypatch.setattr(_objects, "_read_into", read_and_change)
    object_id = str(ObjectID.random())
    run_here("put", str(tmp_path / "file"), "--id", object_id).fails(1, str(tmp_path / "file"), object_id, "changed")
    run_here("get", object_id).fails(1, object_id)


def test_what_was_put_before_a_failure_is_told(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"good")
    result = run("put", tmp_path / "good", tmp_path / "missing")
    result.fails(1, "missing")
    assert get_object(os.environ["PLASMA_SOCKET"], result.text.strip()) == b"good"


def test_get_of_nothing() -> None:
    missing = str(ObjectID.random())
    run("get", missing).fails(1, missing, "not in the store")
    run("get", missing, "--timeout", "0.1").fails(1, missing)
    run_here("get", missing, "--timeout", "-1").fails(2, "--timeout")
    run_here("get", "abc").fails(2, "40 hexadecimal digits")


def test_get_waits() -> None:
    object_id = str(ObjectID.random())
    with subprocess.Popen(command_line("plasmastream", "get", object_id, "--timeout", "20"), stdout=-1) as getting:
        put(b"late", "--id", object_id)
        assert getting.communicate()[0] == b"late"


def test_output_that_nobody_reads_or_that_has_no_room() -> None:
    object_id = put(bytes(1 << 20))
    shell = '"$@" | true; exit "${PIPESTATUS[0]}"'
    command = ["bash", "-c", shell, "bash", *command_line("plasmastream", "get", object_id)]
    closed = subprocess.run(command, capture_output=True)
    assert (closed.returncode, closed.stderr) == (141, b"")
    command = ["bash", "-c", '"$@" > /dev/full', "bash", *command_line("plasmastream", "get", object_id)]
    full = subprocess.run(command, capture_output=True)
    assert (full.returncode, full.stderr) == (1, b"plasmastream: standard output: No space left on device\n")
    run("get", object_id, "--output", "/dev/full").fails(1, "/dev/full: No space left on device")


def test_ls_for_programs() -> None:
    object_id = put(b"four", "--metadata", "käse")
    lines = [line.split("\t") for line in run("ls").succeeds().text.splitlines()]
    (line,) = [line for line in lines if line[0] == object_id]
    assert line[1:5] == ["4", "5", "sealed", "0"]
    assert 0 <= int(line[5]) < 60
    (found,) = [entry for entry in json.loads(run("ls", "--json").text) if entry["id"] == object_id]
    assert (found["data_size"], found["metadata_size"], found["state"]) == (4, 5, "sealed")


def test_ls_for_people() -> None:
    object_id = put(bytes(1234))
    ours, theirs = pty.openpty()
    try:
        subprocess.run(command_line("plasmastream", "ls"), stdout=theirs, check=True)
        heading, *rows = os.read(ours, 1 << 16).decode().splitlines()
    finally:
        os.close(ours)
        os.close(theirs)
    assert heading.split() == ["ID", "DATA", "METADATA", "STATE", "REFERENCES", "AGE"]
    (row,) = [row for row in rows if row.startswith(object_id)]
    assert row.split()[1:5] == ["1,234", "0", "sealed", "0"]
    assert row.index("sealed") == heading.index("STATE")


def test_rm(here: Node) -> None:
    first, second, missing = put(b"1"), put(b"2"), str(ObjectID.random())
    run("rm", first, missing).fails(1, missing, "not in the store")
    assert get_object(here.socket, first) is None
    run("rm", second, "--plasma-socket", here.socket).succeeds()
    assert get_object(here.socket, second) is None


def test_no_store(socket_directory: Path) -> None:
    socket = str(socket_directory / "none")
    run("get", str(ObjectID.random()), "--plasma-socket", socket).fails(3, "no store answers", socket)
