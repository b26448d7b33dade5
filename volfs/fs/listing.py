"""Listings: what is replied to readdir, with attributes where they pay."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import pyfuse3
from pyfuse3 import EntryAttributes, ReaddirToken

from volfs.fs.handles import DirectoryHandle
from volfs.fs.inode import Inode
from volfs.fs.inodes import InodeTable
from volfs.fs.kernel.dirent import BareEntry, can_be_bare

_REGRET = 8
"""Replies with attributes that follow when a directory was listed without, and then searched."""


class Listings:
    """Replies to readdir, and learns from what is asked for afterwards.

    ``attributes`` makes the full entry of an inode from its stat; ``timeout`` is how long the
    kernel keeps it, in seconds.
    """

    def __init__(
        self,
        inodes: InodeTable,
        attributes: Callable[[Inode, os.stat_result], EntryAttributes],
        timeout: float,
    ) -> None:
        self._inodes = inodes
        self._attributes = attributes
        self._timeout = timeout
        self._paying = 0

    def asked_for(self, inode: Inode) -> None:
        """Note that the attributes of ``inode``, listed so that we are told, are asked for."""
        inode.listed = False
        self._attributes_pay(2)
        if inode.parent is not None:
            inode.parent.searched = True

    def regret(self, directory: Inode) -> None:
        """Note that a directory listed without attributes is searched."""
        directory.bare = False
        self._attributes_pay(_REGRET)

    def _attributes_pay(self, change: int) -> None:
        self._paying = min(max(self._paying + change, 0), _REGRET * 8)

    def reply(self, handle: DirectoryHandle, start: int, token: ReaddirToken) -> None:
        """Reply with entries from offset ``start`` on until the reply is full.

        Offsets 1 and 2 follow "." and "..". An entry replied with its attributes counts as
        looked up, as the kernel remembers it. That costs several times a bare entry, and pays
        only where somebody asks for the attributes (ls -l, find): so a listing begins with them
        and goes on with them while its entries are asked for, or while those of the directories
        listed before were.
        """
        if start == 0:
            handle.rewind()
        elif os.fstat(handle.fd).st_nlink == 0:
            return  # removed meanwhile, and so empty, whatever was read of it before
        inode = handle.inode
        if start < 1 and not self._dot(inode, b".", token, 1):
            return
        if start < 2 and not self._dot(inode.parent or inode, b"..", token, 2):
            return
        position = max(start, 2)
        replied = position > start
        first = True
        plus = self._timeout > 0 and (start == 0 or inode.searched or self._paying > 0)
        bare = None if plus or not can_be_bare() else BareEntry()
        inode.searched = False
        if bare is not None:
            inode.bare = True
        elif start > 0:
            self._attributes_pay(-1)
        while True:
            try:
                found = handle.entry(position - 2)
                if found is None:
                    return
                position += 1
                if bare is not None:
                    room = self._reply_bare(handle, found, bare, token, position)
                else:
                    room = self._reply_plus(handle, found[0], token, position, told=first)
            except FileNotFoundError:
                continue  # deleted since it was read
            except OSError:
                if replied:
                    return  # what there is counts as looked up; the next request meets the error
                raise
            if not room:
                return
            replied = True
            first = False

    def _reply_plus(
        self,
        handle: DirectoryHandle,
        text: str,
        token: ReaddirToken,
        position: int,
        *,
        told: bool,
    ) -> bool:
        """Put an entry with its attributes into the reply; False if there was no room.

        ``told``: the kernel shall not keep the attributes, so that we are told if they matter.
        """
        status = os.stat(text, dir_fd=handle.fd, follow_symlinks=False)
        name = os.fsencode(text)
        child = self._inodes.remember(status, handle.inode, name, -1, lookups=0)
        entry = self._attributes(child, status)
        if told:
            entry.attr_timeout = 0
        if not pyfuse3.readdir_reply(token, name, entry, position):
            self._inodes.discard(child)
            return False
        child.lookups += 1
        child.listed = told
        return True

    def _reply_bare(
        self,
        handle: DirectoryHandle,
        found: tuple[str, int, int],
        bare: BareEntry,
        token: ReaddirToken,
        position: int,
    ) -> bool:
        """Put an entry without attributes into the reply; False if there was no room."""
        text, ino, mode = found
        if mode == 0:
            mode = os.stat(text, dir_fd=handle.fd, follow_symlinks=False).st_mode
        bare.set(handle.inode.device.node_id(ino), mode)
        return pyfuse3.readdir_reply(token, os.fsencode(text), bare.entry, position)

    def _dot(self, inode: Inode, name: bytes, token: ReaddirToken, position: int) -> bool:
        entry = EntryAttributes()
        entry.st_ino = inode.node_id
        entry.st_mode = stat.S_IFDIR
        return pyfuse3.readdir_reply(token, name, entry, position)
