"""Requests that name very many objects, to a store in a process of its own: others are served all the while."""

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plasmastream import ObjectID
from plasmastream.wire.plasma import (
    EMPTY_DIGEST,
    CreateAndSealBatchReply,
    CreateAndSealBatchRequest,
    DeleteReply,
    DeleteRequest,
    ErrorCode,
    GetReply,
    GetRequest,
    ListReply,
    ListRequest,
    Message,
)
from tests.apache import short_directory
from tests.interop.test_section_12 import Raw, Server

COUNT = 30_000
ENOUGH = 10
"""Requests of somebody else that are served during one long one: where it is done at a stretch, there are two."""

_ROOT = Path(__file__).parents[2]


def keep_asking(path: str) -> None:
    """In a process of its own: ask small questions; at each line on standard input, say how many were answered."""
    with Raw(path) as raw:
        object_id, answered = ObjectID.random(), 0
        while True:
            raw.contains(object_id)
            answered += 1
            if select.select([sys.stdin], [], [], 0)[0]:
                if not sys.stdin.readline():
                    return
                print(json.dumps(answered), flush=True)


class Other:
    """Somebody who has a store answer small questions all the time."""

    def __init__(self, path: str) -> None:
        program = f"from {__name__} import keep_asking; keep_asking({path!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT
        )

    def answered(self) -> int:
        """How many there were so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Server, Other]]:
    with short_directory() as directory, Server(directory / "plasma", 64 << 20) as server:
        other = Other(server.socket_path)
        try:
            assert other.answered()
            yield server, other
        finally:
            other.close()


def test_others_are_served_during_long_requests(place: tuple[Server, Other]) -> None:
    server, other = place
    ids = tuple(ObjectID.random() for _ in range(COUNT))
    columns = ((b"x",) * COUNT, (b"",) * COUNT, (EMPTY_DIGEST,) * COUNT)
    many: list[tuple[Message, type[Message]]] = [
        (CreateAndSealBatchRequest(ids, True, *columns), CreateAndSealBatchReply),
        (GetRequest(ids, 0), GetReply),
        (ListRequest(), ListReply),
    ]
    with server.connect() as raw:
        raw.sock.settimeout(60)
        for request, kind in many:
            raw.send(request)
            before = other.answered()
            select.select([raw.sock], [], [])  # the reply begins
            assert other.answered() - before >= ENOUGH, kind
            raw.receive(kind)
    with server.connect() as raw:
        raw.sock.settimeout(60)
        raw.send(DeleteRequest(ids))
        before = other.answered()
        reply = raw.receive(DeleteReply)
        assert other.answered() - before >= ENOUGH
        # Those that the first client held, until it is gone as a whole, are deleted when it lets them go.
        assert set(reply.errors) <= {ErrorCode.OK, ErrorCode.OBJECT_IN_USE}
