"""A run against a live server, and what to do when it fails: find out which few scripts it takes, and say so."""

import tempfile
import time
from collections.abc import Sequence

import attrs

from tests.apache import HarnessError
from tests.fuzz.decoder import Finding
from tests.fuzz.live import End, Piece, Script, ServerFault
from tests.fuzz.mutate import shrink
from tests.fuzz.servers import SERVERS, Server

_ATTEMPTS = 60  # each may take a server of its own, half a second
_SHOWN = 10_000  # characters


@attrs.frozen
class Figures:
    """What a run has seen."""

    inputs: int
    seconds: float
    remarks: str

    def __str__(self) -> str:
        return f"{self.inputs:,} inputs in {self.seconds:.0f} s ({self.inputs / self.seconds:,.0f}/s); {self.remarks}"


def run(name: str, seed: int, numbers: range) -> Figures:
    """Send inputs, each on a connection of its own, while a healthy client works; check the store's books at the end.

    Args:
        name: which of `SERVERS`.

    Raises:
        Finding: the server ended, hung, met an unexpected error, did not serve the healthy client, or kept something.
    """
    begin = time.monotonic()
    with SERVERS[name].started(seed) as server:
        try:
            _send(server, seed, numbers)
        except (ServerFault, HarnessError) as error:
            raise Finding(_report(server, seed, error)) from error
        remarks = f"{server.healthy.figures()}; {server.watch.figures()}"
    return Figures(len(numbers), time.monotonic() - begin, remarks)


def _send(server: Server, seed: int, numbers: range) -> None:
    with server.healthy.working():
        server.talks.run(server.scripts(seed, numbers))
    server.check_end()


def fault_of(name: str, seed: int, scripts: Sequence[Script]) -> BaseException | None:
    """What a new server does wrong when it is sent these, one after the other; None if nothing."""
    with SERVERS[name].started(seed) as server:
        return fault_in(server, scripts)


def fault_in(server: Server, scripts: Sequence[Script]) -> BaseException | None:
    """What this server does wrong."""
    try:
        server.talks.run(scripts, at_once=1)
        server.check_end()
    except Exception as error:
        return error
    return None


def _report(server: Server, seed: int, error: BaseException) -> str:
    recent: Sequence[Script] = list(server.talks.recent)
    lines = [f"seed {seed}, {server.name}: {error}"]
    if fault_of(server.name, seed, recent) is None:
        lines.append(f"the last {len(recent)} inputs do not bring it about again; they are in this file:")
    else:
        recent = shrink(recent, lambda some: fault_of(server.name, seed, some) is not None, _ATTEMPTS)
        recent = [_shorter(server.name, seed, recent[0])] if len(recent) == 1 else recent
        lines.append(f"{len(recent)} inputs bring it about again:")
    texts = [str(script) for script in recent]
    with tempfile.NamedTemporaryFile("w", prefix="plasmastream-fuzz-", suffix=".txt", delete=False) as file:
        file.write("\n".join(texts))
    lines.append(f"python -m tests.fuzz --seed {seed} --{server.name} {file.name}")
    shown = texts if sum(map(len, texts)) < _SHOWN else []
    return "\n".join([*lines, *shown])


def _shorter(name: str, seed: int, script: Script) -> Script:
    """Leave pieces out of a script, and bytes out of a script of one piece."""

    def fails(pieces: Sequence[Piece]) -> bool:
        return fault_of(name, seed, [Script(tuple(pieces), script.end)]) is not None

    pieces = shrink(script.pieces, fails, _ATTEMPTS)
    if len(pieces) == 1:
        kinds = pieces[0].descriptors
        data = shrink(pieces[0].data, lambda some: fails([Piece(bytes(some), kinds)]), _ATTEMPTS)
        pieces = [Piece(bytes(data), kinds)]
    return Script(tuple(pieces), End(script.end))
