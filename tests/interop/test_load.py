"""A thousand clients of one store, two hundred of which misbehave: the others hardly notice, and it ends in time."""

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from plasmastream import ObjectID, blocking
from tests.apache import short_directory
from tests.interop.crowd import Crowd, descriptors_for
from tests.interop.nodes import StoreProcess, descriptor_count, wait_until

CLIENTS = 1000
ACTIVE = 50
CROWD = {"stalled": 100, "deaf": 100, "active": ACTIVE, "idle": CLIENTS - 200 - ACTIVE}
ROUNDS = 400
MOST_GROWTH = 2.0
SHARED = ObjectID.from_name("shared")


@contextlib.contextmanager
def store() -> Iterator[StoreProcess]:
    with short_directory() as directory, StoreProcess(directory / "plasma", 20_000_000) as process:
        yield process
        assert "Traceback" not in process.stderr(), process.stderr()


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    with descriptors_for(CLIENTS):
        yield


def contains(client: blocking.StoreClient, number: int) -> None:
    assert client.contains([SHARED]) == [True]


def get_and_release(client: blocking.StoreClient, number: int) -> None:
    (lease,) = client.get([SHARED])
    assert lease is not None
    lease.release()


def create_and_seal(client: blocking.StoreClient, number: int) -> None:
    object_id = ObjectID.from_name(f"measured {number}")
    with client.create(object_id, 1000) as unsealed:
        unsealed.seal(bytes(8))


OPERATIONS: list[Callable[[blocking.StoreClient, int], None]] = [contains, get_and_release, create_and_seal]


@contextlib.contextmanager
def lightly_active(crowds: Sequence[Crowd]) -> Iterator[None]:
    """Have one client of each crowd ask something every few milliseconds."""
    ended = threading.Event()
    failures: list[Exception] = []

    def run() -> None:
        number = 0
        try:
            while not ended.wait(0.005):
                for crowd in crowds:
                    crowd.ask(number)
                number += 1
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)
    assert not failures


def test_a_thousand_clients_hardly_delay_the_others() -> None:
    """Two stores are asked in turn, one with the crowd and one without, so that the machine's own load hits both.

    Both have the same active clients: a store that is kept awake answers sooner than one that sleeps in between.
    """
    with store() as quiet, store() as crowded, contextlib.ExitStack() as stack:
        before = descriptor_count(crowded.pid)
        crowd = stack.enter_context(Crowd.connect(crowded.socket_path, **CROWD))
        few = stack.enter_context(Crowd.connect(quiet.socket_path, stalled=0, deaf=0, active=ACTIVE, idle=0))
        clients = [
            stack.enter_context(blocking.open_store(process.socket_path)) for process in (quiet, crowded)
        ]
        wait_until(lambda: descriptor_count(crowded.pid) > CLIENTS, 60, "all of them are connected")
        wait_until(crowd.deaf_are_stuck, 20, "the deaf ones have asked all they can")
        for client in clients:
            client.put(b"data" * 100, object_id=SHARED)
        delays: dict[str, tuple[list[float], list[float]]] = {work.__name__: ([], []) for work in OPERATIONS}
        with lightly_active([few, crowd]):
            for number in range(ROUNDS):
                for work in OPERATIONS:
                    for place in (0, 1) if number % 2 else (1, 0):
                        begin = time.perf_counter()
                        work(clients[place], number)
                        delays[work.__name__][place].append(time.perf_counter() - begin)
        assert crowd.still_connected() == CLIENTS
        medians = {name: tuple(map(statistics.median, both)) for name, both in delays.items()}
        for name, (alone, together) in medians.items():
            print(f"{name}: {alone * 1e6:.0f} µs with {ACTIVE} others, {together * 1e6:.0f} µs with {CLIENTS:,} others")
        assert all(together <= MOST_GROWTH * alone for alone, together in medians.values()), medians
        crowd.close()
        wait_until(lambda: descriptor_count(crowded.pid) <= before + 1, 20, "the store has let go of all of them")


def test_sigterm_among_a_thousand_clients() -> None:
    with store() as process, Crowd.connect(process.socket_path, **CROWD) as crowd:
        wait_until(lambda: descriptor_count(process.pid) > CLIENTS, 60, "all of them are connected")
        wait_until(crowd.deaf_are_stuck, 20, "the deaf ones have asked all they can")
        begin = time.monotonic()
        assert process.terminate(timeout=5) == 0
        print(f"ended after {time.monotonic() - begin:.2f} s")
