"""Finding: inodes found by node id, which the kernel asks for when it has forgotten them.

That is how it opens a file handle (fuse_get_dentry in fs/fuse/inode.c): it looks up "." in a node
id that it kept, and compares the generation of what it gets. A node id is made of the inode
number; so its file is found by number where the filesystem can, and its path by the kernel's own
memory of it: always for a directory. Else by the directory that it was in when it was forgotten,
which is found likewise.

Whichever way, it is looked up in the tree, name by name from the root: what is in no volume is not
found.
"""

from __future__ import annotations

import errno
import os

from volfs.fs.files import Found, Names
from volfs.fs.inodes import ROOT_ID, Inode, InodeTable
from volfs.fs.native import Status, fstat, fstatat
from volfs.fs.root import Root
from volfs.linux.syscalls import os_error

_DEEPEST = 256
"""Directories above a file that have to be found by the ones above them at most."""


class Finding:
    """Finds inodes. Everything may block, and raises OSError(ESTALE) for what is not found."""

    def __init__(self, inodes: InodeTable, root: Root, names: Names) -> None:
        self._inodes = inodes
        self._root = root
        self._names = names

    def itself(self, node_id: int) -> Found:
        """The inode with a node id, counted as looked up."""
        return self._itself(node_id, 0)

    def parent(self, node_id: int) -> Found:
        """The directory above a directory, counted as looked up."""
        inode, _ = self.itself(node_id)
        try:
            if inode is self._inodes.root or inode.is_volume_top:
                return self.itself(ROOT_ID)
            above = fstatat(self._inodes.reach(inode), b"..")
            if above.st_dev == inode.device.dev:
                return self.itself(inode.device.node_id(above.st_ino))
            # A filesystem is mounted there.
            if inode.parent is None:
                raise os_error(errno.ESTALE)
            return self.itself(inode.parent.node_id)
        finally:
            self._inodes.forget(node_id, 1)

    def _itself(self, node_id: int, depth: int) -> Found:
        inode = self._inodes.get(node_id)
        if inode is not None and self._inodes.count(inode):
            try:
                return inode, self._status(inode)
            except BaseException:
                self._inodes.forget(node_id, 1)
                raise
        found = self._by_path(node_id) or self._by_directory(node_id, depth)
        if found is None:
            raise os_error(errno.ESTALE)
        return found

    def _status(self, inode: Inode) -> Status:
        if inode is self._inodes.root:
            return self._root.getattr()
        return fstat(self._inodes.reach(inode))

    def _by_path(self, node_id: int) -> Found | None:
        """Where the kernel remembers it to be."""
        try:
            fd = self._inodes.open_by_number(node_id)
        except OSError:
            return None
        try:
            path = os.readlink(b"/proc/self/fd/%d" % fd)
        finally:
            os.close(fd)
        place = self._root.holding(path)
        if place is None:
            return None
        volume, rest = place
        found = self._root.lookup(volume)
        for name in filter(None, rest.split(b"/")):
            if found is None:
                break
            directory, _ = found
            try:
                found = self._names.lookup(directory, name)
            finally:
                self._inodes.forget(directory.node_id, 1)
        return self._if_it_is(found, node_id)

    def _by_directory(self, node_id: int, depth: int) -> Found | None:
        """In the directory that it was in when it was forgotten."""
        directory_id = self._inodes.forgotten.directory_of(node_id)
        if directory_id is None or depth == _DEEPEST:
            return None
        if directory_id == ROOT_ID:
            return self._root.find(node_id)
        directory, _ = self._itself(directory_id, depth + 1)
        try:
            return self._names.find(directory, node_id)
        finally:
            self._inodes.forget(directory_id, 1)

    def _if_it_is(self, found: Found | None, node_id: int) -> Found | None:
        if found is not None and found[0].node_id != node_id:
            self._inodes.forget(found[0].node_id, 1)
            return None
        return found
