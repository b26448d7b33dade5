"""VolumeFS: one short method per request, no logic of its own.

Each finds its inodes, chooses the thread (quick calls on local filesystems run on the event
loop, slow ones in a worker thread) and turns failures into errnos. pyfuse3's loop ends with any
exception but FUSEError, so nothing else may leave a method here.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from volfs.fs.boundary import boundary
from volfs.fs.handles import DirectoryHandle, HandleTable, RootHandle
from volfs.fs.inode import ROOT_ID, Inode
from volfs.fs.inodes import InodeTable
from volfs.fs.root import XATTR_PREFIX, Root
from volfs.fs.threads import WorkerThreads
from volfs.fs.tree import Tree

log = logging.getLogger(__name__)

T = TypeVar("T")

_STALL_NS = 10_000_000
_STALL_MEMORY_NS = 1_000_000_000
"""A write that took longer than the first (the kernel throttles writers when too many pages are
dirty) sends writes to worker threads for as long as the second, in nanoseconds."""

_READ_BUFFER = 1 << 20


class VolumeFS(pyfuse3.Operations):
    """The store as a filesystem."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        inodes: InodeTable,
        handles: HandleTable,
        root: Root,
        tree: Tree,
        threads: WorkerThreads,
        scope_fd: int,
    ) -> None:
        super().__init__()
        self._inodes = inodes
        self._handles = handles
        self._root = root
        self._tree = tree
        self._threads = threads
        self._scope_fd = scope_fd
        self._stalled_until = 0
        # Replies are copied to the kernel before anything else runs, so one buffer serves all.
        self._buffer = bytearray(_READ_BUFFER)
        self.volume_removed = trio.Event()

    # -- which thread

    async def _run(self, inode: Inode, call: Callable[[], T]) -> T:
        if inode.device.slow:
            return await self._threads.run(call, inode)
        return call()

    # -- inodes and names

    @boundary
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._inodes[parent_inode]
        if parent_inode == ROOT_ID:
            if self._root.is_quick(name):
                return self._root.lookup(parent, name)
            return await self._threads.run(lambda: self._root.lookup(parent, name), on=name)
        if parent.device.slow:
            return await self._threads.run(lambda: self._tree.lookup(parent, name), parent)
        return self._tree.lookup(parent, name)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        try:
            for node_id, lookups in inode_list:
                self._inodes.forget(node_id, lookups)
        except Exception:
            log.exception("forget failed unexpectedly")

    @boundary
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        if inode == ROOT_ID:
            return self._root.getattr()
        known = self._inodes[inode]
        if known.device.slow:
            return await self._threads.run(lambda: self._tree.getattr(known), known)
        return self._tree.getattr(known)

    @boundary
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        if inode == ROOT_ID:
            # Its mode and owner are mount options.
            raise FUSEError(errno.EPERM)
        known = self._inodes[inode]
        handle = None if fh is None else self._handles.file(fh)
        return await self._run(known, lambda: self._tree.setattr(known, attr, fields, handle))

    @boundary
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        known = self._inodes[inode]
        return FileNameT(await self._run(known, lambda: self._tree.readlink(known)))

    @boundary
    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        parent = self._below_root(parent_inode)
        return await self._run(parent, lambda: self._tree.mknod(parent, name, mode, rdev, ctx))

    @boundary
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._inodes[parent_inode]
        if parent_inode == ROOT_ID:
            return await self._threads.run(lambda: self._root.mkdir(parent, name, mode, ctx))
        return await self._run(parent, lambda: self._tree.mkdir(parent, name, mode, ctx))

    @boundary
    async def symlink(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        target: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        parent = self._below_root(parent_inode)
        return await self._run(parent, lambda: self._tree.symlink(parent, name, target, ctx))

    @boundary
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = self._below_root(parent_inode)
        await self._run(parent, lambda: self._tree.unlink(parent, name))

    @boundary
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        parent = self._inodes[parent_inode]
        if parent_inode == ROOT_ID:
            await self._threads.run(lambda: self._root.rmdir(parent, name, ctx))
            self.volume_removed.set()
        else:
            await self._run(parent, lambda: self._tree.rmdir(parent, name))

    @boundary
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        old, new = self._inodes[parent_inode_old], self._inodes[parent_inode_new]
        if (parent_inode_old == ROOT_ID) != (parent_inode_new == ROOT_ID):
            # A volume is no directory of another; mv copies upon EXDEV.
            raise FUSEError(errno.EXDEV)
        if parent_inode_old == ROOT_ID:
            await self._threads.run(lambda: self._root.rename(old, name_old, name_new, flags))
        elif old.device.slow or new.device.slow:
            await self._threads.run(
                lambda: self._tree.rename(old, name_old, new, name_new, flags), old, new
            )
        else:
            self._tree.rename(old, name_old, new, name_new, flags)

    @boundary
    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        if new_parent_inode == ROOT_ID:
            raise FUSEError(errno.EXDEV)  # as for a rename into the root
        known, parent = self._inodes[inode], self._inodes[new_parent_inode]
        if known.device.slow or parent.device.slow:
            return await self._threads.run(
                lambda: self._tree.link(known, parent, new_name), known, parent
            )
        return self._tree.link(known, parent, new_name)

    def _below_root(self, node_id: InodeT) -> Inode:
        if node_id == ROOT_ID:
            # Only directories live there: no file type could be made, whatever the permissions.
            raise FUSEError(errno.EPERM)
        return self._inodes[node_id]

    # -- open files

    @boundary
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        known = self._inodes[inode]
        info = await self._run(known, lambda: self._tree.open(known, flags, ctx))
        self._make_room()
        return info

    @boundary
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        parent = self._below_root(parent_inode)
        reply = await self._run(parent, lambda: self._tree.create(parent, name, mode, flags, ctx))
        self._make_room()
        return reply

    def _make_room(self) -> None:
        # A directory being listed has a second descriptor.
        self._inodes.make_room(self._handles.open_files + 2 * self._handles.open_directories)

    @boundary
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        handle = self._handles.file(fh)
        device = handle.inode.device
        done = 0
        if device.nowait and not device.slow and size <= _READ_BUFFER:
            window = memoryview(self._buffer)[:size]
            try:
                done = os.preadv(handle.fd, (window,), off, os.RWF_NOWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                device.nowait = False
            else:
                if done == size or off + done >= os.fstat(handle.fd).st_size:
                    return window[:done]  # type: ignore[return-value]
        elif not device.slow:
            return os.pread(handle.fd, size, off)
        # Not all of it is in the page cache: wait for the disk elsewhere.
        head = bytes(window[:done]) if done else b""
        tail = await self._threads.run(
            lambda: os.pread(handle.fd, size - done, off + done), handle.inode
        )
        return head + tail if head else tail

    @boundary
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        handle = self._handles.file(fh)
        start = time.monotonic_ns()
        if handle.synchronous or handle.inode.device.slow or start < self._stalled_until:
            return await self._threads.run(lambda: handle.write(buf, off), handle.inode)
        written = handle.write(buf, off)
        end = time.monotonic_ns()
        if end - start > _STALL_NS:
            self._stalled_until = end + _STALL_MEMORY_NS
        return written

    @boundary
    async def flush(self, fh: FileHandleT) -> None:
        if not self._inodes[ROOT_ID].device.slow:
            # Local filesystems have nothing to say at close; the kernel then asks no more.
            raise FUSEError(errno.ENOSYS)
        # Closing a duplicate makes a network filesystem report what it could not write.
        handle = self._handles.file(fh)
        await self._threads.run(lambda: os.close(os.dup(handle.fd)), handle.inode)

    @boundary
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        handle = self._handles.file(fh)
        call = os.fdatasync if datasync else os.fsync
        await self._threads.run(lambda: call(handle.fd), handle.inode)

    @boundary
    async def release(self, fh: FileHandleT) -> None:
        handle = self._handles.remove_file(fh)
        if handle is not None:
            await self._run(handle.inode, lambda: self._tree.release(handle))

    # -- open directories

    @boundary
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        known = self._inodes[inode]
        if inode == ROOT_ID:
            number = self._root.opendir()
        else:
            number = await self._run(known, lambda: self._tree.opendir(known, ctx))
            self._make_room()
        return FileHandleT(number)

    @boundary
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        handle = self._handles.directory(fh)
        if isinstance(handle, RootHandle):
            root = self._inodes[ROOT_ID]
            if start_id == 0 or handle.names is None:
                await self._threads.run(lambda: self._root.begin_listing(handle), on="listing")
            await self._threads.run(
                lambda: self._root.readdir(root, handle, start_id, token), on="listing"
            )
        else:
            await self._run(handle.inode, lambda: self._tree.readdir(handle, start_id, token))

    @boundary
    async def releasedir(self, fh: FileHandleT) -> None:
        handle = self._handles.remove_directory(fh)
        if isinstance(handle, DirectoryHandle):
            await self._run(handle.inode, lambda: self._tree.releasedir(handle))

    @boundary
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        handle = self._handles.directory(fh)
        if isinstance(handle, DirectoryHandle):  # the root's entries are durable when answered
            call = os.fdatasync if datasync else os.fsync
            await self._threads.run(lambda: call(handle.fd), handle.inode)

    # -- the filesystem

    @boundary
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        status = await self._run(self._inodes[ROOT_ID], lambda: os.statvfs(self._scope_fd))
        data = StatvfsData()
        data.f_bsize = status.f_bsize
        data.f_frsize = status.f_frsize
        data.f_blocks = status.f_blocks
        data.f_bfree = status.f_bfree
        data.f_bavail = status.f_bavail
        data.f_files = status.f_files
        data.f_ffree = status.f_ffree
        data.f_favail = status.f_favail
        data.f_namemax = status.f_namemax
        return data

    @boundary
    async def access(self, inode: InodeT, mode: int, ctx: RequestContext) -> bool:
        # default_permissions: the kernel decides from mode, owner and ACL and does not ask.
        raise FUSEError(errno.ENOSYS)

    # -- extended attributes

    @boundary
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        known = self._inodes[inode]
        if name.startswith(XATTR_PREFIX) or inode == ROOT_ID:
            await self._threads.run(lambda: self._root.setxattr(known, name, value), known)
        else:
            await self._run(known, lambda: self._tree.setxattr(known, name, value, ctx))

    @boundary
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        known = self._inodes[inode]
        if name.startswith(XATTR_PREFIX):
            return await self._threads.run(lambda: self._root.getxattr(known, name), known)
        if inode == ROOT_ID:
            raise FUSEError(errno.ENODATA)
        if known.device.slow:
            return await self._threads.run(lambda: self._tree.getxattr(known, name), known)
        return self._tree.getxattr(known, name)

    @boundary
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        # volfs.* is answered but not listed: copying tools would try to set what cannot be set.
        if inode == ROOT_ID:
            return ()
        known = self._inodes[inode]
        names = await self._run(known, lambda: self._tree.listxattr(known))
        # As ext4 and XFS do: who may not read trusted.* does not see that it is there.
        return [
            XAttrNameT(name) for name in names if ctx.uid == 0 or not name.startswith(b"trusted.")
        ]

    @boundary
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        known = self._inodes[inode]
        if name.startswith(XATTR_PREFIX) or inode == ROOT_ID:
            await self._threads.run(lambda: self._root.setxattr(known, name, None), known)
        else:
            await self._run(known, lambda: self._tree.removexattr(known, name))
