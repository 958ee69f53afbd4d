"""What arguments mean: each type reads its text, and says what is wrong with it."""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import attrs
from cyclopts import ArgumentCollection, CoercionError, Group, Parameter, Token
from cyclopts.validators import Number

from plasmastream._object_id import ObjectID
from plasmastream.cli._run import UsageError
from plasmastream.store import DEFAULT_SOCKET

_T = TypeVar("_T")

_UNITS = {
    "": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", start=1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", start=1)},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]i?b|)", re.IGNORECASE | re.ASCII)


@attrs.frozen
class Address:
    """Where a server listens: a name or an IP address, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_size(text: str) -> int:
    """Read a number of bytes: 4GiB, 256MiB, 10GB, 1.5TiB, 4096.

    Raises:
        ValueError: it is none, or less than 1 byte.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(Decimal(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if not 0 < size < 1 << 62:
        raise ValueError(f"a size is written as 4GiB, 256MiB, 10GB, or as a number of bytes, not as {text!r}")
    return size


def read_address(text: str) -> Address:
    """Read HOST, HOST:PORT, [IPV6] or [IPV6]:PORT.

    Raises:
        ValueError: it is none.
    """
    from plasmastream.peer import parse_address

    return Address(*parse_address(text))


def show_size(size: int) -> str:
    """Write a number of bytes as `read_size` reads it, by the largest unit that has no rest."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return str(size)


def reader(read: Callable[[str], _T]) -> Callable[[Any, Sequence[Token]], _T]:
    """Make a converter of a function that raises ValueError."""

    def convert(_: Any, tokens: Sequence[Token]) -> _T:
        try:
            return read(tokens[0].value)
        except ValueError as error:
            raise CoercionError(msg=str(error), token=tokens[0]) from None

    return convert


def _check_one_place(arguments: ArgumentCollection) -> None:
    given = [token.keyword for argument in arguments for token in argument.tokens[:1] if token.source == "cli"]
    if len(given) > 1:  # a socket that the environment names is what is meant where nothing else is said
        raise UsageError(f"{given[0]} and {given[1]} exclude each other")


_PLACE = Group("Place", help="Where the objects are: one of these.", validator=_check_one_place, sort_key=1)

Id: TypeAlias = Annotated[
    ObjectID, Parameter(converter=reader(ObjectID.from_hex), n_tokens=1, accepts_keys=False, metavar="ID")
]
Ids: TypeAlias = Annotated[tuple[Id, ...], Parameter(name="ID...", negative=())]
Size: TypeAlias = Annotated[
    int, Parameter(converter=reader(read_size), n_tokens=1, show_default=show_size, metavar="SIZE")
]
Server: TypeAlias = Annotated[
    Address,
    Parameter(converter=reader(read_address), n_tokens=1, accepts_keys=False, show_default=str, metavar="HOST:PORT"),
]
Port: TypeAlias = Annotated[int, Parameter(validator=Number(gte=0, lte=65535), metavar="PORT")]
Seconds: TypeAlias = Annotated[float, Parameter(validator=Number(gte=0), metavar="SECONDS")]
PositiveSeconds: TypeAlias = Annotated[float, Parameter(validator=Number(gt=0), metavar="SECONDS")]
Count: TypeAlias = Annotated[int, Parameter(validator=Number(gte=1), metavar="N")]
Flag: TypeAlias = Annotated[bool, Parameter(negative=())]
Directory: TypeAlias = Annotated[str | None, Parameter(name=("--directory", "-d"), metavar="DIR")]
PlasmaSocket: TypeAlias = Annotated[
    str, Parameter(name=("--plasma-socket", "-s"), env_var="PLASMA_SOCKET", metavar="PATH")
]
StoreHere: TypeAlias = Annotated[PlasmaSocket, Parameter(group=_PLACE)]
"""The store's socket, in a command that may ask a peer instead."""
StoreThere: TypeAlias = Annotated[
    Address | None,
    Parameter(
        converter=reader(read_address),
        n_tokens=1,
        accepts_keys=False,
        show_default=False,
        metavar="HOST[:PORT]",
        group=_PLACE,
    ),
]
"""The peer that such a command may ask."""
Compression: TypeAlias = Annotated[Literal["zstd", "lz4"] | None, Parameter(name="--compress", show_default=False)]
Protocol: TypeAlias = Annotated[Literal[1, 2] | None, Parameter(show_default=False)]

__all__ = [
    "DEFAULT_SOCKET",
    "Address",
    "Compression",
    "Count",
    "Directory",
    "Flag",
    "Id",
    "Ids",
    "PlasmaSocket",
    "Port",
    "PositiveSeconds",
    "Protocol",
    "Seconds",
    "Server",
    "Size",
    "StoreHere",
    "StoreThere",
    "read_address",
    "read_size",
    "reader",
    "show_size",
]
