"""System calls on inodes by descriptor, O_PATH or not, and for the identity of a thread.

From the C extension where it is there, since they are a good part of a small request's time;
else on paths through /proc. All raise OSError.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from volfs.linux import syscalls

if TYPE_CHECKING:
    from volfs.linux import _calls
else:
    try:
        from volfs.linux import _calls
    except ImportError:
        _calls = None

_NS = 10**9
_has_fchmodat2 = _calls is not None


def setfsids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2) for the calling thread. Do not report failure."""
    (syscalls if _calls is None else _calls).setfsids(uid, gid)


def chown(fd: int, uid: int, gid: int) -> None:
    """fchownat(2); -1 leaves an id alone."""
    if _calls is None:
        os.chown(_path(fd), uid, gid)
    else:
        _calls.chown(fd, uid, gid)


def chmod(fd: int, mode: int) -> None:
    """fchmodat2(2)."""
    global _has_fchmodat2
    if _has_fchmodat2:
        try:
            _calls.chmod(fd, mode)
        except OSError as error:
            if error.errno != errno.ENOSYS:  # it came with Linux 6.6
                raise
            _has_fchmodat2 = False
        else:
            return
    os.chmod(_path(fd), mode)


def utimens(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """utimensat(2) with nanoseconds since 1970, syscalls.NOW, or None to leave a time alone."""
    if _calls is None:
        syscalls.utimensat(fd, atime_ns, mtime_ns)
    else:
        _calls.utimens(fd, *_timespec(atime_ns), *_timespec(mtime_ns))


def link(fd: int, directory: int, name: bytes) -> None:
    """linkat(2) of an inode to ``name`` in a directory."""
    if _calls is not None and os.geteuid() == 0:  # it asks for CAP_DAC_READ_SEARCH
        _calls.link(fd, directory, name)
    else:
        os.link(_path(fd), name, dst_dir_fd=directory, follow_symlinks=True)


def getxattr(fd: int, name: bytes) -> bytes | None:
    """getxattr(2); None for an attribute it does not have, as is usual."""
    if _calls is not None:
        return _calls.getxattr(fd, name)
    try:
        return os.getxattr(_path(fd), name)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def name_to_handle_at(fd: int) -> tuple[bytes, int]:
    """As syscalls.name_to_handle_at."""
    return syscalls.name_to_handle_at(fd) if _calls is None else _calls.name_to_handle_at(fd)


def _timespec(time_ns: int | None) -> tuple[int, int]:
    if time_ns is None:
        return 0, syscalls.UTIME_OMIT
    return (0, syscalls.UTIME_NOW) if time_ns == syscalls.NOW else divmod(time_ns, _NS)


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
