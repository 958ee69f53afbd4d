"""`ls -l` and `stat`: who holds what, seen through real processes, and put into words."""

import json
import os
import pty
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from plasmastream import NotSupportedError, ObjectID, blocking
from plasmastream.cli._status import explain, holder_in_words, seconds_since, state_of
from plasmastream.wire.plasma import ObjectHolder, ObjectStatus, ObjectUser
from tests.apache import ClientFactory, StoreFactory
from tests.cli.processes import Node, command_line, put_object, run, run_here

pytestmark = pytest.mark.usefixtures("here")
NOW = 1_000_000.0


@contextmanager
def terminal(*args: str) -> Iterator[list[str]]:
    """The lines that a command writes to a terminal."""
    ours, theirs = pty.openpty()
    try:
        subprocess.run(command_line("plasmastream", *args), stdout=theirs, check=True)
        yield os.read(ours, 1 << 16).decode().splitlines()
    finally:
        os.close(ours)
        os.close(theirs)


def stat(object_id: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_here("stat", str(object_id), "--json").succeeds().text)
    return found


def command_name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_an_idle_object(here: Node) -> None:
    object_id = put_object(here.socket, b"four", b"md")
    found = stat(object_id)
    assert (found["id"], found["data_size"], found["metadata_size"]) == (object_id, 4, 2)
    assert (found["state"], found["references"], found["holders"]) == ("sealed", 0, [])
    assert found["created_at"] <= found["sealed_at"] <= found["last_used_at"]
    assert "nobody holds it" in run("stat", object_id).succeeds().text


def test_an_object_that_is_not_there(here: Node) -> None:
    missing = str(ObjectID.random())
    run_here("stat", missing).fails(1, missing, "not in the store")


def test_a_holder_is_named_until_it_is_killed(here: Node, apache_client: ClientFactory) -> None:
    """Apache's client holds an object, with one of ours; the first dies by SIGKILL."""
    object_id = ObjectID.from_hex(put_object(here.socket))
    apache = apache_client(here.socket)
    before = time.time()
    assert apache.hold([object_id]) == [True]
    with blocking.open_store(here.socket) as ours:
        (lease,) = ours.get([object_id])
        assert lease is not None
        found = stat(object_id)
        assert found["references"] == 2
        assert [(holder["pid"], holder["user"], holder["name"]) for holder in found["holders"]] == [
            (apache.pid, os.getuid(), command_name(apache.pid)),
            (os.getpid(), os.getuid(), command_name(os.getpid())),
        ]
        assert before - 1 <= found["holders"][0]["since"] <= time.time()
        (sentence,) = found["explanation"]
        assert f"process {apache.pid} ({command_name(apache.pid)}, user {os.getuid()}) for longest" in sentence
        apache.kill()
        deadline = time.monotonic() + 20
        while ours.inspect([object_id])[0].holder_count > 1 and time.monotonic() < deadline:
            time.sleep(0.01)  # the store hears of it from the kernel
        assert [holder.pid for holder in ours.inspect([object_id])[0].holders] == [os.getpid()]
        lease.release()
        assert ours.inspect([object_id])[0].holder_count == 0


def test_an_object_that_is_being_written(here: Node) -> None:
    object_id = ObjectID.random()
    with blocking.open_store(here.socket) as ours, ours.create(object_id, 1):
        text = run_here("stat", str(object_id)).succeeds().text
        assert f"process {os.getpid()} ({command_name(os.getpid())}, user {os.getuid()}) has been writing it" in text
        run_here("rm", str(object_id)).fails(0, "in use")
        assert "It is to be deleted as soon as it is sealed" in run_here("stat", str(object_id)).succeeds().text
        found = stat(object_id)
    assert (found["state"], found["sealed_at"], found["delete_when_released"]) == ("unsealed", None, True)


def test_each_holder_has_a_line(here: Node) -> None:
    object_id = put_object(here.socket, b"four")
    with blocking.open_store(here.socket) as one, blocking.open_store(here.socket) as other:
        leases = one.get([ObjectID.from_hex(object_id)]) + other.get([ObjectID.from_hex(object_id)])
        lines = run_here("stat", object_id).succeeds().text.splitlines()
        first = lines.index("Held by:   2") + 1
        for line in lines[first : first + 2]:
            assert line.startswith(f"           process {os.getpid()} ")
        assert None not in leases


def test_a_client_that_has_a_name_and_a_quota(here: Node, apache_client: ClientFactory) -> None:
    client = apache_client(here.socket)
    client.set_client_options("worker nine", 1_000_000)
    object_id = ObjectID.random()
    client.create_and_seal(object_id, b"data")
    found = stat(object_id)
    assert found["quota_of"] == {"pid": client.pid, "user": os.getuid(), "name": "worker nine"}
    client.hold([object_id])
    text = run_here("stat", str(object_id)).succeeds().text
    assert f"process {client.pid} (worker nine, user {os.getuid()}) has held it" in text
    assert "quota of process" in text


def test_ls_long_for_programs(here: Node) -> None:
    object_id = put_object(here.socket, b"four", b"md")
    with blocking.open_store(here.socket) as ours:
        (lease,) = ours.get([ObjectID.from_hex(object_id)])
        assert lease is not None
        lines = [line.split("\t") for line in run_here("ls", "-l").succeeds().text.splitlines()]
        (line,) = [line for line in lines if line[0] == object_id]
        assert (line[1:5], line[6]) == (["4", "2", "sealed", "1"], "0")
        assert line[7].startswith(f"{command_name(os.getpid())}[{os.getpid()}] ")
        (found,) = [one for one in json.loads(run_here("ls", "--long", "--json").text) if one["id"] == object_id]
        assert [holder["pid"] for holder in found["holders"]] == [os.getpid()]


def test_ls_long_for_people(here: Node) -> None:
    object_id = put_object(here.socket, bytes(1234))
    with blocking.open_store(here.socket) as ours:
        (lease,) = ours.get([ObjectID.from_hex(object_id)])
        assert lease is not None
        with terminal("ls", "-l") as (heading, *rows):
            assert heading.split() == [
                *("ID", "DATA", "METADATA", "STATE", "REFERENCES", "AGE", "LAST", "USE", "HOLDERS")
            ]
            (row,) = [row for row in rows if row.startswith(object_id)]
            assert row.split()[1:5] == ["1,234", "0", "sealed", "1"]
            assert row[heading.index("HOLDERS") :].startswith(f"{command_name(os.getpid())}[{os.getpid()}] ")


def test_apaches_store_does_not_tell(apache_store: StoreFactory) -> None:
    socket = apache_store().socket_path
    object_id = put_object(socket, b"four")
    options = ("--plasma-socket", socket)
    result = run_here("ls", "-l", *options)
    result.fails(0, "does not tell who holds what")
    assert result.text.split("\t")[:5] == [object_id, "4", "0", "sealed", "0"]
    assert json.loads(run_here("ls", "-l", "--json", *options).text)[0]["id"] == object_id
    run_here("stat", object_id, *options).fails(1, "does not tell who holds what")
    with blocking.open_store(socket) as client:
        with pytest.raises(NotSupportedError, match="does not tell"):
            client.inspect()
        assert client.contains([ObjectID.from_hex(object_id)]) == [True]  # the connection is as good as before


def test_stat_takes_one_id() -> None:
    run_here("stat").fails(2, "ID")
    run_here("stat", "abc").fails(2, "40 hexadecimal digits")


# In words

HOLDER = ObjectHolder(7, 1000, "python3", NOW - 12)
STATUS = ObjectStatus(
    object_id=ObjectID(bytes(20)),
    data_size=1,
    metadata_size=0,
    created_at=NOW - 60,
    last_used_at=NOW - 5,
    sealed_at=NOW - 59,
    in_memory=True,
    on_disk=False,
    delete_when_released=False,
    evicted_after=-1,
    holder_count=0,
    holders=(),
)
HELD = attrs.evolve(STATUS, holder_count=1, holders=(HOLDER,))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (HELD, "now: process 7 (python3, user 1000) has held it for 12 s."),
        (attrs.evolve(HELD, holder_count=1234), "1,234 hold it, process 7 (python3, user 1000) for longest, 12 s."),
        (attrs.evolve(HELD, holders=()), "now: 1 hold it."),
        (attrs.evolve(HELD, delete_when_released=True), "deleted as soon as its last holder lets go."),
        (attrs.evolve(HELD, sealed_at=None), "now: process 7 (python3, user 1000) has been writing it for 12 s."),
        (attrs.evolve(HELD, sealed_at=None), "Only its writer can abort it"),
        (attrs.evolve(STATUS, sealed_at=None), "Only its writer can abort it"),
        (attrs.evolve(STATUS, evicted_after=0), "nobody holds it; it is the next to go."),
        (attrs.evolve(STATUS, evicted_after=1), "nobody holds it; 1 other goes first."),
        (attrs.evolve(STATUS, evicted_after=9999), "nobody holds it; 9,999 others go first."),
        (attrs.evolve(STATUS, evicted_after=10_000), "nobody holds it; at least 10,000 others go first."),
        (attrs.evolve(STATUS, quota_of=ObjectUser(9, 0, "nm")), "quota of process 9 (nm, user 0): it is evicted only"),
        (attrs.evolve(STATUS, in_memory=False, on_disk=True), "is on disk"),
    ],
)
def test_why_it_cannot_go(status: ObjectStatus, said: str) -> None:
    assert said in " ".join(explain(status, NOW))


def test_states() -> None:
    assert state_of(attrs.evolve(STATUS, sealed_at=None)) == "unsealed"
    assert state_of(attrs.evolve(STATUS, on_disk=True)) == "sealed"
    assert state_of(attrs.evolve(STATUS, in_memory=False, on_disk=True)) == "spilled"


def test_names_do_not_steer_the_terminal() -> None:
    holder = ObjectHolder(7, 0, "a\x1b[2J\tb\u202ec", NOW)
    assert holder_in_words(holder, NOW) == "a?[2J?b?c[7] 0 s"
    assert holder_in_words(ObjectHolder(0, 0, "", NOW), NOW) == "?[?] 0 s"


def test_ages_are_never_negative() -> None:
    assert seconds_since(NOW + 100, NOW) == 0
    assert holder_in_words(attrs.evolve(HOLDER, since=NOW + 1e308), NOW).endswith(" 0 s")
