"""Calls on what is in open files: reading, writing, ranges, mappings."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from ctypes import c_int, c_int64, c_size_t, c_void_p
from typing import NamedTuple

from tests.mount.likeness.slots import Slots
from volfs.linux import syscalls

LONGEST = 1 << 17
"""Bytes that are read or written at most."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.read.argtypes = _libc.write.argtypes = (c_int, c_void_p, c_size_t)
_libc.pread.argtypes = _libc.pwrite.argtypes = (c_int, c_void_p, c_size_t, c_int64)
_libc.read.restype = _libc.write.restype = ctypes.c_ssize_t
_libc.pread.restype = _libc.pwrite.restype = ctypes.c_ssize_t
_libc.mmap.argtypes = (c_void_p, c_size_t, c_int, c_int, c_int, c_int64)
_libc.mmap.restype = c_void_p
_libc.munmap.argtypes = (c_void_p, c_size_t)
_libc.msync.argtypes = (c_void_p, c_size_t, c_int)
_libc.sync_file_range.argtypes = (c_int, c_int64, c_int64, ctypes.c_uint)
_libc.readahead.argtypes = (c_int, c_int64, c_size_t)
_MAP_FAILED = c_void_p(-1).value


def _done(result: int) -> int:
    if result < 0:
        raise syscalls.os_error(ctypes.get_errno())
    return result


def content(number: int, length: int) -> bytes:
    """Bytes in which each place can be told from its neighbours, and each number from others."""
    unit = b"%07d " % number
    return (unit * (length // len(unit) + 1))[:length]


class _Mapping(NamedTuple):
    """Mapped memory, and the file there, which is O_PATH."""

    address: int
    length: int
    file: int
    offset: int


_NO_MAPPING = _Mapping(0, 0, -1, 0)


class Data:
    """Each public method but ``empty`` is a call. Buffers begin at a page, as O_DIRECT wants."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._memory = mmap.mmap(-1, LONGEST)
        self._view = memoryview(self._memory)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        # Through it mapped memory is read and written by system calls, which answer EFAULT where
        # a process would get SIGBUS.
        self._exchange = os.memfd_create("exchange")
        self._mappings: dict[int, _Mapping] = {}

    def empty(self) -> None:
        """Undo all mappings."""
        for number in list(self._mappings):
            self.munmap(number)

    def _fill(self, number: int, length: int) -> int:
        self._view[:length] = content(number, length)
        return self._address

    # -- reading and writing

    def read(self, slot: int, size: int) -> bytes:
        count = _done(_libc.read(self._slots.fd(slot), self._address, size))
        return bytes(self._view[:count])

    def pread(self, slot: int, size: int, offset: int) -> bytes:
        count = _done(_libc.pread(self._slots.fd(slot), self._address, size, offset))
        return bytes(self._view[:count])

    def readv(self, slot: int, sizes: Sequence[int]) -> bytes:
        count = os.readv(self._slots.fd(slot), self._parts(sizes))
        return bytes(self._view[:count])

    def preadv2(self, slot: int, size: int, offset: int, flags: int) -> bytes:
        count = os.preadv(self._slots.fd(slot), [self._view[:size]], offset, flags)
        return bytes(self._view[:count])

    def write(self, slot: int, number: int, length: int) -> int:
        return _done(_libc.write(self._slots.fd(slot), self._fill(number, length), length))

    def pwrite(self, slot: int, number: int, length: int, offset: int) -> int:
        address = self._fill(number, length)
        return _done(_libc.pwrite(self._slots.fd(slot), address, length, offset))

    def writev(self, slot: int, number: int, sizes: Sequence[int]) -> int:
        self._fill(number, sum(sizes))
        return os.writev(self._slots.fd(slot), self._parts(sizes))

    def pwritev2(self, slot: int, number: int, length: int, offset: int, flags: int) -> int:
        self._fill(number, length)
        return os.pwritev(self._slots.fd(slot), [self._view[:length]], offset, flags)

    def _parts(self, sizes: Sequence[int]) -> list[memoryview]:
        parts, start = [], 0
        for size in sizes:
            parts.append(self._view[start : start + size])
            start += size
        return parts

    def lseek(self, slot: int, offset: int, whence: int) -> int:
        return os.lseek(self._slots.fd(slot), offset, whence)

    def copy_file_range(
        self, source: int, source_offset: int | None, target: int, offset: int | None, length: int
    ) -> int:
        descriptors = self._slots.fd(source), self._slots.fd(target)
        return os.copy_file_range(*descriptors, length, source_offset, offset)

    def sendfile(self, target: int, source: int, offset: int | None, length: int) -> int:
        return os.sendfile(self._slots.fd(target), self._slots.fd(source), offset, length)

    def splice(self, source: int, offset: int | None, target: int, length: int) -> tuple[int, int]:
        """splice(2) from a file into a pipe, and from there into another."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            taken = os.splice(self._slots.fd(source), writing, length, offset_src=offset)
            given = os.splice(reading, self._slots.fd(target), taken) if taken else 0
            return taken, given
        finally:
            os.close(reading)
            os.close(writing)

    # -- ranges

    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        syscalls.fallocate(self._slots.fd(slot), mode, offset, length)

    def fsync(self, slot: int) -> None:
        os.fsync(self._slots.fd(slot))

    def fdatasync(self, slot: int) -> None:
        os.fdatasync(self._slots.fd(slot))

    def sync_file_range(self, slot: int, offset: int, length: int, flags: int) -> None:
        _done(_libc.sync_file_range(self._slots.fd(slot), offset, length, flags))

    def fadvise(self, slot: int, offset: int, length: int, advice: int) -> None:
        os.posix_fadvise(self._slots.fd(slot), offset, length, advice)

    def readahead(self, slot: int, offset: int, length: int) -> None:
        _done(_libc.readahead(self._slots.fd(slot), offset, length))

    # -- mappings, under numbers of their own

    def mmap(self, number: int, slot: int, how: int, flags: int, offset: int, length: int) -> None:
        address = _libc.mmap(None, length, how, flags, self._slots.fd(slot), offset)
        if address == _MAP_FAILED:
            raise syscalls.os_error(ctypes.get_errno())
        if number in self._mappings:
            self.munmap(number)
        # It does not count as open, and so keeps no locks and takes none away when it is closed.
        file = os.open(b"/proc/self/fd/%d" % self._slots.fd(slot), os.O_PATH)
        self._mappings[number] = _Mapping(address, length, file, offset)

    def peek(self, number: int, offset: int, length: int) -> bytes:
        """What a mapping holds."""
        place = self._within(number, offset, length)
        count = _done(_libc.pwrite(self._exchange, place, length, 0))
        return os.pread(self._exchange, count, 0)

    def poke(self, number: int, offset: int, value: int, length: int, within: bool) -> int:
        """Write to a mapping; ``within``: only what is not past the end of the file."""
        place = self._within(number, offset, length)
        if within and number in self._mappings:
            mapping = self._mappings[number]
            size = os.fstat(mapping.file).st_size
            length = max(min(length, size - mapping.offset - offset), 0)
        os.pwrite(self._exchange, content(value, length), 0)
        return _done(_libc.pread(self._exchange, place, length, 0))

    def msync(self, number: int, flags: int) -> None:
        mapping = self._mappings.get(number, _NO_MAPPING)
        _done(_libc.msync(mapping.address, mapping.length, flags))

    def munmap(self, number: int) -> None:
        mapping = self._mappings.pop(number, _NO_MAPPING)
        if mapping is not _NO_MAPPING:
            os.close(mapping.file)
        _done(_libc.munmap(mapping.address, mapping.length))

    def _within(self, number: int, offset: int, length: int) -> int:
        mapping = self._mappings.get(number, _NO_MAPPING)
        return mapping.address + offset if offset + length <= mapping.length else 0  # EFAULT
