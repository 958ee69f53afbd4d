"""What goes wrong, drawn from a seed: with connections through a proxy, with all connections, with machines."""

import math
import random
import time
from collections import Counter
from typing import Protocol

from plasmastream.testing import Cut, Fault, Flip, HalfClose, Noise, Script, Stall, Throttle
from tests.interop.namespaces import Link, Side

KIB, MIB = 1 << 10, 1 << 20


def script_of(seed: int, side: int, number: int, version: int) -> Script:
    """What goes wrong with a connection through the proxy of one side.

    Version 1 has neither checksums nor acknowledgements: flipped bits would go unnoticed, and an end that looks clean
    tells the source of a TAKE that all has arrived. So these happen from version 2 on.
    """
    rng = random.Random(f"{seed} proxy {side} {number}")
    kinds = ["none", "cut", "stall", "throttle"]
    weights = [6, 6, 1, 1]
    if version > 1:
        kinds += ["half-close", "flip", "noise"]
        weights = [1, *weights[1:], 1, 3, 1]
    # The objects go to the client; what goes to the server is short.
    to_client = rng.random() < 0.8
    farthest = (256 if version == 1 else 64) * MIB if to_client else 4 * KIB
    at = int(math.exp(rng.uniform(0, math.log(farthest))))
    fault: Fault
    match rng.choices(kinds, weights)[0]:
        case "none":
            return Script()
        case "cut":
            fault = Cut(at, reset=version == 1 or rng.random() < 0.5)
        case "stall":
            fault = Stall(at, seconds=rng.uniform(0.1, 5))
        case "throttle":
            fault = Throttle(rng.uniform(5, 50) * MIB)
        case "half-close":
            fault = HalfClose(at)
        case "flip":
            fault = Flip(at, bit=rng.randrange(8))
        case _:
            fault = Noise(10 ** rng.uniform(-8, -6), seed=number)
    faults = [fault]
    if version > 1:  # whose connections are kept, and would be whole for ever once their fault is over
        faults.append(Cut(at + rng.randrange(64 * MIB if to_client else 64 * KIB), reset=rng.random() < 0.5))
    return Script(to_client=faults) if to_client else Script(to_server=faults)


class Machine(Protocol):
    """What faults need of a machine."""

    side: Side

    def kill_server(self) -> None:
        """End the peer server by SIGKILL; the store lives on."""
        ...

    def start_server(self) -> None:
        """Start it again."""
        ...


class Faults:
    """Pulls the cable, breaks connections and kills peer servers; all is as before when a call returns.

    Args:
        rng: decides what happens when.
        link: between the machines.
        machines: both of them.
        longest: how long the link is down at most, in seconds; at least a second.
    """

    def __init__(self, rng: random.Random, link: Link, machines: tuple[Machine, Machine], longest: float) -> None:
        self._rng = rng
        self._link = link
        self._machines = machines
        self._longest = max(1.0, longest)
        self.seen: Counter[str] = Counter()
        self.seconds_down = 0.0

    def pause(self) -> float:
        """How long until the next one, in seconds."""
        return self._rng.uniform(0.2, 4)

    def cause_one(self, *, kill_any: bool) -> None:
        """One of them; unless `kill_any`, servers are killed on the second machine only."""
        match self._rng.choices(("break", "pull", "kill"), (3, 2, 2))[0]:
            case "break":
                here, there = self._rng.sample(self._link.sides, 2)
                self.seen["connections reset at once"] += here.break_connections(there)
            case "pull":
                downtime = math.exp(self._rng.uniform(0, math.log(self._longest)))
                self._link.take_down()
                time.sleep(downtime)
                self._link.take_up()
                self.seen["link taken down"] += 1
                self.seconds_down += downtime
            case _:
                machine = self._rng.choice(self._machines) if kill_any else self._machines[1]
                machine.kill_server()
                time.sleep(self._rng.uniform(0, 2))
                machine.start_server()
                self.seen["peer servers killed"] += 1
