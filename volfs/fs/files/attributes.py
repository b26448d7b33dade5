"""Attributes of inodes below the volumes: mode, owner, size, times, extended attributes.

Plain synchronous functions, as those of ``names``.
"""

from __future__ import annotations

import os
import stat
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from volfs.fs.inodes import FileHandle, Inode, InodeTable, Listings, is_long_freed
from volfs.fs.native import Status, fstat
from volfs.linux import calls
from volfs.linux.identity import KeepingSetgid, Requester, in_group

_NOTHING = nullcontext()
_ACL = b"system.posix_acl_access"


class Changes(NamedTuple):
    """What a setattr request sets; None is left as it is.

    Times are in nanoseconds since 1970, or syscalls.NOW.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None


NO_CHANGES = Changes()


class Attributes:
    """The requests on attributes. ``listings`` learns from what is asked for."""

    def __init__(self, inodes: InodeTable, listings: Listings) -> None:
        self._inodes = inodes
        self._listings = listings

    def getattr(self, inode: Inode) -> Status:
        if inode.listed is not None and inode.listed.told:
            self._listings.asked_for(inode)
        return fstat(self._inodes.reach(inode))

    def frees_long(self, inode: Inode, size: int) -> bool:
        """Whether it may take long to cut a file to ``size`` bytes."""
        status = fstat(self._inodes.reach(inode))
        return size < status.st_size and is_long_freed(status)

    def setattr(self, inode: Inode, changes: Changes, handle: FileHandle | None) -> Status:
        """Change what ``changes`` says, nothing moving ctime all the same; return how it is.

        Raises BlockingIOError where somebody has a lease on a file that is to be cut, and has now
        been asked to give it back.
        """
        fd = self._inodes.reach(inode) if handle is None or handle.fd < 0 else handle.fd
        # Ownership first: changing it clears setuid and setgid, which a mode may set again.
        if changes.uid is not None or changes.gid is not None or changes == NO_CHANGES:
            calls.chown(
                fd,
                -1 if changes.uid is None else changes.uid,
                -1 if changes.gid is None else changes.gid,
            )
        if changes.mode is not None:
            mode = stat.S_IMODE(changes.mode)
            with setgid_as_asked(mode):
                calls.chmod(fd, mode)
        if changes.size is not None:
            if handle is not None and handle.fd >= 0:
                os.ftruncate(fd, changes.size)
            else:
                _truncate(fd, changes.size, opened=handle is not None)
        if changes.atime is not None or changes.mtime is not None:
            calls.utimens(fd, changes.atime, changes.mtime)
        return fstat(fd)

    # -- extended attributes

    def setxattr(self, inode: Inode, name: bytes, value: bytes, flags: int, ctx: Requester) -> None:
        """setxattr(2) with its ``flags``, XATTR_CREATE and XATTR_REPLACE."""
        fd = self._inodes.reach(inode)
        path = f"/proc/self/fd/{fd}"
        if name == _ACL and os.geteuid() == 0:
            status = fstat(fd)
            # An access ACL clears setgid for an owner outside the group, and only for one.
            if status.st_mode & stat.S_ISGID and (
                ctx.uid == 0 or in_group(ctx.pid, status.st_gid, ctx.gid)
            ):
                with KeepingSetgid():
                    os.setxattr(path, name, value, flags)
                return
        os.setxattr(path, name, value, flags)

    def getxattr(self, inode: Inode, name: bytes) -> bytes | None:
        """An extended attribute, None if the inode has none of that name."""
        return calls.getxattr(self._inodes.reach(inode), name)

    def listxattr(self, inode: Inode) -> list[bytes]:
        return [
            os.fsencode(name) for name in os.listxattr(f"/proc/self/fd/{self._inodes.reach(inode)}")
        ]

    def removexattr(self, inode: Inode, name: bytes) -> None:
        os.removexattr(f"/proc/self/fd/{self._inodes.reach(inode)}", name)


def _truncate(fd: int, size: int, *, opened: bool) -> None:
    """truncate(2), or ftruncate(2) with ``opened``, of a file by any descriptor, but for leases."""
    path = f"/proc/self/fd/{fd}"
    # truncate(2) would wait for a lease.
    writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if opened or fstat(writing).st_size != size:
            os.ftruncate(writing, size)
        else:
            os.truncate(path, size)  # leaves the times alone
    finally:
        os.close(writing)


def setgid_as_asked(mode: int) -> AbstractContextManager[None]:
    """Context that sets a mode as it was asked for.

    The kernel has taken the setgid bit out of the request already where the caller, with its
    groups and capabilities, may not set it.
    """
    return KeepingSetgid() if mode & stat.S_ISGID else _NOTHING
