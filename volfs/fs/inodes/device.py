"""Device: one backing filesystem as the tree sees it."""

from __future__ import annotations

import logging
import os
import stat

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

# Node ids of devices other than the scope's: the top bit, 15 bits of the device, 48 of the inode.
_FOREIGN = 1 << 63
_INODE_BITS = 48


class Device:
    """What the tree needs to know of the filesystem with device number ``dev``.

    ``slow``: its calls can block for long and must not run on the event loop.
    ``anchor``: a descriptor on it for open_by_handle_at, -1 where handles do not work;
    ``mount_id``: the mount that the anchor is on, and so what is opened with it.
    ``nowait``: preadv2's RWF_NOWAIT works on it.
    ``passthrough``: as far as is known, the kernel can read its files itself.
    ``reserves``: it keeps blocks for root.
    ``base``: what is added to inode numbers in node ids; 0 where these are the numbers.
    """

    __slots__ = ("anchor", "base", "dev", "mount_id", "nowait", "passthrough", "reserves", "slow")

    def __init__(self, dev: int, fd: int, *, main: bool) -> None:
        self.dev = dev
        self.slow = syscalls.filesystem_type(fd) in _NETWORK
        self.nowait = True
        self.passthrough = True
        self.reserves = not self.slow and _has_reserve(fd)
        self.base = (
            0
            if main
            else _FOREIGN | (os.major(dev) << 8 ^ os.minor(dev)) % (1 << 15) << _INODE_BITS
        )
        self.anchor, self.mount_id = _anchor(fd)

    def node_id(self, ino: int) -> int:
        """The node id for inode number ``ino``: itself on the scope's device, where users see it.

        A pure function, so that numbers stay over forgetting and remounting.
        """
        if not self.base and ino != 0:
            return ino
        # Zero as a node id says that there is no such file.
        return (self.base or _FOREIGN) + ino % (1 << _INODE_BITS)

    def close(self) -> None:
        if self.anchor >= 0:
            os.close(self.anchor)
            self.anchor = -1


def _has_reserve(fd: int) -> bool:
    status = os.fstatvfs(fd)
    return status.f_bavail != status.f_bfree


def _anchor(fd: int) -> tuple[int, int]:
    """A descriptor that open_by_handle_at takes for the filesystem of ``fd``, or -1; its mount."""
    if stat.S_IFMT(os.fstat(fd).st_mode) not in (stat.S_IFDIR, stat.S_IFREG):
        return -1, -1
    anchor = -1
    try:
        anchor = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        handle, mount_id = syscalls.name_to_handle_at(anchor)
        os.close(syscalls.open_by_handle_at(anchor, handle, os.O_PATH))
    except OSError as error:
        log.debug("no file handles on the device of descriptor %d: %s", fd, error)
        if anchor >= 0:
            os.close(anchor)
        return -1, -1
    return anchor, mount_id
