"""InodeTable: node id ↔ real inode, with lookup counts and descriptors.

Every inode the kernel knows has an Inode here. It is *reached* through an O_PATH descriptor;
only the most recently used keep theirs, the others are reached again by file handle where the
backing filesystem and our privileges allow it, else by parent and name. Whichever way, what is
reached is checked to be the same inode, so a recycled inode number is never taken for the old
file: the answer is ESTALE, upon which the kernel looks the name up again.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from volfs import syscalls
from volfs.fs.devices import Device

if TYPE_CHECKING:
    from volfs.fs.handles import DirectoryHandle, FileHandle

ROOT_ID = 1
"""Node id of the tree's root (FUSE_ROOT_ID in linux/fuse.h)."""

_LEAST = 16
"""One request uses a few descriptors at once; they must not evict each other."""

_REACH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Inode:
    """One inode the kernel knows.

    ``fd``: its O_PATH descriptor, or -1. ``handle``: its file handle, once it was needed.
    ``parent``, ``name``: where it was seen last. ``opens``: open handles, which pin it.
    ``pins``: worker threads that use its descriptor. ``gone``: its volume was removed.
    """

    __slots__ = (
        "device",
        "fd",
        "generation",
        "gone",
        "handle",
        "ino",
        "lookups",
        "name",
        "node_id",
        "opens",
        "parent",
        "pins",
        "version",
    )

    def __init__(
        self, node_id: int, device: Device, ino: int, parent: Inode | None, name: bytes
    ) -> None:
        self.node_id = node_id
        self.device = device
        self.ino = ino
        self.generation = 0
        self.lookups = 0
        self.parent = parent
        self.name = name
        self.fd = -1
        self.handle: bytes | None = None
        self.opens: list[FileHandle | DirectoryHandle] | None = None
        self.pins = 0
        self.gone = False
        self.version: tuple[int, int] | None = None

    @property
    def volume_top(self) -> Inode:
        """The top directory of the volume this inode is in (of the root: itself)."""
        inode = self
        while inode.parent is not None and inode.parent.node_id != ROOT_ID:
            inode = inode.parent
        return inode


class InodeTable:
    """All inodes the kernel knows. Safe to use from worker threads.

    ``descriptors`` is how many the process may have. Three quarters of them at most are kept
    O_PATH, fewer when many files are open.
    """

    def __init__(self, descriptors: int) -> None:
        self._limit = descriptors
        self._capacity = max(descriptors * 3 // 4, _LEAST)
        self._lock = threading.RLock()
        self._nodes: dict[int, Inode] = {}
        self._recent: OrderedDict[Inode, None] = OrderedDict()
        self._devices: dict[int, Device] = {}
        self.root: Inode | None = None

    # -- the root and its device

    def make_root(self, fd: int) -> Inode:
        """Create the root's Inode; ``fd`` (the scope) says which device is the main one."""
        device = Device(os.fstat(fd).st_dev, fd, main=True)
        self._devices[device.dev] = device
        self.root = Inode(ROOT_ID, device, 0, None, b"")
        self.root.lookups = 1
        self._nodes[ROOT_ID] = self.root
        return self.root

    # -- finding

    def __getitem__(self, node_id: int) -> Inode:
        inode = self._nodes.get(node_id)
        if inode is None:
            # The kernel names only what it looked up; ESTALE makes it look up again.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return inode

    def __iter__(self) -> Iterator[Inode]:
        return iter(list(self._nodes.values()))

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def descriptors(self) -> int:
        """How many O_PATH descriptors are kept."""
        return len(self._recent)

    @property
    def has_slow_device(self) -> bool:
        """Whether any of the inodes may be on a network filesystem."""
        return any(device.slow for device in list(self._devices.values()))

    @property
    def lookups(self) -> int:
        """Sum of all lookup counts but the root's."""
        return sum(inode.lookups for inode in self) - (1 if self.root else 0)

    # -- remembering and forgetting

    def remember(
        self,
        status: os.stat_result,
        parent: Inode,
        name: bytes,
        fd: int,
        *,
        lookups: int = 1,
        created: bool = False,
    ) -> Inode:
        """Return the Inode of a file just seen as ``name`` in ``parent``, counting the lookup.

        ``fd`` is an O_PATH descriptor of it, which the table takes over, or -1 when it was only
        seen with stat. ``created``: it was made this instant, so that whatever had its number
        before is another file.
        """
        with self._lock:
            device = self._devices.get(status.st_dev)
            if device is None:
                device = self._add_device(status, parent, name, fd)
            ino = status.st_ino
            node_id = device.node_id(ino)
            inode = self._nodes.get(node_id)
            while inode is not None and (inode.ino != ino or inode.device is not device):
                node_id = (node_id + 0x1_0000_0001) % (1 << 64)
                inode = self._nodes.get(node_id)
            if inode is None or node_id == 0:
                inode = Inode(node_id, device, ino, parent, name)
                self._nodes[node_id] = inode
                if fd >= 0:
                    self._keep(inode, fd)
            else:
                inode.parent = parent
                inode.name = name
                if created:
                    self.renew(inode)
                if fd >= 0:
                    self._merge(inode, fd)
            inode.lookups += lookups
            return inode

    def renew(self, inode: Inode) -> None:
        """Note that ``inode``'s number now belongs to a new file (the old one was deleted).

        The new generation makes the kernel drop all it knows of the old file.
        """
        with self._lock:
            inode.generation += 1
            inode.handle = None
            inode.version = None
            inode.gone = False
            self._drop(inode)

    def moved(self, status: os.stat_result, parent: Inode, name: bytes) -> None:
        """Note that the file with this stat is now ``name`` in ``parent``, if it is known."""
        with self._lock:
            device = self._devices.get(status.st_dev)
            if device is None:
                return
            inode = self._nodes.get(device.node_id(status.st_ino))
            if inode is not None and inode.ino == status.st_ino and inode.device is device:
                inode.parent = parent
                inode.name = name

    def forget(self, node_id: int, lookups: int) -> None:
        """Take back ``lookups`` lookup counts; at zero the inode is dropped."""
        with self._lock:
            inode = self._nodes.get(node_id)
            if inode is None:
                return
            inode.lookups -= lookups
            if inode.lookups <= 0 and inode is not self.root:
                del self._nodes[node_id]
                self._drop(inode)

    def discard(self, inode: Inode) -> None:
        """Drop an inode that was remembered with no lookup and is not known to the kernel."""
        with self._lock:
            if inode.lookups <= 0 and self._nodes.get(inode.node_id) is inode:
                del self._nodes[inode.node_id]
                self._drop(inode)

    def detach(self, top: Inode) -> None:
        """Note that the volume with top directory ``top`` was removed.

        Whatever of it is not open is unreachable from now on (ESTALE), as everything below a
        removed directory is, though the data lives on in the trash.
        """
        for inode in self:
            above = inode.volume_top
            if above.ino == top.ino and above.device is top.device and not inode.opens:
                inode.gone = True
                with self._lock:
                    self._drop(inode)

    # -- reaching

    def reach(self, inode: Inode) -> int:
        """A descriptor of the inode, valid until the next call of the table by this thread.

        Possibly O_PATH. Raises OSError(ESTALE) when the file cannot be found as itself again.
        """
        fd = inode.fd
        if fd >= 0:
            try:
                self._recent.move_to_end(inode)
            except KeyError:
                pass  # a worker thread evicted it this instant
            else:
                return fd
        if inode.opens:
            return inode.opens[-1].fd
        if inode.gone:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        fd = self._open_again(inode)
        with self._lock:
            if inode.fd >= 0:  # another thread was faster
                os.close(fd)
                return inode.fd
            self._keep(inode, fd)
        return fd

    def evict(self, inode: Inode) -> None:
        """Close the inode's descriptor, keeping what finds it again."""
        with self._lock:
            if inode.fd >= 0 and not inode.pins:
                self._learn_handle(inode, inode.fd)
                self._drop(inode)

    def released(self, inode: Inode, fd: int) -> None:
        """Note that ``fd``, an open handle of ``inode`` and maybe its last, is to be closed."""
        if inode.fd < 0 and not inode.opens:
            self._learn_handle(inode, fd)

    def make_room(self, opens: int) -> None:
        """Adapt to ``opens`` descriptors being used by open files and directories."""
        self._capacity = max(
            min(self._limit * 3 // 4, self._limit - self._limit // 16 - opens), _LEAST
        )
        if len(self._recent) > self._capacity:
            with self._lock:
                self._evict_oldest()

    def release_deleted(self, limit: int) -> int:
        """Let go of up to ``limit`` least recently used descriptors whose file is deleted.

        A kept descriptor keeps a file's blocks on disk; for one deleted behind the mount nobody
        would tell us. Returns how many were looked at.
        """
        oldest = []
        with self._lock:
            for inode in self._recent:
                oldest.append(inode)
                if len(oldest) == limit:
                    break
        for inode in oldest:
            with self._lock:
                if inode.fd < 0:
                    continue
                if os.fstat(inode.fd).st_nlink == 0 and not inode.pins:
                    self._learn_handle(inode, inode.fd)
                    self._drop(inode)
                else:
                    self._recent.move_to_end(inode)
        return len(oldest)

    def close(self) -> None:
        """Close all descriptors."""
        with self._lock:
            for inode in list(self._recent):
                self._drop(inode)
            for device in self._devices.values():
                device.close()
            self._nodes.clear()
            self._devices.clear()

    # -- inside

    def _add_device(self, status: os.stat_result, parent: Inode, name: bytes, fd: int) -> Device:
        own = -1
        if fd < 0:
            fd = own = os.open(name, _REACH, dir_fd=self.reach(parent))
        try:
            device = Device(status.st_dev, fd, main=False)
        finally:
            if own >= 0:
                os.close(own)
        self._devices[status.st_dev] = device
        return device

    def _merge(self, inode: Inode, fd: int) -> None:
        """``inode`` was seen again through ``fd``: is it the same file?"""
        if inode.fd >= 0 or inode.opens:
            # Pinned all the time, so the number cannot have been given to another file.
            os.close(fd)
            return
        if inode.handle is not None and inode.handle != _handle_of(fd):
            self.renew(inode)
        self._keep(inode, fd)

    def _open_again(self, inode: Inode) -> int:
        anchor = inode.device.anchor
        if inode.handle is not None and anchor >= 0:
            return syscalls.open_by_handle_at(anchor, inode.handle, os.O_PATH)
        parent = inode.parent
        if parent is None or parent.node_id == ROOT_ID:
            # A volume's top directory: only the store can say where it is now.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        try:
            fd = os.open(inode.name, _REACH, dir_fd=self.reach(parent))
        except (FileNotFoundError, NotADirectoryError):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
        status = os.fstat(fd)
        if (
            status.st_ino != inode.ino
            or status.st_dev != inode.device.dev
            or (inode.handle is not None and inode.handle != _handle_of(fd))
        ):
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fd

    def _keep(self, inode: Inode, fd: int) -> None:
        inode.fd = fd
        self._recent[inode] = None
        if len(self._recent) > self._capacity:
            self._evict_oldest()

    def _evict_oldest(self) -> None:
        for _ in range(len(self._recent) - self._capacity + _LEAST):
            if len(self._recent) <= self._capacity:
                break
            inode = next(iter(self._recent))
            if inode.pins or (inode.device.anchor < 0 and _is_volume_top(inode)):
                # In use by a worker thread, or not to be found again by the table alone.
                self._recent.move_to_end(inode)
                continue
            self._learn_handle(inode, inode.fd)
            self._drop(inode)

    def _learn_handle(self, inode: Inode, fd: int) -> None:
        if inode.handle is None:
            inode.handle = _handle_of(fd)

    def _drop(self, inode: Inode) -> None:
        if inode.fd >= 0:
            del self._recent[inode]
            os.close(inode.fd)
            inode.fd = -1


def _is_volume_top(inode: Inode) -> bool:
    return inode.parent is not None and inode.parent.node_id == ROOT_ID


def _handle_of(fd: int) -> bytes | None:
    try:
        return syscalls.name_to_handle_at(fd)
    except OSError as error:
        if error.errno in syscalls.NO_HANDLES:
            return None
        raise
