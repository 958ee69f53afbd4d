"""For tests of programs that talk over a network: connections that go wrong where a test says so.

- `open_fault_proxy`: a TCP proxy between any client and any server. Each direction of each connection has a `Script` of
  faults: it is cut, stalled, half-closed, slowed down, or its bits are flipped, at a byte that the test names.
- `memory_transports`: two connected ends of a connection in memory, for the peer room of this package, with faults
  at the n-th call.

All of it is for Trio, and takes the time from Trio's clock, so that tests may bring their own. Nothing else in the
package imports this.
"""

from plasmastream.testing._faults import (
    Cut,
    Delay,
    Direction,
    Fault,
    Flip,
    HalfClose,
    Noise,
    Script,
    Stall,
    Throttle,
    Trickle,
)
from plasmastream.testing._memory import CallFault, MemoryTransport, memory_transports
from plasmastream.testing._passage import Passage, Triggered
from plasmastream.testing._proxy import FaultProxy, ProxiedConnection, Scripts, open_fault_proxy

__all__ = [
    "CallFault",
    "Cut",
    "Delay",
    "Direction",
    "Fault",
    "FaultProxy",
    "Flip",
    "HalfClose",
    "MemoryTransport",
    "Noise",
    "Passage",
    "ProxiedConnection",
    "Script",
    "Scripts",
    "Stall",
    "Throttle",
    "Trickle",
    "Triggered",
    "memory_transports",
    "open_fault_proxy",
]
