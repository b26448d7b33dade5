"""Files without a name: what open(2) makes with O_TMPFILE."""

from __future__ import annotations

import errno
import os
import stat

_NOT_PASSED = os.O_DIRECT | os.O_NOFOLLOW | os.O_APPEND | os.O_CREAT | os.O_TRUNC


def make_unnamed(directory: int, flags: int, mode: int) -> int:
    """Make a file without a name on the filesystem of a directory; return its open descriptor.

    ``directory`` may be O_PATH. ``flags`` are those of the request: the access mode counts, and
    O_EXCL, which says that the file will never get a name. ``mode`` is without the file type.
    Owner, umask, setgid directory and default ACL are as for a named file: call it as the caller
    (Caller.acting), and with KeepingSetgid for a mode with S_ISGID.

    It gets a name by a LINK request, which the kernel lets through at a link count of 0 only for
    such a file (I_LINKABLE); on the backing filesystem the same holds.

    Raises OSError(EOPNOTSUPP) where the filesystem has no such files.
    """
    flags = flags & ~_NOT_PASSED | os.O_TMPFILE | os.O_CLOEXEC
    try:
        return os.open(".", flags, stat.S_IMODE(mode), dir_fd=directory)
    except OSError as error:
        # EISDIR is how open(2) says that it does not know of it; ENOSYS would be taken for an
        # answer for the whole mount.
        if error.errno in (errno.EISDIR, errno.ENOSYS):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)) from None
        raise
