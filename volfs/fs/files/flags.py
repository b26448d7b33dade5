"""Inode flags: what lsattr(1) shows and chattr(1) sets, by ioctl(2) on open files and directories.

The kernel asks on a handle of its own: OPEN or OPENDIR of the inode, one IOCTL, RELEASE
(fuse_fileattr_get and _set in fs/fuse/ioctl.c). Before it sends a change it has checked that the
caller owns the inode, and has CAP_LINUX_IMMUTABLE for the flags that ask for it
(vfs_fileattr_set in fs/file_attr.c). The daemon has every capability, so it must not be asked
past those checks: see ``check``.
"""

from __future__ import annotations

import errno
import fcntl

from volfs.linux.syscalls import os_error

# linux/fs.h, as all architectures but mips, powerpc and sparc encode it. The kernel's own requests
# carry an unsigned int, though the first two are encoded with a long.
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820

_FLAGS = 4
_FSXATTR = 28


def check(command: int, data: bytes, size: int, argument: int = 0) -> None:
    """Raise OSError(ENOTTY) for an IOCTL request that is not to be answered.

    ``data`` is what came with the request, ``size`` how many bytes it asks for (in_size and
    out_size of struct fuse_ioctl_in), ``argument`` the caller's pointer (arg).

    That is everything but the four commands above, and these when ``argument`` is not 0: then a
    caller sent the command itself, past the kernel's checks, which kernels before 5.13 let it.
    Likewise the 32-bit numbers of these commands, which a 64-bit kernel translates for 32-bit
    callers and does not check for others.
    """
    if _SIZES.get(command) != (len(data), size) or argument:
        raise os_error(errno.ENOTTY)


def answer(fd: int, command: int, data: bytes, size: int) -> bytes:
    """Answer an IOCTL request that ``check`` lets through, about an open file or directory.

    Raises OSError as the filesystem answers.
    """
    try:
        reply = fcntl.ioctl(fd, command, data or bytes(size))
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise os_error(errno.ENOTTY) from None
        raise
    return reply[:size]


_SIZES = {
    FS_IOC_GETFLAGS: (0, _FLAGS),
    FS_IOC_SETFLAGS: (_FLAGS, 0),
    FS_IOC_FSGETXATTR: (0, _FSXATTR),
    FS_IOC_FSSETXATTR: (_FSXATTR, 0),
}
