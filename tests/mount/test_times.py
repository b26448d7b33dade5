"""Times: set to the nanosecond, left alone, and moved by what moves them on the disk."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.children import USER, run_as
from tests.conftest import Mounted, mounting, open_workspace
from tests.mount.comparing import Pair
from tests.mount.conftest import make_pair
from tests.mount.kinds import KINDS, make
from tests.mount.test_reading_and_writing import content
from volfs.linux import syscalls

OLD = 1_000_000_000_123_456_789
"""A time long ago, in nanoseconds, that sets every digit."""

KERNEL = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])

_libc = ctypes.CDLL(None, use_errno=True)


class Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


def set_times(path: Path, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """utimensat(2) with (seconds, nanoseconds), which os.utime cannot say with UTIME_OMIT."""
    times = (Timespec * 2)(Timespec(*atime), Timespec(*mtime))
    if _libc.utimensat(-100, os.fsencode(path), times, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "nanoseconds",
    [OLD, 0, 999_999_999, -1_500_000_001, 4_102_444_800_000_000_001],
    ids=["old", "epoch", "almost a second", "before 1970", "in 2100"],
)
def test_times_are_kept_to_the_nanosecond(pair: Pair, kind: str, nanoseconds: int) -> None:
    def operation(top: Path) -> tuple[int, int]:
        path = make(top / "it", kind)
        os.utime(path, ns=(nanoseconds, nanoseconds + 7), follow_symlinks=False)
        status = os.lstat(path)
        return status.st_atime_ns, status.st_mtime_ns

    assert pair.same(operation) == (nanoseconds, nanoseconds + 7)
    behind = os.lstat(pair.data / "it")
    assert (behind.st_atime_ns, behind.st_mtime_ns) == (nanoseconds, nanoseconds + 7)


NOW = (0, syscalls.UTIME_NOW)

OMIT = (0, syscalls.UTIME_OMIT)

EXPLICIT = (1_234_567_890, 987_654_321)


@pytest.mark.parametrize("mtime", [NOW, OMIT, EXPLICIT], ids=["m now", "m omit", "m set"])
@pytest.mark.parametrize("atime", [NOW, OMIT, EXPLICIT], ids=["a now", "a omit", "a set"])
def test_each_time_is_set_or_left_alone_by_itself(
    pair: Pair, atime: tuple[int, int], mtime: tuple[int, int]
) -> None:
    def operation(top: Path) -> list[str]:
        path = top / "f"
        path.touch()
        os.utime(path, ns=(OLD, OLD + 1))
        changed = path.stat().st_ctime_ns
        before = time.time_ns()
        set_times(path, atime, mtime)
        status = path.stat()
        after = time.time_ns()

        def classify(found: int, was: int) -> str:
            if found == was:
                return "left alone"
            if found == EXPLICIT[0] * 10**9 + EXPLICIT[1]:
                return "as asked"
            # The kernel's coarse clock lags by up to a tick of 10 ms.
            assert before - 10_000_000 <= found <= after
            return "now"

        return [
            classify(status.st_atime_ns, OLD),
            classify(status.st_mtime_ns, OLD + 1),
            "same ctime" if status.st_ctime_ns == changed else "new ctime",
        ]

    pair.same(operation)


@pytest.mark.skipif(
    KERNEL < (6, 13),
    reason="pyfuse3 turns UTIME_NOW into the time of day, which the file clock of this kernel"
    " can lag behind by a tick (Linux 6.13 keeps file times in order)",
)
def test_what_is_written_after_a_touch_is_not_older(pair: Pair) -> None:
    """make(1) decides by this; time of day and the kernel's file clock are not the same."""

    def operation(top: Path) -> int:
        first = top / "first"
        first.touch()
        older = 0
        for number in range(50):
            os.utime(first)
            later = top / f"later{number}"
            later.write_bytes(b"")
            older += later.stat().st_mtime_ns < first.stat().st_mtime_ns
        return older

    pair.same(operation)


def read_it(top: Path) -> None:
    (top / "f").read_bytes()


def read_it_unnoticed(top: Path) -> None:
    fd = os.open(top / "f", os.O_RDONLY | os.O_NOATIME)
    os.read(fd, 10)
    os.close(fd)


def list_it(top: Path) -> None:
    os.listdir(top / "d")


def write_it(top: Path) -> None:
    with (top / "f").open("r+b") as file:
        file.write(b"X")


def write_nothing(top: Path) -> None:
    with (top / "f").open("r+b", buffering=0) as file:
        file.write(b"")


def truncate_to_the_same_size(top: Path) -> None:
    os.truncate(top / "f", 7)


def open_truncated(top: Path) -> None:
    (top / "f").open("wb").close()


def open_empty_truncated(top: Path) -> None:
    (top / "empty").open("wb").close()


MOVERS: list[Callable[[Path], object]] = [
    read_it,
    read_it_unnoticed,
    list_it,
    write_it,
    write_nothing,
    truncate_to_the_same_size,
    open_truncated,
    open_empty_truncated,
    lambda top: os.truncate(top / "f", 3),
    lambda top: (top / "f").chmod(0o600),
    lambda top: os.chown(top / "f", 12, 34),
    lambda top: os.chown(top / "f", -1, -1),
    lambda top: os.setxattr(top / "f", "user.x", b"1"),
    lambda top: os.link(top / "f", top / "d" / "l"),
    lambda top: (top / "f").unlink(),
    lambda top: (top / "f").rename(top / "d" / "f"),
    lambda top: (top / "f").rename(top / "empty"),
    lambda top: (top / "d" / "new").touch(),
    lambda top: (top / "d" / "new").mkdir(),
    lambda top: (top / "d" / "new").symlink_to("f"),
    lambda top: (top / "sub").rename(top / "d" / "sub"),
    lambda top: (top / "sub").rmdir(),
    lambda top: os.readlink(top / "s"),
]

MOVER_NAMES = [
    "read",
    "read with O_NOATIME",
    "list",
    "write",
    "write nothing",
    "truncate to the same size",
    "O_TRUNC",
    "O_TRUNC of an empty file",
    "truncate",
    "chmod",
    "chown",
    "chown to nobody else",
    "setxattr",
    "link",
    "unlink",
    "rename",
    "rename over another",
    "create",
    "mkdir",
    "symlink",
    "rename a directory",
    "rmdir",
    "readlink",
]


@pytest.mark.parametrize("move", MOVERS, ids=MOVER_NAMES)
def test_the_same_times_move(pair: Pair, move: Callable[[Path], object]) -> None:
    """Which of all times an operation moves, of the file, its siblings and the directories."""

    def operation(top: Path) -> list[str]:
        (top / "d").mkdir()
        (top / "sub").mkdir()
        (top / "f").write_bytes(b"content")
        (top / "empty").touch()
        (top / "s").symlink_to("f")
        os.link(top / "f", top / "other name")
        names = ["f", "other name", "empty", "s", "d", "sub", "."]
        for name in names:
            os.utime(top / name, ns=(OLD, OLD), follow_symlinks=False)
        held = {name: os.open(top / name, os.O_RDONLY) for name in names if name != "s"}
        before = {name: os.fstat(fd) for name, fd in held.items()}
        link_before = os.lstat(top / "s")
        move(top)
        after = {name: os.fstat(fd) for name, fd in held.items()}
        link_after = os.lstat(top / "s")
        for fd in held.values():
            os.close(fd)
        return [
            f"{name}: {field}"
            for name in names
            for field in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")
            if getattr(before.get(name, link_before), field)
            != getattr(after.get(name, link_after), field)
        ]

    pair.same(operation)


@pytest.mark.usefixtures("nothing_is_kept")
@pytest.mark.parametrize("way", ["read", "map"])
def test_reading_sets_the_access_time(pair: Pair, way: str) -> None:
    """By relatime: when it is older than the last change, as after a write."""

    def operation(top: Path) -> tuple[bool, bool]:
        path = top / "f"
        path.write_bytes(content(10_000))
        os.utime(path, ns=(10**18, 10**18))
        before = path.stat().st_atime_ns
        with path.open("rb") as file:
            if way == "read":
                file.read()
            else:
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                    bytes(mapped)
            after = os.fstat(file.fileno()).st_atime_ns
        return before == after, after == pair.behind(path).stat().st_atime_ns

    pair.same(operation)


@pytest.mark.parametrize("noatime", [False, True], ids=["", "O_NOATIME"])
@pytest.mark.parametrize("kind", ["file", pytest.param("directory", marks=pytest.mark.needs_tap)])
def test_reading_with_o_noatime_leaves_the_time_of_access(
    pair: Pair, kind: str, noatime: bool
) -> None:
    """It reaches the backing file, whoever reads that."""

    def operation(top: Path) -> list[bool]:
        path = top / "it"
        if kind == "directory":
            path.mkdir()
            (path / "inside").touch()
        else:
            path.write_bytes(b"content")
        os.utime(path, (5, 10))
        fd = os.open(path, os.O_RDONLY | (os.O_NOATIME if noatime else 0))
        assert os.read(fd, 100) == b"content" if kind == "file" else os.listdir(fd) == ["inside"]
        os.close(fd)
        return [pair.behind(path).stat().st_atime == 5]

    assert pair.same(operation) == [noatime]


@pytest.fixture(scope="module")
def without_atime() -> Iterator[Mounted]:
    with open_workspace() as workspace, mounting(workspace) as mount:
        yield mount(noatime=True)


def read_file(path: Path) -> None:
    assert path.read_bytes() == b"content"


def read_mapped(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == b"content"


def read_while_writing(path: Path) -> None:
    with path.open("r+b") as file:
        assert file.read() == b"content"


def list_directory(path: Path) -> None:
    assert os.listdir(path.parent) == [path.name]


READERS = (read_file, read_mapped, read_while_writing, list_directory)


@pytest.mark.parametrize("uid", [0, USER], ids=["root", "user"])
@pytest.mark.parametrize("reader", READERS, ids=[reader.__name__ for reader in READERS])
def test_a_tree_without_times_of_access_leaves_them(
    without_atime: Mounted, reader: Callable[[Path], None], uid: int
) -> None:
    """On the disk, too, whoever reads there: the kernel or the daemon."""
    pair = make_pair(without_atime)
    path = pair.mounted / "file"
    path.write_bytes(b"content")
    os.chown(path, USER, USER)
    for place in (path, pair.mounted):
        os.utime(place, (5, 10))
    assert os.statvfs(path).f_flag & os.ST_NOATIME
    run_as(lambda: reader(path), uid)
    for place in (path, pair.mounted, pair.data / "file", pair.data):
        assert place.stat().st_atime == 5, place
    without_atime.assert_level()


def test_what_was_just_made_too(without_atime: Mounted) -> None:
    pair = make_pair(without_atime)
    with (pair.mounted / "file").open("w+b") as file:
        file.write(b"content")
        file.flush()
        os.utime(file.fileno(), (5, 10))
        assert os.pread(file.fileno(), 100, 0) == b"content"
    assert (pair.data / "file").stat().st_atime == 5
