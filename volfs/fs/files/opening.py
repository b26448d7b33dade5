"""Opening: files and directories opened, created and closed below the volumes.

Plain synchronous functions, as those of ``names``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import NamedTuple

from volfs.fs.agreement import Connection
from volfs.fs.files.attributes import clearing, setgid_as_asked
from volfs.fs.files.cache import CachePolicy
from volfs.fs.files.names import Found
from volfs.fs.files.passthrough import Passthrough
from volfs.fs.inodes import (
    Device,
    DirectoryHandle,
    FileHandle,
    HandleTable,
    Inode,
    InodeTable,
    appends_itself,
    is_long_freed,
)
from volfs.fs.native import fstat
from volfs.linux.durable import PLACE
from volfs.linux.identity import Identity, Requester
from volfs.linux.syscalls import os_error

_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_NOT_PASSED = os.O_DIRECT | os.O_NOFOLLOW
"""Flags of a caller's open(2) that are not for the backing file. O_DIRECT is between the caller
and the kernel: reads and writes reach the daemon either way, in buffers without the alignment it
asks for. O_NOFOLLOW was obeyed by the kernel, and would fail on the link in /proc. Nor is
O_APPEND, but on network filesystems: see Writing."""

_NOT_FOR_UNNAMED = _NOT_PASSED | os.O_CREAT | os.O_TRUNC

_PRIVILEGES = stat.S_ISUID | stat.S_ISGID


class Opened(NamedTuple):
    """A file that was opened, and how the kernel is to treat it.

    ``backing``: the backing id with which it reads and writes itself, 0 if the daemon serves it.
    ``direct``: reads and writes go past the page cache. ``flush``: the kernel is to report each
    close of a descriptor.
    """

    handle: FileHandle
    backing: int
    direct: bool
    flush: bool


class Opening:
    """The requests that open and close, on the tables shared with the root."""

    def __init__(
        self,
        inodes: InodeTable,
        handles: HandleTable,
        identity: Identity,
        cache: CachePolicy,
        passthrough: Passthrough,
        connection: Connection,
        *,
        noatime: bool = False,
    ) -> None:
        self._inodes = inodes
        self._handles = handles
        self._identity = identity
        self._cache = cache
        self._passthrough = passthrough
        self._connection = connection
        self._root = os.geteuid() == 0
        # Others may do so with their own files only.
        self._unnoticed = os.O_NOATIME if noatime and self._root else 0
        # The names in here stand for the daemon's own descriptors, O_PATH ones among them.
        self._descriptors = os.open("/proc/self/fd", PLACE)

    def close(self) -> None:
        os.close(self._descriptors)

    # -- files

    def frees_long(self, inode: Inode) -> bool:
        """Whether it may take long to open a file with O_TRUNC."""
        return is_long_freed(fstat(self._inodes.reach(inode)))

    def open(
        self, inode: Inode, flags: int, who: Requester, fd: int = -1, *, clears: bool = True
    ) -> Opened:
        """Open a file and put it into the handle table; ``fd`` is a descriptor so opened already,
        which is taken over. ``clears``: as for ``write``, of O_TRUNC.

        Raises BlockingIOError where somebody has a lease on it, and has now been asked to give it
        back (not on a network filesystem, where that is waited for).

        Where the kernel reads and writes the backing file itself, that takes no descriptor of
        ours: it is opened for writing to hear whether it may be, and what comes of that spared.
        """
        backed = self._passthrough.acquire(inode)
        try:
            found_again = inode.fd >= 0 or inode.reopens
            writes = flags & (os.O_ACCMODE | os.O_TRUNC)
            if fd < 0 and (writes or not (backed and found_again)):
                fd = self._open_backing(inode, flags, clears=clears)
            handle = FileHandle(fd, inode, flags, who.pid)
            handle.uid = who.uid
            handle.keeps_cache = not backed and self._keeps_cache(inode, fd)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            if backed and not inode.opens:
                self._passthrough.release(inode)
            raise
        self._handles.add_file(handle)
        opened = self._opened(handle)
        if backed and handle.fd >= 0:
            self._spare(handle)
        return opened

    def _opened(self, handle: FileHandle, mode: int | None = None) -> Opened:
        """How an open file is to be treated; ``mode`` is its st_mode if that is known."""
        inode = handle.inode
        if inode.backing:
            direct = False
            if handle.flags & os.O_ACCMODE:
                mode = fstat(handle.fd).st_mode if mode is None else mode
                # Writing takes these away, which the daemon has to see to.
                direct = bool(mode & _PRIVILEGES)
        else:
            # The page cache would cut an append in two where it crosses a page; another process's
            # record could come between. A file opened this way must still be mappable.
            direct = handle.appending and self._connection.agreement.maps_direct
        # Local filesystems report no errors at close.
        return Opened(handle, inode.backing, direct, inode.wants_flush)

    def descriptor(self, handle: FileHandle) -> int:
        """The descriptor of an open file, opened now if it was not needed so far.

        Valid until several others were asked for; in a worker thread, as long as it has to do
        with the inode.
        """
        if handle.fd < 0:
            fd = self._open_backing(handle.inode, handle.flags)
            with self._inodes.descriptors.lock:
                if handle.fd < 0:
                    handle.fd = fd
                    self._handles.descriptors += 1
                else:  # another thread was faster
                    os.close(fd)
        if handle.inode.backing:
            self._spare(handle)
        return handle.fd

    def _spare(self, handle: FileHandle) -> None:
        descriptors = self._inodes.descriptors
        with descriptors.lock:
            self._handles.spare(handle, descriptors.can_spare)

    def for_syncing(self, handle: FileHandle) -> int:
        """A descriptor of an open file, to be closed, that nothing else closes or opens."""
        if handle.fd >= 0:
            return os.dup(handle.fd)
        return self._open_backing(handle.inode, handle.flags)

    def open_again(self, inode: Inode, flags: int, *, clears: bool = True) -> int:
        """A further descriptor of a file, opened with the access mode in ``flags``.

        Raises BlockingIOError as ``open`` does.
        """
        return self._open_backing(inode, flags, clears=clears)

    def _open_backing(self, inode: Inode, flags: int, *, clears: bool = True) -> int:
        backing = _passed(flags, inode.device) & ~(os.O_CREAT | os.O_EXCL) | os.O_CLOEXEC
        backing |= self._unnoticed
        reached = self._inodes.reach(inode)
        name = str(reached)
        waits = inode.device.slow or flags & os.O_NONBLOCK
        if not waits:
            backing |= os.O_NONBLOCK  # not to wait for leases
        try:
            with clearing(clears or not flags & os.O_TRUNC, reached):
                fd = os.open(name, backing, dir_fd=self._descriptors)
        except PermissionError:
            if not flags & os.O_APPEND or backing & os.O_APPEND:
                raise
            # An append-only file (chattr +a) is opened for appending, or not for writing at all.
            fd = os.open(name, backing | os.O_APPEND, dir_fd=self._descriptors)
        if not waits and not inode.backing:
            os.set_blocking(fd, True)
        return fd

    def _keeps_cache(self, inode: Inode, fd: int) -> bool:
        """Whether what the kernel has cached of the file or directory being opened is still
        right."""
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

    def make(self, parent: Inode, name: bytes, mode: int, flags: int, ctx: Requester) -> int:
        """Make a file and open it; ``made`` does the rest."""
        directory = self._inodes.reach(parent)
        backing = _passed(flags, parent.device) | os.O_CREAT | os.O_EXCL
        backing |= os.O_NOFOLLOW | os.O_CLOEXEC | self._unnoticed
        try:
            with self._identity.acting(ctx.uid, ctx.gid, ctx.umask), setgid_as_asked(mode):
                return os.open(name, backing, stat.S_IMODE(mode), dir_fd=directory)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # It appeared behind the mount, so the kernel has not checked whether the caller may
            # open it. ESTALE makes it look the name up and go through its checks.
            raise os_error(errno.ESTALE) from None

    def make_unnamed(self, parent: Inode, mode: int, flags: int, ctx: Requester) -> int:
        """Make a file without a name, likewise."""
        directory = self._inodes.reach(parent)
        with self._identity.acting(ctx.uid, ctx.gid, ctx.umask), setgid_as_asked(mode):
            return make_unnamed(directory, _passed(flags, parent.device) | self._unnoticed, mode)

    def made(
        self, fd: int, parent: Inode, name: bytes, flags: int, who: Requester
    ) -> tuple[Opened, Found]:
        """Put a file that was made into the handle table; ``fd``, which is taken over, is its
        descriptor, ``name`` empty if it has none."""
        try:
            status = fstat(fd)
            inode = self._inodes.remember(status, parent, name, -1, created=True)
        except BaseException:
            os.close(fd)
            raise
        self._passthrough.acquire(inode, fd)
        handle = FileHandle(fd, inode, flags, who.pid)
        handle.uid = who.uid
        self._handles.add_file(handle)
        if inode.backing:
            self._spare(handle)
        return self._opened(handle, status.st_mode), (inode, status)

    def release(self, handle: FileHandle) -> None:
        """Close a file that was taken off the handle table."""
        inode = handle.inode
        fd, handle.fd = handle.fd, -1
        second, handle.second = handle.second, -1
        if handle.flocked:
            # Closing is not enough where the file was made by this open: then the kernel's backing
            # id stands for the same open file description, and lives as long as any open.
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
        try:
            if second >= 0:
                os.close(second)
            if inode.backing and not inode.opens:
                self._passthrough.release(inode, last=fd < 0 and inode.fd < 0)
        finally:
            if fd >= 0:
                self._inodes.descriptors.release(inode, fd)

    # -- directories

    def opendir(self, inode: Inode, who: Requester, flags: int = 0) -> DirectoryHandle:
        """Open a directory and put it into the handle table."""
        fd = self.open_directory(inode, flags & os.O_NOATIME)
        handle = DirectoryHandle(fd, inode, who.pid, keeps_cache=self._keeps_cache(inode, fd))
        handle.uid = who.uid
        self._handles.add_directory(handle)
        return handle

    def open_directory(self, inode: Inode, flags: int = 0) -> int:
        """A descriptor to list a directory with; ``flags`` can be O_NOATIME."""
        flags |= self._unnoticed
        fd = self._inodes.reach(inode)
        # By "." it must be searchable, which everything is to root, and is quicker.
        if self._root:
            return os.open(".", _LIST | flags, dir_fd=fd)
        return os.open(str(fd), _LIST | flags, dir_fd=self._descriptors)

    def releasedir(self, handle: DirectoryHandle) -> None:
        """Close a directory that was taken off the handle table."""
        handle.end()
        self._inodes.descriptors.release(handle.inode, handle.fd)


def _passed(flags: int, device: Device) -> int:
    """Of the flags of a caller's open(2), those for the backing file."""
    passed = flags & ~_NOT_PASSED
    return passed if appends_itself(flags, device) else passed & ~os.O_APPEND


def make_unnamed(directory: int, flags: int, mode: int) -> int:
    """Make a file without a name on the filesystem of a directory; return its open descriptor.

    ``directory`` may be O_PATH. ``flags`` are those of the request: the access mode counts, and
    O_EXCL, which says that the file will never get a name. ``mode`` is without the file type.
    Owner, umask, setgid directory and default ACL are as for a named file: call it as the caller
    (Identity.acting), and with KeepingSetgid for a mode with S_ISGID.

    It gets a name by a LINK request, which the kernel lets through at a link count of 0 only for
    such a file (I_LINKABLE); on the backing filesystem the same holds.

    Raises OSError(EOPNOTSUPP) where the filesystem has no such files.
    """
    flags = flags & ~_NOT_FOR_UNNAMED | os.O_TMPFILE | os.O_CLOEXEC
    try:
        return os.open(".", flags, stat.S_IMODE(mode), dir_fd=directory)
    except OSError as error:
        # EISDIR is how open(2) says that it does not know O_TMPFILE; ENOSYS would be taken for an
        # answer for the whole mount.
        if error.errno in (errno.EISDIR, errno.ENOSYS):
            raise os_error(errno.EOPNOTSUPP) from None
        raise
