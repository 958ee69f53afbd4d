"""The socket file of a store: made for whom it is meant, not taken from a store that lives, and removed in the end."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from plasmastream._errors import StoreError
from plasmastream.store._access import Access, Gate

_BACKLOG = 1024


@contextmanager
def listening(path: str, access: Access) -> Iterator[tuple[socket.socket, Gate]]:
    """A socket that listens at `path`, where one at which nobody answers any more is replaced.

    Raises:
        StoreError: somebody answers there, or something else is there, or it cannot be made with this access.
    """
    _remove_dead(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            gate = _bind(listener, path, access)
        except OSError as error:
            raise StoreError(f"the store's socket cannot be made at {path}: {error.strerror or error}") from error
        identity = os.stat(path)
        try:
            yield listener, gate
        finally:
            listener.close()
            with suppress(OSError):  # somebody may have put another socket there
                if os.path.samestat(identity, os.stat(path)):
                    os.unlink(path)


def _remove_dead(path: str) -> None:
    with suppress(OSError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise StoreError(f"the store's socket cannot be made at {path}: something that is no socket is there")
        if _answers(path):
            raise StoreError(f"a store is already being served at {path}")
        os.unlink(path)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # its queue is full, so somebody is there
        except OSError:
            return False
        return True


def _bind(listener: socket.socket, path: str, access: Access) -> Gate:
    listener.setblocking(False)
    listener.bind(path)
    try:
        gate = access.apply(path)  # before listen, so that nobody else gets in meanwhile
        listener.listen(_BACKLOG)
    except BaseException:
        os.unlink(path)
        raise
    return gate
