"""Requests: what is done upon each request of the kernel, whoever brought it.

Each method finds the inodes, decides on which thread the work is done, and has Root or Tree do
it. Quick calls on local filesystems run at once, on the event loop; what may block becomes a
Later, to be awaited. Failures are OSError and VolfsError.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

import trio

from volfs.fs.files.tree import Changes, Found, Tree
from volfs.fs.inodes.handles import Data, DirectoryHandle, FileHandle, HandleTable, RootHandle
from volfs.fs.inodes.inode import ROOT_ID, Inode
from volfs.fs.inodes.table import InodeTable
from volfs.fs.locks.table import LockTable
from volfs.fs.native.status import Status
from volfs.fs.requests.threads import WorkerThreads
from volfs.fs.root.directory import XATTR_PREFIX, Root
from volfs.linux.identity import Requester

T = TypeVar("T")
U = TypeVar("U")

_STALL_NS = 10_000_000
_STALL_MEMORY_NS = 1_000_000_000
"""A write that took longer than the first (the kernel throttles writers when too many pages are
dirty) sends writes to worker threads for as long as the second, in nanoseconds."""

_READ_BUFFER = 1 << 20

_OPENS = 8
"""After so many opens room is made for as many."""


class Later(Generic[T]):
    """A result that has to be waited for: ``await later()``.

    ``interrupt`` is to be called when the caller is interrupted by a signal, and brings the end
    of the wait nearer. ``alone``: a call that gives the result too, in any thread that has
    nothing else to do.
    """

    __slots__ = ("_wait", "alone", "interrupt")

    def __init__(
        self,
        wait: Callable[[], Awaitable[T]],
        *,
        interrupt: Callable[[], object] | None = None,
        alone: Callable[[], T] | None = None,
    ) -> None:
        self._wait = wait
        self.interrupt = interrupt
        self.alone = alone

    def __call__(self) -> Awaitable[T]:
        return self._wait()

    def then(self, change: Callable[[T], U]) -> Later[U]:
        """The result as ``change`` makes it; that runs on the event loop."""
        wait = self._wait

        async def changed() -> U:
            return change(await wait())

        return Later(changed, interrupt=self.interrupt)


class Requests:
    """All requests on the tree, on the tables shared with Root and Tree.

    ``lists_by_inode``: directories are listed without having been opened, so the root tells by
    its mtime what was made and removed beside the mount.
    """

    def __init__(
        self,
        inodes: InodeTable,
        handles: HandleTable,
        root: Root,
        tree: Tree,
        threads: WorkerThreads,
        scope_fd: int,
    ) -> None:
        self.inodes = inodes
        self.handles = handles
        self.root = root
        self.tree = tree
        self.threads = threads
        self._scope_fd = scope_fd
        self.lists_by_inode = False
        self.locks = LockTable(
            tree.open_again, tree.descriptor, lambda call, inode: threads.run(call, inode)
        )
        self._stalled_until = 0
        self._opened = _OPENS - 1
        # Replies are copied to the kernel before anything else runs, so one buffer serves all.
        # At the begin of a page: copying a page to 16 bytes after one, where malloc(3) puts large
        # blocks, takes five times as long.
        self._buffer = memoryview(mmap.mmap(-1, _READ_BUFFER))
        self.volume_removed = trio.Event()

    # -- which thread

    def elsewhere(self, call: Callable[[], T], *inodes: Inode, on: object = None) -> Later[T]:
        """``call`` in a worker thread: see WorkerThreads.run."""
        return Later(lambda: self.threads.run(call, *inodes, on=on))

    def stoppable(self, call: Callable[[Callable[[], bool]], T], *inodes: Inode) -> Later[T]:
        """``call(stopping)`` in a worker thread; when its caller is interrupted, or the daemon is
        to end, ``stopping()`` gets true, and the result is what was done until then."""

        stop = threading.Event()

        def stopping() -> bool:
            if stop.is_set():
                return True
            try:
                trio.from_thread.check_cancelled()
            except trio.Cancelled:
                return True
            return False

        return Later(lambda: self.threads.run(lambda: call(stopping), *inodes), interrupt=stop.set)

    def _run(self, inode: Inode, call: Callable[[], T]) -> T | Later[T]:
        return self.elsewhere(call, inode) if inode.device.slow else call()

    def _run_on_both(self, first: Inode, second: Inode, call: Callable[[], T]) -> T | Later[T]:
        if first.device.slow or second.device.slow:
            return self.elsewhere(call, first, second)
        return call()

    # -- inodes and names

    def lookup(self, parent_id: int, name: bytes) -> Found | Later[Found | None] | None:
        parent = self.inodes[parent_id]
        if parent_id == ROOT_ID:
            if self.root.is_quick(name):
                return self.root.lookup(parent, name)
            return self.elsewhere(lambda: self.root.lookup(parent, name), on=name)
        if parent.device.slow:
            return self.elsewhere(lambda: self.tree.lookup(parent, name), parent)
        return self.tree.lookup(parent, name)

    def forget(self, lookups: Iterable[tuple[int, int]]) -> None:
        for node_id, count in lookups:
            self.inodes.forget(node_id, count)

    def getattr(self, node_id: int) -> Status | Later[Status]:
        if node_id == ROOT_ID:
            if self.lists_by_inode:
                return self.elsewhere(self.root.getattr_anew, on="listing")
            return self.root.getattr()
        inode = self.inodes[node_id]
        if inode.device.slow:
            return self.elsewhere(lambda: self.tree.getattr(inode), inode)
        return self.tree.getattr(inode)

    def setattr(self, node_id: int, changes: Changes, fh: int | None) -> Status | Later[Status]:
        if node_id == ROOT_ID:
            # Its mode and owner are mount options.
            raise _error(errno.EPERM)
        inode = self.inodes[node_id]
        handle = None if fh is None else self.handles.file(fh)
        return self._run(inode, lambda: self.tree.setattr(inode, changes, handle))

    def readlink(self, node_id: int) -> bytes | Later[bytes]:
        inode = self.inodes[node_id]
        return self._run(inode, lambda: self.tree.readlink(inode))

    def mknod(
        self, parent_id: int, name: bytes, mode: int, rdev: int, ctx: Requester
    ) -> Found | Later[Found]:
        parent = self._below_root(parent_id)
        return self._run(parent, lambda: self.tree.mknod(parent, name, mode, rdev, ctx))

    def mkdir(self, parent_id: int, name: bytes, mode: int, ctx: Requester) -> Found | Later[Found]:
        parent = self.inodes[parent_id]
        if parent_id == ROOT_ID:
            return self.elsewhere(lambda: self.root.mkdir(parent, name, mode, ctx))
        return self._run(parent, lambda: self.tree.mkdir(parent, name, mode, ctx))

    def symlink(
        self, parent_id: int, name: bytes, target: bytes, ctx: Requester
    ) -> Found | Later[Found]:
        parent = self._below_root(parent_id)
        return self._run(parent, lambda: self.tree.symlink(parent, name, target, ctx))

    def unlink(self, parent_id: int, name: bytes) -> Later[None] | None:
        parent = self._below_root(parent_id)
        if parent.device.slow:
            return self.elsewhere(lambda: self.tree.unlink(parent, name), parent)
        self.tree.unlink(parent, name)
        return None

    def rmdir(self, parent_id: int, name: bytes, ctx: Requester) -> Later[None] | None:
        parent = self.inodes[parent_id]
        if parent_id == ROOT_ID:
            removed = self.elsewhere(lambda: self.root.rmdir(parent, name, ctx))
            return removed.then(lambda _: self.volume_removed.set())
        return self._run(parent, lambda: self.tree.rmdir(parent, name))

    def rename(
        self, parent_id: int, name: bytes, new_parent_id: int, new_name: bytes, flags: int
    ) -> Later[None] | None:
        old, new = self.inodes[parent_id], self.inodes[new_parent_id]
        if (parent_id == ROOT_ID) != (new_parent_id == ROOT_ID):
            # A volume is no directory of another; mv copies upon EXDEV.
            raise _error(errno.EXDEV)
        if parent_id == ROOT_ID:
            return self.elsewhere(lambda: self.root.rename(old, name, new_name, flags))
        return self._run_on_both(
            old, new, lambda: self.tree.rename(old, name, new, new_name, flags)
        )

    def link(self, node_id: int, new_parent_id: int, new_name: bytes) -> Found | Later[Found]:
        if new_parent_id == ROOT_ID:
            raise _error(errno.EXDEV)  # as for a rename into the root
        inode, parent = self.inodes[node_id], self.inodes[new_parent_id]
        return self._run_on_both(inode, parent, lambda: self.tree.link(inode, parent, new_name))

    def _below_root(self, node_id: int) -> Inode:
        if node_id == ROOT_ID:
            # Only directories live there: no file type could be made, whatever the permissions.
            raise _error(errno.EPERM)
        return self.inodes[node_id]

    # -- open files

    def open(self, node_id: int, flags: int, pid: int) -> FileHandle | Later[FileHandle]:
        inode = self.inodes[node_id]
        self._make_room()
        if inode.device.slow:
            return self.elsewhere(lambda: self.tree.open(inode, flags, pid), inode)
        return self.tree.open(inode, flags, pid)

    def create(
        self, parent_id: int, name: bytes, mode: int, flags: int, ctx: Requester
    ) -> tuple[FileHandle, Found] | Later[tuple[FileHandle, Found]]:
        parent = self._below_root(parent_id)
        self._make_room()
        if parent.device.slow:
            return self.elsewhere(lambda: self.tree.create(parent, name, mode, flags, ctx), parent)
        return self.tree.create(parent, name, mode, flags, ctx)

    def tmpfile(
        self, parent_id: int, mode: int, flags: int, ctx: Requester
    ) -> tuple[FileHandle, Found] | Later[tuple[FileHandle, Found]]:
        parent = self._below_root(parent_id)
        self._make_room()
        return self._run(parent, lambda: self.tree.tmpfile(parent, mode, flags, ctx))

    def _make_room(self) -> None:
        self._opened += 1
        if self._opened % _OPENS:
            return
        # For those to come too; a directory being listed has a second descriptor.
        handles = self.handles
        self.inodes.make_room(_OPENS + handles.descriptors + 2 * handles.open_directories)

    def read(self, fh: int, offset: int, size: int) -> Data | Later[Data]:
        handle = self.handles.file(fh)
        device = handle.inode.device
        fd = self.tree.descriptor(handle)
        done = 0
        if device.nowait and not device.slow and size <= _READ_BUFFER:
            window = self._buffer[:size]
            try:
                done = os.preadv(fd, (window,), offset, os.RWF_NOWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                device.nowait = False
            else:
                if done == size or offset + done >= os.fstat(fd).st_size:
                    return window[:done]
        elif not device.slow:
            return os.pread(fd, size, offset)
        # Not all of it is in the page cache: wait for the disk elsewhere.
        head = bytes(window[:done]) if done else b""
        return self.elsewhere(
            lambda: head + os.pread(fd, size - len(head), offset + len(head)), handle.inode
        )

    def write(
        self, fh: int, offset: int, data: Data, append: bool | None = None
    ) -> int | Later[int]:
        """Write; ``append`` as FileHandle.write has it."""
        handle = self.handles.file(fh)
        start = time.monotonic_ns()
        if handle.synchronous or handle.inode.device.slow or start < self._stalled_until:
            kept = bytes(data)  # the caller's buffer is its own again when we return
            return self.elsewhere(
                lambda: self.tree.write(handle, kept, offset, append), handle.inode
            )
        written = self.tree.write(handle, data, offset, append)
        end = time.monotonic_ns()
        if end - start > _STALL_NS:
            self._stalled_until = end + _STALL_MEMORY_NS
        return written

    @property
    def closes_quietly(self) -> bool:
        """Whether the scope's filesystem has nothing to say when a file is closed."""
        return not self.inodes[ROOT_ID].device.slow

    def flush(self, fh: int, owner: int = 0) -> Later[None] | None:
        """A descriptor of an open file was closed, by the lock ``owner``."""
        handle = self.handles.file(fh)
        inode = handle.inode
        if not inode.device.slow:
            self.locks.flushed(inode, owner)
            return None

        def call() -> None:
            try:
                # Closing a duplicate makes a network filesystem report what it could not write.
                os.close(os.dup(self.tree.descriptor(handle)))
            finally:  # who gets a lock next is to see what was written under it
                self.locks.flushed(inode, owner)

        return self.elsewhere(call, inode)

    def fsync(self, fh: int, datasync: bool) -> Later[None]:
        handle = self.handles.file(fh)
        return self._sync(self.tree.descriptor(handle), datasync, handle.inode)

    def _sync(self, fd: int, datasync: bool, inode: Inode) -> Later[None]:
        def call() -> None:
            (os.fdatasync if datasync else os.fsync)(fd)

        # Databases wait for nothing else, so the shortest way counts.
        alone = None if inode.device.slow else call
        return Later(lambda: self.threads.run(call, inode), alone=alone)

    def release(self, fh: int) -> Later[None] | None:
        handle = self.handles.remove_file(fh)
        if handle is None:
            return None
        if handle.inode.device.slow:
            return self.elsewhere(lambda: self._release(handle), handle.inode)
        self._release(handle)
        return None

    def _release(self, handle: FileHandle) -> None:
        self.tree.release(handle)
        self.locks.released(handle)

    # -- open directories

    def opendir(
        self, node_id: int, pid: int
    ) -> DirectoryHandle | RootHandle | Later[DirectoryHandle | RootHandle]:
        inode = self.inodes[node_id]
        if node_id == ROOT_ID:
            return self.root.opendir()
        self._make_room()
        if inode.device.slow:
            return self.elsewhere(lambda: self.tree.opendir(inode, pid), inode)
        return self.tree.opendir(inode, pid)

    def releasedir(self, fh: int) -> Later[None] | None:
        handle = self.handles.remove_directory(fh)
        if not isinstance(handle, DirectoryHandle):
            return None
        return self._run(handle.inode, lambda: self.tree.releasedir(handle))

    def fsyncdir(self, fh: int, datasync: bool) -> Later[None] | None:
        handle = self.handles.directory(fh)
        if isinstance(handle, RootHandle):
            return None  # its entries are durable when answered
        return self._sync(handle.fd, datasync, handle.inode)

    def fsync_directory(self, node_id: int, datasync: bool) -> Later[None] | None:
        """As ``fsyncdir``, of a directory that was not opened here."""
        if node_id == ROOT_ID:
            return None
        inode = self.inodes[node_id]

        def call() -> None:
            fd = self.tree.open_directory(inode)
            try:
                (os.fdatasync if datasync else os.fsync)(fd)
            finally:
                os.close(fd)

        return self.elsewhere(call, inode)

    # -- the filesystem

    def statfs(self, node_id: int = ROOT_ID) -> os.statvfs_result | Later[os.statvfs_result]:
        """The filesystem that the inode is on; for the root, the scope's."""
        inode = self.inodes[node_id]
        if node_id == ROOT_ID:
            return self._run(inode, lambda: os.statvfs(self._scope_fd))
        return self._run(inode, lambda: os.statvfs(self.inodes.reach(inode)))

    # -- extended attributes

    def setxattr(
        self, node_id: int, name: bytes, value: bytes, flags: int, ctx: Requester
    ) -> Later[None] | None:
        inode = self.inodes[node_id]
        if name.startswith(XATTR_PREFIX) or node_id == ROOT_ID:
            return self.elsewhere(lambda: self.root.setxattr(inode, name, value, flags), inode)
        return self._run(inode, lambda: self.tree.setxattr(inode, name, value, flags, ctx))

    def getxattr(self, node_id: int, name: bytes) -> bytes | Later[bytes | None] | None:
        """The attribute's value, None if there is none."""
        inode = self.inodes[node_id]
        if name.startswith(XATTR_PREFIX):
            return self.elsewhere(lambda: self.root.getxattr(inode, name), inode)
        if node_id == ROOT_ID:
            return None
        if inode.device.slow:
            return self.elsewhere(lambda: self.tree.getxattr(inode, name), inode)
        return self.tree.getxattr(inode, name)

    def listxattr(self, node_id: int, ctx: Requester) -> list[bytes] | Later[list[bytes]]:
        # volfs.* is answered but not listed: copying tools would try to set what cannot be set.
        if node_id == ROOT_ID:
            return []
        inode = self.inodes[node_id]
        # As ext4 and XFS do: who may not read trusted.* does not see that it is there.
        hidden = b"trusted." if ctx.uid != 0 else b"\0"
        return self._run(
            inode,
            lambda: [name for name in self.tree.listxattr(inode) if not name.startswith(hidden)],
        )

    def removexattr(self, node_id: int, name: bytes) -> Later[None] | None:
        inode = self.inodes[node_id]
        if name.startswith(XATTR_PREFIX) or node_id == ROOT_ID:
            return self.elsewhere(lambda: self.root.setxattr(inode, name, None), inode)
        return self._run(inode, lambda: self.tree.removexattr(inode, name))


def interrupted() -> OSError:
    """What a request fails with whose caller was interrupted by a signal."""
    return _error(errno.EINTR)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
