"""What stat(2) and statx(2) tell, as the structures of linux/fuse.h."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fs.native.records import (
    ATTR_OUT,
    BASIC,
    BIRTH,
    ENTRY,
    FAR,
    SECOND,
    STATX_OUT,
    Opened,
    in_attr,
)
from volfs.fs.native import _records

pytestmark = pytest.mark.any_level


@pytest.mark.parametrize("ino", [1, 77, FAR, 2**64 - 1])
def test_attributes_on_the_wire(zoo: Path, opened: Opened, ino: int) -> None:
    directory = opened(zoo)
    for path in zoo.iterdir():
        status = _records.fstatat(directory, os.fsencode(path.name))
        attr = in_attr(path.lstat(), ino)
        out = status.attr_out(ino, 3 * SECOND + 7)
        assert ATTR_OUT.unpack(out) == (3, 7, 0, *attr)
        out = status.entry_out(FAR, 9, ino, 2 * SECOND + 5, 999_999_999)
        assert ENTRY.unpack(out) == (FAR, 9, 2, 0, 5, 999_999_999, *attr)


def test_numbers_outside_of_64_bits_are_refused(zoo: Path, opened: Opened) -> None:
    status = _records.fstat(opened(zoo))
    for wrong in (-1, 2**64):
        with pytest.raises(OverflowError):
            status.attr_out(wrong, 0)
        with pytest.raises(OverflowError):
            status.entry_out(1, 0, 0, wrong, 0)


def test_statx_on_the_wire(zoo: Path, opened: Opened) -> None:
    for path in zoo.iterdir():
        fd = opened(path, os.O_PATH | os.O_NOFOLLOW)
        out = STATX_OUT.unpack(_records.statx_out(fd, 0, BASIC | BIRTH, FAR, 2 * SECOND + 9))
        expected = path.lstat()
        assert out[:3] == (2, 9, 0)
        mask, blksize, _, nlink, uid, gid, mode, ino, size, blocks, _ = out[3:14]
        assert mask & BASIC == BASIC
        assert (blksize, ino, size) == (expected.st_blksize, FAR, expected.st_size)
        assert (nlink, uid, gid) == (expected.st_nlink, expected.st_uid, expected.st_gid)
        assert (mode, blocks) == (expected.st_mode, expected.st_blocks)
        access, birth, change, modified = (
            sec * SECOND + nsec for sec, nsec in zip(out[14:22:2], out[15:22:2], strict=True)
        )
        assert (access, modified) == (expected.st_atime_ns, expected.st_mtime_ns)
        assert change == expected.st_ctime_ns
        assert out[22:] == (
            *(os.major(expected.st_rdev), os.minor(expected.st_rdev)),
            *(os.major(expected.st_dev), os.minor(expected.st_dev)),
        )
        if mask & BIRTH:
            assert 0 < birth <= change
        else:
            assert birth == 0


def test_birth_time_stays(zoo: Path, opened: Opened) -> None:
    path = zoo / "file"
    fd = opened(path, os.O_PATH)
    before = STATX_OUT.unpack(_records.statx_out(fd, 0, BASIC | BIRTH, 1, 0))
    if not before[3] & BIRTH:
        pytest.skip("this filesystem has no birth times")
    os.utime(path, ns=(1, 1))
    path.chmod(0o600)
    after = STATX_OUT.unpack(_records.statx_out(fd, 0, BASIC | BIRTH, 1, 0))
    assert after[16:18] == before[16:18]
    assert after[20:22] == (0, 1)
