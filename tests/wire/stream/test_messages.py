"""Statuses in words, and the list of public names."""

import pytest

import plasmastream.wire.stream
from plasmastream.wire.stream import Status, TransferKind, describe_status


@pytest.mark.parametrize("status", Status)
def test_every_status_has_words_of_its_own(status: Status) -> None:
    words = describe_status(status)
    assert words
    assert "unknown" not in words
    assert sum(describe_status(other) == words for other in Status) == 1


def test_unknown_statuses_show_their_byte() -> None:
    assert describe_status(0x07) == "unknown status 0x07"
    assert describe_status(0xF3) == "unknown status 0xf3"


def test_bytes_on_the_wire() -> None:
    assert {status.name: int(status) for status in Status} == {
        "BEGIN": 0x00,
        "SUCCESS": 0x41,
        "METADATA_TOO_LARGE": 0x50,
        "DATA_TOO_LARGE": 0x51,
        "DATA_EMPTY": 0x52,
        "STORE_ERROR": 0x60,
        "PEER_STORE_ERROR": 0x61,
        "PEER_REQUEST_CRASHED": 0x62,
        "SCHEDULED_FOR_DELETION": 0x70,
        "NOT_FOUND": 0x71,
        "ALREADY_RECEIVING": 0x80,
        "ALREADY_PRESENT": 0x81,
        "PEER_FAILED": 0x90,
        "CLIENT_FAILED": 0x91,
    }
    assert [(kind.name, int(kind)) for kind in TransferKind] == [("COPY", 2), ("TAKE", 3)]


def test_public_names_are_sorted_and_there() -> None:
    names = plasmastream.wire.stream.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(plasmastream.wire.stream, name) for name in names)
