"""The shared memory itself: one file, mapped once, its pages reserved before anybody may touch them.

The file is much longer than the memory it may use. Addresses are plentiful and pages are what is rationed: `reserve`
and `give_back` say which part of the file has pages. Touching a page that was never reserved would ask the kernel
for memory at a moment when nobody can be told "no" except by SIGBUS, so nothing outside a reserved range is ever
handed out.

Usually the file is a memfd, which no file system limits, and which is sealed against growing and shrinking. On
request it is a file without a name in a directory (which cannot be sealed: the kernel does that for memfds only),
or made of huge pages. These are reserved by mapping them, by each process that does: so their file is no longer than
the memory.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from plasmastream._client import WatchedMemory
from plasmastream._errors import StoreError, StoreFullError
from plasmastream._os_errors import reason_of

PAGE_SIZE = mmap.PAGESIZE

_MADV_POPULATE_WRITE = 23  # linux/mman.h, since Linux 5.14; the mmap module has no name for it
_PREFAULT_STEP = 16 << 20

# A slice of what the machine has left stays untouched, so that a store that fits exactly does not push
# everything else into the arms of the out-of-memory killer.
_HEADROOM = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def round_to_pages(nbytes: int, page_size: int = PAGE_SIZE) -> int:
    """The next multiple of the page size, in bytes."""
    return -(-nbytes // page_size) * page_size


def _memory_info() -> dict[str, int]:
    """The numbers of /proc/meminfo: KiB, or pages."""
    fields = (line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return {name: int(value.split()[0]) for name, value in fields}


def available_memory() -> int:
    """Bytes that this process could still take: what the machine has, or its control group's limit if less."""
    available = _memory_info()["MemAvailable"] * 1024
    with contextlib.suppress(OSError, ValueError):
        group = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
        place = Path("/sys/fs/cgroup") / group.lstrip("/")
        for folder in (place, *place.parents):
            limit = folder / "memory.max"
            if limit.exists() and (text := limit.read_text().strip()) != "max":
                available = min(available, int(text) - int((folder / "memory.current").read_text()))
    return available


def file_system_of(fd: int) -> str:
    """The type of the file system that a file is in, as in "tmpfs"; empty where that cannot be told."""
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            mount, _, rest = line.partition(" - ")
            if mount.split()[2] == number:
                return rest.split()[0]
    return ""


class Segment:
    """A mapped memory file with room for `home` bytes, and addresses for more; no pages at first.

    `view` is the whole of it, writable. `close` (or leaving the `with` block) lets the file go; the memory itself
    lives until the last process that mapped it has let go too.

    Args:
        home: bytes that are meant to be reserved.
        name: what a memfd is called in /proc.
        addresses: bytes of address space beyond `home`; none with huge pages.
        directory: make the file here, without a name. None for a memfd.
        huge_pages: use huge pages; in a directory, this must be one of a hugetlbfs.

    Raises:
        StoreFullError: there are not so many addresses, or not so many huge pages.
        StoreError: no file can be made in the directory.
    """

    watched: WatchedMemory
    """All of it, for views whose end is told."""

    def __init__(
        self,
        home: int,
        name: str = "plasmastream",
        *,
        addresses: int = 0,
        directory: str | None = None,
        huge_pages: bool = False,
    ) -> None:
        self.reserved = 0
        self.directory = directory
        self.fd = _make_file(name, directory, huge_pages)
        try:
            file_system = "" if directory is None else file_system_of(self.fd)
            self.has_huge_pages = huge_pages or file_system == "hugetlbfs"
            self._is_on_disk = directory is not None and file_system not in ("tmpfs", "hugetlbfs")
            self.page_size = os.fstat(self.fd).st_blksize if self.has_huge_pages else PAGE_SIZE
            if huge_pages and directory is not None and file_system != "hugetlbfs":
                raise StoreError(f"{directory} has no huge pages: mount a hugetlbfs there, or name no directory")
            self.home = round_to_pages(home, self.page_size)
            self.length = self.home if self.has_huge_pages else self.home + round_to_pages(addresses)
            if self.has_huge_pages:
                _check_huge_pages(self.home, self.page_size)
            self._map = self._sized_and_mapped()
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self._map)
        self.watched = WatchedMemory(self._map)

    def _sized_and_mapped(self) -> mmap.mmap:
        try:
            os.ftruncate(self.fd, self.length)
            if self.directory is None:
                # A client that shrank the file would kill every other one by SIGBUS.
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
            return mmap.mmap(self.fd, self.length)
        except (OSError, OverflowError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else error
            if self.has_huge_pages:
                raise StoreFullError(f"{self.home:,} bytes of huge pages were refused: {reason}") from error
            raise StoreFullError(
                f"{self.home:,} bytes of shared memory take {self.length:,} bytes of address space, which were "
                f"refused: {reason}; give the store less memory, or raise the limit (ulimit -v)"
            ) from error

    def reserve(self, offset: int, nbytes: int, *, replacing: int = 0) -> None:
        """Give pages to `nbytes` bytes from `offset` on, both multiples of the page size.

        So many bytes as this is `replacing` were given back for it: only what is more must be found to be left.

        Raises:
            StoreFullError: the machine or the directory has not so much left; nothing was reserved.
        """
        if nbytes > replacing:
            self._check_directory(nbytes - replacing)
            self._check_machine(nbytes - replacing)
        try:
            os.posix_fallocate(self.fd, offset, nbytes)
        except OSError as error:
            self.punch(offset, nbytes)
            where = "" if self.directory is None else f" in {self.directory}"
            raise StoreFullError(
                f"{nbytes:,} bytes of shared memory were refused{where}: {error.strerror}"
            ) from error
        self.reserved += nbytes

    def give_back(self, offset: int, nbytes: int) -> None:
        """Return the pages of `nbytes` bytes from `offset` on to the machine; the addresses stay valid."""
        self.punch(offset, nbytes)
        self.reserved -= nbytes

    def punch(self, offset: int, nbytes: int) -> None:
        """As `give_back`, for pages that were never counted: somebody touched what was not reserved."""
        try:
            self._map.madvise(mmap.MADV_REMOVE, offset, nbytes)
        except OSError:
            # A few file systems keep what a file once had. It is found there again, and the end of the store frees it.
            if self.directory is None:
                raise

    def _check_machine(self, nbytes: int) -> None:
        if self._is_on_disk or self.has_huge_pages:
            return
        try:
            available = available_memory()
        except OSError as error:  # the store may have no descriptor left to look
            raise StoreFullError(
                f"{nbytes:,} bytes of shared memory were asked for, and what this machine has left cannot be found "
                f"out: {reason_of(error)}"
            ) from error
        if nbytes > available - _HEADROOM:
            raise StoreFullError(
                f"{nbytes:,} bytes of shared memory were asked for, and this machine has {available:,} left; "
                "give the store less memory, or end something else"
            )

    def _check_directory(self, nbytes: int) -> None:
        if self.directory is None or self.has_huge_pages:
            return
        state = os.fstatvfs(self.fd)
        free = state.f_bavail * state.f_frsize
        if state.f_blocks and nbytes > free:  # a file system without blocks has no limit of its own
            raise StoreFullError(
                f"{nbytes:,} bytes of shared memory were asked for, and the file system of {self.directory} has "
                f"{free:,} left; give the store less memory, or name another directory, or none: "
                "memory without a directory is limited by the machine alone"
            )

    def prefault(self, offset: int, nbytes: int) -> int:
        """Touch the first pages of a reserved range ahead of use; call again with what is left.

        The first touch of a page costs far more than writing it (the kernel clears it). Meant for a thread: the
        interpreter's lock is free meanwhile.

        Returns:
            How many bytes were done: 0 where the kernel cannot do it, or would write all of it to a disk; at most
            16 MiB otherwise.
        """
        if self._is_on_disk:
            return 0
        nbytes = min(nbytes, _PREFAULT_STEP)
        first = ctypes.c_char.from_buffer(self._map, offset)  # keeps the map from being closed meanwhile
        return 0 if _libc.madvise(ctypes.addressof(first), nbytes, _MADV_POPULATE_WRITE) else nbytes

    def close(self) -> None:
        """Close the file, and let the map go: it lasts until the last view of it is gone. May be called again."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        with contextlib.suppress(BufferError):
            self.view.release()
        del self._map, self.watched

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make_file(name: str, directory: str | None, huge_pages: bool) -> int:
    if directory is None:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | (os.MFD_HUGETLB if huge_pages else 0)
        try:
            return os.memfd_create(name, flags)
        except OSError as error:
            if not huge_pages:
                raise
            raise StoreFullError(f"this kernel has no huge pages: {error.strerror}") from error
    try:
        return file_without_name(directory)
    except OSError as error:
        raise StoreError(f"no memory can be had in the directory {directory}: {error.strerror}") from error


def file_without_name(directory: str) -> int:
    """A new file in a directory, gone when the last descriptor of it is closed.

    Raises:
        OSError: there can be none.
    """
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    fd, path = tempfile.mkstemp(prefix="plasmastream-", dir=directory)
    os.unlink(path)
    return fd


def _check_huge_pages(nbytes: int, page_size: int) -> None:
    info = _memory_info()
    if page_size != info.get("Hugepagesize", 0) * 1024:
        return  # there are several sizes, and these numbers are about another one
    needed = nbytes // page_size
    free = info["HugePages_Free"] - info["HugePages_Rsvd"]
    if needed > free:
        total = info["HugePages_Total"]
        raise StoreFullError(
            f"{needed:,} huge pages of {page_size:,} bytes are needed, and this machine has {free:,} free; "
            f"sysctl vm.nr_hugepages={total + needed - free} makes them, or do without huge pages"
        )
