"""Device: one backing filesystem as the tree sees it."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Collection

from volfs.linux import syscalls

log = logging.getLogger(__name__)

# f_type of statfs(2), from linux/magic.h, of filesystems whose calls can wait for another
# machine or another daemon.
_NETWORK = frozenset(
    (
        0x6969,  # NFS
        0xFF534D42,  # CIFS
        0xFE534D42,  # SMB2
        0x517B,  # SMB
        0x00C36400,  # Ceph
        0x65735546,  # FUSE: GlusterFS, sshfs, ...
        0x01021997,  # 9P
        0x5346414F,  # AFS
        0x73757245,  # Coda
        0x0BD00BD0,  # Lustre
        0x47504653,  # GPFS
        0x19830326,  # BeeGFS
        0x7461636F,  # OCFS2
        0x01161970,  # GFS2
    )
)

# Inode numbers of filesystems other than the scope's: below 2^48, so that programs that hold them
# as doubles or signed numbers (Node.js, Java) do not confuse them. The top bit; then 14 bits for
# the filesystem and 32 for the number; or, where that has more, the next bit and 46 of a hash.
_FOREIGN = 1 << 47
_LARGE = 1 << 46
_TAG_BITS = 14
_INODE_BITS = 32
_MASK = (1 << 64) - 1


class Anchor:
    """A descriptor on a mount, which open_by_handle_at(2) takes; shared by its filesystems.

    (The subvolumes of a btrfs are filesystems of their own on one mount.)
    """

    __slots__ = ("fd", "mount_id", "users")

    def __init__(self, fd: int, mount_id: int) -> None:
        self.fd = fd
        self.mount_id = mount_id
        self.users = 0


class Device:
    """What the tree needs to know of the filesystem with device number ``dev``.

    ``slow``: its calls can block for long and must not run on the event loop.
    ``anchor``: what its files are found again with, None where file handles do not work, or while
    none of them is known. ``anchored``: the file handle of one of its files, as an example.
    ``known``: how many of its files are. ``nowait``: preadv2's RWF_NOWAIT
    works on it. ``passthrough``: as far as is known, the kernel can read its files itself.
    ``reserves``: it keeps blocks for root.
    ``base``: where the numbers that users see of its files begin; 0 where these are the files' own.
    """

    __slots__ = (
        "anchor",
        "anchored",
        "base",
        "dev",
        "has_handles",
        "known",
        "nowait",
        "passthrough",
        "reserves",
        "slow",
    )

    def __init__(self, dev: int, fd: int, *, main: bool, taken: Collection[int] = ()) -> None:
        """``fd`` is a descriptor on it; ``taken`` are the bases of other devices."""
        self.dev = dev
        self.slow = syscalls.filesystem_type(fd) in _NETWORK
        self.nowait = True
        self.passthrough = True
        self.known = 0
        self.anchor: Anchor | None = None
        self.anchored = b""
        self.has_handles = True
        status = os.fstatvfs(fd)
        self.reserves = not self.slow and status.f_bavail != status.f_bfree
        self.base = 0 if main else _base(status.f_fsid or dev, taken)

    def node_id(self, ino: int) -> int:
        """The number that users see for inode number ``ino``, and its node id if that is free. On
        the scope's filesystem it is ``ino`` itself.

        A pure function, so that numbers stay over forgetting and remounting. (Unless two
        filesystems have the same 14 bits: then the one that is met first has them.)
        """
        if not self.base and ino != 0:
            return ino
        # Zero as a node id says that there is no such file.
        base = self.base or _FOREIGN
        if ino < 1 << _INODE_BITS:
            return base | ino
        return _FOREIGN | _LARGE | _mixed(ino + base) >> 18

    def inode_number(self, node_id: int) -> int | None:
        """The inode number that ``node_id`` makes this number of; None if that cannot be told."""
        if not self.base:
            return node_id if node_id < _FOREIGN else None
        return node_id - self.base if node_id >> _INODE_BITS == self.base >> _INODE_BITS else None


def open_anchor(fd: int) -> Anchor | None:
    """An anchor on the mount that ``fd`` is on; None where no files are found again with it."""
    if stat.S_IFMT(os.fstat(fd).st_mode) not in (stat.S_IFDIR, stat.S_IFREG):
        return None
    anchor = -1
    try:
        anchor = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        file_handle, mount_id = syscalls.name_to_handle_at(anchor)
        os.close(syscalls.open_by_handle_at(anchor, file_handle, os.O_PATH))
    except OSError as error:
        log.debug("no file handles on the device of descriptor %d: %s", fd, error)
        if anchor >= 0:
            os.close(anchor)
        return None
    return Anchor(anchor, mount_id)


def _base(fsid: int, taken: Collection[int]) -> int:
    tag = _mixed(fsid & _MASK) >> 64 - _TAG_BITS
    while True:
        base = _FOREIGN | tag << _INODE_BITS
        if base not in taken or len(taken) >= 1 << _TAG_BITS:
            return base
        tag = (tag + 1) % (1 << _TAG_BITS)


def _mixed(number: int) -> int:
    """64 bits, each of which depends on each of the number's (the finalizer of splitmix64)."""
    number &= _MASK
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31
