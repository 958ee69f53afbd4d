"""The client of a store for programs without an event loop: plain calls that block, from any number of threads.

The same names and the same meaning as `plasmastream.store`, over the same parser; no loop runs hidden in a thread::

    with open_store("/tmp/plasma") as store:
        object_id = store.put(b"some bytes")
        (lease,) = store.get([object_id], timeout=5)

*Threads.* All of them share one connection, whose requests take turns; none takes longer than `reply_timeout`. A get
that has to wait does so on a connection of its own, and stands in nobody's way. Not
for use from signal handlers and finalizers, except for letting go of leases.

*Interrupts.* A KeyboardInterrupt, or whatever else a signal handler raises, calls off a waiting get without harm. In
the midst of any other request, nobody can tell what the store has done: the connection is given up, and with it all
leases. The next call connects anew, as it does after the store went away.

*Processes.* After a fork, a client that was made before has no connection in the child: its first call there makes
one. Leases, and objects being written, stay with the parent; the child neither keeps nor ends them. Pickled, a client
is its address, which connects where it is first used.
"""

from plasmastream._client import DEFAULT_SOCKET, Buffer, FileSlice, Lease, Leases, NewObject
from plasmastream.blocking._client import StoreClient, open_store
from plasmastream.blocking._unsealed import UnsealedObject

__all__ = [
    "DEFAULT_SOCKET",
    "Buffer",
    "FileSlice",
    "Lease",
    "Leases",
    "NewObject",
    "StoreClient",
    "UnsealedObject",
    "open_store",
]
