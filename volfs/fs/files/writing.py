"""Writing: to an open file, at an offset or at its end.

On a local filesystem one descriptor does for both: the kernel knows the end (RWF_APPEND). On a
network filesystem another host may have moved it. There it is the server that appends, or the
client under a lock of the servers', to a file *opened* with O_APPEND. Of RWF_APPEND a FUSE client
(GlusterFS, MooseFS) hears nothing: the kernel makes it a write at the size that it remembers
(generic_write_checks in fs/read_write.c, fuse_write_args_fill in fs/fuse/file.c). So appends go
through a descriptor that is itself open with O_APPEND there, and as pwrite(2) ignores the offset on
such a one, all else goes through one that is not.

Plain synchronous functions, as those of ``names``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from volfs.fs.files.attributes import clearing
from volfs.fs.files.opening import Opening
from volfs.fs.inodes import Data, FileHandle, HandleTable, InodeTable
from volfs.linux.identity import UNRESERVED, Identity

_NOT_FOUND_AGAIN = frozenset((errno.ESTALE, errno.ENOENT))


class Writing:
    """Writes to what Opening has opened, on the tables shared with it."""

    def __init__(
        self, inodes: InodeTable, handles: HandleTable, opening: Opening, identity: Identity
    ) -> None:
        self._inodes = inodes
        self._handles = handles
        self._opening = opening
        self._identity = identity
        self._root = os.geteuid() == 0

    def write(
        self,
        handle: FileHandle,
        data: Data,
        offset: int,
        append: bool | None,
        *,
        clears: bool = True,
    ) -> int:
        """Write, as pwrite(2) does, and return how many bytes were written; without what the
        filesystem reserves for root.

        ``append``: whether it belongs to the end of the file, as FileHandle.is_append has it.
        ``clears``: it takes set-user-ID and set-group-ID bits away, as it has to unless the
        writer has CAP_FSETID.
        """
        fd = self._opening.descriptor(handle)
        appends = handle.is_append(data, offset, append)
        flags = os.RWF_APPEND if appends else 0
        if handle.inode.device.slow:
            with self.lent(handle, appends=appends) as fd, clearing(clears, fd):
                return _write(fd, data, offset, flags, whole=handle.direct)
        if self._root and handle.inode.device.reserves:
            with self._identity.acting(UNRESERVED, UNRESERVED, 0), clearing(clears, fd):
                return _write(fd, data, offset, flags, whole=handle.direct)
        with clearing(clears, fd):
            return _write(fd, data, offset, flags, whole=handle.direct)

    def lent(self, handle: FileHandle, *, appends: bool) -> AbstractContextManager[int]:
        """Context with a descriptor of an open file: to append with, or to change it at offsets.

        Raises OSError where that is another than was opened, and cannot be had. (A file that is
        not found again, as GlusterFS says of one that has no name any more, is appended to by the
        one that there is: no other host comes to it.)
        """
        fd = self._opening.descriptor(handle)
        if appends == handle.fd_appends or not handle.inode.device.slow:
            return nullcontext(fd)
        return self._second(handle)

    @contextmanager
    def _second(self, handle: FileHandle) -> Iterator[int]:
        fd, kept = handle.second, True
        if fd < 0:
            fd, kept = self._open_second(handle)
        try:
            yield fd
        finally:
            if not kept:
                os.close(fd)

    def _open_second(self, handle: FileHandle) -> tuple[int, bool]:
        """A descriptor of the other kind than was opened, and whether it is kept."""
        try:
            fd = self._opening.open_again(handle.inode, handle.flags ^ os.O_APPEND)
        except OSError as error:
            if handle.fd_appends or error.errno not in _NOT_FOUND_AGAIN:
                raise
            return handle.fd, True
        with self._inodes.descriptors.lock:
            return fd, self._handles.keep_second(handle, fd)


def _write(fd: int, data: Data, offset: int, flags: int, *, whole: bool) -> int:
    """pwritev2(2) with its ``flags``; ``whole``, for O_DIRECT: it writes all or fails.

    A short direct write the kernel takes for a failure and says EIO (fuse_get_res_by_io in
    fs/fuse/file.c). What is left of it tells the reason, such as ENOSPC or EDQUOT; so it is with
    a direct write on ext4 and XFS, of which a part can have been written too.
    """
    written = _write_once(fd, data, offset, flags)
    if whole:
        rest = memoryview(data)[written:]
        while rest:
            count = _write_once(fd, rest, offset + written, flags)
            if not count:
                break
            written += count
            rest = rest[count:]
    return written


def _write_once(fd: int, data: Data, offset: int, flags: int) -> int:
    return os.pwritev(fd, (data,), offset, flags) if flags else os.pwrite(fd, data, offset)
