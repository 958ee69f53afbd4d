"""One real Apache Plasma client, remote-controlled over two pipes.

`tests.apache` runs this file as a script, with a Python that has pyarrow 11 and numpy and nothing of this
project. Requests come in on standard input, replies leave on what was standard output; both are pickles
behind an eight-byte big-endian length. Requests are served one at a time, in order.

The functions above `Worker` need only the standard library: tests import them to know what to expect.
"""

import contextlib
import hashlib
import os
import pickle
import random
import struct
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

LENGTH = struct.Struct(">Q")
PATTERN_BLOCK = 1 << 20
_COUNTER = struct.Struct("<Q")


def pattern(seed: int, size: int) -> Iterator[bytes]:
    """Yield `size` bytes that only this seed gives, in blocks of which no two are alike, quickly."""
    body = random.Random(seed).randbytes(PATTERN_BLOCK - _COUNTER.size)
    for number in range(-(-size // PATTERN_BLOCK)):
        yield (_COUNTER.pack(number) + body)[: size - number * PATTERN_BLOCK]


def fingerprint(data: Any) -> str:
    """A hash of anything bytes-like, in hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def pattern_fingerprint(seed: int, size: int) -> str:
    """What `fingerprint` gives for all of `pattern(seed, size)`."""
    digest = hashlib.blake2b(digest_size=16)
    for block in pattern(seed, size):
        digest.update(block)
    return digest.hexdigest()


class Worker:
    """The commands. Each public method but `serve` is one; arguments and results are plain Python values."""

    def __init__(self, socket_path: str, num_retries: int) -> None:
        from pyarrow import plasma

        self._plasma = plasma
        self._client = plasma.connect(socket_path, num_retries)
        self._created: dict[bytes, Any] = {}  # writable buffers of objects not sealed yet
        self._held: dict[bytes, list[Any]] = {}  # buffers that pin a sealed object

    def serve(self, requests: BinaryIO, replies: BinaryIO) -> None:
        while header := requests.read(LENGTH.size):
            number, name, args = pickle.loads(requests.read(*LENGTH.unpack(header)))
            reply: tuple[int, str | None, Any]
            try:
                reply = (number, None, getattr(self, name)(*args))
            except Exception as error:
                reply = (number, type(error).__name__, str(error))
            _write_frame(replies, reply)

    def _id(self, object_id: bytes | None) -> Any:
        return None if object_id is None else self._plasma.ObjectID(object_id)

    def _get_buffers(self, object_ids: list[bytes], timeout_ms: int) -> list[tuple[bytes, Any]]:
        ids = [self._id(object_id) for object_id in object_ids]
        buffers = self._client.get_buffers(ids, timeout_ms=timeout_ms, with_meta=True)
        return [(metadata or b"", data) for metadata, data in buffers]

    def create(self, object_id: bytes, size: int, metadata: bytes) -> None:
        self._created[object_id] = self._client.create(self._id(object_id), size, metadata)

    def write(self, object_id: bytes, data: bytes, offset: int) -> None:
        view = memoryview(self._created[object_id]).cast("B")
        view[offset : offset + len(data)] = data

    def fill_random(self, object_id: bytes, seed: int) -> None:
        view = memoryview(self._created[object_id]).cast("B")
        for number, block in enumerate(pattern(seed, len(view))):
            start = number * PATTERN_BLOCK
            view[start : start + len(block)] = block

    def seal(self, object_id: bytes, hold: bool) -> None:
        self._client.seal(self._id(object_id))
        buffer = self._created.pop(object_id)
        if hold:
            self._held.setdefault(object_id, []).append(buffer)

    def abort(self, object_id: bytes) -> None:
        """`PlasmaClient::Abort`, which pyarrow does not wrap: called by its mangled name in libplasma."""
        import ctypes
        import pathlib

        import pyarrow

        if os.uname().machine != "x86_64":
            raise NotImplementedError("abort needs the calling convention of x86-64")
        del self._created[object_id]  # Abort insists that no buffer is left
        (library,) = pathlib.Path(pyarrow.__path__[0]).glob("libplasma.so.*")
        abort = ctypes.CDLL(str(library))._ZN6plasma12PlasmaClient5AbortERKNS_8UniqueIDE
        unpack = ctypes.pythonapi.PyCapsule_GetPointer
        unpack.restype, unpack.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        status = ctypes.c_void_p()  # arrow::Status: one pointer, null for success, returned through memory
        abort.restype = None
        abort.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p]
        abort(ctypes.byref(status), unpack(self._client.to_capsule(), b"plasma"), object_id)
        if status.value is not None:
            code = ctypes.cast(status, ctypes.POINTER(ctypes.c_byte))[0]
            raise RuntimeError(f"PlasmaClient::Abort returned the status code {code}")

    def create_and_seal(self, object_id: bytes, data: bytes, metadata: bytes) -> None:
        self._client.create_and_seal(self._id(object_id), data, metadata)

    def get(self, object_ids: list[bytes], timeout_ms: int) -> list[tuple[bytes, bytes] | None]:
        return [
            None if data is None else (data.to_pybytes(), metadata)
            for metadata, data in self._get_buffers(object_ids, timeout_ms)
        ]

    def digest(self, object_ids: list[bytes], timeout_ms: int) -> list[tuple[int, str, int, str] | None]:
        return [
            None if data is None else (data.size, fingerprint(data), len(metadata), fingerprint(metadata))
            for metadata, data in self._get_buffers(object_ids, timeout_ms)
        ]

    def hold(self, object_ids: list[bytes], timeout_ms: int) -> list[bool]:
        found = []
        for object_id, (_, data) in zip(object_ids, self._get_buffers(object_ids, timeout_ms), strict=True):
            found.append(data is not None)
            if data is not None:
                self._held.setdefault(object_id, []).append(data)
        return found

    def held(self, object_id: bytes) -> bytes:
        data: bytes = self._held[object_id][-1].to_pybytes()
        return data

    def drop(self, object_ids: list[bytes]) -> None:
        for object_id in object_ids:
            buffers = self._held[object_id]
            buffers.pop()
            if not buffers:
                del self._held[object_id]

    def contains(self, object_id: bytes) -> bool:
        return bool(self._client.contains(self._id(object_id)))

    def delete(self, object_ids: list[bytes]) -> None:
        self._client.delete([self._id(object_id) for object_id in object_ids])

    def list(self) -> dict[bytes, dict[str, Any]]:
        return {object_id.binary(): entry for object_id, entry in self._client.list().items()}

    def evict(self, nbytes: int) -> int:
        return int(self._client.evict(nbytes))

    def hash(self, object_id: bytes) -> bytes:
        return bytes(self._client.hash(self._id(object_id)))

    def subscribe(self) -> None:
        self._client.subscribe()

    def get_next_notification(self) -> tuple[bytes, int, int]:
        object_id, data_size, metadata_size = self._client.get_next_notification()
        return object_id.binary(), data_size, metadata_size

    def store_capacity(self) -> int:
        return int(self._client.store_capacity())

    def set_client_options(self, name: str, limit_output_memory: int) -> None:
        self._client.set_client_options(name, limit_output_memory)

    def debug_string(self) -> str:
        return str(self._client.debug_string())

    def put_object(self, value: object, object_id: bytes | None) -> bytes:
        return bytes(self._client.put(value, self._id(object_id)).binary())

    def get_object(self, object_id: bytes, timeout_ms: int) -> object:
        return self._get_value(object_id, timeout_ms)

    def put_numpy(self, data: bytes, dtype: str, shape: tuple[int, ...], object_id: bytes | None) -> bytes:
        import numpy

        return self.put_object(numpy.frombuffer(data, dtype).reshape(shape), object_id)

    def get_numpy(self, object_id: bytes, timeout_ms: int) -> tuple[bytes, str, tuple[int, ...]]:
        array = self._get_value(object_id, timeout_ms)
        return array.tobytes(), array.dtype.str, array.shape

    def disconnect(self) -> None:
        self._client.disconnect()

    def _get_value(self, object_id: bytes, timeout_ms: int) -> Any:
        value = self._client.get(self._id(object_id), timeout_ms)
        if value is self._plasma.ObjectNotAvailable:
            raise LookupError(f"{object_id.hex()} is not available")
        return value


def _write_frame(stream: BinaryIO, reply: object) -> None:
    body = pickle.dumps(reply, protocol=5)
    stream.write(LENGTH.pack(len(body)) + body)
    stream.flush()


def main() -> None:
    socket_path, num_retries = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints may end up among the replies
    # The first reply, to a request nobody sent, tells whether the connection was made.
    try:
        worker = Worker(socket_path, int(num_retries))
    except Exception as error:
        _write_frame(replies, (0, type(error).__name__, str(error)))
        return
    _write_frame(replies, (0, None, None))
    with contextlib.suppress(BrokenPipeError):  # nobody waits for this reply any more
        worker.serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
