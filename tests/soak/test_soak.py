"""A short soak with every run of the tests, and what it stands on; `make soak` runs ten minutes."""

import random

import pytest

from plasmastream import ObjectID
from plasmastream.testing import Cut, Flip, Script
from tests.soak.__main__ import report
from tests.soak.clients import Counts
from tests.soak.content import MIB, Content, Kind, draw_job
from tests.soak.faults import script_of
from tests.soak.figures import trend_of
from tests.soak.run import Options, soak


@pytest.mark.usefixtures("namespaces")
def test_a_short_soak_finds_nothing() -> None:
    outcome = soak(Options(seconds=3, seed=1, clients=2, largest=8 * MIB, longest_downtime=1, version=2))
    lines = list(report(outcome))
    print("\n".join(lines))
    assert outcome.findings == []
    assert outcome.counts.objects
    assert all(line.startswith("|") and line.endswith("|") for line in lines if line)


def test_jobs_and_faults_depend_on_their_seed_alone() -> None:
    first, again, other = ([draw_job(random.Random(seed + i), MIB) for i in range(50)] for seed in (100, 100, 200))
    assert first == again != other
    assert {job.kind for job in first} == set(Kind)
    scripts = [script_of(1, 0, number, 2) for number in range(300)]
    assert scripts == [script_of(1, 0, number, 2) for number in range(300)]
    assert {type(fault).__name__ for script in scripts for fault in script.to_client} == {
        "Cut", "Flip", "HalfClose", "Noise", "Stall", "Throttle",
    }  # fmt: skip


def test_version_1_is_spared_what_it_cannot_notice() -> None:
    faults = [fault for number in range(300) for fault in _faults(script_of(1, 0, number, 1))]
    assert any(isinstance(fault, Cut) for fault in faults)
    assert all(fault.reset for fault in faults if isinstance(fault, Cut))
    assert not any(isinstance(fault, Flip) for fault in faults)


def _faults(script: Script) -> tuple[object, ...]:
    return script.to_client + script.to_server


@pytest.mark.parametrize("size", [0, 1, 5000, 3 * MIB + 7])
def test_every_wrong_byte_counts(size: int) -> None:
    content, object_id = Content(1), ObjectID(b"\x03" * 20)
    data, metadata = bytearray().join(content.pieces(object_id, size)), content.metadata(object_id)

    def wrong(data: bytearray, metadata: bytes = metadata) -> int:
        return content.wrong_bytes(object_id, size, memoryview(data), memoryview(metadata))

    assert len(data) == size
    assert metadata
    assert wrong(data) == 0
    assert wrong(data + b"more") == 4
    assert wrong(data, metadata[:-2]) == 2
    if data:
        assert wrong(data[:-1]) == 1
        data[size // 2] ^= 16
        assert wrong(data) == 1


def test_a_block_in_the_place_of_another_is_wrong() -> None:
    content, object_id = Content(1), ObjectID(b"\x01" * 20)
    data = bytearray().join(content.pieces(object_id, 4 * MIB))
    data[:MIB], data[MIB : 2 * MIB] = data[MIB : 2 * MIB], data[:MIB]
    assert content.wrong_bytes(object_id, 4 * MIB, memoryview(data), memoryview(content.metadata(object_id))) > MIB


def test_counts_can_be_sent_and_added() -> None:
    counts = Counts(objects=3, slowest=2.0)
    counts.failures["refused"] += 2
    total = Counts(objects=1, slowest=5.0)
    total.add(Counts.from_json(counts.to_json()))
    assert (total.objects, total.slowest, total.failures["refused"]) == (4, 5.0, 2)


TIMES = [15.0 * number for number in range(40)]


def test_noise_outliers_and_a_warm_up_are_no_growth() -> None:
    rng = random.Random(1)
    noise = [100 + rng.gauss(0, 5) for _ in TIMES]
    outliers = [value + 1000 * (number % 7 == 0) for number, value in enumerate(noise)]
    warm_up = [value - 60 * (number < 5) for number, value in enumerate(noise)]
    for values in (noise, outliers, warm_up, [7.0] * len(TIMES)):
        assert not trend_of(TIMES, values, floor=2).is_growth


def test_what_grows_is_found_through_noise_and_restarts() -> None:
    rng = random.Random(2)
    leak = [100 + number + rng.gauss(0, 5) for number, _ in enumerate(TIMES)]
    found = trend_of(TIMES, leak, floor=2)
    assert found.is_growth
    assert found.slope == pytest.approx(1 / 15, rel=0.3)
    assert trend_of(TIMES, [float(number // 10) for number, _ in enumerate(TIMES)], floor=0).is_growth


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples_are_judged_too(count: int) -> None:
    assert not trend_of(TIMES[:count], [5.0] * count, floor=0).is_growth
