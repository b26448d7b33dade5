"""InodeTable: node id ↔ real inode, with lookup counts.

Every inode the kernel knows has an Inode here. What is looked up is *remembered*: found to be a
known file, a new one, or one that has got the inode number of another. The kernel
counts how often it was told of an inode, and gives all of that back with FORGET.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from volfs.fs.agreement import Connection
from volfs.fs.inodes.device import Device
from volfs.fs.inodes.forgotten import Forgotten
from volfs.fs.inodes.inode import ROOT_ID, Inode
from volfs.fs.inodes.reaching import Descriptors, is_same, is_young, needs_descriptor
from volfs.fs.native import Status, birth_ns
from volfs.linux.durable import REACH
from volfs.linux.numbers import open_by_number
from volfs.linux.syscalls import os_error

_GENERATION = (1 << 32) - 1
"""So much of a generation the kernel keeps."""

_STEP = 0x1_0000_0001
"""From a node id that is taken to the next one to try."""


class InodeTable:
    """All inodes the kernel knows. Safe to use from worker threads.

    ``root`` is the tree's own, on the device of the scope.
    """

    def __init__(self, scope_fd: int, descriptors: Descriptors, connection: Connection) -> None:
        """``scope_fd``, a descriptor of the scope, says which device is the main one."""
        self.descriptors = descriptors
        self.reach = descriptors.reach
        """See Descriptors.reach. (Each request needs it: it is spared one call.)"""
        self._lock = descriptors.lock
        self._connection = connection
        self._nodes: dict[int, Inode] = {}
        # Those whose node id is not their number, by device and number.
        self._displaced: dict[tuple[int, int], Inode] = {}
        main = Device(os.fstat(scope_fd).st_dev, scope_fd, main=True)
        self._devices = {main.dev: main}
        self.forgotten = Forgotten()
        descriptors.anchor(main, scope_fd)
        main.known = 1  # the scope itself, so that its anchor stays
        self.root = Inode(ROOT_ID, ROOT_ID, main, 0, None, b"")
        self.root.lookups = 1
        self._nodes[ROOT_ID] = self.root

    # -- finding

    def __getitem__(self, node_id: int) -> Inode:
        inode = self._nodes.get(node_id)
        if inode is None:
            # The kernel names only what it looked up; ESTALE makes it look up again.
            raise os_error(errno.ESTALE)
        return inode

    def get(self, node_id: int) -> Inode | None:
        """The Inode with a node id, None if it is not known."""
        return self._nodes.get(node_id)

    def __iter__(self) -> Iterator[Inode]:
        return iter(list(self._nodes.values()))

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def lookups(self) -> int:
        """Sum of all lookup counts but the root's."""
        return sum(inode.lookups for inode in self) - self.root.lookups

    def number(self, node_id: int) -> int:
        """The inode number that users see of a node id."""
        inode = self._nodes.get(node_id) if self._displaced else None
        return node_id if inode is None else inode.number

    def at_hand(self, node_id: int) -> int:
        """The descriptor of an inode, if it has one and nothing more is to be done or noted when
        its attributes are asked for; else -1."""
        inode = self._nodes.get(node_id)
        if inode is None or inode.fd < 0 or inode.device.slow:
            return -1
        if inode.listed is not None and inode.listed.told:
            return -1
        if self._displaced and inode.number != node_id:
            return -1
        return inode.fd if self.descriptors.used(inode) else -1

    def is_unpinned(self, status: Status) -> bool:
        """Whether the file with this stat is known, and nothing keeps its number from being
        given away once it is deleted."""
        device = self._devices.get(status.st_dev)
        if device is None:
            return False
        inode = self._find(device, status.st_ino)
        return inode is not None and not inode.is_pinned

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
            inode = self._find(device, status.st_ino)
            if inode is None:
                inode = self._add(device.node_id(status.st_ino), device, status, parent, name)
            elif not inode.is_pinned:
                if not created and fd < 0 and needs_descriptor(inode, status):
                    fd = os.open(name, REACH, dir_fd=self.reach(parent))
                if created or not is_same(inode, status, parent, name, fd):
                    inode = self._replace(inode, status)
            if fd >= 0 and not inode.is_pinned:
                if device.anchor is None and not device.slow:
                    self.descriptors.anchor(device, fd)
                self.descriptors.keep(inode, fd)
            elif fd >= 0:
                os.close(fd)
            inode.parent = parent
            inode.name = name
            inode.gone = False
            inode.lookups += lookups
            return inode

    def count(self, inode: Inode) -> bool:
        """Count one more lookup of an inode; False if it was forgotten this instant."""
        with self._lock:
            inode.lookups += not inode.forgotten
            return not inode.forgotten

    def open_by_number(self, node_id: int) -> int:
        """An O_PATH descriptor of the file whose node id this would be, whether it is in the tree
        or not.

        Raises OSError(ESTALE) if there is none, or its filesystem finds no files by number.
        """
        with self._lock:
            for device in self._devices.values():
                ino = device.inode_number(node_id)
                if ino is not None and device.anchor is not None:
                    break
            else:
                raise os_error(errno.ESTALE)
            device.known += 1  # so that the anchor stays
        try:
            return open_by_number(device.anchor.fd, device.anchored, ino)
        finally:
            with self._lock:
                self._lose(device)

    def moved(self, status: Status, parent: Inode, name: bytes) -> None:
        """Note that the file with this stat is now ``name`` in ``parent``, if it is known."""
        with self._lock:
            device = self._devices.get(status.st_dev)
            if device is None:
                return
            inode = self._find(device, status.st_ino)
            if inode is not None and self._is_still(inode, status, parent, name):
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
                self._remove(inode)

    def discard(self, inode: Inode) -> None:
        """Drop an inode that was remembered with no lookup and is not known to the kernel."""
        with self._lock:
            if inode.lookups <= 0 and not inode.forgotten:
                self._remove(inode)

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
                        self.descriptors.let_go(inode)

    def close(self) -> None:
        """Close all descriptors."""
        with self._lock:
            self.descriptors.close()
            for device in self._devices.values():
                self.descriptors.unanchor(device)
            self._nodes.clear()
            self._displaced.clear()
            self._devices.clear()

    # -- inside

    def _find(self, device: Device, ino: int) -> Inode | None:
        """The Inode that is known by a device and an inode number."""
        if self._displaced:
            displaced = self._displaced.get((device.dev, ino))
            if displaced is not None:
                return displaced
        inode = self._nodes.get(device.node_id(ino) if device.base or not ino else ino)
        if inode is not None and (inode.ino != ino or inode.device is not device or inode.replaced):
            return None
        return inode

    def _is_still(self, inode: Inode, status: Status, parent: Inode, name: bytes) -> bool:
        """Whether what is now ``name`` in ``parent`` is the known inode with its number. That the
        name is another proves nothing: it has just changed."""
        if inode.is_pinned:
            return True
        if not needs_descriptor(inode, status):
            return is_same(inode, status, inode.parent, inode.name, -1)
        try:
            fd = os.open(name, REACH, dir_fd=self.reach(parent))
        except OSError:
            return False  # gone already, behind the mount
        try:
            return is_same(inode, status, inode.parent, inode.name, fd)
        finally:
            os.close(fd)

    def _add(
        self, number: int, device: Device, status: Status, parent: Inode | None, name: bytes
    ) -> Inode:
        """A new Inode, whose node id is its number or, if another has that, any other one."""
        node_id = number
        while node_id in self._nodes:
            node_id = (node_id + _STEP) % (1 << 64) or _STEP
        ino = status.st_ino
        inode = self._nodes[node_id] = Inode(node_id, number, device, ino, parent, name)
        inode.birth = birth_ns(status)
        inode.young = is_young(inode.birth)
        inode.generation = inode.birth & _GENERATION
        device.known += 1
        if node_id != number:
            self._displaced[device.dev, ino] = inode
        return inode

    def _replace(self, inode: Inode, status: Status) -> Inode:
        """The Inode for the file that has got the number of ``inode``, whose file was deleted.

        A new one, with a node id of its own as long as the kernel knows the old one: that answers
        ESTALE, upon which the kernel looks the name up again. pyfuse3 has one number for node id
        and inode number, so there it is another generation, which the kernel takes for another
        file as well; but then what is under way on the old one fails with EIO (fuse_make_bad in
        fs/fuse/fuse_i.h).
        """
        if not self._connection.agreement.tapped:
            inode.file_handle = None
            inode.version = None
            inode.birth = birth_ns(status)
            inode.young = is_young(inode.birth)
            generation = inode.birth & _GENERATION
            # (Both can have been made in the same tick of the clock.)
            inode.generation = generation + (generation == inode.generation) & _GENERATION
            return inode
        inode.replaced = inode.gone = True
        self._undisplace(inode)
        return self._add(inode.number, inode.device, status, inode.parent, inode.name)

    def _remove(self, inode: Inode) -> None:
        """Forget an inode that the kernel has forgotten."""
        del self._nodes[inode.node_id]
        inode.forgotten = True
        if inode.parent is not None and inode.node_id == inode.number:
            self.forgotten.note(inode.node_id, inode.parent.number)
        self._undisplace(inode)
        self.descriptors.drop(inode)
        self._lose(inode.device)

    def _lose(self, device: Device) -> None:
        """Note that a file of a device is not known any more."""
        device.known -= 1
        if not device.known:
            # An anchor would keep the filesystem from being unmounted, or a removed one's space.
            self.descriptors.unanchor(device)

    def _undisplace(self, inode: Inode) -> None:
        key = inode.device.dev, inode.ino
        if self._displaced.get(key) is inode:
            del self._displaced[key]

    def _add_device(self, status: Status, parent: Inode, name: bytes, fd: int) -> Device:
        own = -1
        if fd < 0:
            fd = own = os.open(name, REACH, dir_fd=self.reach(parent))
        try:
            taken = {device.base for device in self._devices.copy().values()}
            device = Device(status.st_dev, fd, main=False, taken=taken)
            device = self._devices.setdefault(status.st_dev, device)
            self.descriptors.anchor(device, fd)  # may block
            return device
        finally:
            if own >= 0:
                os.close(own)
