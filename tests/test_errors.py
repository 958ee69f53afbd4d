"""The tree of errors is what its module draws, and what the package exports."""

import plasmastream
from plasmastream import (
    LocalProtocolError,
    NotSupportedError,
    ObjectExistsError,
    ObjectInUseError,
    ObjectNotFoundError,
    ObjectNotSealedError,
    PeerError,
    PlasmastreamError,
    ProtocolError,
    RemoteProtocolError,
    StoreConnectionError,
    StoreError,
    StoreFullError,
    TransferError,
    _errors,
)

PARENTS: dict[type[Exception], type[Exception]] = {
    PlasmastreamError: Exception,
    ProtocolError: PlasmastreamError,
    LocalProtocolError: ProtocolError,
    RemoteProtocolError: ProtocolError,
    StoreError: PlasmastreamError,
    ObjectExistsError: StoreError,
    ObjectNotFoundError: StoreError,
    ObjectNotSealedError: StoreError,
    ObjectInUseError: StoreError,
    StoreFullError: StoreError,
    NotSupportedError: StoreError,
    StoreConnectionError: StoreError,
    PeerError: PlasmastreamError,
    TransferError: PeerError,
}


def test_each_error_has_its_place_in_the_tree() -> None:
    defined = {value for value in vars(_errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert defined == set(PARENTS)
    assert {error: error.__bases__ for error in PARENTS} == {error: (parent,) for error, parent in PARENTS.items()}


def test_the_tree_in_the_documentation_names_each() -> None:
    assert _errors.__doc__ is not None
    assert not [error for error in PARENTS if error.__name__ not in _errors.__doc__]


def test_the_package_exports_each() -> None:
    assert {error.__name__ for error in PARENTS} <= set(plasmastream.__all__)


def test_a_broken_protocol_may_come_with_a_status_to_answer() -> None:
    assert RemoteProtocolError("why").status is None
    error = RemoteProtocolError("why", 0x51)
    assert (str(error), error.status) == ("why", 0x51)


def test_a_refused_transfer_carries_the_byte() -> None:
    error = TransferError("why", 0x71)
    assert (str(error), error.status) == ("why", 0x71)
