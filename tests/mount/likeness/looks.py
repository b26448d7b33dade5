"""How files are: what must be the same of them, and what of that can be told apart at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from tests.mount.likeness.attributes import FS_IOC_GETFLAGS, FS_IOC_SETFLAGS

Look = tuple[int, ...]
"""Mode, links, owner, group, size, device, position (of an open file, else -1), inode number, and
times of access, change of content and change of anything, in nanoseconds."""
INODE, TIMES = 7, 8

T = TypeVar("T")

_KEEPING = 0x10 | 0x20  # immutable, append-only
_PART = 1 << 20
"""Of a file that is longer the first and the last bytes are compared."""
_LISTED = os.O_RDONLY | os.O_NONBLOCK | os.O_NOATIME | os.O_NOFOLLOW | os.O_CLOEXEC


def look(status: os.stat_result, position: int = -1) -> Look:
    return (
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_size,
        status.st_rdev,
        position,
        status.st_ino,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def everything(top: bytes) -> list[tuple[bytes, Look, Any, Any, Any]]:
    """Of all files at and below ``top``: path, look, content, extended attributes and flags.

    For root. Leaves times of access alone.
    """
    return sorted(_below(top, b"."))


def unflag(top: bytes) -> None:
    """Make everything below ``top`` removable again. For root."""
    for directory, directories, files in os.walk(top):
        for name in (b".", *directories, *files):
            with suppress(OSError):  # what is no file or directory has no flags
                fd = os.open(directory + b"/" + name, _LISTED)
                try:
                    if _flags(fd) & _KEEPING:
                        fcntl.ioctl(fd, FS_IOC_SETFLAGS, bytes(4))
                finally:
                    os.close(fd)


def _below(top: bytes, path: bytes) -> Iterator[tuple[bytes, Look, Any, Any, Any]]:
    whole = top + b"/" + path
    status = os.lstat(whole)
    kind = stat.S_IFMT(status.st_mode)
    content: Any = None
    flags: Any = None
    if kind == stat.S_IFLNK:
        content = os.readlink(whole)
    elif kind in (stat.S_IFREG, stat.S_IFDIR):
        fd = os.open(whole, _LISTED)
        try:
            flags = _outcome(_flags, fd)
            if kind == stat.S_IFREG:
                content = _digest(fd, status.st_size)
            else:
                with os.scandir(fd) as entries:
                    names = {os.fsencode(entry.name): entry.inode() for entry in entries}
                content = sorted(names)
        finally:
            os.close(fd)
    yield path, look(status), content, _outcome(_attributes, whole), flags
    if kind == stat.S_IFDIR:
        for name in content:
            yield from _below(top, path + b"/" + name)


def _digest(fd: int, size: int) -> bytes:
    digest = hashlib.blake2b(os.pread(fd, _PART, 0), digest_size=16)
    if size > _PART:
        digest.update(os.pread(fd, _PART, size - _PART))
    return digest.digest()


def _flags(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)), sys.byteorder)


def _attributes(path: bytes) -> list[tuple[bytes, bytes]]:
    names = os.listxattr(path, follow_symlinks=False)
    return sorted(
        (os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names
    )


def _outcome(call: Callable[[Any], T], argument: Any) -> T | str:
    try:
        return call(argument)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
