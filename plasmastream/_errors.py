"""The one tree of errors.

::

    PlasmastreamError
    ├── ProtocolError            bytes or calls that break a protocol
    │   ├── LocalProtocolError   this program misused a parser
    │   └── RemoteProtocolError  the other side sent something it must not
    ├── StoreError               a store said no
    │   ├── ObjectExistsError
    │   ├── ObjectNotFoundError
    │   ├── ObjectNotSealedError
    │   ├── ObjectInUseError
    │   ├── StoreFullError
    │   ├── NotSupportedError
    │   └── StoreConnectionError no store answers, or it went away
    └── PeerError                another machine could not be reached, or broke off
        └── TransferError        the peer answered with a status that is not success

Messages name the object, the peer, and what can be done. Cancellation is not an error and passes through.
"""


class PlasmastreamError(Exception):
    """Base of every error that plasmastream raises on purpose."""


class ProtocolError(PlasmastreamError):
    """A protocol was broken; see the two subclasses for by whom."""


class LocalProtocolError(ProtocolError):
    """This program asked a parser for something that its state does not allow. Nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The other side sent bytes that the protocol forbids. The connection cannot be used any more.

    `status` is a hint: what to answer before closing, where the protocol has a word for it.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class StoreError(PlasmastreamError):
    """The store refused a request, or could not be asked."""


class ObjectExistsError(StoreError):
    """An object of this id is in the store already, sealed or not."""


class ObjectNotFoundError(StoreError):
    """The store holds no such object."""


class ObjectNotSealedError(StoreError):
    """The object is still being written."""


class ObjectInUseError(StoreError):
    """Somebody holds a lease on the object."""


class StoreFullError(StoreError):
    """There is no room, and nothing more can be evicted."""


class NotSupportedError(StoreError):
    """The store does not know such a request: Apache's answers none that are our own."""


class StoreConnectionError(StoreError):
    """No store answers at the socket, or the connection to it broke."""


class PeerError(PlasmastreamError):
    """The other machine could not be reached, fell silent, or broke the connection."""


class TransferError(PeerError):
    """A peer answered a request with a status other than success.

    `status` is the byte that it sent.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
