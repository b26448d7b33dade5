"""What the kernel does not pass on to FUSE: the known differences that are its own.

Each shows what is so natively and in the tree. Where natively it is otherwise, because of the
filesystem or the kernel, there is nothing to differ in, and the test is skipped. One that fails in
the tree may have been cured by the kernel: then the manual has to learn of it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import MountFactory
from tests.filesystems import MS_BIND, MS_REMOUNT, bound, program
from tests.mount.comparing import Pair, outcome
from tests.mount.conftest import make_pair
from tests.mount.test_reading_and_writing import content
from volfs.copies.file import FICLONE
from volfs.linux import syscalls

NOT_SUPPORTED = errno.errorcode[errno.EOPNOTSUPP]

FS_IOC_FIEMAP = 0xC020_660B
FS_IOC_GETFSUUID = 0x8011_1500
RWF_DONTCACHE = 0x80
STATX_ATTR_NODUMP = 0x40
_SYS_CACHESTAT = 451

SIZE = 1 << 20
PAGES = SIZE // mmap.PAGESIZE
AHEAD = (128 << 10) // mmap.PAGESIZE
"""Pages that FUSE reads ahead."""

_libc = ctypes.CDLL(None, use_errno=True)


def differ(pair: Pair, operation: Callable[[Path], object], *, natively: object) -> object:
    """What comes of an operation in the tree, where natively it is as said."""
    if (found := outcome(operation, pair.native)) != natively:
        pytest.skip(f"natively it is {found!r}")
    return outcome(operation, pair.mounted)


# -- what is asked of files


def told_by_ioctl(command: int, argument: bytes, top: Path) -> bool:
    (top / "f").write_bytes(b"content")
    with (top / "f").open("rb") as file:
        return len(fcntl.ioctl(file, command, argument)) == len(argument)


def test_the_uuid_of_the_filesystem(pair: Pair) -> None:
    ask = partial(told_by_ioctl, FS_IOC_GETFSUUID, bytes(17))
    assert differ(pair, ask, natively=True) == "ENOTTY"


def test_the_extents_of_a_file(pair: Pair) -> None:
    ask = partial(told_by_ioctl, FS_IOC_FIEMAP, struct.pack("=QQ4I", 0, SIZE, 0, 0, 0, 0))
    assert differ(pair, ask, natively=True) == NOT_SUPPORTED


def test_the_flags_of_a_file_by_statx(pair: Pair) -> None:
    def ask(top: Path) -> int:
        (top / "f").touch()
        chattr = program("chattr", "e2fsprogs")
        subprocess.run([chattr, "+d", pair.behind(top / "f")], check=True)
        buffer = ctypes.create_string_buffer(256)  # struct statx
        assert _libc.statx(-100, os.fsencode(top / "f"), 0, 0x7FF, buffer) == 0
        attributes: int = struct.unpack_from("=8xQ", buffer)[0]
        return attributes & STATX_ATTR_NODUMP

    assert differ(pair, ask, natively=STATX_ATTR_NODUMP) == 0


def test_a_clone_of_a_file(filesystems: Callable[[str], Path], mount: MountFactory) -> None:
    scope = filesystems("xfs") / "scope"
    scope.mkdir()
    tree = mount(scope=scope)

    def clone(top: Path) -> int:
        (top / "f").write_bytes(content(100_000))
        with (top / "f").open("rb") as source, (top / "copy").open("wb") as copy:
            return fcntl.ioctl(copy.fileno(), FICLONE, source.fileno())

    assert differ(make_pair(tree), clone, natively=0) == NOT_SUPPORTED


def test_a_mount_without_times_of_access(pair: Pair, workspace: Path) -> None:
    def is_kept(top: Path) -> bool:
        path = top / "f"
        path.write_bytes(b"content")
        os.utime(path, (1, 2))
        path.read_bytes()
        if pair.behind(path).stat().st_atime == 1:
            pytest.skip("times of access are not kept here")
        os.utime(path, (1, 2))
        with bound(top, workspace) as place:
            flags = MS_BIND | MS_REMOUNT | syscalls.MS_NOATIME
            syscalls.mount(b"", os.fsencode(place), b"", flags, b"")
            assert (place / "f").read_bytes() == b"content"
        return pair.behind(path).stat().st_atime == 1

    assert differ(pair, is_kept, natively=True) is False


def test_swapping_to_a_file(pair: Pair) -> None:
    """Natively it would work, which is not tried here."""
    path = pair.mounted / "swap"
    path.write_bytes(bytes(SIZE))
    path.chmod(0o600)
    subprocess.run([program("mkswap", "util-linux"), path], check=True, capture_output=True)

    def swap_on() -> None:
        if _libc.swapon(os.fsencode(path), 0) != 0:
            raise syscalls.os_error(ctypes.get_errno())
        _libc.swapoff(os.fsencode(path))

    found = outcome(swap_on)
    if found == "EPERM":
        pytest.skip("nobody can swap to anything here")
    assert found == "EINVAL"


# -- what is said of pages in memory


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Counts(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "written", "evicted", "recently_evicted")
    )


def pages_of(fd: int) -> tuple[int, int]:
    """Pages of a file in memory, and how many of them are not on disk: cachestat(2)."""
    counts = _Counts()
    arguments = ctypes.byref(_Range(0, 0)), ctypes.byref(counts), ctypes.c_uint(0)
    if _libc.syscall(ctypes.c_long(_SYS_CACHESTAT), ctypes.c_int(fd), *arguments) != 0:
        pytest.skip("cachestat(2) is in Linux since 6.5")
    return int(counts.cached), int(counts.dirty)


def cached(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        return pages_of(file.fileno())


def dropped(path: Path) -> None:
    """Write a file's pages to disk, and take them out of memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def made(pair: Pair, top: Path) -> Path:
    """A file of which nothing is in memory."""
    path = top / "f"
    path.write_bytes(content(SIZE))
    dropped(path)
    dropped(pair.behind(path))
    return path


def test_what_is_not_needed_in_memory_stays(pair: Pair) -> None:
    def pages(top: Path) -> int:
        path = made(pair, top)
        with path.open("rb") as file:
            assert file.read() == content(SIZE)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return cached(pair.behind(path))[0]

    assert differ(pair, pages, natively=0) == PAGES


def test_reading_here_and_there_reads_ahead(pair: Pair) -> None:
    def pages(top: Path) -> int:
        path = made(pair, top)
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for number in range(3):
                os.pread(file.fileno(), mmap.PAGESIZE, number * mmap.PAGESIZE)
        return cached(pair.behind(path))[0]

    found = differ(pair, pages, natively=3)
    assert isinstance(found, int) and found > 3


@pytest.mark.parametrize("call", ["POSIX_FADV_WILLNEED", "readahead"])
def test_little_is_read_of_what_will_be_needed(pair: Pair, call: str) -> None:
    def pages(top: Path) -> int:
        with made(pair, top).open("rb") as file:
            if call == "readahead":
                _libc.readahead(file.fileno(), ctypes.c_int64(0), ctypes.c_size_t(SIZE))
            else:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            return pages_of(file.fileno())[0]

    assert differ(pair, pages, natively=PAGES) == AHEAD


@pytest.mark.parametrize("call", ["sync_file_range", "syncfs"])
def test_what_is_to_be_written_stays_in_memory(pair: Pair, call: str) -> None:
    def dirty(top: Path) -> list[int]:
        path = made(pair, top)
        with path.open("r+b", buffering=0) as file:
            file.write(content(SIZE, 2))
            if call == "syncfs":
                syscalls.syncfs(file.fileno())
            else:
                whole = ctypes.c_int64(0), ctypes.c_int64(0)
                assert _libc.sync_file_range(file.fileno(), *whole, ctypes.c_uint(7)) == 0
            told = [cached(pair.behind(path))[1]]
            os.fdatasync(file.fileno())
            return [*told, cached(pair.behind(path))[1]]

    assert differ(pair, dirty, natively=[0, 0]) == [PAGES, 0]


def test_reading_and_writing_without_memory(pair: Pair) -> None:
    """RWF_DONTCACHE, in Linux since 6.14."""

    def use(top: Path) -> list[object]:
        path = made(pair, top)
        with path.open("r+b") as file:
            buffer = [bytearray(mmap.PAGESIZE)]
            return [
                outcome(os.preadv, file.fileno(), buffer, 0, RWF_DONTCACHE),
                outcome(os.pwritev, file.fileno(), buffer, 0, RWF_DONTCACHE),
            ]

    natively: list[object] = [mmap.PAGESIZE, mmap.PAGESIZE]
    assert differ(pair, use, natively=natively) == [NOT_SUPPORTED] * 2
