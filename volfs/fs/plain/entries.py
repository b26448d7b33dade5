"""What pyfuse3 is given: entries and their attributes, one by one or in listings."""

from __future__ import annotations

import os
import stat

import pyfuse3
from pyfuse3 import EntryAttributes, ReaddirToken

from volfs.fs.files import CachePolicy
from volfs.fs.inodes import DirectoryHandle, Inode, InodeTable, RootHandle
from volfs.fs.native import Status, fstat, fstatat
from volfs.fs.root import Root, can_exist


class Entries:
    """Makes pyfuse3's objects, with the time for which the kernel may keep them."""

    def __init__(self, inodes: InodeTable, root: Root, cache: CachePolicy) -> None:
        self._inodes = inodes
        self._root = root
        self._cache = cache
        self._timeout = cache.timeout
        self._root_timeout = cache.root_timeout

    def attributes(self, inode: Inode, status: Status) -> EntryAttributes:
        """The reply that describes ``inode``."""
        entry = EntryAttributes()
        entry.st_ino = inode.node_id
        entry.generation = inode.generation
        if inode is self._inodes.root:
            entry.entry_timeout = entry.attr_timeout = self._root_timeout
        else:
            top = inode.parent is self._inodes.root
            entry.entry_timeout = self._root_timeout if top else self._timeout
            entry.attr_timeout = self._cache.attribute_timeout(status.st_mode)
        entry.st_mode = status.st_mode
        entry.st_nlink = status.st_nlink
        entry.st_uid = status.st_uid
        entry.st_gid = status.st_gid
        entry.st_rdev = status.st_rdev
        entry.st_size = status.st_size
        entry.st_blksize = status.st_blksize
        entry.st_blocks = status.st_blocks
        entry.st_atime_ns = status.st_atime_ns
        entry.st_mtime_ns = status.st_mtime_ns
        entry.st_ctime_ns = status.st_ctime_ns
        return entry

    def missing(self, name: bytes, *, in_root: bool) -> EntryAttributes:
        """The reply for a name that is not there: kept for as long as one that is.

        A volume that is not there is asked for again each time: one made beside the mount is to be
        seen at once.

        Node id 0 is ENOENT to the kernel (fuse_lookup_name in fs/fuse/dir.c), with a timeout.
        """
        entry = EntryAttributes()
        entry.st_ino = 0
        if in_root:
            entry.entry_timeout = 0 if can_exist(name) else self._root_timeout
        else:
            entry.entry_timeout = self._timeout
        return entry

    def list_root(self, handle: RootHandle, start: int, token: ReaddirToken) -> None:
        """Reply with entries of the root from offset ``start`` on until the reply is full.

        May block.
        """
        root = self._inodes.root
        reply = pyfuse3.readdir_reply
        for position, dot in ((1, b"."), (2, b"..")):
            if start < position and not reply(
                token, dot, self.attributes(root, self._root.getattr()), position
            ):
                return
        for offset, name, (inode, status) in self._root.entries(handle, start):
            if not reply(token, name, self.attributes(inode, status), offset):
                self._inodes.forget(inode.node_id, 1)
                return

    def list_directory(self, handle: DirectoryHandle, start: int, token: ReaddirToken) -> None:
        """Reply with entries from offset ``start`` on until the reply is full.

        Offsets 1 and 2 follow "." and "..", then each entry has its position in the listing.
        """
        if start == 0:
            handle.rewind()
        elif fstat(handle.fd).st_nlink == 0:
            return  # removed meanwhile, and so empty, whatever was read of it before
        inode = handle.inode
        if start < 1 and not self._dot(inode, b".", token, 1):
            return
        if start < 2 and not self._dot(inode.parent or inode, b"..", token, 2):
            return
        position = max(start, 2)
        replied = position > start
        while True:
            try:
                found = handle.entry(position - 2)
                if found is None:
                    return
                position += 1
                room = self._reply(handle, found[0], token, position)
            except FileNotFoundError:
                continue  # deleted since it was read
            except OSError:
                if replied:
                    return  # what was replied counts as looked up; the next request meets the error
                raise
            if not room:
                return
            replied = True

    def _reply(
        self, handle: DirectoryHandle, text: str, token: ReaddirToken, position: int
    ) -> bool:
        """Put an entry into the reply; False if there was no room."""
        name = os.fsencode(text)
        try:
            status = fstatat(handle.fd, name)
            child = self._inodes.remember(status, handle.inode, name, -1, lookups=0)
        except FileNotFoundError:
            raise
        except OSError:
            # It cannot be looked at: a look-up tells why. At node id 0 the kernel keeps nothing.
            return pyfuse3.readdir_reply(token, name, EntryAttributes(), position)
        if not pyfuse3.readdir_reply(token, name, self.attributes(child, status), position):
            self._inodes.discard(child)
            return False
        child.lookups += 1
        return True

    def _dot(self, inode: Inode, name: bytes, token: ReaddirToken, position: int) -> bool:
        entry = EntryAttributes()
        entry.st_ino = inode.node_id
        entry.st_mode = stat.S_IFDIR
        return pyfuse3.readdir_reply(token, name, entry, position)
