"""A network in memory: who is where, connections between them, and what goes wrong with each.

Every call of a transport is an event. Events are counted, and at a number that somebody has named, he is called: so
machines die and operations are cancelled at any step of any conversation.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from plasmastream import PeerError
from plasmastream.peer import Excuse, Transport
from plasmastream.testing import MemoryTransport, memory_transports
from tests.simulation.faults import Plan, Weather
from tests.simulation.trace import Trace

_MOST_EVENTS = 100_000
"""More than any world needs: beyond them something goes round in circles."""


class Ends(Protocol):
    """A program that has ends of connections."""

    name: str
    host: str
    transports: set["Tap"]


class Listening(Ends, Protocol):
    """A program that takes connections."""

    def accept(self, transport: "Tap") -> None:
        """Serve a new connection."""
        ...


class Network:
    """Connections between machines.

    Args:
        chance: draws what goes wrong.
        weather: how much.
        trace: where it is written down.
    """

    def __init__(self, chance: random.Random, weather: Weather, trace: Trace) -> None:
        self.weather = weather
        self.trace = trace
        self.events = 0
        self.connections = 0
        self.listeners: dict[tuple[str, int], Listening] = {}
        """The programs that run now, by host and port."""
        self.is_fair = True
        """Whether nothing was planned to go wrong so far."""
        self._chance = chance
        self._unfair: list[MemoryTransport] = []
        self._plugged_in_at: dict[str, float] = defaultdict(float)
        self._moments: dict[int, list[Callable[[], None]]] = defaultdict(list)

    def at_event(self, number: int, call: Callable[[], None]) -> None:
        """Call somebody at an event; they are counted from 1."""
        self._moments[number].append(call)

    def unplug(self, program: Ends, seconds: float) -> None:
        """Let nothing through to or from a program's machine for a while."""
        self.trace.note(f"{program.name} is unplugged, for {seconds:g} s")
        self._plugged_in_at[program.host] = trio.current_time() + seconds
        for transport in program.transports:
            transport.hold(seconds)

    def calm(self) -> None:
        """Nothing goes wrong with new connections, and nobody is called any more."""
        self.weather = Weather(0.0, lies=False)
        self._moments.clear()

    def cut_unfair(self) -> None:
        """End all connections with which something goes wrong: some would stall for ever."""
        for transport in self._unfair:
            transport.cut(reset=True)

    def happens(self, what: str) -> None:
        """An event."""
        self.trace.note(what)
        self.events += 1
        if self.events == _MOST_EVENTS:
            self.trace.fail("it does not end")
        if self.events >= _MOST_EVENTS:
            raise PeerError("this world has ended")
        for call in self._moments.pop(self.events, ()):
            call()

    async def connect(self, program: Ends, host: str, port: int, timeout: float) -> Transport:
        """Connect a program to the one that is at an address: see `plasmastream.peer.Connect`."""
        self.connections += 1
        name = f"#{self.connections}"
        plan = self.weather.draw(self._chance)
        self.is_fair = self.is_fair and plan.is_fair
        self.happens(f"{name} {program.name} -> {host}: {plan}")
        with trio.move_on_after(timeout):
            await trio.sleep_until(max(self._plugged_in_at[program.host], self._plugged_in_at[host]))
            await trio.sleep(plan.delay)
            if plan.meets == "silence":
                await trio.sleep_forever()
            return self._join(name, program, host, port, plan)
        raise PeerError(f"{host}:{port} did not answer within {timeout:g} s")

    def _join(self, name: str, program: Ends, host: str, port: int, plan: Plan) -> Transport:
        listener = self.listeners.get((host, port))
        if listener is None or plan.meets == "refusal":
            raise PeerError(f"no connection to {host}:{port}: Connection refused")
        ours, theirs = memory_transports(plan.client_faults, plan.server_faults, room=plan.room, script=plan.script)
        if not plan.is_fair:
            self._unfair.append(ours)
        ours.peer, theirs.peer = f"{host}:{port}", program.name
        listener.accept(Tap(f"{name} {listener.name}", theirs, listener, self))
        return Tap(f"{name} {program.name}", ours, program, self)


class Tap:
    """One end of a connection, whose calls are events. See `plasmastream.peer.Transport`."""

    def __init__(self, name: str, transport: MemoryTransport, owner: Ends, network: Network) -> None:
        self.name = name
        self._transport = transport
        self._owner = owner
        self._network = network
        owner.transports.add(self)

    @property
    def peer(self) -> str:
        """See `Transport`."""
        return self._transport.peer

    async def receive_into(self, buffer: memoryview, *, timeout: float, expected: int = 1) -> int:
        """See `Transport`."""
        self._network.happens(f"{self.name} reads")
        nbytes = await self._transport.receive_into(buffer, timeout=timeout, expected=expected)
        self._network.trace.note(f"{self.name} has read {nbytes}")
        return nbytes

    async def send(
        self,
        pieces: Sequence[bytes | memoryview],
        *,
        timeout: float,
        at_least: int = 1,
        excuse: Excuse | None = None,
    ) -> None:
        """See `Transport`."""
        self._network.happens(f"{self.name} sends {sum(len(piece) for piece in pieces)}")
        await self._transport.send(pieces, timeout=timeout, at_least=at_least, excuse=excuse)

    def hold(self, seconds: float) -> None:
        """See `MemoryTransport.hold`."""
        self._transport.hold(seconds)

    def is_quiet(self) -> bool:
        """See `Transport`."""
        return self._transport.is_quiet()

    def break_on_death(self, on: bool) -> None:
        """See `Transport`."""
        self._transport.break_on_death(on)

    def close(self) -> None:
        """See `Transport`."""
        self._leave("closes", self._transport.close)

    def abort(self) -> None:
        """See `Transport`."""
        self._leave("aborts", self._transport.abort)

    def die(self) -> None:
        """The program that has this end is no more."""
        self._leave("dies", self._transport.die)

    def _leave(self, how: str, leave: Callable[[], None]) -> None:
        leave()
        if self in self._owner.transports:
            self._owner.transports.discard(self)
            self._network.trace.note(f"{self.name} {how}")
