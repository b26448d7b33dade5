"""Names: looked up, made, moved and removed below the volumes.

Plain synchronous functions, which may block where the backing filesystem does; the caller decides
on which thread they run. Whatever a system call on the backing file answers is the answer: OSError
passes through with its errno.
"""

from __future__ import annotations

import errno
import os
import stat

from volfs.fs.files.attributes import setgid_as_asked
from volfs.fs.inodes import Inode, InodeTable, Listings
from volfs.fs.native import Status, fstat, fstatat, open_path
from volfs.linux import calls, syscalls
from volfs.linux.durable import DIRECTORY, REACH
from volfs.linux.identity import Identity, Requester
from volfs.linux.syscalls import os_error

Found = tuple[Inode, Status]
"""A file that was looked up, and how it is."""


class Names:
    """The requests on names. ``listings`` learns from what is looked up."""

    def __init__(self, inodes: InodeTable, identity: Identity, listings: Listings) -> None:
        self._inodes = inodes
        self._identity = identity
        self._listings = listings

    def lookup(self, parent: Inode, name: bytes) -> Found | None:
        """What ``name`` in ``parent`` is, counted as looked up; None if it is absent."""
        found = open_path(self._inodes.reach(parent), name)
        if found is None:
            return None
        self._listings.searched(parent)
        fd, status = found
        return self._inodes.remember(status, parent, name, fd), status

    def find(self, parent: Inode, node_id: int) -> Found | None:
        """The file in ``parent`` with this node id, counted as looked up; None if there is none."""
        directory = os.open(b".", DIRECTORY, dir_fd=self._inodes.reach(parent))
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if parent.device.node_id(entry.inode()) == node_id:
                        found = self.lookup(parent, os.fsencode(entry.name))
                        if found is None or found[0].node_id == node_id:
                            return found
                        self._inodes.forget(found[0].node_id, 1)
        finally:
            os.close(directory)
        return None

    def found(self, parent: Inode, name: bytes, fd: int, *, created: bool = False) -> Found:
        """The file behind the O_PATH descriptor ``fd``, which is taken over.

        ``created``: it was made this instant.
        """
        try:
            status = fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        return self._inodes.remember(status, parent, name, fd, created=created), status

    def readlink(self, inode: Inode) -> bytes:
        return os.readlink(b"", dir_fd=self._inodes.reach(inode))

    def mknod(self, parent: Inode, name: bytes, mode: int, rdev: int, ctx: Requester) -> Found:
        directory = self._inodes.reach(parent)
        with self._identity.acting(ctx.uid, ctx.gid, ctx.umask), setgid_as_asked(mode):
            os.mknod(name, mode, rdev, dir_fd=directory)
        return self._created(parent, name, directory)

    def mkdir(self, parent: Inode, name: bytes, mode: int, ctx: Requester) -> Found:
        directory = self._inodes.reach(parent)
        with self._identity.acting(ctx.uid, ctx.gid, ctx.umask):
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=directory)
        return self._created(parent, name, directory)

    def symlink(self, parent: Inode, name: bytes, target: bytes, ctx: Requester) -> Found:
        directory = self._inodes.reach(parent)
        with self._identity.acting(ctx.uid, ctx.gid, ctx.umask):
            os.symlink(target, name, dir_fd=directory)
        return self._created(parent, name, directory)

    def _created(self, parent: Inode, name: bytes, directory: int) -> Found:
        # Behind the mount somebody may have replaced it already: then this is what is there.
        found = open_path(directory, name)
        if found is None:
            raise os_error(errno.ENOENT)
        fd, status = found
        return self._inodes.remember(status, parent, name, fd, created=True), status

    def unlink(self, parent: Inode, name: bytes) -> None:
        directory = self._inodes.reach(parent)
        self._pin_victim(parent, name, directory)
        os.unlink(name, dir_fd=directory)

    def _pin_victim(self, parent: Inode, name: bytes, directory: int) -> None:
        """Keep a descriptor of a file that is about to lose a name, if it is known.

        Until the kernel forgets the file, no other file may get its number.
        """
        try:
            status = fstatat(directory, name)
        except FileNotFoundError:
            return
        if self._inodes.is_unpinned(status):
            found = open_path(directory, name)
            if found is not None:
                fd, status = found
                # It may be another one by now, which the kernel does not know.
                self._inodes.discard(self._inodes.remember(status, parent, name, fd, lookups=0))

    def rmdir(self, parent: Inode, name: bytes) -> None:
        os.rmdir(name, dir_fd=self._inodes.reach(parent))

    def rename(
        self,
        parent: Inode,
        name: bytes,
        new_parent: Inode,
        new_name: bytes,
        flags: int,
        ctx: Requester,
    ) -> None:
        source = self._inodes.reach(parent)
        target = self._inodes.reach(new_parent)
        if not flags:
            self._pin_victim(new_parent, new_name, target)
        if flags & syscalls.RENAME_WHITEOUT:
            # What is left in its place is a new file, the caller's.
            with self._identity.acting(ctx.uid, ctx.gid, 0):
                syscalls.renameat2(source, name, target, new_name, flags)
        elif flags:
            syscalls.renameat2(source, name, target, new_name, flags)
        else:
            os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
        self._moved(new_parent, new_name, target)
        if flags & syscalls.RENAME_EXCHANGE:
            self._moved(parent, name, source)

    def _moved(self, parent: Inode, name: bytes, directory: int) -> None:
        """Note where a renamed inode is now, so that it is found there again."""
        try:
            status = fstatat(directory, name)
        except FileNotFoundError:
            return  # gone already, behind the mount
        self._inodes.moved(status, parent, name)

    def link(self, inode: Inode, new_parent: Inode, new_name: bytes) -> Found:
        source = self._inodes.reach(inode)
        directory = self._inodes.reach(new_parent)
        calls.link(source, directory, new_name)
        return self.found(new_parent, new_name, os.open(new_name, REACH, dir_fd=directory))
