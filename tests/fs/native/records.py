"""Records of the wire taken apart, and what they are compared with."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from volfs.fs.native import _records

SECOND = 10**9
FAR = 2**63 + 5  # GlusterFS has inode numbers past the signed ones
LONGEST = b"n" * 255
BASIC, BIRTH = 0x7FF, 0x800  # STATX_BASIC_STATS, STATX_BTIME

ATTR = "3Q3q10I"
ENTRY = struct.Struct("=4Q2I" + ATTR)
ATTR_OUT = struct.Struct("=Q2I" + ATTR)
STATX_OUT = struct.Struct("=Q2I16x" + "2IQ3IH2x4Q" + "qI4x" * 4 + "4I112x")
DIRENT = struct.Struct("=2Q2I")

FIELDS = (
    *("st_dev", "st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size"),
    *("st_blksize", "st_blocks", "st_atime_ns", "st_mtime_ns", "st_ctime_ns"),
)

Opened = Callable[..., int]
"""Opens descriptors that last as long as the test: path, flags."""


class Entry(NamedTuple):
    ino: int
    offset: int
    kind: int
    name: bytes


def in_attr(expected: os.stat_result, ino: int) -> tuple[int, ...]:
    """The fields of struct fuse_attr."""
    times = (expected.st_atime_ns, expected.st_mtime_ns, expected.st_ctime_ns)
    # The kernel decodes a device number as in new_decode_dev of linux/kdev_t.h.
    major, minor = os.major(expected.st_rdev), os.minor(expected.st_rdev)
    device = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
    return (
        *(ino, expected.st_size, expected.st_blocks),
        *(time // SECOND for time in times),
        *(time % SECOND for time in times),
        *(expected.st_mode, expected.st_nlink, expected.st_uid, expected.st_gid, device),
        *(expected.st_blksize, 0),
    )


def entries_in(reply: bytes, *, plus: bool = False) -> list[Entry]:
    """The records of a reply, which must be whole, padded with zeros to 8 bytes each."""
    entries = []
    at = 0
    while at < len(reply):
        if plus:
            assert reply[at : at + ENTRY.size] == bytes(ENTRY.size)
            at += ENTRY.size
        ino, offset, length, kind = DIRENT.unpack_from(reply, at)
        start = at + DIRENT.size
        at = (start + length + 7) & ~7
        assert at <= len(reply)
        assert reply[start + length : at] == bytes(at - start - length)
        entries.append(Entry(ino, offset, kind, reply[start : start + length]))
    return entries


def listed(fd: int, room: int, *, plus: bool, base: int = 0) -> Iterator[Entry]:
    """All entries, request after request."""
    offset = 0
    while reply := _records.list_bare(fd, offset, room, plus, base, 11, 12):
        assert len(reply) <= room
        entries = entries_in(reply, plus=plus)
        yield from entries
        offset = entries[-1].offset


def failing(error: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as raised:
        call()
    assert raised.value.errno == error
