"""Linux system calls that Python's os module lacks, as typed functions that raise OSError.

Names and arguments are those of the manual pages; all paths are bytes relative to a directory
descriptor, except where mount(2) and umount2(2) take a place in the namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_int,
    c_int64,
    c_long,
    c_size_t,
    c_uint,
    c_uint64,
    c_ulong,
    c_void_p,
)

_libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
CLONE_FS = 0x200
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_NOATIME = 1024
MS_POSIXACL = 1 << 16
RESOLVE_NO_XDEV = 1
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
FALLOC_FL_COLLAPSE_RANGE = 8
FALLOC_FL_ZERO_RANGE = 16
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24
CAP_SETFCAP = 31
PR_SET_SECUREBITS = 28
PR_GET_SECUREBITS = 27
SECBIT_NO_SETUID_FIXUP = 1 << 2

_MAX_HANDLE_SZ = 128
_CAPABILITY_VERSION_3 = 0x20080522


def os_error(code: int, name: str | bytes | None = None) -> OSError:
    """The OSError that a system call fails with: of an errno, about the file ``name``."""
    return OSError(code, os.strerror(code), name)


def _fail(name: bytes | None = None) -> OSError:
    return os_error(ctypes.get_errno(), name)


_libc.renameat2.argtypes = (c_int, c_char_p, c_int, c_char_p, c_uint)


def renameat2(src_dir: int, src: bytes, dst_dir: int, dst: bytes, flags: int) -> None:
    """renameat2(2): rename with RENAME_NOREPLACE or RENAME_EXCHANGE."""
    if _libc.renameat2(src_dir, src, dst_dir, dst, flags) != 0:
        raise _fail(dst)


def syncfs(fd: int) -> None:
    """syncfs(2): write what the filesystem that ``fd`` is on has not yet written."""
    if _libc.syncfs(c_int(fd)) != 0:
        raise _fail()


# With 64-bit offsets everywhere: C libraries without fallocate64 have no shorter ones.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (c_int, c_int, c_int64, c_int64)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), with FALLOC_FL_* in ``mode``; offset and length in bytes."""
    if _fallocate(fd, mode, offset, length) != 0:
        raise _fail()


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", c_uint64), ("mode", c_uint64), ("resolve", c_uint64))


_libc.syscall.restype = c_long
_SYS_OPENAT2 = 437  # on every architecture: it came after they were given common numbers


def openat2(dir_fd: int, name: bytes, flags: int, resolve: int) -> int:
    """openat2(2) with RESOLVE_*; returns a descriptor. Raises OSError(ENOSYS) before Linux 5.6.

    RESOLVE_NO_XDEV answers EXDEV where anything is mounted, be it of the same filesystem.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    fd = int(
        _libc.syscall(
            c_long(_SYS_OPENAT2),
            c_int(dir_fd),
            c_char_p(name),
            byref(how),
            c_size_t(ctypes.sizeof(how)),
        )
    )
    if fd < 0:
        raise _fail(name)
    return fd


_SYS_OPEN_TREE = 428
_OPEN_TREE_CLONE = 1


def open_tree_clone(fd: int) -> int:
    """open_tree(2): an O_PATH descriptor of a directory, on a mount that nobody else sees.

    Nothing is mounted below it. Needs CAP_SYS_ADMIN and Linux 5.2.
    """
    clone = int(
        _libc.syscall(
            c_long(_SYS_OPEN_TREE),
            c_int(fd),
            c_char_p(b""),
            c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH),
        )
    )
    if clone < 0:
        raise _fail()
    return clone


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("set", c_uint64),
        ("clear", c_uint64),
        ("propagation", c_uint64),
        ("userns_fd", c_uint64),
    )


_SYS_MOUNT_SETATTR = 442
_MOUNT_ATTR_NOATIME = 0x10
_MOUNT_ATTR_ATIME = 0x70


def set_noatime(mount_fd: int) -> None:
    """mount_setattr(2) of the mount whose root ``mount_fd`` is: no times of access are kept.

    Needs CAP_SYS_ADMIN and Linux 5.12.
    """
    attributes = _MountAttr(_MOUNT_ATTR_NOATIME, _MOUNT_ATTR_ATIME, 0, 0)
    done = _libc.syscall(
        c_long(_SYS_MOUNT_SETATTR),
        c_int(mount_fd),
        c_char_p(b""),
        c_uint(AT_EMPTY_PATH),
        byref(attributes),
        c_size_t(ctypes.sizeof(attributes)),
    )
    if done != 0:
        raise _fail()


_sync_file_range = _libc.sync_file_range
_sync_file_range.argtypes = (c_int, c_int64, c_int64, c_uint)
_SYNC_FILE_RANGE_ALL = 1 | 2 | 4  # WAIT_BEFORE, WRITE and WAIT_AFTER


def write_back(fd: int) -> None:
    """sync_file_range(2): have the pages of a file written, so that none is dirty.

    Not as durable as fsync(2): neither metadata nor the disk's cache is written.
    """
    if _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_ALL) != 0:
        raise _fail()


class _Timespec(ctypes.Structure):  # struct __kernel_timespec, on 32-bit machines too
    _fields_ = (("sec", c_int64), ("nsec", c_int64))


_TimespecPair = _Timespec * 2
# utimensat_time64 for processes of 32 bits, whatever the kernel has: the other ends in 2038.
_SYS_UTIMENSAT = (
    {"x86_64": 280, "aarch64": 88}.get(os.uname().machine) if ctypes.sizeof(c_void_p) == 8 else 412
)


NOW = 1 << 127
"""A time for ``utimensat`` beyond any real one: the kernel's own idea of now."""


def _timespec(time_ns: int | None) -> _Timespec:
    if time_ns is None:
        return _Timespec(0, UTIME_OMIT)
    if time_ns == NOW:
        return _Timespec(0, UTIME_NOW)
    return _Timespec(time_ns // 10**9, time_ns % 10**9)


def utimensat(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """utimensat(2) on the descriptor itself, O_PATH or not.

    Times in nanoseconds since 1970, or NOW; None leaves that time alone.

    glibc's wrapper refuses an empty path in old versions, so the system call is made directly.
    """
    times = _TimespecPair(_timespec(atime_ns), _timespec(mtime_ns))
    if _SYS_UTIMENSAT is None:
        done = _libc.utimensat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), byref(times), 0)
    else:
        done = _libc.syscall(
            c_long(_SYS_UTIMENSAT), c_int(fd), b"", byref(times), c_int(AT_EMPTY_PATH)
        )
    if done != 0:
        raise _fail()


_libc.name_to_handle_at.argtypes = (c_int, c_char_p, c_void_p, POINTER(c_int), c_int)
_libc.open_by_handle_at.argtypes = (c_int, c_void_p, c_int)


def name_to_handle_at(fd: int) -> tuple[bytes, int]:
    """Return the file handle of what ``fd`` refers to, and the id of the mount it is seen on.

    The bytes hold handle_type and f_handle of name_to_handle_at(2); they name the inode with
    its generation, so two files that had the same inode number one after the other have different
    file handles. Raises OSError(EOPNOTSUPP) where the filesystem has no file handles.
    """
    buffer = ctypes.create_string_buffer(8 + _MAX_HANDLE_SZ)
    struct.pack_into("I", buffer, 0, _MAX_HANDLE_SZ)
    mount_id = c_int()
    if _libc.name_to_handle_at(fd, b"", buffer, byref(mount_id), AT_EMPTY_PATH) != 0:
        raise _fail()
    (size,) = struct.unpack_from("I", buffer, 0)
    return buffer.raw[4 : 8 + size], mount_id.value


def open_by_handle_at(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open what a file handle from name_to_handle_at names (open_by_handle_at(2)).

    ``mount_fd`` is any descriptor on the same mount opened without O_PATH. Needs
    CAP_DAC_READ_SEARCH. Raises OSError(ESTALE) when the file is gone.
    """
    buffer = ctypes.create_string_buffer(
        struct.pack("I", len(handle) - 4) + handle, 4 + len(handle)
    )
    fd: int = _libc.open_by_handle_at(mount_fd, buffer, flags | os.O_CLOEXEC)
    if fd < 0:
        raise _fail()
    return fd


_libc.setfsuid.argtypes = (c_uint,)
_libc.setfsgid.argtypes = (c_uint,)


def setfsids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2) for the calling thread. Do not report failure, as the calls
    do not."""
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    if _libc.unshare(c_int(flags)) != 0:
        raise _fail()


def prctl(option: int, value: int) -> int:
    """prctl(2) with one argument; returns its result."""
    result: int = _libc.prctl(c_int(option), c_ulong(value), c_ulong(0), c_ulong(0), c_ulong(0))
    if result < 0:
        raise _fail()
    return result


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", c_uint), ("pid", c_int))


_CapData = c_uint * 6


def capget() -> tuple[int, int, int]:
    """Return the calling thread's (effective, permitted, inheritable) capability masks."""
    data = _CapData()
    if _libc.capget(byref(_CapHeader(_CAPABILITY_VERSION_3, 0)), byref(data)) != 0:
        raise _fail()
    return (
        data[0] | data[3] << 32,
        data[1] | data[4] << 32,
        data[2] | data[5] << 32,
    )


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's capability masks (capset(2))."""
    low = 0xFFFFFFFF
    data = _CapData(
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> 32,
        permitted >> 32,
        inheritable >> 32,
    )
    if _libc.capset(byref(_CapHeader(_CAPABILITY_VERSION_3, 0)), byref(data)) != 0:
        raise _fail()


_libc.mount.argtypes = (c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_libc.umount2.argtypes = (c_char_p, c_int)


def mount(source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
    """mount(2)."""
    if _libc.mount(source, target, fstype, flags, data) != 0:
        raise _fail(target)


def umount2(target: bytes, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(target, flags) != 0:
        raise _fail(target)


NO_HANDLES = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EOVERFLOW))
"""What name_to_handle_at and open_by_handle_at answer where file handles cannot be used."""

_libc.fstatfs.argtypes = (c_int, c_void_p)


def filesystem_type(fd: int) -> int:
    """f_type of fstatfs(2): the magic number of the filesystem ``fd`` is on."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer) != 0:
        raise _fail()
    (magic,) = struct.unpack_from("@l", buffer, 0)
    return int(magic) & 0xFFFFFFFF
