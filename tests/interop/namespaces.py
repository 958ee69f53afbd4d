"""Two machines on one: network namespaces joined by a cable that can be pulled out.

`open_link()` makes two namespaces with a pair of virtual interfaces between them, and `Side.within` is the command that
runs others in one of them, as `Node` and `StoreProcess` take it. Nothing of it has a name outside: a namespace lasts as
long as a process in it, the one that holds it ends with whoever made it, and so do those started `within`, however
that happens. Files, and with them the Unix sockets of stores, are those of everybody; so a test can look into either
store from where it is.

It needs root, and the commands ip, nsenter, setpriv and unshare; `missing_reason` tells what is not there. Where tc can
throttle, links can be slow.
"""

import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_PATIENCE = 20.0
_COMMANDS = ("ip", "nsenter", "setpriv", "unshare")
_INTERFACE = "cable"
# Addresses for documentation (RFC 5737), which nothing else uses, here or there.
_ADDRESSES = ("192.0.2.1", "192.0.2.2")
_SMALLEST_BURST = 128 << 10


class NamespaceError(Exception):
    """A namespace, or its interface, could not be made or changed."""


@functools.cache
def missing_reason() -> str | None:
    """Why there can be no namespaces here, or None if there can."""
    if os.geteuid():
        return "network namespaces need root"
    missing = [command for command in _COMMANDS if shutil.which(command) is None]
    if missing:
        return f"there is no command {' and no '.join(missing)}"
    # Not `open_link`: should that be broken, tests have to fail.
    attempt = ["unshare", "--net", "ip", "link", "add", "one", "type", "veth", "peer", "name", "other"]
    done = subprocess.run(attempt, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return f"network namespaces cannot be made here: {done.stderr.strip()}" if done.returncode else None


class Side:
    """One of the two machines.

    Attributes:
        address: its IPv4 address, which the other side reaches.
        within: runs the command that follows it in this namespace, in the same process, and kills it should the
            thread that started it end.
    """

    def __init__(self, holder: int, address: str) -> None:
        self.address = address
        self._holder = holder
        self.within: Sequence[str] = (
            "nsenter", f"--net=/proc/{holder}/ns/net", "setpriv", "--pdeathsig", "KILL", "--",
        )  # fmt: skip

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end, whatever its exit status.

        Raises:
            subprocess.TimeoutExpired: it had not ended after `timeout` seconds, and was killed.
        """
        return subprocess.run(
            [*self.within, *command], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )

    def plasmastream(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run one of our commands here, as `run`."""
        return self.run(sys.executable, "-m", "plasmastream", *arguments, timeout=timeout)

    @property
    def bytes_received(self) -> int:
        """Bytes that have come over the link so far, headers included."""
        for line in Path(f"/proc/{self._holder}/net/dev").read_text().splitlines():
            name, _, figures = line.partition(":")
            if name.strip() == _INTERFACE:
                return int(figures.split()[0])
        raise NamespaceError("the interface is gone")

    def break_connections(self, to: "Side") -> int:
        """End the established TCP connections from here to the other side by a reset; tell how many there were.

        0 also where the kernel cannot do that.
        """
        done = self.run("ss", "-K", "-H", "-t", "-n", "state", "established", "dst", to.address)
        return 0 if done.returncode else len(done.stdout.splitlines())

    def _ip(self, *lines: str) -> None:
        for line in lines:
            done = self.run("ip", *line.split())
            if done.returncode:
                raise NamespaceError(f"ip {line}: {done.stderr.strip()}")


class Link:
    """Two sides and what joins them: see `open_link`."""

    def __init__(self, sides: tuple[Side, Side]) -> None:
        self.sides = sides

    def take_down(self) -> None:
        """Pull the cable out: no packet passes any more, and neither side has a route to the other."""
        for side in self.sides:
            side._ip(f"link set {_INTERFACE} down")

    def take_up(self) -> None:
        """Put it in again. Connections that stand go on when TCP tries next."""
        for side in self.sides:
            side._ip(f"link set {_INTERFACE} up")

    def throttle(self, bytes_per_second: int) -> bool:
        """Let no more through than that, in each direction; False where tc cannot do it."""
        burst = max(_SMALLEST_BURST, bytes_per_second // 100)
        return self._tc("replace", "tbf", "rate", f"{8 * bytes_per_second}bit", "burst", f"{burst}b", "latency", "50ms")

    def release(self) -> None:
        """Let everything through again."""
        self._tc("del")

    def _tc(self, action: str, *bucket: str) -> bool:
        command = ("tc", "qdisc", action, "dev", _INTERFACE, "root", *bucket)
        return shutil.which("tc") is not None and not any(side.run(*command).returncode for side in self.sides)


@contextlib.contextmanager
def open_link() -> Iterator[Link]:
    """Two namespaces, joined, for the time of a `with` block.

    Raises:
        NamespaceError: they cannot be made; `missing_reason` knows why before.
    """
    with _holder() as first, _holder() as second:
        sides = Side(first, _ADDRESSES[0]), Side(second, _ADDRESSES[1])
        sides[0]._ip(f"link add {_INTERFACE} type veth peer name {_INTERFACE} netns {second}")
        for side in sides:
            side._ip("link set lo up", f"address add {side.address}/30 dev {_INTERFACE}")
        link = Link(sides)
        link.take_up()
        yield link


@contextlib.contextmanager
def _holder() -> Iterator[int]:
    """A namespace, and the id of the process that holds it: one that ends when its standard input does."""
    command = ["unshare", "--net", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that Ctrl-C leaves it to the end of the block
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            if not holder.stdout.readline():
                raise NamespaceError(holder.stderr.read().decode(errors="replace").strip())
            yield holder.pid
        finally:
            holder.stdin.close()
            try:
                holder.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                holder.kill()
