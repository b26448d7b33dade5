"""Inode flags: what lsattr(1) shows and chattr(1) sets, by ioctl(2) on open files and directories.

The kernel asks on a handle of its own: OPEN or OPENDIR of the inode, one IOCTL, RELEASE
(fuse_fileattr_get and _set in fs/fuse/ioctl.c). Before it sends a change it has checked that the
caller owns the inode, and has CAP_LINUX_IMMUTABLE for the flags that ask for it
(vfs_fileattr_set in fs/file_attr.c). The daemon has every capability, so it must not be asked
past those checks: see ``check``.

An inode's project id stays, and whether new files inherit it (which the kernel lets any owner
change): limits are kept by it, and who could take another project's id would be free of them.

Other requests ask for what anybody may know of a file or its filesystem.
"""

from __future__ import annotations

import errno
import fcntl
import sys
from struct import Struct

from volfs.linux.syscalls import os_error

# linux/fs.h, as all architectures but mips, powerpc and sparc encode it. The kernel's own requests
# carry an unsigned int, though the first two are encoded with a long.
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_IOC_GETVERSION = 0x80087601
FS_IOC_GETFSLABEL = 0x81009431

_FLAGS = 4
_FSXATTR = 28
_VERSION = 8
_LABEL = 256

_FS_PROJINHERIT_FL = 0x2000_0000
_FS_XFLAG_PROJINHERIT = 0x200
_FSXATTR_FIELDS = Struct("=5I8x")  # flags, extent size, extents, project id, CoW extent size


def check(command: int, data: bytes, size: int, argument: int = 0) -> None:
    """Raise OSError(ENOTTY) for an IOCTL request that is not to be answered.

    ``data`` is what came with the request, ``size`` how many bytes it asks for (in_size and
    out_size of struct fuse_ioctl_in), ``argument`` the caller's pointer (arg).

    That is everything but the commands above, and the first four of them when ``argument`` is not
    0: then a caller sent the command itself, past the kernel's checks, which kernels before 5.13
    let it. Likewise the 32-bit numbers of these commands, which a 64-bit kernel translates for
    32-bit callers and does not check for others.
    """
    if _SIZES.get(command) != (len(data), size) or (argument and command not in _OF_CALLERS):
        raise os_error(errno.ENOTTY)


def answer(fd: int, command: int, data: bytes, size: int) -> bytes:
    """Answer an IOCTL request that ``check`` lets through, about an open file or directory.

    Raises OSError as the filesystem answers; OSError(EPERM) for another project, whoever asks:
    chown of a file says the same to somebody who may not give it away.
    """
    try:
        if changes(command):
            was = fcntl.ioctl(fd, _READS[command], bytes(len(data)))
            if _project(command, was) != _project(command, data):
                raise os_error(errno.EPERM)
        reply = fcntl.ioctl(fd, command, data or bytes(size))
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise os_error(errno.ENOTTY) from None
        raise
    # An int, though the command says long: more would be written past the caller's variable.
    return reply[:4] if command == FS_IOC_GETVERSION else reply[:size]


def changes(command: int) -> bool:
    """Whether a command changes something."""
    return command in _READS


def _project(command: int, data: bytes) -> tuple[int, bool]:
    """The project id in the argument of a command, and whether it is inherited."""
    if command == FS_IOC_SETFLAGS:
        return 0, bool(int.from_bytes(data, sys.byteorder) & _FS_PROJINHERIT_FL)
    attributes, _, _, project, _ = _FSXATTR_FIELDS.unpack(data)
    return project, bool(attributes & _FS_XFLAG_PROJINHERIT)


_READS = {FS_IOC_SETFLAGS: FS_IOC_GETFLAGS, FS_IOC_FSSETXATTR: FS_IOC_FSGETXATTR}

_OF_CALLERS = frozenset((FS_IOC_GETVERSION, FS_IOC_GETFSLABEL))
"""These the kernel passes as they come."""

_SIZES = {
    FS_IOC_GETVERSION: (0, _VERSION),
    FS_IOC_GETFSLABEL: (0, _LABEL),
    FS_IOC_GETFLAGS: (0, _FLAGS),
    FS_IOC_SETFLAGS: (_FLAGS, 0),
    FS_IOC_FSGETXATTR: (0, _FSXATTR),
    FS_IOC_FSSETXATTR: (_FSXATTR, 0),
}
