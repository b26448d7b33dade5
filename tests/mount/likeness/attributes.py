"""Calls on what is known of files besides their content: owners, modes, times, attributes."""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys
from ctypes import byref, c_char_p, c_int, c_int64, c_long, c_size_t, c_uint, c_void_p

from tests.mount.likeness.calls import Place
from tests.mount.likeness.slots import Slots
from volfs.linux import syscalls

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = c_long
_libc.utimensat.argtypes = (c_int, c_char_p, c_void_p, c_int)
_libc.futimens.argtypes = (c_int, c_void_p)
for _name in ("getxattr", "lgetxattr"):
    getattr(_libc, _name).argtypes = (c_char_p, c_char_p, c_void_p, c_size_t)
    getattr(_libc, _name).restype = ctypes.c_ssize_t
for _name in ("listxattr", "llistxattr"):
    getattr(_libc, _name).argtypes = (c_char_p, c_void_p, c_size_t)
    getattr(_libc, _name).restype = ctypes.c_ssize_t
_libc.fgetxattr.argtypes = (c_int, c_char_p, c_void_p, c_size_t)
_libc.fgetxattr.restype = ctypes.c_ssize_t
_libc.flistxattr.argtypes = (c_int, c_void_p, c_size_t)
_libc.flistxattr.restype = ctypes.c_ssize_t
_libc.statx.argtypes = (c_int, c_char_p, c_int, c_uint, c_void_p)
# On every architecture.
_SYS_FACCESSAT2 = 439
_SYS_FCHMODAT2 = 452

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_IOC_GETVERSION = 0x80087601
FIONREAD = 0x541B
TCGETS = 0x5401
_SIZES = {FS_IOC_GETFLAGS: 4, FS_IOC_FSGETXATTR: 28, FIONREAD: 4, TCGETS: 60}

STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
AT_STATX_DONT_SYNC = 0x4000


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", c_int64), ("nsec", c_int64))


def _done(result: int) -> int:
    if result < 0:
        raise syscalls.os_error(ctypes.get_errno())
    return result


class Attributes:
    """Each public method is a call."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._buffer = ctypes.create_string_buffer(1 << 16)

    def chmod(self, place: Place, mode: int) -> None:
        path, directory = self._slots.at(place)
        os.chmod(path, mode, dir_fd=directory)

    def fchmodat2(self, place: Place, mode: int, flags: int) -> None:
        directory, path = self._empty(place)
        _done(
            _libc.syscall(
                c_long(_SYS_FCHMODAT2), c_int(directory), c_char_p(path), c_uint(mode), c_int(flags)
            )
        )

    def chown(self, place: Place, uid: int, gid: int, follow: bool) -> None:
        path, directory = self._slots.at(place)
        if isinstance(path, int):
            os.fchown(path, uid, gid)
        else:
            os.chown(path, uid, gid, dir_fd=directory, follow_symlinks=follow)

    def utimensat(
        self, place: Place, atime: tuple[int, int], mtime: tuple[int, int], flags: int
    ) -> None:
        """Times are seconds and nanoseconds, UTIME_NOW and UTIME_OMIT among these."""
        times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
        if isinstance(place, int):
            _done(_libc.futimens(self._slots.fd(place), byref(times)))
        else:
            _done(_libc.utimensat(*self._slots.named(place), byref(times), flags))

    def truncate(self, place: Place, size: int) -> None:
        os.truncate(self._slots.whole(place), size)

    def access(self, place: Place, mode: int, flags: int) -> None:
        directory, path = self._empty(place)
        _done(
            _libc.syscall(
                c_long(_SYS_FACCESSAT2), c_int(directory), c_char_p(path), c_int(mode), c_int(flags)
            )
        )

    def _empty(self, place: Place) -> tuple[int, bytes]:
        """An open file itself, for calls with AT_EMPTY_PATH, or as Slots.named."""
        return (self._slots.fd(place), b"") if isinstance(place, int) else self._slots.named(place)

    # -- asking

    def statx(self, place: Place, flags: int, mask: int) -> tuple[int, bool]:
        """Which of the basic fields that were asked for there are, and whether a birth time is."""
        directory, path = self._empty(place)
        _done(_libc.statx(directory, path, flags, mask, self._buffer))
        told = int.from_bytes(self._buffer.raw[:4], sys.byteorder) & mask
        # What is in the cache need not have it.
        birth = bool(told & STATX_BTIME) and not flags & AT_STATX_DONT_SYNC
        return told & STATX_BASIC_STATS, birth

    def statfs(self, place: Place) -> int:
        """The length of names."""
        return os.statvfs(self._slots.whole(place)).f_namemax

    # -- extended attributes

    def setxattr(self, place: Place, name: bytes, value: bytes, flags: int, follow: bool) -> None:
        path = self._slots.whole(place)
        follow = follow or isinstance(path, int)
        os.setxattr(path, name, value, flags, follow_symlinks=follow)

    def removexattr(self, place: Place, name: bytes, follow: bool) -> None:
        path = self._slots.whole(place)
        os.removexattr(path, name, follow_symlinks=follow or isinstance(path, int))

    def getxattr(self, place: Place, name: bytes, size: int, follow: bool) -> tuple[int, bytes]:
        path = self._slots.whole(place)
        if isinstance(path, int):
            call = _libc.fgetxattr
        else:
            call = _libc.getxattr if follow else _libc.lgetxattr
        count = _done(call(path, name, self._buffer, size))
        return count, self._buffer.raw[: min(count, size)]

    def listxattr(self, place: Place, size: int, follow: bool) -> tuple[int, list[bytes]]:
        path = self._slots.whole(place)
        if isinstance(path, int):
            call = _libc.flistxattr
        else:
            call = _libc.listxattr if follow else _libc.llistxattr
        count = _done(call(path, self._buffer, size))
        return count, sorted(self._buffer.raw[: min(count, size)].split(b"\0"))

    # -- flags

    def ioctl(self, slot: int, command: int, value: tuple[int, ...]) -> bytes | None:
        """``value`` is an inode's flags, or its extended flags and project id."""
        fd = self._slots.fd(slot)
        if command == FS_IOC_SETFLAGS:
            fcntl.ioctl(fd, command, value[0].to_bytes(4, sys.byteorder))
            return None
        if command == FS_IOC_FSSETXATTR:
            flags, project = value
            known = bytearray(fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(28)))
            known[:4] = flags.to_bytes(4, sys.byteorder)
            known[12:16] = project.to_bytes(4, sys.byteorder)
            fcntl.ioctl(fd, command, bytes(known))
            return None
        told = fcntl.ioctl(fd, command, bytes(_SIZES.get(command, 64)))
        return None if command == FS_IOC_GETVERSION else told
