"""Apache's own Plasma store and client, run as subprocesses: the judges of what "compatible" means.

They need a CPython 3.11 environment with `pyarrow==11.0.0` and `numpy<2`, which `make test` builds as
`.venv-apache`; the variable PLASMASTREAM_APACHE_PYTHON names another one. Most tests take the fixtures
`apache_store` and `apache_client`; inside async tests, wrap blocking calls in `trio.to_thread.run_sync`.
"""

import contextlib
import functools
import itertools
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, TypedDict, cast

from tests.apache_worker import LENGTH, fingerprint, pattern_fingerprint

_ROOT = Path(__file__).parent.parent
_WORKER = Path(__file__).with_name("apache_worker.py")

APACHE_PYTHON = Path(
    os.environ.get("PLASMASTREAM_APACHE_PYTHON") or _ROOT / ".venv-apache" / "bin" / "python"
)
REQUIRE_APACHE = os.environ.get("PLASMASTREAM_REQUIRE_APACHE") == "1"


class ApacheError(Exception):
    """Apache's client raised: `kind` is the name of its exception class, as in "PlasmaStoreFull"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class HarnessError(Exception):
    """A subprocess died or did not answer in time. It is never the expected outcome of a command."""


class Digest(NamedTuple):
    """What `ApacheClient.digest` tells about an object; compare with `Digest.of` or `Digest.of_pattern`."""

    data_size: int
    data_hash: str
    metadata_size: int
    metadata_hash: str

    @classmethod
    def of(cls, data: bytes | memoryview, metadata: bytes | memoryview = b"") -> Self:
        """The digest of an object with these contents."""
        return cls(len(data), fingerprint(data), len(metadata), fingerprint(metadata))

    @classmethod
    def of_pattern(cls, seed: int, size: int, metadata: bytes = b"") -> Self:
        """The digest of an object that `fill_random(id, seed)` has filled."""
        return cls(size, pattern_fingerprint(seed, size), len(metadata), fingerprint(metadata))


class Notification(NamedTuple):
    """One event of `subscribe`: both sizes are -1 when the object is gone."""

    object_id: bytes
    data_size: int
    metadata_size: int


class ListEntry(TypedDict):
    """One object in `ApacheClient.list`. Times are in whole seconds."""

    data_size: int
    metadata_size: int
    ref_count: int
    create_time: int
    construct_duration: int
    state: Literal["created", "sealed"]


@functools.cache
def missing_reason() -> str | None:
    """Why Apache's parts cannot run here, or None if they can."""
    if not APACHE_PYTHON.exists():
        return f"Apache's client is not installed: there is no {APACHE_PYTHON} (`make test` makes one)"
    try:
        _store_executable()
    except HarnessError as error:
        return str(error)
    return None


@functools.cache
def _store_executable() -> Path:
    find = "from importlib.util import find_spec; print(find_spec('pyarrow').submodule_search_locations[0])"
    command: list[str | Path] = [APACHE_PYTHON, "-c", find]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    if found.returncode:
        raise HarnessError(f"{APACHE_PYTHON} has no pyarrow")
    executable = Path(found.stdout.strip()) / "plasma-store-server"
    if not executable.exists():
        raise HarnessError(f"the pyarrow of {APACHE_PYTHON} has no plasma-store-server: it must be 11.0.0")
    return executable


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A new directory whose path leaves room for a socket's name within the 107 bytes of a Unix address."""
    path = Path(tempfile.mkdtemp(prefix="ps-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _Process:
    """A subprocess whose standard error goes to a file, and which is only ever signalled by its own pid."""

    def __init__(self, name: str, command: Sequence[str | Path], *, pipes: bool = False) -> None:
        self.name = name
        self._final_stderr: str | None = None
        self._log = tempfile.NamedTemporaryFile(prefix="plasmastream-", suffix=".log")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else self._log,
            stderr=self._log,
            bufsize=0,
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while the process runs; then its status, or minus the number of the signal that ended it."""
        return self._process.poll()

    def stderr(self) -> str:
        """All that the process has written to its standard error so far."""
        if self._final_stderr is not None:
            return self._final_stderr
        return Path(self._log.name).read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if the process has ended."""
        self._process.send_signal(number)

    def wait(self, timeout: float = 30) -> int:
        """Wait, in seconds, for the process to end; return its exit status."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._failure(f"has not ended after {timeout} s") from None

    def terminate(self, timeout: float = 10) -> int:
        """End the process with SIGTERM; return its exit status."""
        self._process.terminate()
        return self.wait(timeout)

    def kill(self) -> None:
        """End the process with SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def _failure(self, what: str) -> HarnessError:
        return HarnessError(f"{self.name} (process {self.pid}) {what}. Its standard error:\n{self.stderr()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, politely first; may be called again."""
        if self.exit_status is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()
        if self._final_stderr is None:
            self._final_stderr = self.stderr()
            self._log.close()


class ApacheStore(_Process):
    """Apache's `plasma-store-server`, listening at `socket_path` with `memory` bytes.

    `arguments` are further ones: `["-d", directory]`, `["-e", "hashtable://test"]`.

    Raises:
        HarnessError: the store ended, or did not listen within 10 seconds.
    """

    def __init__(self, socket_path: str | Path, memory: int, arguments: Sequence[str] = ()) -> None:
        self.socket_path = str(socket_path)
        self.memory = memory
        options = ["-s", self.socket_path, "-m", str(memory), *arguments]
        super().__init__("Apache's store", [_store_executable(), *options])
        try:
            self._wait_until_listening()
        except BaseException:
            self.close()
            raise

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            if self.exit_status is not None:
                raise self._failure(f"ended with status {self.exit_status}")
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(self.socket_path)
                return
            if time.monotonic() > deadline:
                raise self._failure("does not listen after 10 s")
            time.sleep(0.01)


class Handle:
    """A command under way in an `ApacheClient`."""

    def __init__(self, client: "ApacheClient", name: str, future: Future[Any]) -> None:
        self._client = client
        self._name = name
        self._future = future

    def done(self, within: float = 0) -> bool:
        """Whether the command has ended, or ends `within` so many seconds. Leaves a running one alone."""
        try:
            self._future.exception(within)
        except TimeoutError:
            return False
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the command to end, in seconds (by default the client's `timeout`); return its result.

        Raises:
            ApacheError: Apache's client raised an exception.
            HarnessError: no answer in time; the worker has been killed. Or it died on its own.
        """
        timeout = self._client.timeout if timeout is None else timeout
        if not self.done(within=timeout):
            failure = self._client._failure(
                f"has not finished {self._name!r} after {timeout} s, and was killed"
            )
            self._client.kill()
            raise failure
        return self._future.result()


class ApacheClient(_Process):
    """Apache's Python client, connected to the store at `socket_path`, in a process of its own.

    Every method is one command there and waits `timeout` seconds for its answer; `start` does not wait.
    Commands run one after the other, in the order of their start. All may be called from any thread.

    Raises:
        ApacheError: the connection was refused (kind "OSError").
        HarnessError: the worker died, or hung and was killed.
    """

    def __init__(self, socket_path: str | Path, *, timeout: float = 30, num_retries: int = 50) -> None:
        self.timeout = timeout
        script = [str(_WORKER), str(socket_path), str(num_retries)]
        # The warnings ignored say that Plasma is deprecated.
        super().__init__("Apache's client", [APACHE_PYTHON, "-E", "-W", "ignore", *script], pipes=True)
        assert self._process.stdin is not None
        self._requests = self._process.stdin.fileno()
        os.set_blocking(self._requests, False)
        self._send_lock = threading.Lock()
        self._numbers = itertools.count(1)
        connected: Future[Any] = Future()
        self._pending = {0: connected}
        self._pending_lock = threading.Lock()  # also guards `_ended`
        self._ended = False
        self._reader = threading.Thread(target=self._read_replies, name="apache-replies", daemon=True)
        self._reader.start()
        try:
            Handle(self, "connect", connected).result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill the worker, as a crash would; may be called again. For a clean end, `disconnect` first."""
        self.kill()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        super().close()

    def start(self, name: str, *args: object) -> Handle:
        """Start the command of that name, without waiting: `start("get", ids, 1000)`.

        It takes the arguments of the method of that name, but all of them, and by position.
        """
        plain_args = tuple(_plain(value) for value in args)
        future: Future[Any] = Future()
        with self._send_lock:
            number = next(self._numbers)
            with self._pending_lock:
                if self._ended:
                    raise self._failure(f"is gone: status {self.exit_status}")
                self._pending[number] = future
            body = pickle.dumps((number, name, plain_args), protocol=5)
            self._send(LENGTH.pack(len(body)) + body)
        return Handle(self, name, future)

    def create(self, object_id: bytes, size: int, metadata: bytes = b"") -> None:
        """Create an object and keep its buffer, until `seal` or `abort`."""
        self._call("create", object_id, size, metadata)

    def write(self, object_id: bytes, data: bytes, offset: int = 0) -> None:
        """Write into an object not sealed yet."""
        self._call("write", object_id, data, offset)

    def fill_random(self, object_id: bytes, seed: int) -> None:
        """Fill an object not sealed yet with what `Digest.of_pattern` knows, without shipping the bytes."""
        self._call("fill_random", object_id, seed)

    def seal(self, object_id: bytes, *, hold: bool = False) -> None:
        """Seal an object, and let go of its buffer unless it is to be held until `drop`."""
        self._call("seal", object_id, hold)

    def abort(self, object_id: bytes) -> None:
        """Abort an object not sealed yet (on x86-64 only, because pyarrow has no such method)."""
        self._call("abort", object_id)

    def create_and_seal(self, object_id: bytes, data: bytes, metadata: bytes = b"") -> None:
        """Create an object with the one message that carries its bytes inline."""
        self._call("create_and_seal", object_id, data, metadata)

    def get(self, object_ids: Iterable[bytes], timeout_ms: int = 0) -> list[tuple[bytes, bytes] | None]:
        """Copy out (data, metadata) of each object, None for a missing one, and release the buffers."""
        return cast("list[tuple[bytes, bytes] | None]", self._call("get", list(object_ids), timeout_ms))

    def digest(self, object_ids: Iterable[bytes], timeout_ms: int = 0) -> list[Digest | None]:
        """Like `get` for large objects: hashes instead of bytes come back."""
        found = self._call("digest", list(object_ids), timeout_ms)
        return [None if entry is None else Digest(*entry) for entry in found]

    def hold(self, object_ids: Iterable[bytes], timeout_ms: int = 0) -> list[bool]:
        """Get objects and keep their buffers, once more for each call; tell which were found."""
        return cast("list[bool]", self._call("hold", list(object_ids), timeout_ms))

    def held(self, object_id: bytes) -> bytes:
        """The bytes that the buffer held last shows now."""
        return cast("bytes", self._call("held", object_id))

    def drop(self, object_ids: Iterable[bytes]) -> None:
        """Let go of one held buffer of each object."""
        self._call("drop", list(object_ids))

    def contains(self, object_id: bytes) -> bool:
        """Whether the store has the object, sealed."""
        return cast("bool", self._call("contains", object_id))

    def delete(self, object_ids: Iterable[bytes]) -> None:
        """Delete objects, those in use once they are not; unknown ones are no error."""
        self._call("delete", list(object_ids))

    def list(self) -> dict[bytes, ListEntry]:
        """All objects in the store."""
        return cast("dict[bytes, ListEntry]", self._call("list"))

    def evict(self, nbytes: int) -> int:
        """Evict idle objects until so many bytes are free; return how many that freed."""
        return cast("int", self._call("evict", nbytes))

    def hash(self, object_id: bytes) -> bytes:
        """The eight-byte digest that Apache's client computes of an object."""
        return cast("bytes", self._call("hash", object_id))

    def subscribe(self) -> None:
        """Open the notification channel."""
        self._call("subscribe")

    def get_next_notification(self) -> Notification:
        """Wait for the next notification."""
        return Notification(*self._call("get_next_notification"))

    def store_capacity(self) -> int:
        """The capacity that the store reported when the client connected, in bytes."""
        return cast("int", self._call("store_capacity"))

    def set_client_options(self, name: str, limit_output_memory: int) -> None:
        """Name this client and set its quota, in bytes."""
        self._call("set_client_options", name, limit_output_memory)

    def debug_string(self) -> str:
        """The store's own account of its state."""
        return cast("str", self._call("debug_string"))

    def put_object(self, value: object, object_id: bytes | None = None) -> bytes:
        """Store any value with pyarrow's serialisation; return its id."""
        return cast("bytes", self._call("put_object", value, object_id))

    def get_object(self, object_id: bytes, timeout_ms: int = 0) -> Any:
        """Read a value that was stored by `put_object`.

        Raises:
            ApacheError: of the kind "LookupError" if it is missing.
        """
        return self._call("get_object", object_id, timeout_ms)

    def put_numpy(
        self, data: bytes, dtype: str, shape: Sequence[int], object_id: bytes | None = None
    ) -> bytes:
        """Store the numpy array of this memory, type and shape; return its id."""
        return cast("bytes", self._call("put_numpy", data, dtype, tuple(shape), object_id))

    def get_numpy(self, object_id: bytes, timeout_ms: int = 0) -> tuple[bytes, str, tuple[int, ...]]:
        """The memory, type and shape of a stored numpy array."""
        return cast("tuple[bytes, str, tuple[int, ...]]", self._call("get_numpy", object_id, timeout_ms))

    def disconnect(self) -> None:
        """Close the connection; buffers held stay mapped."""
        self._call("disconnect")

    def _call(self, name: str, *args: object) -> Any:
        return self.start(name, *args).result()

    def _send(self, frame: bytes) -> None:
        rest = memoryview(frame)
        deadline = time.monotonic() + self.timeout
        while rest:
            if not select.select([], [self._requests], [], max(0, deadline - time.monotonic()))[1]:
                failure = self._failure(f"has not read a request for {self.timeout} s, and was killed")
                self.kill()
                raise failure
            try:
                rest = rest[os.write(self._requests, rest) :]
            except BlockingIOError:
                pass
            except BrokenPipeError:
                return  # the reader thread fails the command

    def _read_replies(self) -> None:
        replies = self._process.stdout
        assert replies is not None
        with open(replies.fileno(), "rb", closefd=False) as stream, contextlib.suppress(EOFError):
            while len(header := stream.read(LENGTH.size)) == LENGTH.size:
                number, error_kind, value = pickle.loads(stream.read(*LENGTH.unpack(header)))
                with self._pending_lock:
                    future = self._pending.pop(number)
                if error_kind is None:
                    future.set_result(value)
                else:
                    future.set_exception(ApacheError(error_kind, value))
        status = self._process.wait()
        with self._pending_lock:
            self._ended = True
            orphans = list(self._pending.values())
            self._pending.clear()
        for future in orphans:
            future.set_exception(self._failure(f"died with status {status}"))


def _plain(value: object) -> object:
    """Turn ids of this project, a subclass of bytes, into bytes: the worker cannot import their class."""
    match value:
        case bytes():
            return bytes(value)
        case list():
            return [_plain(item) for item in value]
        case _:
            return value


class StoreFactory(Protocol):
    """The fixture `apache_store`: starts a store on a socket of its own, ended with the test."""

    def __call__(self, memory: int = 100_000_000, arguments: Sequence[str] = ()) -> ApacheStore: ...


class ClientFactory(Protocol):
    """The fixture `apache_client`: connects to any store, Apache's or ours, ended with the test."""

    def __call__(
        self, socket_path: str | Path, *, timeout: float = 30, num_retries: int = 50
    ) -> ApacheClient: ...


__all__ = [
    "APACHE_PYTHON",
    "REQUIRE_APACHE",
    "ApacheClient",
    "ApacheError",
    "ApacheStore",
    "ClientFactory",
    "Digest",
    "Handle",
    "HarnessError",
    "ListEntry",
    "Notification",
    "StoreFactory",
    "missing_reason",
    "short_directory",
]
