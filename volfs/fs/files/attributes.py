"""Attributes of inodes below the volumes: mode, owner, size, times, extended attributes.

Plain synchronous functions, as those of ``names``.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from volfs.fs.inodes import FileHandle, Inode, InodeTable, Listings, is_long_freed
from volfs.fs.native import Status, fstat
from volfs.linux import calls, syscalls
from volfs.linux.identity import KeepingSetgid, Owning, Process, Requester, keeps_setgid, who
from volfs.linux.syscalls import os_error

_NOTHING = nullcontext()
_PRIVILEGES = stat.S_ISUID | stat.S_ISGID
_ACL = b"system.posix_acl_access"
_ACLS = (_ACL, b"system.posix_acl_default")
_CAPABILITY = b"security.capability"
_TRUSTED = b"trusted."


class Changes(NamedTuple):
    """What a setattr request sets; None is left as it is.

    Times are in nanoseconds since 1970, or syscalls.NOW. ``clears``: a new size takes
    set-user-ID and set-group-ID bits away.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    clears: bool = True

    @property
    def nothing(self) -> bool:
        """Whether all is left as it is."""
        return self._replace(clears=True) == _NO_CHANGES


_NO_CHANGES = Changes()


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

    def setattr(
        self, inode: Inode, changes: Changes, handle: FileHandle | None, ctx: Requester
    ) -> Status:
        """Change what ``changes`` says, and ctime even if that is nothing; return the new status.

        Raises BlockingIOError where somebody has a lease on a file that is to be cut, and has now
        been asked to give it back.
        """
        fd = self._inodes.reach(inode) if handle is None or handle.fd < 0 else handle.fd
        if changes.nothing:
            self._change_nothing(inode, fd, ctx)
            return fstat(fd)
        # Ownership first: changing it clears setuid and setgid, which a mode may set again.
        if changes.uid is not None or changes.gid is not None:
            uid = -1 if changes.uid is None else changes.uid
            gid = -1 if changes.gid is None else changes.gid
            with _setgid_as_left(fstat(fd), ctx):
                calls.chown(fd, uid, gid)
        if changes.mode is not None:
            mode = stat.S_IMODE(changes.mode)
            with setgid_as_asked(mode):
                calls.chmod(fd, mode)
        if changes.size is not None:
            with clearing(changes.clears, fd):
                if handle is not None and handle.fd >= 0:
                    os.ftruncate(fd, changes.size)
                else:
                    _truncate(fd, changes.size, opened=handle is not None)
        if changes.atime is not None or changes.mtime is not None:
            calls.utimens(fd, changes.atime, changes.mtime)
        return fstat(fd)

    def _change_nothing(self, inode: Inode, fd: int, ctx: Requester) -> None:
        """chown(2) with nothing to change, as the caller.

        It moves ctime and clears set-user-ID and set-group-ID bits, and where there are any only
        the owner may do it (EPERM). The kernel takes the bits out of the request before it checks
        that (fuse_setattr in fs/fuse/dir.c).

        The same request comes before the first write of somebody who may write and need not be the
        owner. That clears the bits itself, so nothing has to be done here.
        """
        status = fstat(fd)
        owns = _is_privileged(status) and _owns(who(ctx), status)
        try:
            if os.geteuid() == 0:
                # Also where there is no such bit: one that comes this moment must not go.
                setgid = bool(status.st_mode & stat.S_ISGID) and keeps_setgid(ctx, status.st_gid)
                with Owning(all_files=owns, all_groups=setgid):
                    calls.chown(fd, -1, -1)
            elif _is_privileged(status) and not owns:
                raise os_error(errno.EPERM)
            else:
                calls.chown(fd, -1, -1)
        except PermissionError:
            # Of a file without such bits, or its owner's, it was refused for another reason.
            if owns or not _is_privileged(status) or not _is_written(inode):
                raise

    # -- extended attributes

    def setxattr(self, inode: Inode, name: bytes, value: bytes, flags: int, ctx: Requester) -> None:
        """setxattr(2) with its ``flags``, XATTR_CREATE and XATTR_REPLACE."""
        check_xattr(name)
        fd = self._inodes.reach(inode)
        path = f"/proc/self/fd/{fd}"
        if name == _ACL and os.geteuid() == 0:
            status = fstat(fd)
            # An access ACL clears setgid for an owner outside the group, and for no other.
            if status.st_mode & stat.S_ISGID:
                keeps = keeps_setgid(ctx, status.st_gid)
                with Owning(all_files=True, all_groups=keeps):
                    os.setxattr(path, name, value, flags)
                return
        os.setxattr(path, name, value, flags)

    def getxattr(self, inode: Inode, name: bytes) -> bytes | None:
        """An extended attribute, None if the inode has none of that name."""
        check_xattr(name)
        return calls.getxattr(self._inodes.reach(inode), name)

    def listxattr(self, inode: Inode, ctx: Requester) -> list[bytes]:
        """The names that ``ctx`` may see: as on ext4 and XFS, those of trusted.* are only for who
        may read them."""
        path = f"/proc/self/fd/{self._inodes.reach(inode)}"
        names = [os.fsencode(name) for name in os.listxattr(path)]
        trusted = any(name.startswith(_TRUSTED) for name in names)
        if trusted and not who(ctx).has(syscalls.CAP_SYS_ADMIN):
            return [name for name in names if not name.startswith(_TRUSTED)]
        return names

    def removexattr(self, inode: Inode, name: bytes, ctx: Requester) -> None:
        """removexattr(2).

        Of file capabilities the kernel also has it done before it writes, truncates, or changes
        nothing of the owner, whoever does that (``_change_nothing``). Where set-user-ID or
        set-group-ID bits tell who may, it is left to what comes then: that takes the capabilities
        away with them, or is refused.
        """
        check_xattr(name)
        fd = self._inodes.reach(inode)
        if name == _CAPABILITY:
            status = fstat(fd)
            if _is_privileged(status):
                caller = who(ctx)
                if not _owns(caller, status) and not caller.has(syscalls.CAP_SETFCAP):
                    return
        os.removexattr(f"/proc/self/fd/{fd}", name)


def check_xattr(name: bytes) -> None:
    """Raise OSError(EOPNOTSUPP) for an extended attribute that nobody has checked.

    The kernel checks user.*, trusted.*, security.* and the POSIX ACLs. The rest of system.* it
    leaves to the filesystem: there NFS, CIFS and NTFS have permissions in a form of their own,
    which the daemon, as root, could change whosever they are. It is the answer of a filesystem
    that has no such attribute.
    """
    if name.startswith(b"system.") and name not in _ACLS:
        raise os_error(errno.EOPNOTSUPP)


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


def clearing(clears: bool, fd: int) -> AbstractContextManager[None]:
    """Context for changing the content of a file, with its set-user-ID and set-group-ID bits
    taken away if it ``clears`` them, and left otherwise."""
    if clears or not fstat(fd).st_mode & _PRIVILEGES:
        return _NOTHING
    return KeepingSetgid()


def clearing_for(caller: Requester, fd: int) -> AbstractContextManager[None]:
    """As ``clearing``, upon a request that does not say whether its ``caller`` clears them."""
    if not fstat(fd).st_mode & _PRIVILEGES:
        return _NOTHING
    return clearing(not who(caller).has(syscalls.CAP_FSETID), fd)


def _setgid_as_left(status: Status, ctx: Requester) -> AbstractContextManager[None]:
    """Context for a change of owner, which leaves the set-group-ID bit of a file without group
    execution to callers who might set it (setattr_should_drop_sgid in the kernel's fs/attr.c)."""
    if status.st_mode & (stat.S_ISGID | stat.S_IXGRP) != stat.S_ISGID or os.geteuid() != 0:
        return _NOTHING
    return Owning(all_files=True, all_groups=keeps_setgid(ctx, status.st_gid))


def _is_privileged(status: Status) -> bool:
    """Whether it has bits that a change of owner clears."""
    return bool(status.st_mode & _PRIVILEGES) and not stat.S_ISDIR(status.st_mode)


def _owns(caller: Process, status: Status) -> bool:
    return caller.uid == status.st_uid or caller.has(syscalls.CAP_FOWNER)


def _is_written(inode: Inode) -> bool:
    """Whether it is open for writing in the tree."""
    return any(isinstance(handle, FileHandle) and handle.writes for handle in inode.opens or ())
