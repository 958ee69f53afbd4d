"""A few thousand inputs of each kind with every run of the tests; `make fuzz` makes a million."""

import pytest

from tests.fuzz import campaign, decoder, parsers
from tests.fuzz.corpus import IDS
from tests.fuzz.live import End, Piece, Script
from tests.fuzz.mutate import Mutator, shrink
from tests.fuzz.servers import SERVERS

SEED = 11_000


def test_parsers_bear_anything() -> None:
    assert decoder.run(SEED, 2_000).inputs == 2_000


def test_parsers_bear_real_messages() -> None:
    for data in parsers.seeds():
        decoder.feed(data)


@pytest.mark.parametrize(("name", "inputs"), [("store", 3_000), ("peer", 800)])
def test_a_live_server_bears_anything(name: str, inputs: int) -> None:
    assert campaign.run(name, SEED, range(inputs)).inputs == inputs


# What the tests above stand on


def test_inputs_depend_on_their_seed_and_number_alone() -> None:
    first, second = ([parsers.make(Mutator(seed, i)) for i in range(50)] for seed in (1, 2))
    assert first == [parsers.make(Mutator(1, i)) for i in range(50)]
    assert first != second


def test_a_broken_promise_is_found_and_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(data: bytes) -> None:
        if b"\x17" in data[parsers.HEAD :]:
            raise KeyError(data)

    monkeypatch.setattr(parsers, "check", check)
    with pytest.raises(decoder.Finding, match=r"seed 3, input \d+, .*KeyError.*\n.*\n.*in 4 bytes: .* ......17$"):
        decoder.run(3, 1000)


def test_a_parser_that_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(data: bytes) -> None:
        while True:
            pass

    monkeypatch.setattr(parsers, "check", check)
    monkeypatch.setattr(decoder, "INPUT_DEADLINE", 0.02)
    with pytest.raises(decoder.Hang, match="not done"):
        decoder.feed(b"")


def test_shrinking_leaves_what_matters() -> None:
    assert bytes(shrink(b"..a....b..", lambda some: {*b"ab"} <= {*some})) == b"ab"


def test_scripts_can_be_written_and_read() -> None:
    script = Script((Piece(b"abc", ("stream", "null")), Piece(b"\x00")), End.STALL)
    assert Script.parse(str(script)) == script


def test_a_dead_server_is_a_finding() -> None:
    with SERVERS["store"].started(1) as server:
        server.watch.process.kill()
        assert "ended with status -9" in str(campaign.fault_in(server, [Script((Piece(b"x"),), End.HALF)]))


def test_what_is_held_in_the_end_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.servers._PATIENCE", 0.1)
    with SERVERS["store"].started(1) as server, server.client.create(IDS[0], 1):
        assert "unsealed or held in the end" in str(campaign.fault_in(server, []))
