"""The requests on open directories: open, sync, close. (Listings are made by wire and plain.)

The kernel has checked at open(2), also where it sends no OPENDIR; after that nothing is at stake.
"""

from __future__ import annotations

import os

from volfs.fs.files import Opening
from volfs.fs.inodes import ROOT_ID, DirectoryHandle, HandleTable, Inode, InodeTable, RootHandle
from volfs.fs.requests.later import Later
from volfs.fs.requests.room import Room
from volfs.fs.requests.threads import WorkerThreads
from volfs.fs.root import Root
from volfs.linux.identity import Requester


class DirectoryRequests:
    """On the tables shared with the other requests."""

    def __init__(
        self,
        inodes: InodeTable,
        handles: HandleTable,
        root: Root,
        opening: Opening,
        threads: WorkerThreads,
        room: Room,
    ) -> None:
        self._inodes = inodes
        self._handles = handles
        self._root = root
        self._opening = opening
        self._threads = threads
        self._room = room

    def opendir(
        self, node_id: int, who: Requester, flags: int = 0
    ) -> DirectoryHandle | RootHandle | Later[DirectoryHandle | RootHandle]:
        if node_id == ROOT_ID:
            return self._root.opendir()
        inode = self._inodes[node_id]
        who = self._room.make(who)
        if inode.device.slow:
            return self._threads.elsewhere(lambda: self._opening.opendir(inode, who, flags), inode)
        return self._opening.opendir(inode, who, flags)

    def releasedir(self, fh: int) -> Later[None] | None:
        handle = self._handles.remove_directory(fh)
        if not isinstance(handle, DirectoryHandle):
            return None
        if handle.inode.device.slow:
            return self._threads.elsewhere(lambda: self._opening.releasedir(handle), handle.inode)
        self._opening.releasedir(handle)
        self._threads.finish(handle.inode)
        return None

    def fsyncdir(self, fh: int, datasync: bool) -> Later[None] | None:
        handle = self._handles.directory(fh)
        if isinstance(handle, RootHandle):
            return None  # its entries are durable when answered
        return self._threads.syncing(handle.fd, datasync, handle.inode)

    def fsync_unopened(self, node_id: int, datasync: bool) -> Later[None] | None:
        """As ``fsyncdir``, of a directory that was not opened here."""
        if node_id == ROOT_ID:
            return None
        inode = self._inodes[node_id]

        def call() -> None:
            fd = self.open_for_once(inode)
            try:
                (os.fdatasync if datasync else os.fsync)(fd)
            finally:
                os.close(fd)

        return self._threads.elsewhere(call, inode)

    def open_for_once(self, inode: Inode) -> int:
        """A descriptor of a directory that is used without having been opened. May block."""
        return self._opening.open_directory(inode)
