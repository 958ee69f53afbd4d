"""The floor: `sendfile` out of a memory file, `recv_into` a map that is warm; no protocol, no objects, no store."""

import mmap
import os
import socket

from benchmarks.rivals.streams import compete

_MOST = 1 << 30
_file = os.memfd_create("floor")
os.ftruncate(_file, _MOST)
os.posix_fallocate(_file, 0, _MOST)
_map = memoryview(mmap.mmap(-1, _MOST))


def _send(sock: socket.socket, count: int, size: int) -> None:
    end, at = count * size, 0
    while at < end:
        at += os.sendfile(sock.fileno(), _file, at, end - at)


def _receive(sock: socket.socket, count: int, size: int) -> None:
    end, at = count * size, 0
    while at < end:
        at += sock.recv_into(_map[at:end])


compete(_send, _receive)
