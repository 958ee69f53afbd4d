"""Thousands of worlds, and what they stand on: the same seed is the same story, and what goes wrong is found."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import trio

from plasmastream import ObjectID
from plasmastream.peer import PeerTimeouts, TransferKind
from plasmastream.peer._dispatcher import Claims
from plasmastream.peer._persistence import Persistence
from plasmastream.peer._version1 import Version1Client
from plasmastream.store import EmbeddedStore, Lease, Leases
from plasmastream.testing import MemoryTransport
from tests.peer.helpers import contents, fill
from tests.simulation import campaign
from tests.simulation.campaign import Kind
from tests.simulation.ledger import Ledger
from tests.simulation.machine import Program
from tests.simulation.operations import Done, Operation, Promises, Version1
from tests.simulation.version2 import Version2
from tests.simulation.world import Report, simulate

SEEDS = {"1": 300, "2": 2_000}


@pytest.mark.parametrize(("version", "seeds"), SEEDS.items())
def test_nothing_goes_wrong_in_any_world(version: str, seeds: int) -> None:
    outcome = campaign.run(Kind(version), range(seeds))
    assert not outcome.failures, "\n".join(outcome.failures)
    # There is something to survive, and something survives.
    operations = outcome.counts.total()
    assert operations > 1.5 * seeds
    assert outcome.counts["done"] > operations / 3
    assert operations - outcome.counts["done"] > operations / 10
    assert min(outcome.counts[what] for what in ("failed", "cancelled", "died", "partly done")) > seeds / 100


def digests(version: str, seeds: range, hash_seed: int) -> list[str]:
    """Of stories told in a process of their own."""
    command = [sys.executable, "-m", "tests.simulation", "--version", version, "--digests", "--seed", str(seeds.start)]
    command += ["--step", str(seeds.step), "--seeds", str(len(seeds))]
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("version", campaign.VERSIONS)
def test_a_seed_is_the_same_story_in_every_process(version: str) -> None:
    seeds = range(25)
    here = [report.digest for report in campaign.run_here(Kind(version), seeds)]
    assert len(set(here)) == len(seeds)
    assert [report.digest for report in campaign.run_here(Kind(version), seeds[:10])] == here[:10]
    assert digests(version, seeds, 1) == here
    assert digests(version, seeds[::-1], 2) == here[::-1]  # nor does it depend on what was before


def test_a_failure_says_its_seed_and_is_the_same_again() -> None:
    outcome = campaign.run(Kind(lies=True), range(40), workers=2)
    assert outcome.failures
    first, *story, last = outcome.failures[0].strip().split("\n")
    words = first.split()
    assert words[0] == last.split()[0] == "SEED"
    assert any("FAILURE" in line for line in story)
    again = subprocess.run([sys.executable, *words[3:]], capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stdout.strip() == outcome.failures[0].strip()


class Ideal(Version1):
    """Keeps every promise, as it needs no network."""

    promises = Promises(sees_lies=True, finishes=True, puts=True)

    async def perform(self, operation: Operation, program: Program) -> Done:
        """See `Version`."""
        there = contents(operation.source.store)
        present = contents(operation.target.store)
        fill(operation.target.store, {id_: there[id_] for id_ in operation.object_ids if id_ not in present})
        if operation.kind is TransferKind.TAKE:
            await operation.source.store.delete(operation.object_ids)
        return Done(operation.object_ids)


def test_a_version_that_keeps_its_promises_is_found_to_do_so() -> None:
    for seed in range(100):
        assert simulate(seed, Ideal).failures == []


# What is found


def first_failure(
    seeds: range, *, version: type[Version1 | Version2] = Version1, lies: bool = False, match: str = ""
) -> Report:
    """The first world in which such a thing goes wrong."""
    for seed in seeds:
        report = simulate(seed, version, lies=lies)
        if any(match in failure for failure in report.failures):
            return report
    pytest.fail(f"nothing like {match!r} was found")


@pytest.mark.parametrize("match", ["has sealed wrong bytes", "nobody has"])
def test_lies_are_found_that_a_version_believes(match: str) -> None:
    report = first_failure(range(200), lies=True, match=match)
    again = simulate(report.seed, Version1, lies=True)
    assert (again.failures, again.story) == (report.failures, report.story)


def test_bytes_that_come_twice_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(self: Ledger, needed: int) -> int:
        return 2 * self.received - needed

    monkeypatch.setattr(Ledger, "twice", twice)
    first_failure(range(60, 100), version=Version2, match="were received twice")


def test_operations_that_give_up_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pause(self: Persistence, at_least: float = 0.0) -> bool:
        return False

    monkeypatch.setattr(Persistence, "pause", pause)
    first_failure(range(100), version=Version2, match="although the trouble was over soon")


def test_objects_that_are_lost_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryTransport, "abort", MemoryTransport.close)
    first_failure(range(300), match="nobody has")


def test_claims_that_stay_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def claim(self: Claims, object_ids: Sequence[ObjectID]) -> Iterator[None]:
        self._claimed.update(dict.fromkeys(object_ids, trio.Event()))
        yield  # and back only where nothing goes wrong
        for object_id in object_ids:
            del self._claimed[object_id]

    monkeypatch.setattr(Claims, "claim", claim)
    first_failure(range(100), match="claims")


def test_leases_that_stay_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[memoryview] = []

    def release(self: Leases[Lease], release: Callable[[Leases[Lease]], None] = Leases.release) -> None:
        kept.extend(lease.data[:] for lease in self)
        release(self)

    monkeypatch.setattr(Leases, "release", release)
    first_failure(range(20), match="held")
    kept.clear()


def test_connections_that_stay_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Version1Client, "disconnect", lambda self: setattr(self, "_link", None))
    first_failure(range(20), match="the connection #")


def test_promises_that_are_not_kept_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Version1, "promises", Promises(sees_lies=False, finishes=True, puts=False))
    first_failure(range(100), match="has failed, although all is well")
    monkeypatch.setattr(Version1, "perform", Ideal.perform)
    monkeypatch.setattr(EmbeddedStore, "delete", EmbeddedStore.contains)
    first_failure(range(20), match="has left 0.0 at")


STANDS_STILL = """
import trio
from tests.simulation import campaign

async def perform(self, operation, program):
    while True:
        await trio.lowlevel.checkpoint()

campaign.Version1.perform = perform
campaign._HANGS_AFTER = 0.2
list(campaign.run_here(campaign.Kind(), range(7, 8)))
"""


def test_worlds_that_stand_still_are_found() -> None:
    done = subprocess.run([sys.executable, "-c", STANDS_STILL], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "SEED 7: it has not ended after 0.2 s\n"
    assert "simulate" in done.stderr  # where it stands


def test_operations_that_do_not_end_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def client(self: Version1, program: Program, host: str, port: int) -> Version1Client:
        return Version1Client(host, port, timeouts=PeerTimeouts(progress=1e6), connect=program.connect)

    monkeypatch.setattr(Version1, "client", client)
    first_failure(range(300), match="did not end within")
