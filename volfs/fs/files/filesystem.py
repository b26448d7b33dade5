"""The filesystem that a file is on, as statfs(2) shows it."""

from __future__ import annotations

import os
import struct

_KSTATFS = struct.Struct("=5Q4I24x")


def packed(result: os.statvfs_result) -> bytes:
    """struct fuse_kstatfs of linux/fuse.h, the body of the reply to STATFS.

    It has no place for the mount's flags and the filesystem's id: the kernel shows its own.
    """
    return _KSTATFS.pack(
        result.f_blocks,
        result.f_bfree,
        result.f_bavail,
        result.f_files,
        result.f_ffree,
        min(result.f_bsize, 0xFFFF_FFFF),
        min(result.f_namemax, 0xFFFF_FFFF),
        min(result.f_frsize, 0xFFFF_FFFF),
        0,
    )
