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

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext

from volfs import syscalls
from volfs.fs.cache import CachePolicy
from volfs.fs.caller import Caller, KeepingSetgid, in_group
from volfs.fs.handles import DirectoryHandle, FileHandle, HandleTable
from volfs.fs.inode import Inode
from volfs.fs.inodes import InodeTable
from volfs.fs.listing import Listings

_LOOKUP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ACL = b"system.posix_acl_access"

_NOT_PASSED = os.O_DIRECT | os.O_NOFOLLOW | os.O_APPEND
"""Flags of a caller's open(2) that are not for the backing file. O_DIRECT is between the caller
and the kernel: reads and writes reach us either way, in buffers without the alignment that it
would ask of us. O_NOFOLLOW was obeyed by the kernel, and would stop us at /proc. With O_APPEND,
pwrite(2) ignores the offset: see FileHandle.write."""


class Tree:
    """The requests below the root, on the tables shared with the root."""

    def __init__(
        self,
        inodes: InodeTable,
        handles: HandleTable,
        caller: Caller,
        cache: CachePolicy,
    ) -> None:
        self._inodes = inodes
        self._handles = handles
        self._caller = caller
        self._cache = cache
        self._timeout = cache.timeout
        self._listings = Listings(inodes, self.attributes, cache.timeout)
        # The names in this directory stand for our own descriptors, O_PATH ones among them.
        self._descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._descriptors)

    # -- attributes

    def attributes(self, inode: Inode, status: os.stat_result) -> EntryAttributes:
        """The reply that describes ``inode``, whose stat is ``status``."""
        entry = EntryAttributes()
        entry.st_ino = inode.node_id
        entry.generation = inode.generation
        entry.entry_timeout = self._timeout
        entry.attr_timeout = self._timeout
        entry.st_mode = status.st_mode
        entry.st_nlink = status.st_nlink
        entry.st_uid = status.st_uid
        entry.st_gid = status.st_gid
        entry.st_rdev = status.st_rdev
        entry.st_size = status.st_size
        entry.st_blksize = status.st_blksize
        entry.st_blocks = status.st_blocks
        entry.st_atime_ns = status.st_atime_ns
        entry.st_mtime_ns = status.st_mtime_ns
        entry.st_ctime_ns = status.st_ctime_ns
        return entry

    def getattr(self, inode: Inode) -> EntryAttributes:
        if inode.listed:
            self._listings.asked_for(inode)
        return self.attributes(inode, os.fstat(self._inodes.reach(inode)))

    def setattr(
        self,
        inode: Inode,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        handle: FileHandle | None,
    ) -> EntryAttributes:
        fd = handle.fd if handle is not None else self._inodes.reach(inode)
        path = f"/proc/self/fd/{fd}"
        # Ownership first: changing it clears setuid and setgid, which a mode may set again.
        if fields.update_uid or fields.update_gid:
            os.chown(
                path,
                attr.st_uid if fields.update_uid else -1,
                attr.st_gid if fields.update_gid else -1,
            )
        if fields.update_mode:
            mode = stat.S_IMODE(attr.st_mode)
            with _setgid_as_asked(mode):
                os.chmod(path, mode)
        if fields.update_size:
            if handle is not None:
                os.ftruncate(fd, attr.st_size)
            else:
                os.truncate(path, attr.st_size)
        if fields.update_atime or fields.update_mtime:
            syscalls.utimensat(
                fd,
                attr.st_atime_ns if fields.update_atime else None,
                attr.st_mtime_ns if fields.update_mtime else None,
            )
        if not (
            fields.update_uid
            or fields.update_gid
            or fields.update_mode
            or fields.update_size
            or fields.update_atime
            or fields.update_mtime
        ):
            os.chown(path, -1, -1)  # a change of nothing, which still moves ctime
        return self.attributes(inode, os.fstat(fd))

    # -- names

    def lookup(self, parent: Inode, name: bytes) -> EntryAttributes:
        parent.searched = True
        if parent.bare:
            self._listings.regret(parent)
        try:
            fd = os.open(name, _LOOKUP, dir_fd=self._inodes.reach(parent))
        except FileNotFoundError:
            return self.missing()
        return self.found(parent, name, fd)

    def missing(self) -> EntryAttributes:
        """The reply for a name that is not there: kept for as long as one that is.

        Node id 0 is ENOENT to the kernel (fuse_lookup_name in fs/fuse/dir.c), with a timeout.
        """
        entry = EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = self._timeout
        return entry

    def found(
        self, parent: Inode, name: bytes, fd: int, *, created: bool = False
    ) -> EntryAttributes:
        """The reply for the file behind the O_PATH descriptor ``fd``, which is taken over."""
        try:
            status = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        inode = self._inodes.remember(status, parent, name, fd, created=created)
        return self.attributes(inode, status)

    def readlink(self, inode: Inode) -> bytes:
        return os.readlink(b"", dir_fd=self._inodes.reach(inode))

    def mknod(
        self, parent: Inode, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._inodes.reach(parent)
        with self._caller.acting(ctx.uid, ctx.gid, ctx.umask), _setgid_as_asked(mode):
            os.mknod(name, mode, rdev, dir_fd=directory)
        return self._created(parent, name, directory)

    def mkdir(self, parent: Inode, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        directory = self._inodes.reach(parent)
        with self._caller.acting(ctx.uid, ctx.gid, ctx.umask):
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=directory)
        return self._created(parent, name, directory)

    def symlink(
        self, parent: Inode, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._inodes.reach(parent)
        with self._caller.acting(ctx.uid, ctx.gid, ctx.umask):
            os.symlink(target, name, dir_fd=directory)
        return self._created(parent, name, directory)

    def _created(self, parent: Inode, name: bytes, directory: int) -> EntryAttributes:
        # Behind the mount somebody may have replaced it already: then this is what is there.
        return self.found(parent, name, os.open(name, _LOOKUP, dir_fd=directory), created=True)

    def unlink(self, parent: Inode, name: bytes) -> None:
        os.unlink(name, dir_fd=self._inodes.reach(parent))

    def rmdir(self, parent: Inode, name: bytes) -> None:
        os.rmdir(name, dir_fd=self._inodes.reach(parent))

    def rename(
        self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int
    ) -> None:
        source = self._inodes.reach(parent)
        target = self._inodes.reach(new_parent)
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
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return  # gone already, behind the mount
        self._inodes.moved(status, parent, name)

    def link(self, inode: Inode, new_parent: Inode, new_name: bytes) -> EntryAttributes:
        source = self._inodes.reach(inode)
        directory = self._inodes.reach(new_parent)
        # linkat(2) with AT_EMPTY_PATH asks for CAP_DAC_READ_SEARCH; through /proc it does not.
        os.link(
            b"%d" % source,
            new_name,
            src_dir_fd=self._descriptors,
            dst_dir_fd=directory,
            follow_symlinks=True,
        )
        return self.found(new_parent, new_name, os.open(new_name, _LOOKUP, dir_fd=directory))

    # -- open files

    def open(self, inode: Inode, flags: int, ctx: RequestContext) -> FileInfo:
        backing = flags & ~(_NOT_PASSED | os.O_CREAT | os.O_EXCL) | os.O_CLOEXEC
        name = str(self._inodes.reach(inode))
        try:
            fd = os.open(name, backing, dir_fd=self._descriptors)
        except PermissionError:
            if not flags & os.O_APPEND:
                raise
            # An append-only file (chattr +a) is opened for appending, or not for writing at all.
            fd = os.open(name, backing | os.O_APPEND, dir_fd=self._descriptors)
        handle = FileHandle(fd, inode, flags, ctx.pid)
        return FileInfo(
            fh=self._handles.add_file(handle),
            keep_cache=self._keeps_cache(handle),
        )

    def _keeps_cache(self, handle: FileHandle) -> bool:
        """Whether the kernel's cached pages are those of the file now being opened."""
        if self._cache is CachePolicy.ALWAYS:
            return True
        if self._cache is CachePolicy.NEVER:
            return False
        status = os.fstat(handle.fd)
        # ctime tells what was made to look unchanged (touch -r, rsync --times).
        version = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        same = handle.inode.version == version
        handle.inode.version = version
        return same

    def create(
        self, parent: Inode, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
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
        try:
            status = os.fstat(fd)
            inode = self._inodes.remember(status, parent, name, -1, created=True)
        except BaseException:
            os.close(fd)
            raise
        handle = FileHandle(fd, inode, flags, ctx.pid)
        info = FileInfo(fh=self._handles.add_file(handle))
        return info, self.attributes(inode, status)

    def release(self, handle: FileHandle) -> None:
        """Close a file that is off the handle table."""
        try:
            self._inodes.released(handle.inode, handle.fd)
        finally:
            os.close(handle.fd)

    # -- open directories

    def opendir(self, inode: Inode, ctx: RequestContext) -> int:
        fd = os.open(
            str(self._inodes.reach(inode)),
            os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC,
            dir_fd=self._descriptors,
        )
        return self._handles.add_directory(DirectoryHandle(fd, inode, ctx.pid))

    def readdir(self, handle: DirectoryHandle, start: int, token: ReaddirToken) -> None:
        self._listings.reply(handle, start, token)

    def releasedir(self, handle: DirectoryHandle) -> None:
        """Close a directory that is off the handle table."""
        try:
            self._inodes.released(handle.inode, handle.fd)
        finally:
            handle.close()

    # -- extended attributes

    def setxattr(self, inode: Inode, name: bytes, value: bytes, ctx: RequestContext) -> None:
        fd = self._inodes.reach(inode)
        path = f"/proc/self/fd/{fd}"
        if name == _ACL and os.geteuid() == 0:
            status = os.fstat(fd)
            # An access ACL clears setgid for an owner outside the group, and only for one.
            if status.st_mode & stat.S_ISGID and (
                ctx.uid == 0 or in_group(ctx.pid, status.st_gid, ctx.gid)
            ):
                with KeepingSetgid():
                    os.setxattr(path, name, value)
                return
        os.setxattr(path, name, value)

    def getxattr(self, inode: Inode, name: bytes) -> bytes:
        opens = inode.opens
        if opens:  # a system call on the open file is quicker than the way through /proc
            return os.getxattr(opens[-1].fd, name)
        return os.getxattr(f"/proc/self/fd/{self._inodes.reach(inode)}", name)

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
    return KeepingSetgid() if mode & stat.S_ISGID else nullcontext()
