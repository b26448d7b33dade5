"""The requests on attributes of an inode, extended ones too, and of the filesystem it is on.

GETATTR, STATX, STATFS: nothing is at stake. SETATTR of mode, owner, size, times: the kernel has
checked (setattr_prepare in fs/attr.c) and taken a set-group-ID bit out of the mode that the caller
may not set; whether a new size clears such bits it says, whether a new owner leaves one does not
(so /proc is asked). SETATTR of nothing: *unchecked*, done as the caller (Attributes.setattr).
ACCESS: never sent.

SETXATTR, REMOVEXATTR, GETXATTR: the kernel has checked user.* (permission, file type), trusted.*
(CAP_SYS_ADMIN), security.* (the same, or CAP_SETFCAP) and POSIX ACLs (the owner); volfs.* by
permission to read or write the volume's top directory. An ACL clears a set-group-ID bit unless the
caller might set it: /proc. Other system.* is *unchecked* and refused. REMOVEXATTR of file
capabilities comes unchecked before a write or a SETATTR of nothing, and is checked. LISTXATTR:
unchecked; trusted.* is shown to who has CAP_SYS_ADMIN.
"""

from __future__ import annotations

import errno
import os

from volfs.fs.agreement import Connection
from volfs.fs.files import Attributes, Changes
from volfs.fs.inodes import ROOT_ID, HandleTable, InodeTable
from volfs.fs.native import Status
from volfs.fs.requests.later import Later
from volfs.fs.requests.threads import WorkerThreads
from volfs.fs.root import XATTR_PREFIX, Root, VolumeAttributes
from volfs.linux.identity import Requester
from volfs.linux.syscalls import os_error


class AttributeRequests:
    """The root has its own, and volumes have some that volfs answers itself (``volfs.*``)."""

    def __init__(
        self,
        inodes: InodeTable,
        handles: HandleTable,
        root: Root,
        volume_attributes: VolumeAttributes,
        attributes: Attributes,
        threads: WorkerThreads,
        connection: Connection,
        scope_fd: int,
    ) -> None:
        self._inodes = inodes
        self._handles = handles
        self._root = root
        self._volume_attributes = volume_attributes
        self._attributes = attributes
        self._threads = threads
        self._connection = connection
        self._scope_fd = scope_fd

    def getattr(self, node_id: int) -> Status | Later[Status]:
        if node_id == ROOT_ID:
            # Listed without being opened, the root tells by its mtime what was made and removed
            # beside the mount.
            if self._connection.agreement.lists_by_inode:
                return self._threads.elsewhere(self._root.getattr_anew, on="listing")
            return self._root.getattr()
        inode = self._inodes[node_id]
        if inode.device.slow:
            return self._threads.elsewhere(lambda: self._attributes.getattr(inode), inode)
        return self._attributes.getattr(inode)

    def setattr(
        self, node_id: int, changes: Changes, fh: int | None, ctx: Requester
    ) -> Status | Later[Status]:
        if node_id == ROOT_ID:
            # Its mode and owner are mount options.
            raise os_error(errno.EPERM)
        inode = self._inodes[node_id]
        handle = None if fh is None else self._handles.file(fh)
        size = changes.size

        def call() -> Status:
            return self._attributes.setattr(inode, changes, handle, ctx)

        if size is None:
            return self._threads.changing(call, inode)
        if not self._threads.can_change(inode) or self._attributes.frees_long(inode, size):
            return self._threads.past_leases(call, inode)
        try:
            return self._threads.changing(call, inode)
        except BlockingIOError:
            return self._threads.past_leases(call, inode)

    def statfs(self, node_id: int = ROOT_ID) -> os.statvfs_result | Later[os.statvfs_result]:
        """The filesystem that the inode is on; for the root, the scope's."""
        inode = self._inodes[node_id]
        if node_id == ROOT_ID:
            return self._threads.where_needed(lambda: os.statvfs(self._scope_fd), inode)
        return self._threads.where_needed(lambda: os.statvfs(self._inodes.reach(inode)), inode)

    # -- extended attributes

    def setxattr(
        self, node_id: int, name: bytes, value: bytes, flags: int, ctx: Requester
    ) -> Later[None] | None:
        inode = self._inodes[node_id]
        if name.startswith(XATTR_PREFIX) or node_id == ROOT_ID:
            return self._threads.elsewhere(
                lambda: self._volume_attributes.set(inode, name, value, flags), inode
            )
        return self._threads.changing(
            lambda: self._attributes.setxattr(inode, name, value, flags, ctx), inode
        )

    def getxattr(self, node_id: int, name: bytes) -> bytes | Later[bytes | None] | None:
        """The attribute's value, None if there is none."""
        inode = self._inodes[node_id]
        if name.startswith(XATTR_PREFIX):
            return self._threads.elsewhere(lambda: self._volume_attributes.get(inode, name), inode)
        if node_id == ROOT_ID:
            return None
        if inode.device.slow:
            return self._threads.elsewhere(lambda: self._attributes.getxattr(inode, name), inode)
        return self._attributes.getxattr(inode, name)

    def listxattr(self, node_id: int, ctx: Requester) -> list[bytes] | Later[list[bytes]]:
        # volfs.* is answered but not listed: copying tools would try to set what cannot be set.
        if node_id == ROOT_ID:
            return []
        inode = self._inodes[node_id]
        return self._threads.where_needed(lambda: self._attributes.listxattr(inode, ctx), inode)

    def removexattr(self, node_id: int, name: bytes, ctx: Requester) -> Later[None] | None:
        inode = self._inodes[node_id]
        if name.startswith(XATTR_PREFIX) or node_id == ROOT_ID:
            return self._threads.elsewhere(
                lambda: self._volume_attributes.remove(inode, name), inode
            )
        return self._threads.changing(lambda: self._attributes.removexattr(inode, name, ctx), inode)
