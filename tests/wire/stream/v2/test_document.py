"""The tables of docs/protocol.md are those of the code."""

import re
from pathlib import Path

from plasmastream.wire.stream.v2 import MAGIC, FrameType, Hello, Limits, Outcome, Patience
from plasmastream.wire.stream.v2._frames import CHUNK, HEAD, OBJECT, RUN, RUN_ENTRY
from plasmastream.wire.stream.v2._limits import MAX_CHUNK_SIZE, MAX_HELLO_SIZE, MAX_RUN_SIZE, MAX_SYNC_SIZE
from plasmastream.wire.stream.v2._state import CLIENT_MAY, REQUESTS, SERVER_MAY

DOCUMENT = Path(__file__).parents[4].joinpath("docs", "protocol.md").read_text()
STATES = {"greeting": FrameType.HELLO, "idle": FrameType.END}
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}


def table(first: str) -> list[list[str]]:
    """The rows of the table whose first heading is this."""
    [rows] = re.findall(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.splitlines()]


def frame(name: str) -> FrameType:
    return FrameType["OUTCOMES" if name == "OUTCOME" else name]


def test_frames() -> None:
    rows = table("type")
    assert {int(number): frame(name) for number, name, *_ in rows} == {t.value: t for t in FrameType}
    clients = {frame(name) for _, name, sender, _ in rows if sender in ("client", "both")}
    assert clients == REQUESTS | {FrameType.HELLO, FrameType.CANCEL, FrameType.PROGRESS}


def test_states() -> None:
    client: dict[FrameType, set[FrameType]] = {}
    server: dict[FrameType, set[FrameType]] = {}
    for names, asks, answers in table("state"):
        for name in names.split(", "):
            state = STATES.get(name) or frame(name)
            client[state] = set(REQUESTS) if "any request" in asks else set()
            client[state] |= {frame(word) for word in re.findall(r"[A-Z]{2,}", asks)}
            server[state] = {frame(word) for word in re.findall(r"[A-Z]{2,}", answers)}
    assert client == CLIENT_MAY
    assert server == SERVER_MAY


def test_outcomes() -> None:
    for row, outcome in zip(table("value"), Outcome, strict=True):
        number, name, _, again = row
        assert (int(number), name.upper().replace(" ", "_")) == (outcome.value, outcome.name)
        assert (again == "yes", again == "success") == (outcome.may_pass, outcome.is_success)


def test_layouts() -> None:
    rows = table("offset")
    assert sum(int(size) for _, size, _ in rows) == HEAD.size
    assert [int(offset) for offset, _, _ in rows] == [0, 1, 2, 4, 8, 12]
    for name, body, payload in table("frame"):
        sizes = [SIZES[size] for size in re.findall(r"\bu(?:8|16|32|64)\b", body)]
        padding = 3 if "(3 bytes)" in body else 0
        assert sum(sizes) + padding == {"OBJECT": OBJECT, "CHUNK": CHUNK, "RUN": RUN}[name].size
        if name == "RUN":
            assert 4 * payload.count("u32") == RUN_ENTRY.size


def nbytes(text: str) -> int:
    number, unit = re.match(r"([\d,]+) ?(KiB|MiB)?", text).groups()  # type: ignore[union-attr]
    return int(number.replace(",", "")) << {"KiB": 10, "MiB": 20, None: 0}[unit]


def test_limits() -> None:
    limits, rows = Limits(), {what: limit for what, limit in table("what") if limit != ""}
    bodies = [nbytes(size) for size in re.findall(r"\d+ [KM]iB", rows["body of a frame"])]
    assert bodies == [limits.max_body_size, MAX_HELLO_SIZE, MAX_SYNC_SIZE]
    ids = [nbytes(count) for count in re.findall(r"\d[\d,]+\d", rows["ids in a request"])]
    assert ids == [limits.max_objects, limits.max_sync_objects]
    assert nbytes(rows["peer requests in a SYNC"]) == limits.max_peer_requests
    assert nbytes(rows["metadata of an object"]) == limits.max_metadata_size
    assert rows["data of an object"] == "2^44 bytes"
    assert limits.max_data_size == 2**44
    assert nbytes(rows["a RUN"]) == MAX_RUN_SIZE
    sizes = re.search(r"\((\d+ KiB) unless said otherwise, (\d+ MiB) at most\)", DOCUMENT)
    assert sizes is not None
    assert [nbytes(size) for size in sizes.groups()] == [limits.chunk_size, MAX_CHUNK_SIZE]
    assert f"objects of at most {limits.small_size >> 10} KiB" in DOCUMENT
    assert f"RUNs of about {limits.run_size >> 10} KiB" in DOCUMENT


def test_patience() -> None:
    rows = {what: default for what, default, _ in table("deadline")}
    patience = Patience()
    assert rows["the other side's greeting, as a whole"] == f"{patience.hello:.0f} s"
    assert rows["nothing arrives while something is due"] == f"{patience.stall:.0f} s"
    assert rows["idle between requests"] == f"{patience.idle:.0f} s"
    slow = f"a frame has begun, and less than {patience.rate / 1024:.0f} KiB/s of it arrive over {patience.stall:.0f} s"
    assert slow in rows


def test_the_beginning() -> None:
    assert f"`{MAGIC.hex(' ')}`" in DOCUMENT
    assert Hello.type == 1
