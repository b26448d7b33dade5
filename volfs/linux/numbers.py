"""Files found by inode number alone, as the kernel's NFS server finds them.

A file handle is a number and a generation. ext4, btrfs and f2fs take generation 0 for any
(ext4_nfs_get_inode in fs/ext4/super.c, btrfs_get_dentry in fs/btrfs/export.c), XFS is asked for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from struct import Struct

from volfs.linux.syscalls import filesystem_type, open_by_handle_at, os_error

# enum fid_type in linux/exportfs.h, and what follows it in a file handle.
_SHORT = 0x01
_LAYOUTS = {
    _SHORT: Struct("=III"),  # FILEID_INO32_GEN: ext4, f2fs, and XFS with small numbers
    0x81: Struct("=IQI"),  # XFS (fs/xfs/xfs_export.h)
    0x4D: Struct("=IQQI"),  # FILEID_BTRFS_WITHOUT_PARENT, with the subvolume between
}

_XFS_IOC_BULKSTAT = 0x8040587F
_XFS = 0x58465342  # f_type of statfs(2), from linux/magic.h
_BULK_HEAD = Struct("=QIII44x")  # ino, flags, room for, found
_BULK_RECORD = Struct("=Q56xI124x")  # ino, generation
"""struct xfs_bulk_ireq and struct xfs_bulkstat in fs/xfs/libxfs/xfs_fs.h."""


def open_by_number(fd: int, example: bytes, number: int) -> int:
    """Return an O_PATH descriptor of the file with this inode number.

    ``fd`` is a descriptor without O_PATH on its mount, ``example`` a file handle, from
    name_to_handle_at, of any file on the same filesystem (the same subvolume of a btrfs). Needs
    CAP_DAC_READ_SEARCH, for XFS CAP_SYS_ADMIN. Raises OSError(ESTALE) when there is none, or when
    the filesystem does not find files so.
    """
    layout = _LAYOUTS.get(int.from_bytes(example[:4], "little"))
    if layout is None or layout.size != len(example) or number >= 1 << 64:
        raise os_error(errno.ESTALE)
    if layout is _LAYOUTS[_SHORT] and number >= 1 << 32:
        raise os_error(errno.ESTALE)
    kind, _, *subvolume, _ = layout.unpack(example)
    for generation in (0, *_generations(fd, number)):
        handle = layout.pack(kind, number, *subvolume, generation)
        try:
            found = open_by_handle_at(fd, handle, os.O_PATH)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            continue
        if os.fstat(found).st_ino == number:
            return found
        os.close(found)
    raise os_error(errno.ESTALE)


def _generations(fd: int, number: int) -> list[int]:
    """The generation of an inode, as far as there is a way to ask for it without the inode."""
    if filesystem_type(fd) != _XFS:
        return []
    record = bytearray(_BULK_HEAD.pack(number, 0, 1, 0) + bytes(_BULK_RECORD.size))
    fcntl.ioctl(fd, _XFS_IOC_BULKSTAT, record)
    # It tells of the next one, when there is none with this number.
    found, generation = _BULK_RECORD.unpack_from(record, _BULK_HEAD.size)
    return [generation] if found == number else []
