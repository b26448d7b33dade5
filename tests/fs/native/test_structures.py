"""struct stat and directory entries as the structures of linux/fuse.h."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from volfs.fs.native import _directory, _status

pytestmark = pytest.mark.any_level

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


class Entry(NamedTuple):
    ino: int
    offset: int
    kind: int
    name: bytes


@pytest.fixture
def opened() -> Iterator[Callable[[Path, int], int]]:
    """Opens descriptors that last as long as the test."""
    with ExitStack() as stack:

        def descriptor(path: Path, flags: int = os.O_RDONLY) -> int:
            fd = os.open(path, flags | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        yield descriptor


Opened = Callable[..., int]


@pytest.fixture
def zoo(workspace: Path) -> Path:
    """A directory with a file of each type, and some with unusual attributes."""
    zoo = workspace / "zoo"
    zoo.mkdir()
    (zoo / "file").write_bytes(b"x" * 5000)
    (zoo / "directory").mkdir(mode=0o1777)
    (zoo / "symlink").symlink_to("nowhere")
    os.link(zoo / "file", zoo / "hard link")
    os.mkfifo(zoo / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(zoo / "socket"))
    if os.geteuid() == 0:
        # More than 8 bits of the minor number, and all 12 of the major.
        os.mknod(zoo / "character", stat.S_IFCHR | 0o600, os.makedev(0xABC, 0xDEF12))
        os.mknod(zoo / "block", stat.S_IFBLK | 0o600, os.makedev(259, 300))
    (zoo / "sparse").touch()
    os.truncate(zoo / "sparse", 5 << 32)
    (zoo / "old").touch()
    os.utime(zoo / "old", ns=(-3 * SECOND + 123_456_789, -1))
    (zoo / "setuid").touch()
    if os.geteuid() == 0:
        os.chown(zoo / "setuid", 4_000_000_000, 3_000_000_000)
    (zoo / "setuid").chmod(0o6755)
    (zoo / os.fsdecode(LONGEST)).touch()
    return zoo


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
    while reply := _directory.list_bare(fd, offset, room, plus, base, 11, 12):
        assert len(reply) <= room
        entries = entries_in(reply, plus=plus)
        yield from entries
        offset = entries[-1].offset


def failing(error: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as raised:
        call()
    assert raised.value.errno == error


# -- attributes


def test_status_is_what_os_says(zoo: Path, opened: Opened) -> None:
    directory = opened(zoo)
    for path in zoo.iterdir():
        name = os.fsencode(path.name)
        expected = [getattr(path.lstat(), field) for field in FIELDS]
        found = _status.open_path(directory, name)
        assert found is not None
        fd, status = found
        try:
            for one in (status, _status.fstat(fd), _status.fstatat(directory, name)):
                assert [getattr(one, field) for field in FIELDS] == expected, path
        finally:
            os.close(fd)


@pytest.mark.parametrize("ino", [1, 77, FAR, 2**64 - 1])
def test_attributes_on_the_wire(zoo: Path, opened: Opened, ino: int) -> None:
    directory = opened(zoo)
    for path in zoo.iterdir():
        status = _status.fstatat(directory, os.fsencode(path.name))
        attr = in_attr(path.lstat(), ino)
        out = status.attr_out(ino, 3 * SECOND + 7)
        assert ATTR_OUT.unpack(out) == (3, 7, 0, *attr)
        out = status.entry_out(FAR, ino, 2 * SECOND + 5, 999_999_999)
        assert ENTRY.unpack(out) == (FAR, 0, 2, 0, 5, 999_999_999, *attr)


def test_status_cannot_be_changed_or_made(zoo: Path, opened: Opened) -> None:
    status = _status.fstat(opened(zoo))
    with pytest.raises(AttributeError):
        status.st_mode = 0  # type: ignore[misc]
    with pytest.raises(TypeError):
        _status.Status()


def test_numbers_outside_of_64_bits_are_refused(zoo: Path, opened: Opened) -> None:
    status = _status.fstat(opened(zoo))
    for wrong in (-1, 2**64):
        with pytest.raises(OverflowError):
            status.attr_out(wrong, 0)
        with pytest.raises(OverflowError):
            status.entry_out(1, 0, wrong, 0)


def test_opened_path_is_for_nothing_else(zoo: Path, opened: Opened) -> None:
    found = _status.open_path(opened(zoo), b"symlink")
    assert found is not None
    fd, status = found
    try:
        assert stat.S_ISLNK(status.st_mode)
        assert not os.get_inheritable(fd)
        failing(errno.EBADF, lambda: os.read(fd, 1))
    finally:
        os.close(fd)


def test_absent_name(zoo: Path, opened: Opened) -> None:
    directory = opened(zoo)
    assert _status.open_path(directory, b"absent") is None
    failing(errno.ENOENT, lambda: _status.fstatat(directory, b"absent"))


def test_errors_of_asking(zoo: Path, opened: Opened) -> None:
    file, directory = opened(zoo / "file"), opened(zoo)
    failing(errno.ENOTDIR, lambda: _status.open_path(file, b"x"))
    failing(errno.ENOTDIR, lambda: _status.fstatat(file, b"x"))
    failing(errno.ENAMETOOLONG, lambda: _status.open_path(directory, LONGEST + b"n"))
    for name in (b"fi\0le", "file"):
        with pytest.raises((ValueError, TypeError)):
            _status.open_path(directory, name)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", [-1, -100, 2**31 - 1, 2**32])
def test_bad_descriptor(zoo: Path, opened: Opened, where: int) -> None:
    # 2**32 + fd must not be taken for fd.
    fd = where + opened(zoo) if where == 2**32 else where
    calls: list[Callable[[], object]] = [
        lambda: _status.fstat(fd),
        lambda: _status.fstatat(fd, b"file"),
        lambda: _status.open_path(fd, b"file"),
        lambda: _status.statx_out(fd, 0, BASIC, 1, 0),
        lambda: _directory.list_bare(fd, 0, 4096, False, 0, 1, 1),
        lambda: _directory.read_entries(fd, 0, 1),
    ]
    for call in calls:
        failing(errno.EBADF, call)


def test_statx_on_the_wire(zoo: Path, opened: Opened) -> None:
    for path in zoo.iterdir():
        fd = opened(path, os.O_PATH | os.O_NOFOLLOW)
        out = STATX_OUT.unpack(_status.statx_out(fd, 0, BASIC | BIRTH, FAR, 2 * SECOND + 9))
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
    before = STATX_OUT.unpack(_status.statx_out(fd, 0, BASIC | BIRTH, 1, 0))
    if not before[3] & BIRTH:
        pytest.skip("this filesystem has no birth times")
    os.utime(path, ns=(1, 1))
    path.chmod(0o600)
    after = STATX_OUT.unpack(_status.statx_out(fd, 0, BASIC | BIRTH, 1, 0))
    assert after[16:18] == before[16:18]
    assert after[20:22] == (0, 1)


# -- directories


@pytest.mark.parametrize("plus", [False, True])
def test_listing_is_what_scandir_says(zoo: Path, opened: Opened, plus: bool) -> None:
    entries = {entry.name: entry for entry in listed(opened(zoo), 4096, plus=plus)}
    dots = [entries.pop(name) for name in (b".", b"..")]
    assert [(dot.ino, dot.kind) for dot in dots] == [(11, 4), (12, 4)]
    # d_type is the type in the mode, shifted: IFTODT of dirent.h
    assert {name: (entry.ino, entry.kind) for name, entry in entries.items()} == {
        os.fsencode(path.name): (path.lstat().st_ino, path.lstat().st_mode >> 12)
        for path in zoo.iterdir()
    }


def test_numbers_of_another_device(zoo: Path, opened: Opened) -> None:
    base = 2**63 | 0x1234 << 48
    for entry in listed(opened(zoo), 4096, plus=False, base=base):
        if entry.name not in (b".", b".."):
            ino = (zoo / os.fsdecode(entry.name)).lstat().st_ino
            assert entry.ino == base + ino % 2**48


def test_each_entry_is_listed_once(workspace: Path, opened: Opened) -> None:
    directory = workspace / "many"
    directory.mkdir()
    # Names of all lengths, so that records end everywhere in the room.
    names = {str(number) + "-" * (number % 250) for number in range(10_000)}
    for name in names:
        os.mknod(directory / name)
    fd = opened(directory)
    for plus in (False, True):
        for room in (448, 4096, 100_000):
            found = [os.fsdecode(entry.name) for entry in listed(fd, room, plus=plus)]
            assert len(found) == len(names) + 2
            assert set(found) == names | {".", ".."}


@pytest.mark.parametrize("plus", [False, True])
def test_a_reply_fills_its_room(workspace: Path, opened: Opened, plus: bool) -> None:
    directory = workspace / "long"
    directory.mkdir()
    for number in range(500):
        os.mknod(directory / f"{number:0255}")
    record = (ENTRY.size if plus else 0) + DIRENT.size + 256
    for room in (2 * record, 10_000, 60_000):
        reply = _directory.list_bare(opened(directory), 0, room, plus, 0, 11, 12)
        assert room - record < len(reply) <= room


def test_listing_goes_on_from_any_entry(zoo: Path, opened: Opened) -> None:
    fd = opened(zoo)
    whole = entries_in(_directory.list_bare(fd, 0, 65536, False, 0, 11, 12))
    for position in reversed(range(len(whole))):
        rest = _directory.list_bare(fd, whole[position].offset, 65536, False, 0, 11, 12)
        assert entries_in(rest) == whole[position + 1 :]


def test_no_room_is_not_the_end(zoo: Path, opened: Opened) -> None:
    fd = opened(zoo)
    for room in (0, DIRENT.size, DIRENT.size + 7):
        failing(errno.EINVAL, lambda room=room: _directory.list_bare(fd, 0, room, False, 0, 1, 1))  # type: ignore[misc]
    end = entries_in(_directory.list_bare(fd, 0, 65536, False, 0, 1, 1))[-1].offset
    assert _directory.list_bare(fd, end, 0, False, 0, 1, 1) == b""


def test_removed_directory_is_at_its_end(workspace: Path, opened: Opened) -> None:
    directory = workspace / "removed"
    directory.mkdir()
    fd = opened(directory)
    directory.rmdir()
    assert _directory.list_bare(fd, 0, 4096, True, 0, 1, 1) == b""
    assert _directory.read_entries(fd, 0, 10) == []


def test_errors_of_listing(zoo: Path, opened: Opened) -> None:
    file = opened(zoo / "file")
    failing(errno.ENOTDIR, lambda: _directory.list_bare(file, 0, 4096, False, 0, 1, 1))
    failing(errno.ENOTDIR, lambda: _directory.read_entries(file, 0, 1))
    # A position is signed to lseek(2).
    failing(errno.EINVAL, lambda: _directory.list_bare(opened(zoo), FAR, 4096, False, 0, 1, 1))


@pytest.mark.parametrize("count", [1, 3, 10_000])
def test_entries_read_some_at_a_time(workspace: Path, opened: Opened, count: int) -> None:
    directory = workspace / "some"
    directory.mkdir()
    for number in range(300):
        os.mknod(directory / (str(number) + "-" * (number % 250)))
    fd = opened(directory)
    found: list[tuple[bytes, int, int, int]] = []
    while entries := _directory.read_entries(fd, found[-1][3] if found else 0, count):
        assert len(entries) <= count
        found += entries
        assert len(entries) == count or len(found) == 302
    assert [
        Entry(ino, offset, kind, name) for name, ino, kind, offset in found if name[:1] != b"."
    ] == [entry for entry in listed(fd, 4096, plus=False) if entry.name[:1] != b"."]
    assert {name for name, *_ in found} == {b".", b".."} | set(
        map(os.fsencode, os.listdir(directory))
    )
    assert _directory.read_entries(fd, 0, 0) == []


@pytest.mark.parametrize("length", [1, 7, 8, 9, 255])
def test_record_with_attributes(zoo: Path, opened: Opened, length: int) -> None:
    entry = _status.fstat(opened(zoo)).entry_out(FAR, 1, SECOND, SECOND)
    record = _directory.direntplus(entry, FAR, 2**63 - 1, 4, b"n" * length)
    assert record[: ENTRY.size] == entry
    assert entries_in(record[ENTRY.size :]) == [Entry(FAR, 2**63 - 1, 4, b"n" * length)]


def test_record_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="128"):
        _directory.direntplus(bytes(127), 1, 1, 4, b"n")
    with pytest.raises(TypeError):
        _directory.direntplus(bytes(128), 1, 1, 4, "n")  # type: ignore[arg-type]


# -- memory and threads


def test_nothing_is_leaked(zoo: Path, opened: Opened) -> None:
    fd, file = opened(zoo), opened(zoo / "file")
    name, absent, entry = b"file", b"absent", bytes(ENTRY.size)

    def everything() -> None:
        status = _status.fstat(fd)
        status.attr_out(FAR, 0)
        status.entry_out(FAR, FAR, 0, 0)
        for field in FIELDS:
            getattr(status, field)
        _status.fstatat(fd, name)
        found = _status.open_path(fd, name)
        assert found is not None
        os.close(found[0])
        assert _status.open_path(fd, absent) is None
        _status.statx_out(fd, 0, BASIC, FAR, 0)
        _directory.list_bare(fd, 0, 4096, True, 0, FAR, FAR)
        _directory.read_entries(fd, 0, 4)
        _directory.direntplus(entry, FAR, FAR, 4, name)
        failures: list[Callable[[], object]] = [
            lambda: _status.fstatat(fd, absent),
            lambda: _directory.list_bare(file, 0, 4096, True, 0, 1, 1),
            lambda: _directory.list_bare(fd, 0, 8, True, 0, 1, 1),
            lambda: _directory.read_entries(file, 0, 4),
        ]
        for call in failures:
            failing_quietly(call)

    def counts() -> tuple[int, ...]:
        shared = (name, absent, entry, _status.Status, None, b"")
        return (sys.getallocatedblocks(), *map(sys.getrefcount, shared))

    for _ in range(50):
        everything()
    before = counts()
    for _ in range(2000):
        everything()
    for was, now in zip(before, counts(), strict=True):
        assert abs(now - was) < 200  # less than one in ten calls


def failing_quietly(call: Callable[[], object]) -> None:
    try:
        call()
    except OSError:
        return
    raise AssertionError("no error")


def test_threads_at_once(zoo: Path) -> None:
    wrong: list[object] = []
    expected = sorted([".", "..", *os.listdir(zoo)])

    def work() -> None:
        try:
            fd = os.open(zoo, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for _ in range(100):
                    found = _status.open_path(fd, b"sparse")
                    assert found is not None
                    os.close(found[0])
                    assert found[1].st_size == 5 << 32
                    names = [os.fsdecode(entry.name) for entry in listed(fd, 512, plus=True)]
                    assert sorted(names) == expected
            finally:
                os.close(fd)
        except BaseException as error:  # noqa: BLE001 - told in the main thread
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
