"""Status: what stat(2) tells of an inode.

Where the C extension is built, its functions make no Python object for each field, which would be
half the work of a small request; otherwise the os module's serve.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from volfs.linux.durable import REACH


class Status(Protocol):
    """The fields of stat(2): os.stat_result has them, and _records.Status."""

    @property
    def st_dev(self) -> int: ...
    @property
    def st_ino(self) -> int: ...
    @property
    def st_mode(self) -> int: ...
    @property
    def st_nlink(self) -> int: ...
    @property
    def st_uid(self) -> int: ...
    @property
    def st_gid(self) -> int: ...
    @property
    def st_rdev(self) -> int: ...
    @property
    def st_size(self) -> int: ...
    @property
    def st_blksize(self) -> int: ...
    @property
    def st_blocks(self) -> int: ...
    @property
    def st_atime_ns(self) -> int: ...
    @property
    def st_mtime_ns(self) -> int: ...
    @property
    def st_ctime_ns(self) -> int: ...


@dataclass(frozen=True, slots=True)
class MadeStatus:
    """A Status that no file stands behind."""

    st_mode: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_dev: int = 0
    st_ino: int = 0
    st_rdev: int = 0
    st_blksize: int = 4096
    st_blocks: int = 0


def birth_ns(status: Status) -> int:
    """When the inode was made, in nanoseconds since 1970; 0 where that is not known.

    Known to the C extension only. Together with the number it tells an inode from all earlier ones
    with that number, unless both were made in the same tick of the clock.
    """
    found: int = getattr(status, "birth_ns", 0)
    return found


class FromOs:
    """The functions as the os module can do them."""

    @staticmethod
    def fstat(fd: int) -> Status:
        """fstat(2)."""
        return os.fstat(fd)

    @staticmethod
    def fstatat(directory: int, name: bytes) -> Status:
        """fstatat(2) of ``name`` in the directory open as ``directory``, a symlink as itself."""
        return os.stat(name, dir_fd=directory, follow_symlinks=False)

    @staticmethod
    def open_path(directory: int, name: bytes) -> tuple[int, Status] | None:
        """An O_PATH descriptor of ``name`` in ``directory``, and its Status; None if absent."""
        try:
            fd = os.open(name, REACH, dir_fd=directory)
        except FileNotFoundError:
            return None
        try:
            return fd, os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise


if TYPE_CHECKING:
    fstat = FromOs.fstat
    fstatat = FromOs.fstatat
    open_path = FromOs.open_path
else:
    try:
        from volfs.fs.native._records import fstat, fstatat, open_path
    except ImportError:
        fstat = FromOs.fstat
        fstatat = FromOs.fstatat
        open_path = FromOs.open_path
