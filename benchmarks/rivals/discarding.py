"""As much as a loop of `send` and `recv_into` moves when nothing is stored: what `iperf3` does, in Python."""

import socket

from benchmarks.rivals.streams import compete

_PIECE = memoryview(bytearray(128 << 10))


def _send(sock: socket.socket, count: int, size: int) -> None:
    left = count * size
    while left:
        left -= sock.send(_PIECE[: min(left, len(_PIECE))])


def _receive(sock: socket.socket, count: int, size: int) -> None:
    left = count * size
    while left:
        left -= sock.recv_into(_PIECE[: min(left, len(_PIECE))])


compete(_send, _receive)
