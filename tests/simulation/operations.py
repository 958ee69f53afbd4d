"""What a client asks for, and how each version of the protocol does it.

`Version` is the seam: a world draws `Operation`s and knows what must hold whatever the version; a version says how they
are carried out, and what more it promises.
"""

import random
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import attrs

from plasmastream import ObjectID
from plasmastream.peer import Limits, PeerRequest, PeerServer, PeerTimeouts, Status, TransferKind
from plasmastream.peer._version1 import Version1Client
from tests.simulation.machine import PORT, Machine, Program, Programs


@attrs.frozen
class Operation:
    """Objects that a client wants at `target`: its own machine, or one whose server shall fetch them (SYNC).

    From its own machine, where a version `puts`, it sends them itself.
    """

    number: int
    kind: TransferKind
    source: Machine
    target: Machine
    parts: tuple[tuple[ObjectID, ...], ...]
    """The objects; of a SYNC, those of each peer request."""
    timeout: float | None = None
    """For all of it, in seconds, where the version has such a thing."""
    detaches: bool = False
    """Whether a SYNC goes on without the client, where the version has such a thing."""
    shares_client: bool = False
    """Whether by the client that the whole program shares."""
    is_again: bool = False
    """Whether it is asked for once more."""

    @property
    def object_ids(self) -> tuple[ObjectID, ...]:
        """All objects."""
        return sum(self.parts, ())

    def of(self, object_ids: Collection[ObjectID]) -> "Operation":
        """The same for some of the objects, in new parts."""
        parts = [tuple(object_id for object_id in part if object_id in object_ids) for part in self.parts]
        return attrs.evolve(self, parts=tuple(part for part in parts if part))

    def __str__(self) -> str:
        sizes = "+".join(str(len(part)) for part in self.parts)
        again = " again" * self.is_again
        return f"operation {self.number}{again} {self.kind.name} {sizes} from {self.source.name} to {self.target.name}"


@attrs.frozen
class Done:
    """What became of an operation."""

    arrived: Collection[ObjectID]
    """What is at the target, by the version's word."""
    excused: Collection[ObjectID] = ()
    """What is not, although the version tried all that it promises."""


@attrs.frozen
class Promises:
    """What a version promises beyond what holds for all of them."""

    sees_lies: bool
    """Flipped bits, and clean ends that nobody has made, are noticed: nothing wrong is sealed, nothing is lost."""
    finishes: bool
    """What is at the target already counts as success, and a successful TAKE has deleted at the source, whatever went
    wrong meanwhile. Version 1 promises so only if nothing goes wrong."""
    puts: bool
    """A client can send objects of its own."""
    persists: bool = False
    """An operation whose timeout is `LONG` ends with success if the faults end early enough; and each operation with a
    timeout ends soon after."""
    chunk_size: int | None = None
    """Bytes that are received twice, at most, for each connection; None where more may be."""


LONG = 600.0
"""Seconds: a timeout that leaves time for everything to go wrong first."""


class Version(Programs, Protocol):
    """One version of the protocol."""

    promises: Promises

    def conditions(self) -> AbstractContextManager[object]:
        """A block in which its worlds run."""
        ...

    async def perform(self, operation: Operation, program: Program) -> Done:
        """Carry out an operation, as the client's program.

        Raises:
            PlasmastreamError: the operation failed as a whole.
        """
        ...

    def in_chunks(self, size: int, source: Machine) -> bool:
        """Whether an object of that size, data and metadata together, leaves its source in chunks."""
        ...

    def left_over(self, program: Program) -> Iterator[str]:
        """What is claimed, scheduled or kept in the program though nothing runs any more, in words."""
        ...


class Version1:
    """Version 1: a request succeeds or fails as a whole, nothing is tried again, bytes are not verified."""

    promises = Promises(sees_lies=False, finishes=False, puts=False)

    def __init__(self, chance: random.Random) -> None:
        self._limits = Limits(inline_size=chance.choice([0, 1_000, 16_384]))

    def server(self, program: Program) -> PeerServer:
        """See `Programs`."""
        return PeerServer(program.store, limits=self._limits, connect=program.connect)

    def client(self, program: Program, host: str, port: int) -> Version1Client:
        """See `Programs`."""
        return Version1Client(host, port, timeouts=PeerTimeouts(), limits=self._limits, connect=program.connect)

    def conditions(self) -> AbstractContextManager[object]:
        """See `Version`."""
        return nullcontext()

    async def perform(self, operation: Operation, program: Program) -> Done:
        """See `Version`."""
        source, target = operation.source, operation.target
        is_sync = target is not program.machine
        client = program.client_of((target if is_sync else source).host, shared=operation.shares_client)
        assert isinstance(client, Version1Client)
        try:
            if is_sync:
                requests = [PeerRequest(operation.kind, source.host, PORT, part) for part in operation.parts]
                statuses = await client.sync(requests, timeout=300)
                parts = zip(operation.parts, statuses, strict=True)
                return Done([object_id for part, status in parts if status == Status.SUCCESS for object_id in part])
            transfer = client.take if operation.kind is TransferKind.TAKE else client.copy
            await transfer(operation.object_ids, program.store)
            return Done(operation.object_ids)
        finally:
            if not operation.shares_client:
                await client.aclose()

    def in_chunks(self, size: int, source: Machine) -> bool:
        """See `Version`."""
        return False

    def left_over(self, program: Program) -> Iterator[str]:
        """See `Version`."""
        for claims in (program.server._taking, program.server._dispatcher._receiving):
            if not claims.is_empty:
                yield f"claims to {len(claims._claimed)} objects"
