"""What replies about inodes consist of: entries and attributes, with the time they may be kept."""

from __future__ import annotations

import stat

from volfs.fs.files import CachePolicy, Found
from volfs.fs.inodes import InodeTable
from volfs.fs.native import Status
from volfs.fs.native._records import Status as WireStatus
from volfs.fs.wire import protocol

_NS = 10**9
_SUID_OR_SGID = stat.S_ISUID | stat.S_ISGID


class Entries:
    """Packs them for the wire. ``timeout`` and ``root_timeout`` are the policy's, in
    nanoseconds."""

    def __init__(self, inodes: InodeTable, cache: CachePolicy) -> None:
        self._root = inodes.root
        self.timeout = int(cache.timeout * _NS)
        self.root_timeout = int(cache.root_timeout * _NS)

    def entry(self, found: Found, *, keep: bool = True) -> bytes:
        """struct fuse_entry_out of a file that was looked up; ``keep``: its attributes, too."""
        inode, status = found
        if not isinstance(status, WireStatus):  # the root's, as the parent of a volume's top
            return protocol.entry_out(status, inode.node_id, self.root_timeout)
        return status.entry_out(
            inode.node_id,
            inode.generation,
            inode.number,
            self.root_timeout if inode.parent is self._root else self.timeout,
            self.attribute_timeout(status.st_mode) if keep else 0,
        )

    def attributes(self, number: int, status: Status) -> bytes:
        """struct fuse_attr_out, with ``number`` as inode number."""
        if isinstance(status, WireStatus):
            return status.attr_out(number, self.attribute_timeout(status.st_mode))
        return protocol.attr_out(status, number, self.root_timeout)

    def attribute_timeout(self, mode: int) -> int:
        """How long the kernel may keep attributes, in nanoseconds: see CachePolicy."""
        return 0 if mode & _SUID_OR_SGID and stat.S_ISREG(mode) else self.timeout


def no_entry(timeout: int) -> bytes:
    """struct fuse_entry_out of a name that is absent, which may be kept ``timeout`` nanoseconds.

    Node id 0 is ENOENT to the kernel (fuse_lookup_name in fs/fuse/dir.c), with a timeout.
    """
    return (
        bytes(16)
        + protocol.U64.pack(timeout // _NS)
        + bytes(8)
        + (timeout % _NS).to_bytes(4, "little")
        + bytes(92)
    )
