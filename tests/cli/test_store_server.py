"""`plasma-store-server`: Apache's flags, its starter in pyarrow, and where the memory comes from."""

import contextlib
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import plasmastream
from plasmastream import ObjectID
from plasmastream.cli.store_server import Flags, parse_flags
from plasmastream.wire.plasma import ConnectRequest, encode
from tests.apache import APACHE_PYTHON, ClientFactory, Digest
from tests.cli.processes import Running, command_line, get_object, put_object, run, run_here

PROGRAM = "plasma-store-server"
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
MIB = 1 << 20


def start(path: Path, memory: int, *options: str | Path) -> Running:
    return Running(command_line(PROGRAM, "-s", path, "-m", str(memory), *options))


def end(store: Running) -> None:
    store.signal(signal.SIGTERM)
    assert store.wait(5) == 0
    assert "Traceback" not in store.err


# Flags


@pytest.mark.parametrize(
    ("arguments", "texts", "switches"),
    [
        (["-s", "/a", "-m", "1"], {"s": "/a", "m": "1"}, set()),
        (["--s=/a", "-m=1", "--h"], {"s": "/a", "m": "1"}, {"h"}),
        (["-s=", "-d", "x=y"], {"s": "", "d": "x=y"}, set()),
        (["-m", "1", "-m", "2"], {"m": "2"}, set()),
        (["-m", "-5"], {"m": "-5"}, set()),
        (["-h", "-noh"], {}, set()),
        (["-h", "-h=false"], {}, set()),
        (["-noh", "--h=YES"], {}, {"h"}),
        (["-help", "--version"], {}, {"help", "version"}),
        ([], {}, set()),
    ],
)
def test_flags(arguments: list[str], texts: dict[str, str], switches: set[str]) -> None:
    assert parse_flags(arguments) == Flags(texts, switches)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["-s"]),
        (["-m", "1000"], ["-s"]),
        (["-s", "", "-m", "1000"], ["-s"]),
        (["-s", "/tmp/x"], ["-m"]),
        (["-s"], ["-s needs a value"]),
        (["-s", "/tmp/x", "-m"], ["-m needs a value"]),
        (["-s", "/tmp/x", "-m", "10k"], ["-m", "without a suffix", "'10k'"]),
        (["-s", "/tmp/x", "-m", "0"], ["-m"]),
        (["-s", "/tmp/x", "-m", "-5"], ["-m", "'-5'"]),
        (["-s", "/tmp/x", "-m", "1_000"], ["-m"]),
        (["-s", "/tmp/x", "-m", "²"], ["-m"]),
        (["-s", "/tmp/x", "-m", "9" * 19], ["-m"]),
        (["-s", "/tmp/x", "-m", "9" * 5000], ["-m"]),
        (["-s", "/tmp/x", "-m", "1000", "-e", "redis://test"], ["hashtable://NAME, not 'redis://test'", "--spill"]),
        (["-s", "/tmp/x", "-m", "1000", "-e", "hashtable"], ["hashtable://NAME, not 'hashtable'"]),
        (["-s", "/tmp/x", "-m", "1000", "-x"], ["no flag -x"]),
        (["-s", "/tmp/x", "-m", "1000", "-h=maybe"], ["true or false", "'maybe'"]),
        (["-s", "/tmp/x", "-m", "1000", "more"], ["'more' is no flag"]),
        (["-s", "/tmp/x", "-m", "1000", "--"], ["'--' is no flag"]),
    ],
)
def test_wrong_flags(arguments: list[str], words: list[str]) -> None:
    run_here(*arguments, program=PROGRAM).fails(1, *words, program=PROGRAM)


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_help_and_version(dashes: str) -> None:
    assert run(f"{dashes}version", program=PROGRAM).succeeds().text == f"{PROGRAM} version {plasmastream.__version__}\n"
    shown = run(f"{dashes}help", program=PROGRAM).succeeds().text
    assert max(map(len, shown.splitlines())) <= 80
    assert not [flag for flag in ("-s", "-m", "-d", "-h", "-e", "-help", "-version") if f"  {flag} " not in shown]


def test_what_cannot_be_served(socket_directory: Path) -> None:
    path = socket_directory / "plasma"

    def refused(*arguments: str | Path) -> Callable[..., None]:
        result = run("-m", "1000", *arguments, program=PROGRAM)
        return lambda *words: result.fails(1, *words, program=PROGRAM)

    refused("-s", socket_directory / "no" / "plasma")("cannot be made", "No such file")
    refused("-s", socket_directory / ("x" * 108))("cannot be made", "too long")
    refused("-s", path, "-d", "/no/such/directory")("/no/such/directory", "No such file")
    refused("-s", path, "-d", __file__)(__file__, "Not a directory")
    refused("-s", path, "-m", str(1 << 50))("bytes", "address space")
    refused("-s", path, "-m", str(1 << 43))("8,796,093,022,208 bytes", "left; give the store less memory")
    assert not path.exists()


# Life


@pytest.mark.parametrize("memory", [1, 2048, 10_000, 100_000_007])
def test_the_capacity_is_what_was_said(memory: int, socket_directory: Path, apache_client: ClientFactory) -> None:
    path = socket_directory / "plasma"
    with start(path, memory) as store:
        assert store.wait_for("ready") == f"store ready at {path}, capacity {memory} bytes"
        client = apache_client(path)
        assert client.store_capacity() == memory
        object_id = ObjectID.random()
        client.create(object_id, memory)
        client.seal(object_id)
        assert client.list()[object_id]["data_size"] == memory
        end(store)


def test_it_ends_at_once_whoever_is_connected(socket_directory: Path) -> None:
    path = socket_directory / "plasma"
    with start(path, 10_000_000) as store, contextlib.ExitStack() as stack:
        store.wait_for("ready")
        for data in (b"", bytes(4), bytes(24) + b"\xff", bytes(16) + (1 << 20).to_bytes(8, "little")):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(path))
            client.sendall(data)
        time.sleep(0.1)
        begin = time.monotonic()
        end(store)
        assert time.monotonic() - begin < 2
        assert not path.exists()


def test_a_second_one_is_refused_and_a_dead_one_replaced(socket_directory: Path) -> None:
    path = socket_directory / "plasma"
    with start(path, 1_000_000) as store:
        store.wait_for("ready")
        object_id = put_object(path)
        run("-s", path, "-m", "1000", program=PROGRAM).fails(1, "already being served", program=PROGRAM)
        assert get_object(path, object_id) == b"abc"
        store.process.kill()
        store.wait()
    assert path.exists()
    with start(path, 1_000_000) as store:
        store.wait_for("ready")
        assert get_object(path, object_id) is None
        end(store)


def test_only_its_user_may_connect(socket_directory: Path) -> None:
    """Also where somebody has opened the socket file to all."""
    if os.geteuid():
        pytest.skip("only root can start a process of another user")
    path = socket_directory / "plasma"
    with start(path, 1_000_000) as store:
        store.wait_for("ready")
        assert path.stat().st_mode & 0o777 == 0o600
        socket_directory.chmod(0o755)
        ask = (
            f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r})\n"
            f"try: s.sendall({encode(ConnectRequest())!r}); print(len(s.recv(100)))\n"
            "except ConnectionError: print(0)"
        )

        def connect(user: int) -> str:
            command = ["/usr/bin/env", "python3", "-c", ask]
            done = subprocess.run(command, user=user, group=user, capture_output=True, text=True, timeout=20, cwd="/")
            return done.stdout.strip() or done.stderr.splitlines()[-1]

        assert "Permission" in connect(65534)
        path.chmod(0o666)
        assert connect(65534) == "0"
        assert int(connect(0)) > 0
        assert "of user 65534 may not use this store" in store.err
        end(store)


def test_too_few_descriptors_are_no_end(socket_directory: Path) -> None:
    path = socket_directory / "plasma"
    with start(path, 1_000_000) as store, contextlib.ExitStack() as stack:
        store.wait_for("ready")
        resource.prlimit(store.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        object_id = put_object(path)
        for _ in range(200):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(path))
        time.sleep(0.3)
        assert "no connection can be accepted for now: Too many open files" in store.err
        stack.close()
        assert get_object(path, object_id) == b"abc"
        end(store)


def test_pyarrow_starts_it(tmp_path: Path, apache_parts: None) -> None:
    """`start_plasma_store`, in an environment whose pyarrow has no store of its own, finds ours in `bin`."""
    script = Path(sys.executable).with_name(PROGRAM)
    if not script.exists():
        pytest.skip(f"this project is not installed: there is no {script}")
    where = "import pyarrow, numpy; print(pyarrow.__path__[0]); print(numpy.__path__[0])"
    found = subprocess.run([APACHE_PYTHON, "-c", where], capture_output=True, text=True, check=True)
    pyarrow, numpy = map(Path, found.stdout.split())
    environment = tmp_path / "environment"
    subprocess.run([APACHE_PYTHON, "-m", "venv", "--without-pip", environment], check=True, timeout=60)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "pyarrow").mkdir()
    for part in pyarrow.iterdir():
        if part.name != PROGRAM:
            (packages / "pyarrow" / part.name).symlink_to(part)
    for part in numpy.parent.glob("numpy*"):
        (packages / part.name).symlink_to(part)
    (environment / "bin" / PROGRAM).symlink_to(script)
    program = (
        "import sys, warnings, pyarrow\n"
        "from pyarrow import plasma\n"
        "warnings.simplefilter('ignore')\n"
        f"assert pyarrow.__path__[0].startswith({str(environment)!r})\n"
        "with plasma.start_plasma_store(10_000_000, plasma_directory=sys.argv[1]) as (path, process):\n"
        "    client = plasma.connect(path)\n"
        "    object_id = client.put([1, 'two', 3.0])\n"
        "    print(client.get(object_id), client.store_capacity(), open(f'/proc/{process.pid}/cmdline').read())\n"
    )
    command: list[str | Path] = [environment / "bin" / "python", "-c", program, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "[1, 'two', 3.0] 10000000 " in done.stdout
    assert str(environment / "bin" / PROGRAM) in done.stdout


# Memory in a directory


@contextlib.contextmanager
def mounted(kind: str, *options: str) -> Iterator[Path]:
    """A file system of its own, or skip."""
    path = Path(tempfile.mkdtemp(prefix="ps-mount-"))
    try:
        done = subprocess.run(["mount", "-t", kind, *options, "none", path], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a {kind} cannot be mounted here: {done.stderr.strip()}")
        try:
            yield path
        finally:
            subprocess.run(["umount", path], check=True)
    finally:
        path.rmdir()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    with mounted("tmpfs", "-o", "size=16m") as path:
        yield path


def free_bytes(path: Path) -> int:
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


@pytest.mark.parametrize(
    "command", [[PROGRAM, "-m", "20000000", "-s"], ["plasmastream", "store", "--memory=20MB", "-s"]]
)
def test_a_directory_without_room_is_refused(
    command: Sequence[str], small_disk: Path, socket_directory: Path
) -> None:
    program, *options = command
    result = run(*options, socket_directory / "plasma", "-d", small_disk, program=program)
    result.fails(1, "20,000,768 bytes", f"{16 * MIB:,} left", str(small_disk), "name another", program=program)
    assert free_bytes(small_disk) == 16 * MIB


def test_memory_in_a_directory(small_disk: Path, socket_directory: Path, apache_client: ClientFactory) -> None:
    path = socket_directory / "plasma"
    with start(path, 8 * MIB, "-d", small_disk) as store:
        store.wait_for("ready")
        assert list(small_disk.iterdir()) == []
        assert free_bytes(small_disk) == 8 * MIB
        client = apache_client(path)
        object_id = ObjectID.random()
        client.create(object_id, 8 * MIB)
        client.fill_random(object_id, 3)
        client.seal(object_id)
        assert client.digest([object_id]) == [Digest.of_pattern(3, 8 * MIB)]
        end(store)
    client.close()
    assert free_bytes(small_disk) == 16 * MIB


def test_a_directory_that_fills_up_later_does_no_harm(small_disk: Path, socket_directory: Path) -> None:
    """Held objects leave holes that are too small; growing has no room; but pages move to where the object fits."""
    path = socket_directory / "plasma"
    with start(path, 4 * MIB, "-d", small_disk) as store:
        store.wait_for("ready")
        script = (
            "import sys, trio\n"
            "from plasmastream import ObjectID\n"
            "from plasmastream.store import open_store\n"
            "async def main():\n"
            "    async with open_store(sys.argv[1]) as store:\n"
            "        ids = [await store.put(bytes([n]) * 262144) for n in range(16)]\n"
            "        leases = [lease for lease in await store.get(ids[::2])]\n"
            "        await store.delete(ids[1::2])\n"
            "        full = open(sys.argv[2] + '/ballast', 'wb', buffering=0)\n"
            "        try:\n"
            "            while True: full.write(bytes(1 << 16))\n"
            "        except OSError: pass\n"
            "        for _ in range(3): await store.put(bytes(524288))\n"
            "        print(all(bytes(lease.data) == bytes([2 * n]) * 262144 for n, lease in enumerate(leases)))\n"
            "trio.run(main)\n"
        )
        command: list[str | Path] = [sys.executable, "-c", script, path, small_disk]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
        end(store)


# Huge pages


@pytest.fixture
def huge_pages() -> Iterator[Callable[[int], None]]:
    """Set how many huge pages the machine has, or skip; as before in the end. One test at a time does so."""
    with open(Path(tempfile.gettempdir()) / "plasmastream-huge-pages.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            before = HUGE_PAGES.read_text()
            HUGE_PAGES.write_text(before)
        except OSError as error:
            pytest.skip(f"the number of huge pages cannot be set here: {error}")

        def wanted(count: int) -> None:
            HUGE_PAGES.write_text(str(count))
            if int(HUGE_PAGES.read_text()) != count:
                pytest.skip(f"this machine has no memory for {count} huge pages")

        try:
            if int(before):
                pytest.skip("somebody uses huge pages here")
            yield wanted
        finally:
            HUGE_PAGES.write_text(before)


@pytest.mark.parametrize("place", ["memory", "directory", "directory alone"])
def test_huge_pages(
    place: str, huge_pages: Callable[[int], None], socket_directory: Path, apache_client: ClientFactory
) -> None:
    huge_pages(6)
    path = socket_directory / "plasma"
    with contextlib.ExitStack() as stack:
        options: list[str | Path] = [] if place == "directory alone" else ["-h"]
        if place != "memory":
            options += ["-d", stack.enter_context(mounted("hugetlbfs"))]
        store = stack.enter_context(start(path, 10_000_000, *options))
        store.wait_for("ready")
        info = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        assert (int(info["HugePages_Free"]), int(info["HugePages_Rsvd"])) == (1, 0)
        clients = [apache_client(path), apache_client(path)]
        object_id = ObjectID.random()
        clients[0].create(object_id, 5_000_000, b"meta")
        clients[0].fill_random(object_id, 7)
        clients[0].seal(object_id)
        assert clients[1].digest([object_id]) == [Digest.of_pattern(7, 5_000_000, b"meta")]
        for _ in range(10):  # holes and rounding are made up for by evicting
            clients[0].create_and_seal(ObjectID.random(), bytes(3_000_001))
        clients[0].create(object_id, 10_000_000)
        clients[0].seal(object_id)
        assert set(clients[1].list()) == {object_id}
        assert clients[1].store_capacity() == 10_000_000
        for client in clients:
            client.close()
        end(store)


def test_too_few_huge_pages_are_told_in_numbers(huge_pages: Callable[[int], None], socket_directory: Path) -> None:
    huge_pages(2)
    words = ["4 huge pages of 2,097,152 bytes", "has 2 free", "sysctl vm.nr_hugepages=4 "]
    path = socket_directory / "plasma"
    run("-s", path, "-m", "8000000", "-h", program=PROGRAM).fails(1, *words, program=PROGRAM)
    run("store", "-s", path, "--memory", "8MB", "--huge-pages").fails(1, *words)


def test_huge_pages_need_a_directory_that_has_them(tmp_path: Path, socket_directory: Path) -> None:
    arguments = ["-s", str(socket_directory / "plasma"), "-m", "8000000", "-h", "-d", str(tmp_path)]
    run(*arguments, program=PROGRAM).fails(1, str(tmp_path), "has no huge pages", "hugetlbfs", program=PROGRAM)
