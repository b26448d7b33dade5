"""Reaching an inode: the descriptors that are kept, and how one without is found again.

Only the most recently used inodes keep their O_PATH descriptor. The others are reached again by
file handle where the backing filesystem and the daemon's privileges allow it, else by parent and
name. Whichever way, what is reached is checked to be the same inode, so a recycled inode number is
never taken for the old file: the answer is ESTALE, upon which the kernel looks the name up again.

An inode is known by device, number and the time when it was made. Two that had a number one after
the other can have been made in the same tick of the clock only if the first was let go of by then;
for those (*young* ones), and where the filesystem does not tell the time, the file handle decides,
which has the generation.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import OrderedDict

from volfs.fs.inodes.closing import Closing
from volfs.fs.inodes.device import Anchor, Device, open_anchor
from volfs.fs.inodes.inode import DEEPEST, ROOT_ID, Inode
from volfs.fs.native import Status, birth_ns, fstat
from volfs.linux import calls, syscalls
from volfs.linux.durable import REACH
from volfs.linux.syscalls import os_error

_TICK_NS = 20_000_000
"""Nanoseconds between two births that may be noted as the same: twice the slowest clock's tick."""

_ANCHORS = 16
"""At most one descriptor in this many is an anchor."""

_LEAST = 16
"""One request uses a few descriptors at once; they must not evict each other."""


class Descriptors:
    """The O_PATH descriptors of inodes. Safe to use from worker threads, under ``lock``.

    ``limit`` is how many descriptors the process may have, ``reserved`` how many of them are for
    other things than inodes and what is open in the tree. Three quarters at most are kept O_PATH,
    fewer when many files are open.
    """

    def __init__(self, limit: int, reserved: int = 0) -> None:
        self.lock = threading.RLock()
        self._limit = limit
        self._reserved = reserved + max(_LEAST, limit // 64)
        self._capacity = 0
        self._recent: OrderedDict[Inode, None] = OrderedDict()
        self._anchors: dict[int, Anchor] = {}
        self.closing = Closing(limit // 8)
        self.most_opens = max(self._limit - self._reserved - limit // 16, limit // 2)
        """How many may be of open files and directories: the rest is in reserve."""
        self.make_room(0)

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._recent)

    def reach(self, inode: Inode) -> int:
        """A descriptor of the inode, valid until the next call by this thread that may evict.

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
            raise os_error(errno.ESTALE)
        return self._open_again(inode)

    def used(self, inode: Inode) -> bool:
        """Note that the descriptor of an inode is used; False if it was evicted this instant."""
        try:
            self._recent.move_to_end(inode)
        except KeyError:
            return False
        return True

    def keep(self, inode: Inode, fd: int) -> None:
        """Take over ``fd``, an O_PATH descriptor of an inode that has none."""
        inode.fd = fd
        self._recent[inode] = None
        if len(self._recent) > self._capacity:
            self._evict_oldest(inode)

    def drop(self, inode: Inode) -> None:
        """Close the inode's descriptor if it has one."""
        if inode.fd >= 0:
            inode.young = is_young(inode.birth)
            del self._recent[inode]
            fd, inode.fd = inode.fd, -1
            if inode.device.slow:
                os.close(fd)  # what a server frees is not waited for
            else:
                self.closing.close(fd)

    def let_go(self, inode: Inode) -> None:
        """Close the inode's descriptor if it has one, keeping what finds it again."""
        if inode.fd >= 0:
            learn_file_handle(inode, inode.fd)
            self.drop(inode)

    def evict(self, inode: Inode) -> None:
        """Close the inode's descriptor, keeping what finds it again."""
        with self.lock:
            if inode.fd >= 0:
                learn_file_handle(inode, inode.fd)
                if not _is_held(inode):
                    self.drop(inode)

    def release(self, inode: Inode, fd: int) -> None:
        """Close ``fd``, that of an open handle of ``inode`` and maybe its last descriptor."""
        if inode.fd >= 0 or inode.opens:
            os.close(fd)
            return
        try:
            learn_file_handle(inode, fd)
            inode.young = is_young(inode.birth)
        finally:
            if inode.device.slow:
                os.close(fd)
            else:
                self.closing.close(fd)

    def can_spare(self, inode: Inode, fd: int) -> bool:
        """Whether ``fd``, a descriptor of an inode that the kernel has open itself, can be closed
        because the inode is reached without it, and nobody is using it."""
        learn_file_handle(inode, fd)
        return not inode.pins and bool(inode.backing) and (inode.reopens or inode.fd >= 0)

    def make_room(self, opens: int) -> None:
        """Adapt to ``opens`` descriptors being used by open files and directories."""
        self._capacity = max(
            min(
                self._limit * 3 // 4,
                self._limit - self._reserved - len(self._anchors) - len(self.closing) - opens,
            ),
            _LEAST,
        )
        if len(self._recent) > self._capacity:
            with self.lock:
                self._evict_oldest()

    def anchor(self, device: Device, fd: int) -> None:
        """Give a device an anchor to find its files again with; ``fd`` is a descriptor on it.

        An anchor of the same mount serves as well; and there are not too many of them.
        """
        if not device.has_handles or device.anchor is not None:
            return
        example, mount_id = file_handle_of(fd)
        anchor = self._anchors.get(mount_id)
        if anchor is None and len(self._anchors) < self._limit // _ANCHORS:
            opened = open_anchor(fd)
            device.has_handles = opened is not None
            if opened is not None:
                anchor = self._anchors.setdefault(opened.mount_id, opened)
                if anchor is not opened:  # another thread was faster
                    os.close(opened.fd)
        if anchor is not None:
            device.anchor = anchor
            device.anchored = example or b""
            anchor.users += 1

    def unanchor(self, device: Device) -> None:
        """Let go of a device's anchor, as no file of it is known."""
        anchor, device.anchor = device.anchor, None
        if anchor is not None:
            anchor.users -= 1
            if anchor.users == 0:
                del self._anchors[anchor.mount_id]
                os.close(anchor.fd)

    def release_deleted(self, limit: int) -> int:
        """Look at the ``limit`` least recently used descriptors; let go of deleted files.

        A kept descriptor keeps a file's blocks on disk, and nothing tells of one deleted behind the
        mount. (On a network filesystem it keeps none here, and looking could block.) Closing.finish
        closes them.
        Returns how many were looked at.
        """
        oldest = []
        with self.lock:
            for inode in self._recent:
                oldest.append(inode)
                if len(oldest) == limit:
                    break
        for inode in oldest:
            with self.lock:
                if inode.fd < 0 or inode.device.slow:
                    continue
                status = fstat(inode.fd)
                used = inode.pins or inode.backing
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and not used:
                    self.let_go(inode)
                else:
                    self._recent.move_to_end(inode)
        return len(oldest)

    def close(self) -> None:
        """Close all."""
        for inode in list(self._recent):
            self.drop(inode)
        self.closing.end()

    def _open_again(self, inode: Inode) -> int:
        """Open what has no descriptor: by file handle, else name by name from the nearest directory
        above that has or gets one."""
        above: list[Inode] = []
        here = inode
        lent: list[int] = []
        try:
            while True:
                anchor = here.device.anchor
                if here.reopens and here.file_handle is not None and anchor is not None:
                    fd = syscalls.open_by_handle_at(anchor.fd, here.file_handle, os.O_PATH)
                    fd = self._keep_or_lend(here, fd, inode, lent)
                    break
                above.append(here)
                parent = here.parent
                if parent is None or parent.node_id == ROOT_ID or len(above) > DEEPEST:
                    # A volume's top directory: only the store can say where it is now.
                    raise os_error(errno.ESTALE)
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
        with self.lock:
            if inode is not target and inode.forgotten:
                lent.append(fd)
            elif inode.fd >= 0:  # another thread was faster
                os.close(fd)
                return inode.fd
            else:
                self.keep(inode, fd)
        return fd

    def _evict_oldest(self, kept: Inode | None = None) -> None:
        """Make room, but never by ``kept``, which was needed this instant."""
        for _ in range(len(self._recent) - self._capacity + _LEAST):
            if len(self._recent) <= self._capacity:
                break
            inode = next(iter(self._recent))
            if inode is kept:
                break
            learn_file_handle(inode, inode.fd)
            if _is_held(inode):
                self._recent.move_to_end(inode)
                continue
            self.drop(inode)


def is_same(inode: Inode, status: Status, parent: Inode | None, name: bytes, fd: int) -> bool:
    """Whether the file with this status, seen as ``name`` in ``parent``, is ``inode``.

    It has the number of ``inode``, which was not pinned all the time (then it would be). ``fd`` is
    a descriptor of it; without one, those that need it (see needs_descriptor) count as different.
    """
    birth = birth_ns(status)
    known = bool(birth and inode.birth)
    if known and birth != inode.birth:
        return False
    if known and not inode.young:
        return True
    if inode.file_handle is not None:
        return fd >= 0 and inode.file_handle == file_handle_of(fd)[0]
    # Only ever listed. Under another name it is taken for another, which costs no more than a
    # look-up; but a directory could be somebody's working directory.
    return (inode.parent is parent and inode.name == name) or (not known and status.st_nlink > 1)


def needs_descriptor(inode: Inode, status: Status) -> bool:
    """Whether ``is_same`` compares file handles."""
    birth = birth_ns(status)
    told = birth and inode.birth and (birth != inode.birth or not inode.young)
    return not told and inode.file_handle is not None


def is_young(birth: int) -> bool:
    """Whether an inode was made so lately that another one can have been made at the same time."""
    return time.time_ns() - birth < _TICK_NS


def learn_file_handle(inode: Inode, fd: int) -> None:
    """Note the file handle of an inode; ``fd`` is a descriptor of it."""
    if inode.file_handle is None:
        inode.file_handle, mount_id = file_handle_of(fd)
        # On another mount of the device its options could be others (a read-only bind mount).
        anchor = inode.device.anchor
        inode.reopens = anchor is not None and mount_id == anchor.mount_id


def _is_held(inode: Inode) -> bool:
    """Whether an inode has to keep its descriptor, once its file handle is known: it is in use by
    a worker thread, or not to be found again by the table alone, be it that it is open without
    another and deleted by now."""
    return bool(inode.pins) or (not inode.reopens and bool(inode.backing or inode.is_volume_top))


def file_handle_of(fd: int) -> tuple[bytes | None, int]:
    """The file handle behind ``fd`` and the id of its mount; None where there are none."""
    try:
        return calls.name_to_handle_at(fd)
    except OSError as error:
        if error.errno in syscalls.NO_HANDLES:
            return None, -1
        raise


def _open_child(directory: int, inode: Inode) -> int:
    """Open ``inode`` by its name in ``directory``. Raises OSError(ESTALE) if that is another."""
    try:
        fd = os.open(inode.name, REACH, dir_fd=directory)
    except (FileNotFoundError, NotADirectoryError):
        raise os_error(errno.ESTALE) from None
    status = fstat(fd)
    same_number = status.st_ino == inode.ino and status.st_dev == inode.device.dev
    if not (same_number and is_same(inode, status, inode.parent, inode.name, fd)):
        os.close(fd)
        raise os_error(errno.ESTALE)
    return fd
