"""Who may use a store's socket: its mode and group, and the same asked of the kernel for each connection.

The mode alone would do, if nobody could change it, or carry a socket past it: so whoever connects is looked at again.
"""

import grp
import os
import socket
import struct
from contextlib import suppress

import attrs

from plasmastream._errors import StoreError

DEFAULT_MODE = 0o600
GROUP_MODE = 0o660

_CREDENTIALS = struct.Struct("iII")
_SO_PEERGROUPS = 59  # Linux; the socket module has no name for it
_MOST_GROUPS = 256  # what the socket module has room for


@attrs.frozen
class Access:
    """Who may connect, beside the user who runs the store, and root."""

    mode: int | None = None
    """Of the socket's file: who may write to it may connect. None: 0600, or 0660 where a group is named."""
    group: str | None = None
    """Of the socket's file, by name or number; None leaves it to the system."""

    def apply(self, path: str) -> "Gate":
        """Give a socket's file its group and its mode.

        Raises:
            StoreError: there is no such group.
            OSError: this user may not give the file to the group.
        """
        mode = self.mode
        if self.group is None:
            mode = DEFAULT_MODE if mode is None else mode
        else:
            mode = GROUP_MODE if mode is None else mode
            os.chown(path, -1, _group_number(self.group))
        os.chmod(path, mode)
        return Gate(os.geteuid(), os.stat(path).st_gid, mode)


@attrs.frozen
class Peer:
    """Who is at the other end of a connection."""

    pid: int
    user: int
    groups: frozenset[int]


@attrs.frozen
class Gate:
    """Tells of each connection whether it may go on, whatever has become of the socket's file since."""

    user: int
    group: int
    mode: int

    def admits(self, peer: Peer) -> bool:
        """Whether the mode lets this one in."""
        if peer.user in (0, self.user):
            return True
        return bool(self.mode & 0o002 or (self.mode & 0o020 and self.group in peer.groups))


def peer_of(sock: socket.socket) -> Peer:
    """Ask the kernel who connected a Unix socket, with the groups that it had then."""
    pid, user, group = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    groups = {group}
    with suppress(OSError):  # an old kernel, or more groups than there is room for: then the first one counts alone
        numbers = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
        groups.update(number for (number,) in struct.iter_unpack("I", numbers))
    return Peer(pid, user, frozenset(groups))


def _group_number(group: str) -> int:
    if group.isdecimal():
        number = int(group)
        if number < (1 << 32) - 1:  # that one would mean: leave it as it is
            return number
    with suppress(KeyError, ValueError):
        return grp.getgrnam(group).gr_gid
    raise StoreError(f"the store's socket cannot be given to the group {group!r}: there is none of this name")


def leads_to(address: str, descriptor: int) -> bool:
    """Whether a descriptor is a Unix socket whose other end is at `address`, or that has no other end yet."""
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError:
        return False  # something else
    try:
        return sock.family == socket.AF_UNIX and sock.getpeername() == address
    except OSError:
        return True
    finally:
        sock.detach()
