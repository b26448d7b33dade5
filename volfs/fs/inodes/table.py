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
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator

from volfs.fs.inodes.device import Device
from volfs.fs.inodes.inode import DEEPEST, ROOT_ID, Inode
from volfs.fs.native.status import Status, fstat
from volfs.linux import calls, syscalls

_LEAST = 16
"""One request uses a few descriptors at once; they must not evict each other."""

_STEP = 0x1_0000_0001
"""From a node id that is taken to the next one to try."""

_REACH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class InodeTable:
    """All inodes the kernel knows. Safe to use from worker threads.

    ``descriptors`` is how many the process may have, ``reserved`` how many of them are for other
    things than inodes and what is open in the tree. Three quarters at most are kept O_PATH,
    fewer when many files are open.
    """

    def __init__(self, descriptors: int, reserved: int = 0) -> None:
        self._limit = descriptors
        self._reserved = reserved + max(_LEAST, descriptors // 64)
        self._capacity = 0
        self._recent: OrderedDict[Inode, None] = OrderedDict()
        self.make_room(0)
        self._lock = threading.RLock()
        self._nodes: dict[int, Inode] = {}
        # Those whose node id is not their number, by device and number.
        self._displaced: dict[tuple[int, int], Inode] = {}
        self._devices: dict[int, Device] = {}
        self.root: Inode | None = None
        self.renumbers = False
        """Whether a file may have a node id that is not the number users see; not with pyfuse3,
        where both are one. See _replace."""

    # -- the root and its device

    def make_root(self, fd: int) -> Inode:
        """Create the root's Inode; ``fd`` (the scope) says which device is the main one."""
        device = Device(os.fstat(fd).st_dev, fd, main=True)
        self._devices[device.dev] = device
        self.root = Inode(ROOT_ID, ROOT_ID, device, 0, None, b"")
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
    def lookups(self) -> int:
        """Sum of all lookup counts but the root's."""
        return sum(inode.lookups for inode in self) - (1 if self.root else 0)

    # -- remembering and forgetting

    def remember(
        self,
        status: Status,
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
        device = self._devices.get(status.st_dev)
        if device is None:
            device = self._add_device(status, parent, name, fd)
        with self._lock:
            number, inode = self._find(device, status.st_ino)
            if inode is None:
                inode = self._add(number, device, status.st_ino, parent, name)
                if fd >= 0:
                    self._keep(inode, fd)
            else:
                if inode.fd < 0 and not inode.opens:
                    # Nothing kept it from being deleted and its number given away meanwhile. A
                    # file only ever listed cannot be told by its handle: under another name it
                    # is taken for another (but a directory could be somebody's working one).
                    renamed = inode.parent is not parent or inode.name != name
                    if created or (renamed and inode.handle is None and status.st_nlink == 1):
                        inode = self._replace(inode)
                if fd >= 0:
                    inode = self._merge(inode, fd)
                inode.parent = parent
                inode.name = name
                inode.gone = False
            inode.lookups += lookups
            return inode

    def moved(self, status: Status, parent: Inode, name: bytes) -> None:
        """Note that the file with this stat is now ``name`` in ``parent``, if it is known."""
        with self._lock:
            device = self._devices.get(status.st_dev)
            if device is None:
                return
            _, inode = self._find(device, status.st_ino)
            if inode is not None:
                inode.parent = parent
                inode.name = name

    def is_unpinned(self, status: Status) -> bool:
        """Whether the file with this stat is known, and nothing keeps its number from being
        given away once it is deleted."""
        device = self._devices.get(status.st_dev)
        if device is None:
            return False
        _, inode = self._find(device, status.st_ino)
        return inode is not None and inode.fd < 0 and not inode.opens

    def forget(self, node_id: int, lookups: int) -> None:
        """Take back ``lookups`` lookup counts; at zero the inode is dropped."""
        with self._lock:
            inode = self._nodes.get(node_id)
            if inode is None:
                return
            inode.lookups -= lookups
            if inode.lookups <= 0 and inode is not self.root:
                self._remove(inode)

    def discard(self, inode: Inode) -> None:
        """Drop an inode that was remembered with no lookup and is not known to the kernel."""
        with self._lock:
            if inode.lookups <= 0 and self._nodes.get(inode.node_id) is inode:
                self._remove(inode)

    def number(self, node_id: int) -> int:
        """The inode number that users see of a node id."""
        inode = self._nodes.get(node_id) if self._displaced else None
        return node_id if inode is None else inode.number

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
                    if not inode.pins:
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
        for handle in inode.opens or ():
            if handle.fd >= 0:
                return handle.fd
        if inode.gone:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._open_again(inode)

    def at_hand(self, node_id: int) -> int:
        """The descriptor of an inode, if it has one and nothing more is to be done or noted when
        its attributes are asked for; else -1."""
        inode = self._nodes.get(node_id)
        if inode is None or inode.fd < 0 or inode.listed or inode.device.slow:
            return -1
        if self._displaced and inode.number != node_id:
            return -1
        try:
            self._recent.move_to_end(inode)
        except KeyError:  # a worker thread evicted it this instant
            return -1
        return inode.fd

    def evict(self, inode: Inode) -> None:
        """Close the inode's descriptor, keeping what finds it again."""
        with self._lock:
            if inode.fd >= 0 and not inode.pins and not inode.backing:
                self._learn_handle(inode, inode.fd)
                self._drop(inode)

    def released(self, inode: Inode, fd: int) -> None:
        """Note that ``fd``, an open handle of ``inode`` and maybe its last, is to be closed."""
        if inode.fd < 0 and not inode.opens:
            self._learn_handle(inode, fd)

    def make_room(self, opens: int) -> None:
        """Adapt to ``opens`` descriptors being used by open files and directories."""
        self._capacity = max(
            min(self._limit * 3 // 4, self._limit - self._reserved - opens), _LEAST
        )
        if len(self._recent) > self._capacity:
            with self._lock:
                self._evict_oldest()

    def release_deleted(self, limit: int) -> int:
        """Look at the ``limit`` least recently used descriptors; let go of deleted files.

        A kept descriptor keeps a file's blocks on disk; for one deleted behind the mount nobody
        would tell us. (On a network filesystem it keeps none here, and looking could block.)
        Returns how many were looked at.
        """
        oldest = []
        with self._lock:
            for inode in self._recent:
                oldest.append(inode)
                if len(oldest) == limit:
                    break
        for inode in oldest:
            with self._lock:
                if inode.fd < 0 or inode.device.slow:
                    continue
                status = fstat(inode.fd)
                used = inode.pins or inode.backing
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and not used:
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
            self._displaced.clear()
            self._devices.clear()

    # -- inside

    def _find(self, device: Device, ino: int) -> tuple[int, Inode | None]:
        """The number of an inode as users see it and, if it is known, the Inode."""
        number = device.node_id(ino) if device.base or not ino else ino
        if self._displaced:
            displaced = self._displaced.get((device.dev, ino))
            if displaced is not None:
                return number, displaced
        inode = self._nodes.get(number)
        if inode is not None and (inode.ino != ino or inode.device is not device or inode.replaced):
            return number, None
        return number, inode

    def _add(
        self, number: int, device: Device, ino: int, parent: Inode | None, name: bytes
    ) -> Inode:
        """A new Inode, whose node id is its number or, if another has that, any other one."""
        node_id = number
        while node_id in self._nodes:
            node_id = (node_id + _STEP) % (1 << 64) or _STEP
        inode = self._nodes[node_id] = Inode(node_id, number, device, ino, parent, name)
        if node_id != number:
            self._displaced[device.dev, ino] = inode
        return inode

    def _replace(self, inode: Inode) -> Inode:
        """The Inode for the file that has got the number of ``inode``, whose file was deleted.

        A new one, with a node id of its own as long as the kernel knows the old one: that answers
        ESTALE, upon which the kernel looks the name up again. Where there can be no such node id
        it is another generation, which the kernel takes for another file as well; but then what
        is under way on the old one fails with EIO (fuse_make_bad in fs/fuse/fuse_i.h).
        """
        if not self.renumbers:
            inode.generation += 1
            inode.handle = None
            inode.version = None
            self._drop(inode)
            return inode
        inode.replaced = inode.gone = True
        self._drop(inode)
        self._undisplace(inode)
        return self._add(inode.number, inode.device, inode.ino, inode.parent, inode.name)

    def _remove(self, inode: Inode) -> None:
        """Forget an inode that the kernel has forgotten."""
        del self._nodes[inode.node_id]
        self._undisplace(inode)
        self._drop(inode)

    def _undisplace(self, inode: Inode) -> None:
        key = inode.device.dev, inode.ino
        if self._displaced.get(key) is inode:
            del self._displaced[key]

    def _add_device(self, status: Status, parent: Inode, name: bytes, fd: int) -> Device:
        own = -1
        if fd < 0:
            fd = own = os.open(name, _REACH, dir_fd=self.reach(parent))
        try:
            device = Device(status.st_dev, fd, main=False)
        finally:
            if own >= 0:
                os.close(own)
        with self._lock:
            kept = self._devices.setdefault(status.st_dev, device)
        if kept is not device:  # another thread was faster
            device.close()
        return kept

    def _merge(self, inode: Inode, fd: int) -> Inode:
        """The Inode of the file behind ``fd``, which has the number of ``inode``: is it that?"""
        if inode.fd >= 0 or inode.opens:
            # Pinned all the time, so the number cannot have been given to another file.
            os.close(fd)
            return inode
        if inode.handle is not None and inode.handle != _handle_of(fd)[0]:
            inode = self._replace(inode)
        self._keep(inode, fd)
        return inode

    def _open_again(self, inode: Inode) -> int:
        """Open what has no descriptor: by handle, else from the next directory above that has
        or gets one, name by name."""
        above: list[Inode] = []
        here = inode
        lent: list[int] = []
        try:
            while True:
                if here.reopens and here.handle is not None:
                    fd = syscalls.open_by_handle_at(here.device.anchor, here.handle, os.O_PATH)
                    fd = self._keep_or_lend(here, fd, inode, lent)
                    break
                above.append(here)
                parent = here.parent
                if parent is None or parent.node_id == ROOT_ID or len(above) > DEEPEST:
                    # A volume's top directory: only the store can say where it is now.
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                here = parent
                if here.fd >= 0 or here.opens or here.gone:  # (a directory's handle has one)
                    fd = self.reach(here)
                    break
            for child in reversed(above):
                fd = self._keep_or_lend(child, _open_child(fd, child), inode, lent)
            return fd
        finally:
            for fd in lent:
                os.close(fd)

    def _keep_or_lend(self, inode: Inode, fd: int, target: Inode, lent: list[int]) -> int:
        """Keep a descriptor opened on the way to ``target``, unless the kernel has forgotten the
        directory: then it serves for the way only."""
        with self._lock:
            if inode is not target and self._nodes.get(inode.node_id) is not inode:
                lent.append(fd)
            elif inode.fd >= 0:  # another thread was faster
                os.close(fd)
                return inode.fd
            else:
                self._keep(inode, fd)
        return fd

    def _keep(self, inode: Inode, fd: int) -> None:
        inode.fd = fd
        self._recent[inode] = None
        if len(self._recent) > self._capacity:
            self._evict_oldest(inode)

    def _evict_oldest(self, kept: Inode | None = None) -> None:
        """Make room, but never by ``kept``, which was needed this instant."""
        for _ in range(len(self._recent) - self._capacity + _LEAST):
            if len(self._recent) <= self._capacity:
                break
            inode = next(iter(self._recent))
            if inode is kept:
                break
            self._learn_handle(inode, inode.fd)
            if inode.pins or inode.backing or (_is_volume_top(inode) and not inode.reopens):
                # In use by a worker thread, open without a descriptor of its own, or not to be
                # found again by the table alone.
                self._recent.move_to_end(inode)
                continue
            self._drop(inode)

    def _learn_handle(self, inode: Inode, fd: int) -> None:
        if inode.handle is None:
            inode.handle, mount_id = _handle_of(fd)
            # On another mount of the device its options could be others (a read-only bind mount).
            inode.reopens = inode.device.anchor >= 0 and mount_id == inode.device.mount_id

    def _drop(self, inode: Inode) -> None:
        if inode.fd >= 0:
            del self._recent[inode]
            os.close(inode.fd)
            inode.fd = -1


def _is_volume_top(inode: Inode) -> bool:
    return inode.parent is not None and inode.parent.node_id == ROOT_ID


def _open_child(directory: int, inode: Inode) -> int:
    """Open ``inode`` by its name in ``directory``. Raises OSError(ESTALE) if that is another."""
    try:
        fd = os.open(inode.name, _REACH, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
    status = fstat(fd)
    if (
        status.st_ino != inode.ino
        or status.st_dev != inode.device.dev
        or (inode.handle is not None and inode.handle != _handle_of(fd)[0])
    ):
        os.close(fd)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    return fd


def _handle_of(fd: int) -> tuple[bytes | None, int]:
    """The file handle behind ``fd`` and the id of its mount; None where there are no handles."""
    try:
        return calls.name_to_handle_at(fd)
    except OSError as error:
        if error.errno in syscalls.NO_HANDLES:
            return None, -1
        raise
