"""Following symbolic links that nobody else can have put there.

A process that may go where others may not must not be led there by them. So a link counts only
where it, and the directory it is in, belong to root or to us, and no others may write that
directory: a wider rule of the kind of fs.protected_symlinks (proc_sys_fs(5)), and for every link
on the way.
"""

from __future__ import annotations

import errno
import os
import stat

from volfs.linux.durable import REACH
from volfs.linux.syscalls import os_error

_LINKS_MAX = 40  # as the kernel has it
_OTHERS_WRITE = 0o022  # the group's bits show what an ACL grants, too


class SuspectLinkError(PermissionError):
    """Somebody else can have put a link there. ``filename`` is its name."""

    def __init__(self, name: str) -> None:
        # EACCES, as the kernel answers for the links that it does not follow.
        super().__init__(errno.EACCES, "a link that others than root can have put there", name)


def open_following(dir_fd: int, name: str, flags: int) -> int:
    """Open the directory ``name``, following links only where nobody else can have put them.

    Raises SuspectLinkError, and OSError as open(2) does (ELOOP, ENOENT, ENOTDIR).
    """
    here = os.open(".", REACH, dir_fd=dir_fd)
    try:
        left, links = [name], 0
        while left:
            part = left.pop()
            if part in ("", "."):
                continue
            found = os.open(part, REACH, dir_fd=here)
            status = os.fstat(found)
            if not stat.S_ISLNK(status.st_mode):
                os.close(here)
                here = found
                continue
            try:
                if not (is_own(status) and is_only_ours(os.fstat(here))):
                    raise SuspectLinkError(part)
                links += 1
                if links > _LINKS_MAX:
                    raise os_error(errno.ELOOP, name)
                target = os.readlink("", dir_fd=found)
            finally:
                os.close(found)
            if target.startswith("/"):
                os.close(here)
                here = os.open("/", REACH)
            left.extend(reversed(target.split("/")))
        return os.open(".", flags | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)


def is_own(status: os.stat_result) -> bool:
    """Return whether something belongs to root or to us."""
    return status.st_uid in (0, os.geteuid())


def is_only_ours(status: os.stat_result) -> bool:
    """Return whether only root and we can make, replace and remove what is in a directory."""
    return is_own(status) and not status.st_mode & _OTHERS_WRITE
