"""Making one file, or anything else that a directory can hold, a duplicate of another.

Owner, mode, times to the nanosecond, all extended attributes that can be listed (with them
POSIX ACLs and file capabilities) and holes are kept. Inode flags (chattr(1)) and space that is
allocated but not written are not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable

from volfs.linux.syscalls import utimensat, write_back

FICLONE = 0x40049409  # linux/fs.h
_CHUNK = 16 << 20
"""Bytes copied at a time: between two of these it can be stopped."""
_BUFFER = 1 << 20
_NO_CLONES_HERE = frozenset((errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV))
_NO_RANGES_HERE = frozenset(
    (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY)
)
_NO_XATTRS = frozenset((errno.EOPNOTSUPP, errno.ENODATA))
_REFUSED = frozenset((errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL))
_ACL = "system.posix_acl_"
ACL_AGAIN = "trusted.SGI_ACL_"
"""How XFS shows root the same ACL once more, in a form of its own."""
_MUST_BE_KEPT = ("user.", "trusted.", "security.capability", _ACL)
"""Attributes that a copy cannot do without; a security module may refuse to have its own set."""


class NoReflinksError(Exception):
    """The filesystem cannot share data between files, and a copy was not wanted."""


class Duplicator:
    """Makes duplicates on one filesystem, and remembers what it can do there.

    ``cloned`` and ``copied`` count the files that hold data, by whether they share it with
    their source. ``tick`` is called with the number of bytes of each step; what it raises ends the
    work. With ``only_reflinked`` NoReflinksError is raised on a filesystem that
    shares no data; single files that cannot share theirs are copied even so.
    """

    def __init__(self, tick: Callable[[int], None], *, only_reflinked: bool = False) -> None:
        self.cloned = 0
        self.copied = 0
        self._tick = tick
        self._only_reflinked = only_reflinked
        self._can_clone = True
        self._can_copy_ranges = True

    def data(self, src: int, dst: int, status: os.stat_result) -> None:
        """Copy what a regular file holds into an empty one; ``status`` is the source's."""
        if status.st_size == 0:
            return
        if self._clone(src, dst):
            self.cloned += 1
            self._tick(status.st_blocks * 512)
            return
        if self._only_reflinked and not self._can_clone:
            raise NoReflinksError
        self.copied += 1
        for start, end in _extents(src, status.st_size):
            self._copy_range(src, dst, start, end)
        os.ftruncate(dst, status.st_size)

    def _clone(self, src: int, dst: int) -> bool:
        if not self._can_clone:
            return False
        try:
            fcntl.ioctl(dst, FICLONE, src)
        except OSError as error:
            if error.errno == errno.EIO:
                raise
            # Else there are files that cannot share their data (btrfs without checksums).
            self._can_clone = error.errno not in _NO_CLONES_HERE
            return False
        return True

    def _copy_range(self, src: int, dst: int, start: int, end: int) -> None:
        while start < end:
            self._tick(0)
            done = self._copy_some(src, dst, start, min(end - start, _CHUNK))
            if done == 0:
                return  # it was truncated meanwhile
            self._tick(done)
            start += done

    def _copy_some(self, src: int, dst: int, start: int, count: int) -> int:
        if self._can_copy_ranges:
            try:
                done = os.copy_file_range(src, dst, count, start, start)
                if done:
                    return done
            except OSError as error:
                if error.errno not in _NO_RANGES_HERE:
                    raise
                self._can_copy_ranges = error.errno not in (errno.EXDEV, errno.ENOSYS)
        data = os.pread(src, min(count, _BUFFER), start)
        written = 0
        while written < len(data):
            written += os.pwrite(dst, data[written:], start + written)
        return written


def settle(fd: int) -> None:
    """See to it that what is written to a file from here on changes its times.

    A page that is dirty already can be written through a mapping without that; and the times
    are changed at the beginning of write(2), so one that is under way has to end.
    """
    try:
        write_back(fd)
        os.lseek(fd, 0, os.SEEK_DATA)  # ext4 takes the lock that a writer holds
    except OSError:
        pass  # no such calls here, or no data


def attributes(src: int, status: os.stat_result, dst: int) -> int:
    """Give ``dst`` the source's owner, extended attributes, mode and times.

    Descriptors are of any kind (O_PATH too). Returns the inode number of ``dst``. Raises
    PermissionError where only root could.
    """
    before = os.fstat(dst)
    place = _place(dst, status.st_mode)
    # In this order: a change of owner takes privileges away, and an ACL changes the mode.
    if (before.st_uid, before.st_gid) != (status.st_uid, status.st_gid):
        try:
            os.chown(place, status.st_uid, status.st_gid)
        except PermissionError:
            raise PermissionError(
                errno.EPERM, f"only root can copy what belongs to {status.st_uid}:{status.st_gid}"
            ) from None
    _extended_attributes(_place(src, status.st_mode), place)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(place, stat.S_IMODE(status.st_mode))
    utimensat(dst, status.st_atime_ns, status.st_mtime_ns)
    return before.st_ino


def _extended_attributes(src: int | str, dst: int | str) -> None:
    wanted = _list(src)
    for name in _list(dst):
        # An ACL inherited from the directory; labels of security modules are their own matter.
        if name not in wanted and name.startswith((_ACL, "user.")):
            os.removexattr(dst, name)
    for name in wanted:
        try:
            value = os.getxattr(src, name)
        except OSError as error:
            if error.errno == errno.ENODATA:
                continue  # removed meanwhile
            raise
        try:
            os.setxattr(dst, name, value)
        except OSError as error:
            if name.startswith(_MUST_BE_KEPT) or error.errno not in _REFUSED:
                raise OSError(error.errno, f"attribute {name}: {error.strerror}") from None


def _list(place: int | str) -> list[str]:
    try:
        return [name for name in os.listxattr(place) if not name.startswith(ACL_AGAIN)]
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return []
        raise


def _place(fd: int, mode: int) -> int | str:
    # What is open with O_PATH (all but files and directories) is reached by its link only.
    return fd if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else f"/proc/self/fd/{fd}"


def _extents(fd: int, size: int) -> Iterable[tuple[int, int]]:
    """Yield where the data of a file begins and ends."""
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # only holes follow
                yield position, size  # a filesystem that does not tell
            return
        yield start, min(end, size)
        position = end
