"""Everything below a volume: real files and directories.

Plain synchronous functions on Inodes and open handles, which may block where the backing
filesystem does; who calls them decides on which thread. Whatever a system call on the backing
file answers is the answer: OSError passes through with its errno.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

from volfs.fs.files.cache import CachePolicy
from volfs.fs.files.unnamed import make_unnamed
from volfs.fs.inodes.handles import Data, DirectoryHandle, FileHandle, HandleTable
from volfs.fs.inodes.inode import Inode
from volfs.fs.inodes.listings import Listings
from volfs.fs.inodes.table import InodeTable
from volfs.fs.native.status import Status, fstat, fstatat, open_path
from volfs.linux import calls, syscalls
from volfs.linux.identity import UNRESERVED, Caller, KeepingSetgid, Requester, in_group

Found = tuple[Inode, Status]
"""A file that was looked up, and how it is."""

_LOOKUP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NOTHING = nullcontext()
_ACL = b"system.posix_acl_access"

_NOT_PASSED = os.O_DIRECT | os.O_NOFOLLOW | os.O_APPEND
"""Flags of a caller's open(2) that are not for the backing file. O_DIRECT is between the caller
and the kernel: reads and writes reach us either way, in buffers without the alignment that it
would ask of us. O_NOFOLLOW was obeyed by the kernel, and would stop us at /proc. With O_APPEND,
pwrite(2) ignores the offset: see FileHandle.write."""


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


class Backings(Protocol):
    """Lets the kernel read and write open files on their backing files."""

    def acquire(self, inode: Inode, fd: int = -1) -> int:
        """The backing id of a file that is being opened, 0 if it has none.

        ``fd`` is a descriptor of it, if there is one already.
        """

    def release(self, inode: Inode) -> None:
        """Note that nothing has the file open any more."""


class Tree:
    """The requests below the root, on the tables shared with the root."""

    def __init__(
        self,
        inodes: InodeTable,
        handles: HandleTable,
        caller: Caller,
        cache: CachePolicy,
        backings: Backings | None = None,
    ) -> None:
        self._inodes = inodes
        self._handles = handles
        self._caller = caller
        self._cache = cache
        self._backings = backings
        self.listings = Listings(cache.timeout)
        self._root = os.geteuid() == 0
        # The names in this directory stand for our own descriptors, O_PATH ones among them.
        self._descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._descriptors)

    # -- attributes

    def getattr(self, inode: Inode) -> Status:
        if inode.listed:
            self.listings.asked_for(inode)
        return fstat(self._inodes.reach(inode))

    def setattr(self, inode: Inode, changes: Changes, handle: FileHandle | None) -> Status:
        """Change what ``changes`` says, nothing moving ctime all the same; return how it is."""
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
            with _setgid_as_asked(mode):
                calls.chmod(fd, mode)
        if changes.size is not None:
            if handle is not None and handle.fd >= 0:
                os.ftruncate(fd, changes.size)
            else:
                os.truncate(f"/proc/self/fd/{fd}", changes.size)
        if changes.atime is not None or changes.mtime is not None:
            calls.utimens(fd, changes.atime, changes.mtime)
        return fstat(fd)

    # -- names

    def lookup(self, parent: Inode, name: bytes) -> Found | None:
        """What ``name`` in ``parent`` is, counted as looked up; None if it is absent."""
        found = open_path(self._inodes.reach(parent), name)
        if found is None:
            return None
        self.listings.searched(parent)
        fd, status = found
        return self._inodes.remember(status, parent, name, fd), status

    def found(self, parent: Inode, name: bytes, fd: int) -> Found:
        """The file behind the O_PATH descriptor ``fd``, which is taken over."""
        try:
            status = fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        return self._inodes.remember(status, parent, name, fd), status

    def readlink(self, inode: Inode) -> bytes:
        return os.readlink(b"", dir_fd=self._inodes.reach(inode))

    def mknod(self, parent: Inode, name: bytes, mode: int, rdev: int, ctx: Requester) -> Found:
        directory = self._inodes.reach(parent)
        with self._caller.acting(ctx.uid, ctx.gid, ctx.umask), _setgid_as_asked(mode):
            os.mknod(name, mode, rdev, dir_fd=directory)
        return self._created(parent, name, directory)

    def mkdir(self, parent: Inode, name: bytes, mode: int, ctx: Requester) -> Found:
        directory = self._inodes.reach(parent)
        with self._caller.acting(ctx.uid, ctx.gid, ctx.umask):
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=directory)
        return self._created(parent, name, directory)

    def symlink(self, parent: Inode, name: bytes, target: bytes, ctx: Requester) -> Found:
        directory = self._inodes.reach(parent)
        with self._caller.acting(ctx.uid, ctx.gid, ctx.umask):
            os.symlink(target, name, dir_fd=directory)
        return self._created(parent, name, directory)

    def _created(self, parent: Inode, name: bytes, directory: int) -> Found:
        # Behind the mount somebody may have replaced it already: then this is what is there.
        found = open_path(directory, name)
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        fd, status = found
        return self._inodes.remember(status, parent, name, fd, created=True), status

    def unlink(self, parent: Inode, name: bytes) -> None:
        directory = self._inodes.reach(parent)
        self._pin_victim(parent, name, directory)
        os.unlink(name, dir_fd=directory)

    def _pin_victim(self, parent: Inode, name: bytes, directory: int) -> None:
        """Have a descriptor of a file that is about to lose a name, if it is known.

        The kernel knows it until it forgets it, and so long its number must not be another's.
        """
        try:
            status = fstatat(directory, name)
        except FileNotFoundError:
            return
        if self._inodes.is_unpinned(status):
            found = open_path(directory, name)
            if found is not None:
                fd, status = found
                # It may be another one by now, which the kernel does not know.
                self._inodes.discard(self._inodes.remember(status, parent, name, fd, lookups=0))

    def rmdir(self, parent: Inode, name: bytes) -> None:
        os.rmdir(name, dir_fd=self._inodes.reach(parent))

    def rename(
        self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int
    ) -> None:
        source = self._inodes.reach(parent)
        target = self._inodes.reach(new_parent)
        if not flags:
            self._pin_victim(new_parent, new_name, target)
        if flags:
            syscalls.renameat2(source, name, target, new_name, flags)
        else:
            os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
        self._moved(new_parent, new_name, target)
        if flags & syscalls.RENAME_EXCHANGE:
            self._moved(parent, name, source)

    def _moved(self, parent: Inode, name: bytes, directory: int) -> None:
        """Note where a renamed inode is now, so that it is found there again."""
        try:
            status = fstatat(directory, name)
        except FileNotFoundError:
            return  # gone already, behind the mount
        self._inodes.moved(status, parent, name)

    def link(self, inode: Inode, new_parent: Inode, new_name: bytes) -> Found:
        source = self._inodes.reach(inode)
        directory = self._inodes.reach(new_parent)
        calls.link(source, directory, new_name)
        return self.found(new_parent, new_name, os.open(new_name, _LOOKUP, dir_fd=directory))

    # -- open files

    def open(self, inode: Inode, flags: int, pid: int) -> FileHandle:
        """Open a file and put it into the handle table.

        Where the kernel reads the backing file itself and has checked all there is to check,
        that takes no descriptor of ours.
        """
        backed = self._backings is not None and self._backings.acquire(inode)
        try:
            if backed and inode.fd >= 0 and not flags & (os.O_ACCMODE | os.O_TRUNC):
                handle = FileHandle(-1, inode, flags, pid)
            else:
                fd = self._open_backing(inode, flags)
                handle = FileHandle(fd, inode, flags, pid)
                handle.keeps_cache = not backed and self._keeps_cache(inode, fd)
        except BaseException:
            if backed:
                self._release_backing(inode)
            raise
        self._handles.add_file(handle)
        return handle

    def write(self, handle: FileHandle, data: Data, offset: int, append: bool | None) -> int:
        """FileHandle.write, without what the filesystem reserves for root."""
        if self._root and handle.inode.device.reserves:
            with self._caller.acting(UNRESERVED, UNRESERVED, 0):
                return handle.write(data, offset, append)
        return handle.write(data, offset, append)

    def descriptor(self, handle: FileHandle) -> int:
        """The descriptor of an open file, opened now if it was not needed so far."""
        if handle.fd < 0:
            fd = self._open_backing(handle.inode, os.O_RDONLY)
            if handle.fd < 0:
                handle.fd = fd
                self._handles.descriptors += 1
            else:  # another thread was faster
                os.close(fd)
        return handle.fd

    def open_again(self, inode: Inode, flags: int) -> int:
        """A further descriptor of a file, opened with the access mode in ``flags``."""
        return self._open_backing(inode, flags)

    def _open_backing(self, inode: Inode, flags: int) -> int:
        backing = flags & ~(_NOT_PASSED | os.O_CREAT | os.O_EXCL) | os.O_CLOEXEC
        name = str(self._inodes.reach(inode))
        try:
            return os.open(name, backing, dir_fd=self._descriptors)
        except PermissionError:
            if not flags & os.O_APPEND:
                raise
            # An append-only file (chattr +a) is opened for appending, or not for writing at all.
            return os.open(name, backing | os.O_APPEND, dir_fd=self._descriptors)

    def _keeps_cache(self, inode: Inode, fd: int) -> bool:
        """Whether what the kernel has cached of the file or directory being opened is right."""
        if self._cache is CachePolicy.ALWAYS:
            return True
        if self._cache is CachePolicy.NEVER:
            return False
        status = fstat(fd)
        # ctime tells what was made to look unchanged (touch -r, rsync --times).
        version = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        same = inode.version == version
        inode.version = version
        return same

    def create(
        self, parent: Inode, name: bytes, mode: int, flags: int, ctx: Requester
    ) -> tuple[FileHandle, Found]:
        directory = self._inodes.reach(parent)
        backing = flags & ~_NOT_PASSED | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with self._caller.acting(ctx.uid, ctx.gid, ctx.umask), _setgid_as_asked(mode):
                fd = os.open(name, backing, stat.S_IMODE(mode), dir_fd=directory)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # It appeared behind the mount, so the kernel has not checked whether the caller may
            # open it. ESTALE makes it look the name up and go through its checks.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
        return self._created_open(fd, parent, name, flags, ctx.pid)

    def tmpfile(
        self, parent: Inode, mode: int, flags: int, ctx: Requester
    ) -> tuple[FileHandle, Found]:
        """A file without a name, open."""
        directory = self._inodes.reach(parent)
        with self._caller.acting(ctx.uid, ctx.gid, ctx.umask), _setgid_as_asked(mode):
            fd = make_unnamed(directory, flags, mode)
        return self._created_open(fd, parent, b"", flags, ctx.pid)

    def _created_open(
        self, fd: int, parent: Inode, name: bytes, flags: int, pid: int
    ) -> tuple[FileHandle, Found]:
        try:
            status = fstat(fd)
            inode = self._inodes.remember(status, parent, name, -1, created=True)
        except BaseException:
            os.close(fd)
            raise
        if self._backings is not None:
            self._backings.acquire(inode, fd)
        handle = FileHandle(fd, inode, flags, pid)
        self._handles.add_file(handle)
        return handle, (inode, status)

    def release(self, handle: FileHandle) -> None:
        """Close a file that is off the handle table."""
        inode = handle.inode
        try:
            if handle.fd >= 0:
                self._inodes.released(inode, handle.fd)
        finally:
            handle.close()
            if inode.backing:
                self._release_backing(inode)

    def _release_backing(self, inode: Inode) -> None:
        if self._backings is not None and not inode.opens:
            self._backings.release(inode)

    # -- open directories

    def opendir(self, inode: Inode, pid: int) -> DirectoryHandle:
        """Open a directory and put it into the handle table."""
        fd = self.open_directory(inode)
        handle = DirectoryHandle(fd, inode, pid, keeps_cache=self._keeps_cache(inode, fd))
        self._handles.add_directory(handle)
        return handle

    def open_directory(self, inode: Inode) -> int:
        """A descriptor to list a directory with."""
        fd = self._inodes.reach(inode)
        # By "." it must be searchable, which everything is to root, and is quicker.
        if self._root:
            return os.open(".", _LIST, dir_fd=fd)
        return os.open(str(fd), _LIST, dir_fd=self._descriptors)

    def releasedir(self, handle: DirectoryHandle) -> None:
        """Close a directory that is off the handle table."""
        try:
            self._inodes.released(handle.inode, handle.fd)
        finally:
            handle.close()

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


def _setgid_as_asked(mode: int) -> AbstractContextManager[None]:
    """Context that sets a mode as it was asked for.

    The kernel has taken the setgid bit out of the request already where the caller, with its
    groups and capabilities, may not set it.
    """
    return KeepingSetgid() if mode & stat.S_ISGID else _NOTHING
