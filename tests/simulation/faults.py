"""What goes wrong with one connection, drawn from a source of chance.

Every connection has a delay, so that things take time at all. With how many of them more goes wrong is the weather of
a world. Some faults are lies: bits that flip, and clean ends that nobody has made. Version 1 believes those, so that
they are for other versions.
"""

import errno
import os
import random
from typing import Literal

import attrs

from plasmastream.testing import CallFault, Cut, Delay, Fault, Flip, HalfClose, Noise, Script, Stall, Throttle
from tests.simulation.chance import log_uniform

_TO_SERVER, _TO_CLIENT = 1_000, 50_000
"""Bytes after which a fault seldom finds anything to spoil: most of them go to the client."""


@attrs.frozen
class Plan:
    """One connection's fate."""

    delay: float = 0.001
    meets: Literal["a server", "refusal", "silence"] = "a server"
    script: Script = attrs.Factory(Script)
    client_faults: tuple[CallFault, ...] = ()
    server_faults: tuple[CallFault, ...] = ()
    room: int = 64 << 10

    def __str__(self) -> str:
        if self.meets != "a server":
            return self.meets
        faults = [f"{fault} to server" for fault in self.script.to_server if not isinstance(fault, Delay)]
        faults += [f"{fault} to client" for fault in self.script.to_client if not isinstance(fault, Delay)]
        faults += [f"{len(self.client_faults)} calls of the client fail"] * bool(self.client_faults)
        faults += [f"{len(self.server_faults)} calls of the server fail"] * bool(self.server_faults)
        return ", ".join(faults) or "fair"

    @property
    def is_fair(self) -> bool:
        """Whether nothing is planned to go wrong."""
        return str(self) == "fair"


@attrs.frozen
class Weather:
    """How much goes wrong, and of what kind."""

    badness: float
    """The share of connections with which something goes wrong."""
    lies: bool
    """Whether bits flip, and connections end as if the other side wanted it so."""

    def draw(self, chance: random.Random) -> Plan:
        """A connection's fate."""
        delay = log_uniform(chance, 0.0001, 0.1)
        room = chance.choice([1_000, 16_384, 65_536])
        if chance.random() >= self.badness:
            return _plan(delay, room)
        kind = chance.random()
        if kind < 0.1:
            return Plan(delay, "refusal")
        if kind < 0.15:
            return Plan(delay, "silence")
        if kind < 0.35:
            faults = (self._call_fault(chance),)
            ours, theirs = (faults, ()) if chance.random() < 0.5 else ((), faults)
            return attrs.evolve(_plan(delay, room), client_faults=ours, server_faults=theirs)
        to_server: list[Fault] = []
        to_client: list[Fault] = []
        for _ in range(chance.choice([1, 1, 2])):
            if chance.random() < 0.3:
                to_server.append(self._fault(chance, _TO_SERVER))
            else:
                to_client.append(self._fault(chance, _TO_CLIENT))
        return _plan(delay, room, to_server, to_client)

    def _fault(self, chance: random.Random, longest: int) -> Fault:
        at = 0 if chance.random() < 0.05 else int(log_uniform(chance, 1, longest))
        lies = ["half-close", "flip", "flip", "noise"] if self.lies else []
        match chance.choice(["cut", "cut", "cut", "stall", "stall", "throttle", *lies]):
            case "cut":
                return Cut(at, reset=not self.lies or chance.random() < 0.5)
            case "stall":
                return Stall(at, chance.choice([1.0, 20.0, 100.0, float("inf")]))
            case "half-close":
                return HalfClose(at)
            case "throttle":
                return Throttle(log_uniform(chance, 20_000, 1_000_000))
            case "flip":
                return Flip(at, chance.randrange(8))
            case _:
                return Noise(log_uniform(chance, 1e-6, 1e-2), chance.randrange(1 << 30))

    def _call_fault(self, chance: random.Random) -> CallFault:
        at = int(log_uniform(chance, 1, 40))
        match chance.randrange(3):
            case 0:
                return CallFault.stall(at)
            case 1:
                return CallFault.cut(at, reset=not self.lies or chance.random() < 0.5)
            case _:
                return CallFault.fail(at, OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)))


def _plan(
    delay: float, room: int, to_server: list[Fault] | None = None, to_client: list[Fault] | None = None
) -> Plan:
    base = Delay(delay)
    return Plan(delay, script=Script([base, *(to_server or ())], [base, *(to_client or ())]), room=room)
