"""Directories reached by descriptor, and small files that are on disk when the call returns."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from volfs.linux.identity import UNRESERVED, made_as

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
REACH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
"""For a file of any kind that is to be named, asked and found by: whoever may search the directory
can open it so, whatever its own permissions, and no fifo, device or lease makes the open wait."""
PLACE = REACH | os.O_DIRECTORY
"""The same for what has to be a directory."""
NO_ENTRY = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
"""What an open answers for a name that is not there, or is not what it should be."""

NO_RESERVE = (UNRESERVED, UNRESERVED)
"""As the owner of something new: it is ours, but none of the filesystem's reserve is used."""

_CANNOT_SYNC = frozenset((errno.EINVAL, errno.ENOTSUP, errno.ENOSYS))
"""Some network filesystems cannot sync a directory; their changes are durable by themselves."""


@contextmanager
def opened(name: str, *, dir_fd: int | None = None, flags: int = DIRECTORY) -> Iterator[int]:
    """Yield a descriptor of the directory ``name``, which is not a symbolic link."""
    fd = os.open(name, flags, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def scanned(dir_fd: int, name: str = ".") -> Iterator[Iterator[os.DirEntry[str]]]:
    """Yield the entries of a directory.

    Through a descriptor of its own: the reading position of a shared one is shared too, and
    two threads would each see half of the entries.
    """
    with opened(name, dir_fd=dir_fd) as fd, os.scandir(fd) as entries:
        yield entries


def sync_directory(fd: int) -> None:
    """fsync(2) a directory, so that entries made, moved or removed in it are on disk."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def write_new(name: str, data: bytes, *, dir_fd: int, owner: tuple[int, int] | None = None) -> None:
    """Write a new file, readable for its owner only, and fsync it. Raises FileExistsError.

    ``owner`` (uid, gid) is whose it is and who pays for it, if not us: see ``owning``. With
    NO_RESERVE it is ours, but not out of the filesystem's reserve.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

    def make() -> None:
        fd = os.open(name, flags, 0o600, dir_fd=dir_fd)
        try:
            left = data
            while left:
                left = left[os.write(fd, left) :]
            # By descriptor, and only of what was made just now. It is the owner's already, but
            # where a server knew better.
            uid, gid = (os.geteuid(), os.getegid()) if owner in (None, NO_RESERVE) else owner
            if owner is not None and os.geteuid() == 0 and os.fstat(fd).st_uid != uid:
                os.fchown(fd, uid, gid)
            os.fsync(fd)
        finally:
            os.close(fd)

    made_as(owner, make)


def make_directory(
    name: str, mode: int, *, dir_fd: int, owner: tuple[int, int] | None = None
) -> None:
    """mkdir(2), with ``owner`` as for ``write_new``."""
    made_as(owner, lambda: os.mkdir(name, mode, dir_fd=dir_fd))
    if owner == NO_RESERVE:
        with opened(name, dir_fd=dir_fd) as fd:
            if os.fstat(fd).st_uid == UNRESERVED:
                os.fchown(fd, os.geteuid(), os.getegid())


def read_small(name: str, limit: int, *, dir_fd: int) -> bytes | None:
    """Return what is in a file, None when there is no such regular file.

    ``limit`` is the most that is read, in bytes; a larger file counts as missing.
    """
    try:
        # O_NONBLOCK: a fifo of that name must not make anybody wait.
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd
        )
    except OSError as error:
        if error.errno in NO_ENTRY:
            return None
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            return None
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(fd)
