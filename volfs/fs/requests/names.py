"""The requests on names: look up, make, move, remove; and forgetting what was looked up.

LOOKUP, READLINK, FORGET: the kernel has checked the search of the directory; else nothing is at
stake. LOOKUP of "." and "..": the kernel asks for who opens a file handle, which takes
CAP_DAC_READ_SEARCH or being the NFS server; only what is in a volume is found. MKNOD, MKDIR,
SYMLINK (and CREATE, TMPFILE): checked, CAP_MKNOD too; done as the caller, whose the file is then.
UNLINK, RMDIR, RENAME, LINK: checked, sticky directories and protected hard links too. RENAME with
RENAME_WHITEOUT: the whiteout is a new file, so it is done as the caller; Linux asks for no
capability since 5.8, and did itself before. RMDIR and RENAME of a volume: the kernel checks the
root directory; the store, whether the volume is used.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from volfs.fs.files import Found, Names
from volfs.fs.inodes import ROOT_ID, Inode, InodeTable
from volfs.fs.requests.finding import Finding
from volfs.fs.requests.later import Later
from volfs.fs.requests.threads import WorkerThreads
from volfs.fs.root import Root
from volfs.linux.identity import Requester
from volfs.linux.syscalls import os_error

_DOTS = (b".", b"..")


class NameRequests:
    """In the root a name is a volume, below it a file.

    ``on_volume_removed`` is called on the event loop after a volume went to the trash.
    """

    def __init__(
        self,
        inodes: InodeTable,
        root: Root,
        names: Names,
        threads: WorkerThreads,
        on_volume_removed: Callable[[], None],
    ) -> None:
        self._inodes = inodes
        self._root = root
        self._names = names
        self._closing = inodes.descriptors.closing
        self._finding = Finding(inodes, root, names)
        self._threads = threads
        self._on_volume_removed = on_volume_removed

    def lookup(self, parent_id: int, name: bytes) -> Found | Later[Found | None] | None:
        """What a name stands for, counted as looked up; None if it is absent."""
        if name in _DOTS:
            find = self._finding.itself if name == b"." else self._finding.parent
            return self._threads.elsewhere(lambda: find(parent_id), on="finding")
        parent = self._inodes[parent_id]
        if parent_id == ROOT_ID:
            if self._root.is_quick(name):
                return self._root.lookup(name)
            return self._threads.elsewhere(lambda: self._root.lookup(name), on=name)
        if parent.device.slow:
            return self._threads.elsewhere(lambda: self._names.lookup(parent, name), parent)
        return self._names.lookup(parent, name)

    def forget(self, lookups: Iterable[tuple[int, int]]) -> None:
        """Take back lookup counts, by node id."""
        for node_id, count in lookups:
            self._inodes.forget(node_id, count)
        if self._closing.due:
            self._threads.finish(self._inodes.root)

    def readlink(self, node_id: int) -> bytes | Later[bytes]:
        inode = self._inodes[node_id]
        return self._threads.where_needed(lambda: self._names.readlink(inode), inode)

    # -- making

    def mknod(
        self, parent_id: int, name: bytes, mode: int, rdev: int, ctx: Requester
    ) -> Found | Later[Found]:
        parent = self._below_root(parent_id)
        return self._threads.changing(
            lambda: self._names.mknod(parent, name, mode, rdev, ctx), parent
        )

    def mkdir(self, parent_id: int, name: bytes, mode: int, ctx: Requester) -> Found | Later[Found]:
        if parent_id == ROOT_ID:
            return self._threads.elsewhere(lambda: self._root.mkdir(name, mode, ctx))
        parent = self._inodes[parent_id]
        return self._threads.changing(lambda: self._names.mkdir(parent, name, mode, ctx), parent)

    def symlink(
        self, parent_id: int, name: bytes, target: bytes, ctx: Requester
    ) -> Found | Later[Found]:
        parent = self._below_root(parent_id)
        return self._threads.changing(
            lambda: self._names.symlink(parent, name, target, ctx), parent
        )

    def link(self, node_id: int, new_parent_id: int, new_name: bytes) -> Found | Later[Found]:
        if new_parent_id == ROOT_ID:
            raise os_error(errno.EXDEV)  # as for a rename into the root
        inode, parent = self._inodes[node_id], self._inodes[new_parent_id]
        return self._threads.changing(
            lambda: self._names.link(inode, parent, new_name), inode, parent
        )

    # -- removing and moving

    def unlink(self, parent_id: int, name: bytes) -> Later[None] | None:
        parent = self._below_root(parent_id)
        return self._threads.changing(lambda: self._names.unlink(parent, name), parent)

    def rmdir(self, parent_id: int, name: bytes, ctx: Requester) -> Later[None] | None:
        if parent_id == ROOT_ID:
            removed = self._threads.elsewhere(lambda: self._root.rmdir(name, ctx))
            return removed.then(lambda _: self._on_volume_removed())
        parent = self._inodes[parent_id]
        return self._threads.changing(lambda: self._names.rmdir(parent, name), parent)

    def rename(
        self,
        parent_id: int,
        name: bytes,
        new_parent_id: int,
        new_name: bytes,
        flags: int,
        ctx: Requester,
    ) -> Later[None] | None:
        if (parent_id == ROOT_ID) != (new_parent_id == ROOT_ID):
            # A volume is no directory of another; mv copies upon EXDEV.
            raise os_error(errno.EXDEV)
        if parent_id == ROOT_ID:
            return self._threads.elsewhere(lambda: self._root.rename(name, new_name, flags, ctx))
        old, new = self._inodes[parent_id], self._inodes[new_parent_id]
        return self._threads.changing(
            lambda: self._names.rename(old, name, new, new_name, flags, ctx), old, new
        )

    def _below_root(self, node_id: int) -> Inode:
        if node_id == ROOT_ID:
            # Only directories live there: no file type could be made, whatever the permissions.
            raise os_error(errno.EPERM)
        return self._inodes[node_id]
