"""What a store is made of, as flags: those that `store` and `serve` share."""

import re
from typing import Annotated, TypeAlias

import attrs
from cyclopts import Group, Parameter

from plasmastream._node import DEFAULT_MEMORY, StoreOptions
from plasmastream.cli._run import UsageError
from plasmastream.cli._types import Count, Directory, Flag, PositiveSeconds, Size, reader
from plasmastream.store import DEFAULT_MAX_CONNECTIONS, Access, ConnectionLimits

_OCTAL = re.compile(r"(?:0o?)?([0-7]{1,3})")
_DEFAULTS = ConnectionLimits()


def read_mode(text: str) -> int:
    """Read a file's mode, in octal: 0660, 660, 0o660.

    Raises:
        ValueError: it is none.
    """
    found = _OCTAL.fullmatch(text)
    if found is None:
        raise ValueError(f"a mode is written in octal, as 0660, not as {text!r}")
    return int(found[1], 8)


Mode: TypeAlias = Annotated[int, Parameter(converter=reader(read_mode), n_tokens=1, metavar="MODE")]

_STORE_GROUP = Group("Store", help="What a new store is made of.", sort_key=1)
_STORE = Parameter(group=_STORE_GROUP)
_OPTIONAL_STORE = Parameter(group=_STORE_GROUP, show_default=False)
_CLIENT_GROUP = Group("Clients of the store", help="Who may connect, and what each may take.", sort_key=2)
_CLIENTS = Parameter(group=_CLIENT_GROUP)
_OPTIONAL = Parameter(group=_CLIENT_GROUP, show_default=False)


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class StoreFlags:
    """What a new store is made of.

    Parameters
    ----------
    memory
        What all objects together may have: 4GiB, 256MiB, 10GB, or bytes. Taken from the machine at the start.
    directory
        Take the memory from the file system of this directory, rather than from none.
    huge_pages
        Take huge pages, of which the machine must have enough (vm.nr_hugepages).
    spill
        Move what is evicted to files in this directory, and back when somebody asks for it. What an earlier store left
        there is in the new one.
    spill_limit
        What all objects on disk together may have; as much as the disk has, unless said otherwise.
    persist
        At the end, move what is in memory alone to disk too. Needs --spill.
    socket_mode
        Who may write to the socket may connect, beside its user and root. 0600, or 0660 with --socket-group.
    socket_group
        The socket's group, by name or number.
    max_clients
        Connections at once; more wait. A client that waits for objects may take a second connection.
    max_held
        Objects that one client may hold at once. Beyond it, it gets no others.
    max_unsealed
        Bytes that one client may have created and not sealed yet; as much as there is, unless said otherwise.
    max_unsealed_objects
        Objects that one client may have created and not sealed yet.
    max_request
        The largest request; the memory, or 64MiB if that is more, unless said otherwise.
    max_unread_replies
        A client that leaves more than this unread is not served further.
    max_unread_notifications
        A subscriber that leaves more than this unread is told no more.
    reply_timeout
        Seconds after which a client is dropped that leaves too much unread, and reads nothing.
    """

    memory: Annotated[Size, _STORE] = DEFAULT_MEMORY
    directory: Annotated[Directory, _STORE] = None
    huge_pages: Annotated[Flag, _STORE] = False
    spill: Annotated[str | None, _STORE, Parameter(metavar="DIR")] = None
    spill_limit: Annotated[Size | None, _OPTIONAL_STORE] = None
    persist: Annotated[Flag, _STORE] = False
    socket_mode: Annotated[Mode | None, _OPTIONAL] = None
    socket_group: Annotated[str | None, _OPTIONAL] = None
    max_clients: Annotated[Count, _CLIENTS] = DEFAULT_MAX_CONNECTIONS
    max_held: Annotated[Count, _CLIENTS] = _DEFAULTS.held
    max_unsealed: Annotated[Size | None, _OPTIONAL] = None
    max_unsealed_objects: Annotated[Count, _CLIENTS] = _DEFAULTS.unsealed
    max_request: Annotated[Size | None, _OPTIONAL] = None
    max_unread_replies: Annotated[Size, _CLIENTS] = _DEFAULTS.unread_replies
    max_unread_notifications: Annotated[Size, _CLIENTS] = _DEFAULTS.unread_notifications
    reply_timeout: Annotated[PositiveSeconds, _CLIENTS] = _DEFAULTS.reply_timeout

    @property
    def options(self) -> StoreOptions:
        """The same, as the store takes it.

        Raises:
            UsageError: flags that need --spill are given without it.
        """
        if self.spill is None and (self.persist or self.spill_limit is not None):
            raise UsageError("--persist and --spill-limit need --spill, with the directory")
        return StoreOptions(
            memory=self.memory,
            directory=self.directory,
            huge_pages=self.huge_pages,
            spill=self.spill,
            spill_limit=self.spill_limit,
            persist=self.persist,
            access=Access(self.socket_mode, self.socket_group),
            max_clients=self.max_clients,
            limits=ConnectionLimits(
                held=self.max_held,
                unsealed=self.max_unsealed_objects,
                unsealed_bytes=self.max_unsealed,
                request_bytes=self.max_request,
                unread_replies=self.max_unread_replies,
                reply_timeout=self.reply_timeout,
                unread_notifications=self.max_unread_notifications,
            ),
        )
