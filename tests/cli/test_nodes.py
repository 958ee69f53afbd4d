"""`store` and `serve`, and the first implementation's server: how they start, and how they end."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from plasmastream import ObjectID
from tests.apache import StoreFactory
from tests.cli.processes import Node, Running, command_line, get_object, node, put_object, run


def start_store(path: Path, memory: str = "32MiB") -> Running:
    return Running(command_line("plasmastream", "store", "--plasma-socket", path, "--memory", memory))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_store_ends_in_order(socket_directory: Path, number: signal.Signals) -> None:
    path = socket_directory / "plasma"
    with start_store(path) as store:
        assert store.wait_for("store ready") == f"store ready at {path}, capacity {32 << 20} bytes"
        object_id = put_object(path)
        assert get_object(path, object_id) == b"abc"
        store.signal(number)
        assert store.wait() == 0
        assert not path.exists()
        assert store.err == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_ends_in_order(socket_directory: Path, number: signal.Signals) -> None:
    path = socket_directory / "plasma"
    with node(path) as running:
        process = running.process
        assert f"no store answers at {path}, starting one\nstore ready at {path}, capacity" in process.out
        assert "other machines cannot reach it" in process.wait_for("--host")
        process.signal(number)
        assert process.wait() == 0
        assert not path.exists()
        assert "Traceback" not in process.err


def test_a_node_that_all_may_reach_gives_no_advice(socket_directory: Path) -> None:
    with node(socket_directory / "plasma", "--host", "0.0.0.0") as running:
        running.process.signal(signal.SIGTERM)
        assert running.process.wait() == 0
        assert running.address.startswith("0.0.0.0:")


def begin_transfer(running: Node, size: int) -> socket.socket:
    """Ask for an object of so many bytes, and read only the first byte of the answer."""
    object_id = put_object(running.socket, bytes(size))
    host, _, port = running.address.partition(":")
    client = socket.create_connection((host, int(port)), timeout=20)
    client.sendall(b"\x02\x01\x00" + ObjectID.from_hex(object_id))
    assert client.recv(1) == b"\x00"
    return client


def read_to_end(client: socket.socket) -> int:
    nbytes = 0
    while chunk := client.recv(1 << 20):
        nbytes += len(chunk)
        if nbytes == 8 + (24 << 20):
            client.shutdown(socket.SHUT_WR)
    return nbytes


def test_a_transfer_under_way_is_finished(socket_directory: Path) -> None:
    path = socket_directory / "plasma"
    with node(path) as running, begin_transfer(running, 24 << 20) as client:
        running.process.signal(signal.SIGTERM)
        time.sleep(0.3)
        assert running.process.process.poll() is None
        with pytest.raises(ConnectionRefusedError), socket.create_connection(client.getpeername()):
            pass
        assert read_to_end(client) == 8 + (24 << 20)
        assert running.process.wait() == 0
        assert not path.exists()


@pytest.mark.parametrize(("grace", "signals"), [("0.2", 1), ("60", 2)])
def test_patience_ends(socket_directory: Path, grace: str, signals: int) -> None:
    with (
        node(socket_directory / "plasma", "--grace", grace) as running,
        begin_transfer(running, 24 << 20) as client,
    ):
        for _ in range(signals):
            running.process.signal(signal.SIGINT)
            time.sleep(0.1)
        assert running.process.wait(5) == 0
        with pytest.raises(ConnectionResetError):
            read_to_end(client)
    assert not os.listdir(socket_directory)


def test_a_node_beside_a_store_that_is_there(socket_directory: Path) -> None:
    path = socket_directory / "plasma"
    with start_store(path, "16MiB") as store:
        store.wait_for("store ready")
        with node(path, memory="400TiB") as running:  # which nobody asks for
            assert f"store found at {path}, capacity {16 << 20} bytes" in running.process.out
            running.process.signal(signal.SIGTERM)
            assert running.process.wait() == 0
        run("ls", "-s", path).succeeds()  # the store is not ours to end


def test_a_store_that_goes_away_is_reported_and_the_node_stays(socket_directory: Path, there: Node) -> None:
    path = socket_directory / "plasma"
    with start_store(path) as store:
        store.wait_for("store ready")
        with node(path, "--external-store") as running:
            object_id = put_object(path)
            store.process.kill()
            store.wait()
            for _ in range(2):
                run("copy", running.address, object_id, "-s", there.socket).fails(1, str(path))
            assert "the store failed" in running.process.err
            assert running.process.process.poll() is None


def test_a_node_that_insists_on_a_store(socket_directory: Path) -> None:
    path = socket_directory / "none"
    options = ("-s", str(path), "--port", "0")
    with Running(command_line("plasmastream", "serve", "--external-store", *options)) as server:
        result = run(*options, program="plasma-stream-server")
        result.fails(3, "no store answers", str(path), program="plasma-stream-server")
        assert server.wait() == 3
        assert server.err.startswith(f"plasmastream: no store answers at {path}")
    assert not path.exists()


def test_a_socket_left_behind_is_taken_over(socket_directory: Path) -> None:
    path = socket_directory / "plasma"
    with start_store(path) as store:
        store.wait_for("store ready")
    assert path.is_socket()  # it was killed
    with node(path) as running:
        assert "starting one" in running.process.out


def test_places_that_are_taken(here: Node, socket_directory: Path) -> None:
    run("store", "-s", here.socket, "--memory", "1MiB").fails(1, "already", here.socket)
    port = here.address.rpartition(":")[2]
    free = socket_directory / "plasma"
    run("serve", "--port", port, "-s", free, "--memory", "1MiB").fails(1, here.address, "in use")
    assert not free.exists()
    free.write_text("a file of somebody else's")
    run("store", "-s", free, "--memory", "1MiB").fails(1, str(free))
    assert free.read_text()
    run("store", "-s", socket_directory / "no" / "plasma", "--memory", "1MiB").fails(1, "No such file")


@pytest.mark.parametrize("memory", ["1TiB", "400TiB", "1000000TiB"])
def test_more_memory_than_there_is(socket_directory: Path, memory: str) -> None:
    run("store", "--memory", memory, "-s", socket_directory / "plasma").fails(1, "were")
    assert not (socket_directory / "plasma").exists()


def test_beside_apaches_store(apache_store: StoreFactory, there: Node) -> None:
    store = apache_store()
    with node(store.socket_path, "--external-store") as running:
        object_id = put_object(store.socket_path, b"from Apache's store")
        result = run("sync", "--server", there.address, "TAKE", running.address, object_id).succeeds()
        assert result.text == f"TAKE {running.address}, 1 object: success\n"
        assert get_object(there.socket, object_id) == b"from Apache's store"
        running.process.signal(signal.SIGTERM)
        assert running.process.wait() == 0
        assert run("ls", "-s", store.socket_path).succeeds().text == ""  # TAKEn


def test_the_old_server(here: Node, there: Node) -> None:
    options = ["-s", here.socket, "-p", "0", "-t", "200", "-c", "2"]
    with Running(command_line("plasma-stream-server", *options)) as server:
        address = server.wait_for("peer server ready").rpartition(" ")[2]
        object_id = put_object(here.socket)
        run("copy", address, object_id, "-s", there.socket).succeeds()
        started = time.monotonic()
        run("copy", address, str(ObjectID.random()), "-s", there.socket).fails(1, "not in the source's store")
        assert time.monotonic() - started > 0.2
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
