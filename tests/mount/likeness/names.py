"""Calls on names: open, make, move, remove, list."""

from __future__ import annotations

import ctypes
import os
from ctypes import c_char_p, c_int, c_long, c_void_p
from struct import Struct

from tests.mount.likeness.calls import Place
from tests.mount.likeness.slots import Slots
from volfs.linux import syscalls

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = c_long
_libc.linkat.argtypes = (c_int, c_char_p, c_int, c_char_p, c_int)
_DIRENT = Struct("=16xHB")  # linux_dirent64: its length, the type of the file; then the name
_SYS_GETDENTS64 = {"x86_64": 217, "aarch64": 61}[os.uname().machine]


class Names:
    """Each public method is a call."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._entries = ctypes.create_string_buffer(1 << 15)

    def open(self, slot: int, place: Place, flags: int, mode: int) -> None:
        # Without O_NONBLOCK a FIFO would wait for its other end.
        path, directory = self._slots.at(place)
        fd = os.open(path, flags | os.O_NONBLOCK, mode, dir_fd=directory)
        self._slots.put(slot, fd)

    def mkdir(self, place: Place, mode: int) -> None:
        path, directory = self._slots.at(place)
        os.mkdir(path, mode, dir_fd=directory)

    def rmdir(self, place: Place) -> None:
        path, directory = self._slots.at(place)
        os.rmdir(path, dir_fd=directory)

    def unlink(self, place: Place) -> None:
        path, directory = self._slots.at(place)
        os.unlink(path, dir_fd=directory)

    def rename(self, place: Place, new_place: Place, flags: int) -> None:
        syscalls.renameat2(*self._slots.named(place), *self._slots.named(new_place), flags)

    def link(self, place: Place, new_place: Place, flags: int) -> None:
        # os.link follows a link only when told of a directory.
        directory, path = (
            (self._slots.fd(place), b"") if isinstance(place, int) else self._slots.named(place)
        )
        if _libc.linkat(directory, path, *self._slots.named(new_place), flags) != 0:
            raise syscalls.os_error(ctypes.get_errno())

    def symlink(self, target: bytes, place: Place) -> None:
        path, directory = self._slots.at(place)
        os.symlink(target, path, dir_fd=directory)

    def readlink(self, place: Place) -> bytes:
        if isinstance(place, int):
            return os.readlink(b"", dir_fd=self._slots.fd(place))
        path, directory = self._slots.at(place)
        target: bytes = os.readlink(path, dir_fd=directory)
        return target

    def mknod(self, place: Place, mode: int, device: int) -> None:
        path, directory = self._slots.at(place)
        os.mknod(path, mode, device, dir_fd=directory)

    def getdents(self, slot: int, rewind: bool) -> list[tuple[bytes, int]]:
        """All that is left to be read of a directory: names and types, sorted."""
        fd = self._slots.fd(slot)
        if rewind:
            os.lseek(fd, 0, os.SEEK_SET)
        found = []
        while count := self._getdents(fd):
            entries, start = self._entries.raw, 0
            while start < count:
                length, kind = _DIRENT.unpack_from(entries, start)
                name = entries[start + _DIRENT.size : start + length].split(b"\0", 1)[0]
                found.append((name, kind))
                start += length
        return sorted(found)

    def _getdents(self, fd: int) -> int:
        count = _libc.syscall(
            c_long(_SYS_GETDENTS64), c_int(fd), c_void_p(ctypes.addressof(self._entries)), 1 << 15
        )
        if count < 0:
            raise syscalls.os_error(ctypes.get_errno())
        return int(count)

    # -- where and how

    def chdir(self, place: Place) -> None:
        os.chdir(self._slots.whole(place))

    def umask(self, mask: int) -> int:
        return os.umask(mask)
