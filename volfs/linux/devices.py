"""On which filesystem something is, told without asking that filesystem; and descriptors as
/proc shows them."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from volfs.linux.syscalls import AT_FDCWD, os_error

_AT_NO_AUTOMOUNT = 0x800
_AT_STATX_DONT_SYNC = 0x4000
_STATX_SIZE = 256
_RDEV, _DEV = 128, 136
"""Offsets in struct statx, where major and minor number stand."""

_SYS_PIDFD_GETFD = 438
"""The same on all architectures."""

_libc = ctypes.CDLL(None, use_errno=True)


def device_of(path: str) -> str:
    """Return the st_dev, as "major:minor", of what ``path`` leads to, links followed.

    Nothing else is asked for, which a filesystem answers from memory, also one whose server
    hangs or is gone, and a FUSE filesystem that is another user's (fuse_getattr in the kernel).
    Of a link below /proc the path is not walked either. Raises OSError.
    """
    return _number(_statx(path), _DEV)


def special_of(path: str) -> str:
    """Return the st_rdev of what ``path`` leads to, in the same way; "0:0" of no device file."""
    return _number(_statx(path), _RDEV)


def _statx(path: str) -> bytes:
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    if _libc.statx(AT_FDCWD, os.fsencode(path), flags, 0, buffer) != 0:
        raise os_error(ctypes.get_errno(), path)
    return buffer.raw


def _number(status: bytes, offset: int) -> str:
    major, minor = struct.unpack_from("=II", status, offset)
    return f"{major}:{minor}"


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Return a duplicate of another process's descriptor (pidfd_getfd(2)). Raises OSError."""
    copy = int(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, fd, 0))
    if copy < 0:
        raise os_error(ctypes.get_errno())
    return copy


def fdinfo(fd: int) -> dict[str, str]:
    """Return what /proc/self/fdinfo says of a descriptor, by key (proc_pid_fdinfo(5))."""
    fields = {}
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        key, _, value = line.partition(":")
        fields[key] = value.strip()
    return fields
