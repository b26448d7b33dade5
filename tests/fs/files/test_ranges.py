"""Ranges, flags, space and unnamed files on plain descriptors, without a mount."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from volfs.fs.files import flags, ranges
from volfs.fs.files.opening import make_unnamed
from volfs.fs.wire.protocol import statfs_out
from volfs.linux import syscalls
from volfs.linux.identity import Identity

MIB = 1 << 20


def forty_mib() -> bytes:
    """Made anew, since what is kept makes every fork of this process slower."""
    return os.urandom(MIB) * 40


def never() -> bool:
    return False


@pytest.fixture
def opened(workspace: Path) -> Iterator[Callable[[str, bytes], int]]:
    """Makes files with a content and opens them."""
    with ExitStack() as stack:

        def make(name: str, content: bytes = b"") -> int:
            (workspace / name).write_bytes(content)
            fd = os.open(workspace / name, os.O_RDWR)
            stack.callback(os.close, fd)
            return fd

        yield make


def failing(number: int) -> Callable[..., int]:
    def call(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return call


# -- copying


def test_a_copy_in_many_steps_is_whole(opened: Callable[..., int]) -> None:
    content = forty_mib()
    source, target = opened("a", content), opened("b", b"x" * 100)
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    assert ranges.copy(source, 7, target, 50, len(content), 0, count) == len(content) - 7
    assert os.pread(target, 1 << 30, 0) == b"x" * 50 + content[7:]
    assert asked > 1


def test_a_copy_stops_after_the_step_under_way(opened: Callable[..., int]) -> None:
    content = forty_mib()
    source, target = opened("a", content), opened("b")
    copied = ranges.copy(source, 0, target, 0, len(content), 0, lambda: True)
    assert 0 < copied < len(content)
    assert os.pread(target, len(content), 0) == content[:copied]


def test_nothing_is_copied_from_beyond_the_end(opened: Callable[..., int]) -> None:
    assert ranges.copy(opened("a", b"abc"), 3, opened("b"), 0, 10, 0, never) == 0


def test_a_failure_before_anything_was_copied_is_raised(
    opened: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = opened("a", b"abc"), opened("b")
    for number in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC):
        monkeypatch.setattr(os, "copy_file_range", failing(number))
        with pytest.raises(OSError) as caught:
            ranges.copy(source, 0, target, 0, 3, 0, never)
        assert caught.value.errno == number


def test_a_failure_after_a_step_leaves_a_short_copy(
    opened: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = forty_mib()
    source, target = opened("a", content), opened("b")
    real = os.copy_file_range

    def full(source: int, target: int, count: int, at: int, to: int) -> int:
        if to:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, target, count, at, to)

    monkeypatch.setattr(os, "copy_file_range", full)
    copied = ranges.copy(source, 0, target, 0, len(content), 0, never)
    assert 0 < copied < len(content)


def test_no_request_ends_for_the_whole_mount(
    opened: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel takes ENOSYS for an answer for good."""
    fd = opened("a", b"abc")
    calls: dict[str, tuple[int, Callable[[], object]]] = {
        "copy": (errno.EOPNOTSUPP, lambda: ranges.copy(fd, 0, fd, 3, 3, 0, never)),
        "seek": (errno.EOPNOTSUPP, lambda: ranges.seek(fd, 0, os.SEEK_DATA)),
        "allocate": (errno.EOPNOTSUPP, lambda: ranges.allocate(fd, 0, 0, 1)),
        "make_unnamed": (errno.EOPNOTSUPP, lambda: make_unnamed(fd, os.O_RDWR, 0o600)),
        "flags": (errno.ENOTTY, lambda: flags.answer(fd, flags.FS_IOC_GETFLAGS, b"", 4)),
    }
    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", failing(errno.ENOSYS))
        patch.setattr(os, "lseek", failing(errno.ENOSYS))
        patch.setattr(os, "open", failing(errno.ENOSYS))
        patch.setattr(syscalls, "fallocate", failing(errno.ENOSYS))
        patch.setattr(fcntl, "ioctl", failing(errno.ENOSYS))
        for name, (number, call) in calls.items():
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == number, name


# -- holes and allocation


def test_data_and_holes(opened: Callable[..., int]) -> None:
    fd = opened("a")
    os.pwrite(fd, b"x" * 4096, MIB)
    os.ftruncate(fd, 2 * MIB)
    assert ranges.seek(fd, 0, os.SEEK_DATA) == MIB
    assert ranges.seek(fd, MIB, os.SEEK_HOLE) == MIB + 4096
    for offset in (MIB + 4096, 1 << 62, (1 << 64) - 1, -1):
        with pytest.raises(OSError) as caught:
            ranges.seek(fd, offset, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO
    with pytest.raises(OSError) as caught:
        ranges.seek(fd, 0, os.SEEK_SET)
    assert caught.value.errno == errno.EINVAL


def test_a_file_taken_for_whole_has_one_hole_at_its_end(opened: Callable[..., int]) -> None:
    fd = opened("a")
    os.ftruncate(fd, MIB)
    assert ranges.seek(fd, 10, os.SEEK_DATA, whole=True) == 10
    assert ranges.seek(fd, 10, os.SEEK_HOLE, whole=True) == MIB
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        for offset in (MIB, (1 << 64) - 1, -1):
            with pytest.raises(OSError) as caught:
                ranges.seek(fd, offset, whence, whole=True)
            assert caught.value.errno == errno.ENXIO


def test_blocks_come_and_go(opened: Callable[..., int]) -> None:
    fd = opened("a")
    ranges.allocate(fd, syscalls.FALLOC_FL_KEEP_SIZE, 0, 4 * MIB)
    status = os.fstat(fd)
    assert (status.st_size, status.st_blocks * 512 >= 4 * MIB) == (0, True)
    ranges.allocate(fd, 0, 0, 4 * MIB)
    assert os.fstat(fd).st_size == 4 * MIB
    hole = syscalls.FALLOC_FL_KEEP_SIZE | syscalls.FALLOC_FL_PUNCH_HOLE
    ranges.allocate(fd, hole, 0, 4 * MIB)
    assert os.fstat(fd).st_blocks * 512 < MIB


def test_refusals_are_the_filesystems_own(opened: Callable[..., int]) -> None:
    fd = opened("a", b"abc")
    for mode, length, number in (
        (0, 0, errno.EINVAL),
        (syscalls.FALLOC_FL_PUNCH_HOLE, 1, errno.EOPNOTSUPP),
        (0, 1 << 62, errno.EFBIG),
    ):
        with pytest.raises(OSError) as caught:
            ranges.allocate(fd, mode, 0, length)
        assert caught.value.errno == number


def test_what_may_wait_for_the_disk_is_not_quick() -> None:
    keep = syscalls.FALLOC_FL_KEEP_SIZE
    assert ranges.allocation_is_quick(0, 4096)
    assert ranges.allocation_is_quick(keep, 4096)
    assert not ranges.allocation_is_quick(0, 1 << 30)
    assert not ranges.allocation_is_quick(keep | syscalls.FALLOC_FL_PUNCH_HOLE, 4096)
    assert not ranges.allocation_is_quick(syscalls.FALLOC_FL_ZERO_RANGE, 4096)


# -- flags


def test_flags_of_files_and_directories(opened: Callable[..., int], workspace: Path) -> None:
    def get(fd: int) -> int:
        return int(struct.unpack("=I", flags.answer(fd, flags.FS_IOC_GETFLAGS, b"", 4))[0])

    nodump = 0x40  # FS_NODUMP_FL
    directory = os.open(workspace, os.O_RDONLY)
    try:
        for fd in (opened("a"), directory):
            before = get(fd)
            flags.answer(fd, flags.FS_IOC_SETFLAGS, struct.pack("=I", before | nodump), 0)
            assert get(fd) == before | nodump
            xattr = flags.answer(fd, flags.FS_IOC_FSGETXATTR, b"", 28)
            assert struct.unpack_from("=I", xattr)[0] & 0x80  # FS_XFLAG_NODUMP
            flags.answer(fd, flags.FS_IOC_FSSETXATTR, bytes(28), 0)
            assert not get(fd) & nodump
    finally:
        os.close(directory)


@pytest.mark.parametrize(
    ("command", "data", "size", "argument"),
    [
        pytest.param(termios.TCGETS, b"", 0, 0x7FFF_0000, id="TCGETS"),
        pytest.param(termios.FIONREAD, b"", 0, 0x7FFF_0000, id="FIONREAD"),
        pytest.param(0x40046602, bytes(4), 0, 0x7FFF_0000, id="FS_IOC32_SETFLAGS"),
        pytest.param(flags.FS_IOC_SETFLAGS, bytes(4), 0, 0x7FFF_0000, id="unchecked"),
        pytest.param(flags.FS_IOC_SETFLAGS, bytes(8), 0, 0, id="another size"),
        pytest.param(flags.FS_IOC_GETFLAGS, b"", 8, 0, id="another size of the answer"),
    ],
)
def test_any_other_ioctl_is_unknown(
    opened: Callable[..., int], command: int, data: bytes, size: int, argument: int
) -> None:
    with pytest.raises(OSError) as caught:
        flags.check(command, data, size, argument)
    assert caught.value.errno == errno.ENOTTY


# -- filesystems and unnamed files


def test_statfs_is_packed_for_the_wire(workspace: Path) -> None:
    fd = os.open(workspace, os.O_PATH)
    try:
        status = os.fstatvfs(fd)
    finally:
        os.close(fd)
    reply = statfs_out(status)
    assert len(reply) == 80
    blocks, *_, size, longest, fragment, padding = struct.unpack("=5Q4I", reply[:56])
    assert (blocks, size, longest, fragment, padding) == (
        status.f_blocks,
        status.f_bsize,
        status.f_namemax,
        status.f_frsize,
        0,
    )
    assert reply[56:] == bytes(24)


@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user takes root")
def test_an_unnamed_file_is_the_callers(workspace: Path) -> None:
    identity = Identity()  # without take_privileges: permission is checked as the caller's
    os.chown(workspace, 1234, -1)
    directory = os.open(workspace, os.O_PATH)
    before = os.umask(0o022)
    try:
        with identity.acting(1234, 4321, 0o027):
            fd = make_unnamed(directory, os.O_TMPFILE | os.O_WRONLY | os.O_DIRECT, 0o666)
        status = os.fstat(fd)
        got = fcntl.fcntl(fd, fcntl.F_GETFL)
        os.close(fd)
    finally:
        os.umask(before)
        os.close(directory)
    assert (status.st_uid, status.st_gid, status.st_mode, status.st_nlink) == (
        1234,
        4321,
        0o100640,
        0,
    )
    assert got & os.O_ACCMODE == os.O_WRONLY
    assert not got & os.O_DIRECT
    assert os.listdir(workspace) == []
