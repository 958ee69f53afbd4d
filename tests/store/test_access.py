# ruff: noqa: ASYNC240  (a test may look at a file)
"""Who may connect: other users, really, against a store in a process of its own."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from plasmastream import StoreError
from plasmastream.cli._store_flags import read_mode
from plasmastream.store import Access, EmbeddedStore, serve_store
from plasmastream.store._access import Gate, Peer, peer_of
from plasmastream.wire.plasma import ConnectRequest, encode
from tests.cli.processes import Running, command_line, run, run_here

OWNER, STRANGER = os.geteuid(), 54321
GROUP, OTHER_GROUP = 54322, 54323
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


@pytest.fixture
def path(socket_directory: Path) -> Path:
    socket_directory.chmod(0o755)
    return socket_directory / "plasma"


@contextlib.contextmanager
def store(path: Path, *options: str) -> Iterator[Running]:
    with Running(command_line("plasmastream", "store", "-s", path, "--memory", "1MiB", *options)) as process:
        process.wait_for("store ready")
        yield process


def fate(path: Path, user: int, group: int, *groups: int) -> str:
    """What becomes of a client that belongs to this user and these groups: served, refused, or kept out."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # which does little, and never returns
        try:
            os.setgroups(groups)
            os.setgid(group)
            os.setuid(user)
            os.write(writing, _try(path).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def _try(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        try:
            sock.connect(str(path))
        except PermissionError:
            return "kept out"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(encode(ConnectRequest()))
            return "served" if sock.recv(1) else "refused"
        return "refused"


@as_root
def test_others_are_kept_out(path: Path) -> None:
    with store(path) as process:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert fate(path, STRANGER, os.getegid()) == "kept out"
        path.chmod(0o666)
        assert fate(path, STRANGER, os.getegid()) == "refused"
        assert f"of user {STRANGER} may not use this store" in process.err
        assert "process " in process.err
        assert fate(path, OWNER, GROUP) == "served"


@as_root
def test_a_group_is_let_in(path: Path) -> None:
    with store(path, "--socket-group", str(GROUP)) as process:
        assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (GROUP, 0o660)
        assert fate(path, STRANGER, GROUP) == "served"
        assert fate(path, STRANGER, OTHER_GROUP, GROUP) == "served"
        assert fate(path, STRANGER, OTHER_GROUP) == "kept out"
        path.chmod(0o666)
        assert fate(path, STRANGER, OTHER_GROUP) == "refused"
        assert fate(path, STRANGER, OTHER_GROUP, GROUP) == "served"
        assert process.err.count("may not use") == 1


@as_root
def test_all_are_let_in(path: Path) -> None:
    with store(path, "--socket-mode", "0666"):
        assert fate(path, STRANGER, OTHER_GROUP) == "served"


@as_root
def test_a_group_that_one_may_not_give_the_socket_to(path: Path) -> None:
    """A store is started in a child that is not root."""
    path.parent.chmod(0o777)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(OTHER_GROUP)
            os.setuid(STRANGER)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
                Access(group=str(GROUP)).apply(str(path))
        except OSError as error:
            os.write(writing, str(error.strerror).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"Operation not permitted"
    os.waitpid(child, 0)


async def test_what_cannot_be_given_leaves_no_socket(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chown(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    with EmbeddedStore(100) as store:
        with pytest.raises(StoreError, match=f"cannot be made at {path}: Operation not permitted"):
            await serve_store(store.core, str(path), access=Access(group="0"))
        with pytest.raises(StoreError, match="the group 'no such group'"):
            await serve_store(store.core, str(path), access=Access(group="no such group"))
    assert not path.exists()


def test_wrong_flags(path: Path) -> None:
    run("store", "-s", path, "--memory", "1MiB", "--socket-group", "no-such-group").fails(1, "'no-such-group'")
    assert not path.exists()
    for wrong in ("rw", "0999", "01777", "-1", ""):
        run_here("store", f"--socket-mode={wrong}").fails(2, "--socket-mode", "in octal")
    run_here("serve", "--max-held", "0").fails(2, "--max-held")
    run_here("serve", "--reply-timeout", "0").fails(2, "--reply-timeout")


@pytest.mark.parametrize(("text", "mode"), [("0660", 0o660), ("660", 0o660), ("0o666", 0o666), ("0", 0)])
def test_modes(text: str, mode: int) -> None:
    assert read_mode(text) == mode


@pytest.mark.parametrize(
    ("mode", "user", "groups", "admitted"),
    [
        (0o000, 7, {1}, True),
        (0o000, 0, {1}, True),
        (0o600, 8, {5}, False),
        (0o620, 8, {1, 5}, True),
        (0o620, 8, {1}, False),
        (0o602, 8, {1}, True),
    ],
)
def test_the_gate(mode: int, user: int, groups: set[int], admitted: bool) -> None:
    assert Gate(user=7, group=5, mode=mode).admits(Peer(1, user, frozenset(groups))) is admitted


def test_the_kernel_says_who_connected() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = peer_of(ours)
    assert (peer.pid, peer.user) == (os.getpid(), os.geteuid())
    assert peer.groups == {os.getegid(), *os.getgroups()}
