"""Views of mapped memory whose end is told: when the last one made from it is gone, in whatever thread that happens.

Python tells the end of an object, by a weak reference, but not the end of a memoryview's last slice. So each view that
is given out stands on an object of its own that exports the memory: a ctypes array laid over the map. Slices, casts and
numpy arrays keep it alive, and nothing else does. (A memoryview of a memoryview, by way of a PickleBuffer, would do the
same, were it not that the garbage collector of Python 3.11 and 3.12 crashes on one in a reference cycle.)
"""

import ctypes
import mmap
import weakref
from collections.abc import Callable

_PyBUF_SIMPLE = 0


class _Byte(ctypes.Union):
    """A byte that memoryview takes for format "B": a plain `c_ubyte` is "<B", which it cannot cast."""

    _fields_ = [("value", ctypes.c_ubyte)]


class _Buffer(ctypes.Structure):
    """`Py_buffer`, as in the stable ABI."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


class _Watch(weakref.ref["ctypes.Array[_Byte]"]):
    __slots__ = ("on_gone",)

    on_gone: Callable[[], None]


_watches: dict[int, _Watch] = {}
"""Keeps them alive: a weak reference that is gone itself calls nobody."""


def _fire(watch: weakref.ref["ctypes.Array[_Byte]"]) -> None:
    assert isinstance(watch, _Watch)
    if _watches.pop(id(watch), None) is not None:  # nobody has seen a view whose making was interrupted
        watch.on_gone()


class WatchedMemory:
    """A map, or no memory at all, of which views are given out. The map stays until the last of them is gone."""

    def __init__(self, mapped: mmap.mmap | None = None) -> None:
        self._mapped = mapped
        self._address = 0 if mapped is None else address_of(mapped)
        length = 0 if mapped is None else len(mapped)
        self._array: type[ctypes.Array[_Byte]] = type("_Array", (ctypes.Array,), {"_type_": _Byte, "_length_": length})

    def view(self, offset: int, nbytes: int, on_gone: Callable[[], None]) -> memoryview:
        """A read-only view of `nbytes` bytes from `offset` on.

        `on_gone` is called when it, and all that was made from it, is gone; also from a finalizer, in the midst of
        anything: it may only take note.
        """
        array = self._array.from_address(self._address) if self._mapped is not None else self._array()
        array.mapped = self._mapped  # type: ignore[attr-defined]  # for as long as anybody looks
        watch = _Watch(array, _fire)
        watch.on_gone = on_gone
        _watches[id(watch)] = watch
        return memoryview(array)[offset : offset + nbytes].toreadonly()

    def copied(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`."""
        return self._mapped[start:end] if self._mapped is not None else b""


def address_of(memory: mmap.mmap | bytes | bytearray | memoryview) -> int:
    """Where memory begins. ctypes itself tells that of what can be written only."""
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(memory), ctypes.byref(buffer), _PyBUF_SIMPLE)
    address: int = buffer.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address
