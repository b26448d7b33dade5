"""The FUSE protocol, as linux/fuse.h lays it down: opcodes, structures, flags.

Bodies are what follows the header of a request or a reply.
"""

from __future__ import annotations

import enum
import os
from struct import Struct
from typing import NamedTuple

from volfs.fs.native import Status


class Opcode(enum.IntEnum):
    """Kinds of requests."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


def opcode_name(opcode: int) -> str:
    """The opcode's name, or its number where it has none here."""
    try:
        return Opcode(opcode).name
    except ValueError:
        return str(opcode)


class Who(NamedTuple):
    """Who sent a request, with the umask where the request carries one."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


# -- structures, named as in the header

FORGET_ONE = Struct("=QQ")  # node id, lookups
U64 = Struct("=Q")
U32_PAIR = Struct("=II")
SETATTR_IN = Struct("=I4xQQ8xqq8xII4xI4xII4x")
"""valid, fh, size, atime, mtime, atimensec, mtimensec, mode, uid, gid"""
MKNOD_IN = Struct("=III4x")  # mode, rdev, umask
RENAME2_IN = Struct("=QI4x")  # new directory, flags
CREATE_IN = Struct("=IIII")  # flags, mode, umask, open flags
OPEN_OUT = Struct("=QIi")  # fh, flags, backing id
READ_IN = Struct("=QQI20x")  # fh, offset, size
WRITE_IN = Struct("=QQII8xI4x")  # fh, offset, size, write flags, open flags
WRITE_OUT = Struct("=I4x")  # size
RELEASE_IN = Struct("=QIIQ")  # fh, flags, release flags, lock owner
FLUSH_IN = Struct("=Q8xQ")  # fh, lock owner
FSYNC_IN = Struct("=QI4x")  # fh, flags
SETXATTR_IN = Struct("=II")  # size, flags
LK_IN = Struct("=QQQQIII4x")  # fh, owner, start, end, type, pid, flags
LK_OUT = Struct("=QQII")  # start, end, type, pid
FALLOCATE_IN = Struct("=QQQI4x")  # fh, offset, length, mode
LSEEK_IN = Struct("=QqI4x")  # fh, offset, whence
COPY_IN = Struct("=7Q")  # fh, offset, target's node id, fh and offset, length, flags
IOCTL_IN = Struct("=QIIQII")  # fh, flags, command, argument, size in, size out
IOCTL_OUT = Struct("=iIII")  # result, flags, and two counts
STATX_IN = Struct("=8xQII")  # fh, flags, mask
KSTATFS = Struct("=5Q4I24x")
ATTR_OUT = Struct("=QI4xQQQqqqIIIIIIIIII")
_ENTRY_HEAD = Struct("=QQQQII")  # node id, generation, and how long to keep entry and attributes

STATX_OUT = Struct("=32xII8xIIIH2xQQQ8xqI4x16xqI4xqI4x16x112x")
STATX_BASIC_STATS = 0x7FF

FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_KILL_SUIDGID = 1 << 11

FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FOPEN_NOFLUSH = 1 << 5
FOPEN_PASSTHROUGH = 1 << 7

FUSE_OPEN_KILL_SUIDGID = 1 << 0
FUSE_WRITE_CACHE = 1 << 0
FUSE_WRITE_KILL_SUIDGID = 1 << 2
FUSE_FSYNC_FDATASYNC = 1 << 0
FUSE_LK_FLOCK = 1 << 0
FUSE_IOCTL_DIR = 1 << 4

_NS = 10**9
_ATTR_IN_ATTR_OUT = 16
"""Where struct fuse_attr begins in struct fuse_attr_out."""


def attr_out(status: Status, node_id: int, timeout_ns: int) -> bytes:
    """struct fuse_attr_out of any Status; _records.Status does it quicker."""
    return ATTR_OUT.pack(
        timeout_ns // _NS,
        timeout_ns % _NS,
        node_id,
        status.st_size,
        status.st_blocks,
        status.st_atime_ns // _NS,
        status.st_mtime_ns // _NS,
        status.st_ctime_ns // _NS,
        status.st_atime_ns % _NS,
        status.st_mtime_ns % _NS,
        status.st_ctime_ns % _NS,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_blksize,
        0,
    )


def entry_out(status: Status, node_id: int, timeout_ns: int) -> bytes:
    """struct fuse_entry_out of any Status, of generation 0; _records.Status does it quicker."""
    seconds, nanoseconds = divmod(timeout_ns, _NS)
    head = _ENTRY_HEAD.pack(node_id, 0, seconds, seconds, nanoseconds, nanoseconds)
    return head + attr_out(status, node_id, 0)[_ATTR_IN_ATTR_OUT:]


def statx_out(status: Status, node_id: int) -> bytes:
    """struct fuse_statx_out of any Status, not to be kept; for what statx(2) does not know."""
    return STATX_OUT.pack(
        STATX_BASIC_STATS,
        status.st_blksize,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_mode,
        node_id,
        status.st_size,
        status.st_blocks,
        status.st_atime_ns // _NS,
        status.st_atime_ns % _NS,
        status.st_ctime_ns // _NS,
        status.st_ctime_ns % _NS,
        status.st_mtime_ns // _NS,
        status.st_mtime_ns % _NS,
    )


def statfs_out(status: os.statvfs_result) -> bytes:
    """struct fuse_kstatfs.

    It has no place for the mount's flags and the filesystem's id: the kernel shows its own.
    """
    return KSTATFS.pack(
        status.f_blocks,
        status.f_bfree,
        status.f_bavail,
        status.f_files,
        status.f_ffree,
        min(status.f_bsize, 0xFFFF_FFFF),
        min(status.f_namemax, 0xFFFF_FFFF),
        min(status.f_frsize, 0xFFFF_FFFF),
        0,
    )
