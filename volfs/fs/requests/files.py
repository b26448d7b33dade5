"""The requests on open files: open, create, read, write, sync, close; ranges, flags.

OPEN: the kernel has checked (O_NOATIME too), but for append-only and immutable files, of which it
does not know: those are the backing filesystem's to refuse, to root as well. On what is open READ,
WRITE, FSYNC, FLUSH, LSEEK, RELEASE need no permission. WRITE and O_TRUNC say whether they clear
set-user-ID bits; FALLOCATE and COPY_FILE_RANGE do not (so /proc is asked). All of these are done
as somebody who may not use the blocks kept for root. IOCTL: the four commands on flags are checked
when the kernel itself sends them (see flags), but for the project, which is refused; the others
tell what anybody may know.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from volfs.fs.agreement import Connection
from volfs.fs.files import Found, Opened, Opening, Writing, flags, ranges
from volfs.fs.files.attributes import clearing_for
from volfs.fs.inodes import (
    ROOT_ID,
    Data,
    DirectoryHandle,
    FileHandle,
    HandleTable,
    Inode,
    InodeTable,
    RootHandle,
)
from volfs.fs.locks import LockTable
from volfs.fs.requests.later import Later
from volfs.fs.requests.room import Room
from volfs.fs.requests.threads import WorkerThreads
from volfs.linux.identity import Identity, Requester, ids_of
from volfs.linux.syscalls import os_error

T = TypeVar("T")

_STALL_NS = 10_000_000
_STALL_MEMORY_NS = 1_000_000_000
"""After a write that took longer than _STALL_NS (the kernel throttles writers when too many pages
are dirty), writes go to worker threads for _STALL_MEMORY_NS."""

_READ_BUFFER = 1 << 20


class FileRequests:
    """The requests on open files; where there is passthrough, only opening and closing are left of
    them."""

    def __init__(
        self,
        inodes: InodeTable,
        handles: HandleTable,
        opening: Opening,
        writing: Writing,
        locks: LockTable,
        identity: Identity,
        threads: WorkerThreads,
        connection: Connection,
        room: Room,
    ) -> None:
        self._inodes = inodes
        self._handles = handles
        self._opening = opening
        self._writing = writing
        self._locks = locks
        self._identity = identity
        self._threads = threads
        self._connection = connection
        self._room = room
        self._stalled_until = 0
        # Replies are copied to the kernel before anything else runs, so one buffer serves all.
        # At the start of a page: copying a page to 16 bytes after one, where malloc(3) puts large
        # blocks, takes five times as long.
        self._buffer = memoryview(mmap.mmap(-1, _READ_BUFFER))

    # -- opening and closing

    def open(
        self, node_id: int, flags: int, who: Requester, *, clears: bool = True
    ) -> Opened | Later[Opened]:
        """Open a file; ``clears``: O_TRUNC takes set-user-ID and set-group-ID bits away."""
        inode = self._inodes[node_id]
        who = self._room.make(who)
        if inode.device.slow:
            return self._threads.elsewhere(
                lambda: self._opening.open(inode, flags, who, clears=clears), inode
            )
        fd = -1
        try:
            if flags & os.O_TRUNC:
                if not self._threads.can_change(inode) or self._opening.frees_long(inode):
                    return self._open_later(inode, flags, who, clears)
                fd = self._threads.stall.run(
                    lambda: self._opening.open_again(inode, flags, clears=clears), inode.device
                )
            return self._opening.open(inode, flags, who, fd, clears=clears)
        except BlockingIOError:
            if flags & os.O_NONBLOCK:
                raise
            return self._open_later(inode, flags, who, clears)

    def _open_later(self, inode: Inode, flags: int, who: Requester, clears: bool) -> Later[Opened]:
        opened = self._threads.past_leases(
            lambda: self._opening.open_again(inode, flags, clears=clears), inode
        )
        return opened.then(lambda fd: self._opening.open(inode, flags, who, fd))

    def create(
        self, parent_id: int, name: bytes, mode: int, flags: int, ctx: Requester
    ) -> tuple[Opened, Found] | Later[tuple[Opened, Found]]:
        if parent_id == ROOT_ID:
            # Only directories live there: no file could be made, whatever the permissions.
            raise os_error(errno.EPERM)
        parent = self._inodes[parent_id]
        self._room.make(ctx)
        return self._made(
            lambda: self._opening.make(parent, name, mode, flags, ctx),
            lambda fd: self._opening.made(fd, parent, name, flags, ctx),
            parent,
        )

    def tmpfile(
        self, parent_id: int, mode: int, flags: int, ctx: Requester
    ) -> tuple[Opened, Found] | Later[tuple[Opened, Found]]:
        if parent_id == ROOT_ID:
            raise os_error(errno.EPERM)  # as for a file with a name
        parent = self._inodes[parent_id]
        self._room.make(ctx)
        return self._made(
            lambda: self._opening.make_unnamed(parent, mode, flags, ctx),
            lambda fd: self._opening.made(fd, parent, b"", flags, ctx),
            parent,
        )

    def _made(
        self, make: Callable[[], int], then: Callable[[int], T], parent: Inode
    ) -> T | Later[T]:
        if parent.device.slow:
            return self._threads.elsewhere(lambda: then(make()), parent)
        made = self._threads.changing(make, parent)
        return made.then(then) if isinstance(made, Later) else then(made)

    def flush(self, fh: int, owner: int = 0) -> Later[None] | None:
        """A descriptor of an open file was closed, by the lock ``owner``."""
        handle = self._handles.file(fh)
        inode = handle.inode
        if not inode.device.slow:
            self._locks.flushed(inode, owner)
            return None

        def call() -> None:
            try:
                # Closing a duplicate makes a network filesystem report what it could not write.
                _for_each(handle.descriptors, lambda fd: os.close(os.dup(fd)))
            finally:  # who gets a lock next is to see what was written under it
                self._locks.flushed(inode, owner)

        return self._threads.elsewhere(call, inode)

    def release(self, fh: int) -> Later[None] | None:
        handle = self._handles.remove_file(fh)
        if handle is None:
            return None
        if handle.inode.device.slow:
            return self._threads.elsewhere(lambda: self._release(handle), handle.inode)
        self._release(handle)
        self._threads.finish(handle.inode)
        return None

    def _release(self, handle: FileHandle) -> None:
        self._opening.release(handle)
        self._locks.released(handle)

    # -- data

    def read(self, fh: int, offset: int, size: int) -> Data | Later[Data]:
        handle = self._handles.file(fh)
        device = handle.inode.device
        fd = self._opening.descriptor(handle)
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

        def rest() -> bytes:
            fd = self._opening.descriptor(handle)
            return head + os.pread(fd, size - len(head), offset + len(head))

        return self._threads.elsewhere(rest, handle.inode)

    def write(
        self,
        fh: int,
        offset: int,
        data: Data,
        append: bool | None = None,
        *,
        clears: bool = True,
    ) -> int | Later[int]:
        """Write; ``append`` as Writing.write has it, ``clears`` as for ``open``."""
        handle = self._handles.file(fh)
        inode = handle.inode
        start = time.monotonic_ns()
        elsewhere = handle.synchronous or start < self._stalled_until
        if elsewhere or not self._threads.can_change(inode):
            data = bytes(data)  # the buffer is the caller's again on return

        def call() -> int:
            return self._writing.write(handle, data, offset, append, clears=clears)

        if elsewhere:
            return self._threads.elsewhere(call, inode)
        if not self._threads.can_change(inode):
            # Once: a part of an append can have been written.
            return self._threads.changing(call, inode, twice=False)
        written = self._threads.stall.run(call, inode.device)
        end = time.monotonic_ns()
        if end - start > _STALL_NS:
            self._stalled_until = end + _STALL_MEMORY_NS
        return written

    def fsync(self, fh: int, datasync: bool) -> Later[None]:
        handle = self._handles.file(fh)
        if handle.second >= 0:
            sync = os.fdatasync if datasync else os.fsync
            return self._threads.elsewhere(
                lambda: _for_each(handle.descriptors, sync), handle.inode
            )
        if not handle.inode.backing:
            return self._threads.syncing(handle.fd, datasync, handle.inode)
        fd = self._opening.for_syncing(handle)

        def told(error: int) -> None:
            # Each opener is told once of what could not be written. The kernel does so for
            # each description: here there may be but the one of this moment.
            for other in tuple(handle.inode.opens or ()):
                if isinstance(other, FileHandle) and other is not handle:
                    other.sync_error = error

        def call() -> None:
            try:
                (os.fdatasync if datasync else os.fsync)(fd)
            except OSError as error:
                told(error.errno or errno.EIO)
                raise
            finally:
                os.close(fd)
            missed, handle.sync_error = handle.sync_error, 0
            if missed:
                raise os_error(missed)

        return self._threads.quick(call, handle.inode)

    # -- ranges

    def fallocate(
        self, fh: int, offset: int, length: int, mode: int, who: Requester
    ) -> Later[None] | None:
        handle = self._handles.file(fh)

        def call() -> None:
            fd = self._opening.descriptor(handle)
            # As the caller, who may not use what the filesystem reserves for root.
            with self._identity.acting(*ids_of(who), 0), clearing_for(who, fd):
                ranges.allocate(fd, mode, offset, length)

        if not handle.synchronous and ranges.allocation_is_quick(mode, length):
            return self._threads.changing(call, handle.inode)
        return self._threads.elsewhere(call, handle.inode)

    def lseek(self, fh: int, offset: int, whence: int) -> int | Later[int]:
        handle = self._handles.file(fh)
        inode = handle.inode
        # Mappings of a file that the kernel serves itself are the backing file's.
        mapped = not inode.backing and any(
            isinstance(other, FileHandle) and other.writes_maps for other in inode.opens or ()
        )
        return self._threads.where_needed(
            lambda: ranges.seek(self._opening.descriptor(handle), offset, whence, whole=mapped),
            inode,
        )

    def copy(
        self,
        fh: int,
        offset: int,
        target_fh: int,
        target_offset: int,
        length: int,
        flags: int,
        who: Requester,
    ) -> int | Later[int]:
        """copy_file_range(2) between two open files; how many bytes were copied."""
        source = self._handles.file(fh)
        target = self._handles.file(target_fh)

        def call(stopping: Callable[[], bool]) -> int:
            with self._writing.lent(target, appends=False) as target_fd:
                source_fd = self._opening.descriptor(source)
                with self._identity.acting(*ids_of(who), 0), clearing_for(who, target_fd):
                    copied = ranges.copy(
                        source_fd, offset, target_fd, target_offset, length, flags, stopping
                    )
            # The source was read, and has a new time of access, which the kernel does not know of.
            self._connection.forget_attributes(source.inode.node_id)
            return copied

        if not target.synchronous and length <= ranges.QUICK_COPY:
            return self._threads.changing(lambda: call(bool), target.inode, source.inode)
        return self._threads.stoppable(call, source.inode, target.inode)

    # -- flags

    def ioctl(
        self,
        node_id: int,
        fh: int,
        is_directory: bool,
        command: int,
        argument: int,
        data: bytes,
        size: int,
    ) -> bytes | Later[bytes]:
        """What lsattr(1) and chattr(1) ask for: see flags."""
        flags.check(command, data, size, argument)
        if node_id == ROOT_ID:
            raise os_error(errno.ENOTTY)  # it has none
        inode = self._inodes[node_id]
        # Directories that are listed without being opened have no handle here either.
        own = is_directory and self._connection.agreement.lists_by_inode
        handle: FileHandle | DirectoryHandle | RootHandle | None = None
        if not own:
            handle = self._handles.directory(fh) if is_directory else self._handles.file(fh)

        def call() -> bytes:
            if isinstance(handle, FileHandle):
                fd = self._opening.descriptor(handle)
            else:
                assert not isinstance(handle, RootHandle)
                fd = handle.fd if handle is not None else self._opening.open_directory(inode)
            try:
                answer = flags.answer(fd, command, data, size)
            finally:
                if own:
                    os.close(fd)
            if flags.changes(command):
                # It moves ctime, which the kernel does not know of.
                self._connection.forget_attributes(node_id)
            return answer

        if flags.changes(command):
            return self._threads.changing(call, inode)
        return self._threads.where_needed(call, inode)


def _for_each(descriptors: Iterable[int], call: Callable[[int], object]) -> None:
    """Call for all descriptors, and then raise the first error that there was."""
    failed: OSError | None = None
    for fd in descriptors:
        try:
            call(fd)
        except OSError as error:
            failed = failed or error
    if failed is not None:
        raise failed
