"""What stat tells and what chmod, chown and utimensat change, as on the backing filesystem."""

from __future__ import annotations

import ctypes
import os
import re
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Mounted, MountFactory
from tests.mount.comparing import Pair
from volfs import syscalls

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


def make(path: Path, kind: str) -> Path:
    if kind == "file":
        path.write_bytes(b"content")
    elif kind == "directory":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    return path


KINDS = ["file", "directory", "symlink", "fifo", "device"]


def visible(status: os.stat_result) -> tuple[int, ...]:
    """What stat(2) tells, without the device, which is the mount's own."""
    return (
        status.st_ino,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_size,
        status.st_blocks,
        status.st_blksize,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


# -- stat


@pytest.mark.parametrize("kind", KINDS)
def test_stat_tells_what_the_backing_file_has(pair: Pair, kind: str) -> None:
    make(pair.mounted / "it", kind)
    assert visible(os.lstat(pair.mounted / "it")) == visible(os.lstat(pair.data / "it"))


def test_top_directory_of_a_volume_has_the_number_of_its_data_path(pair: Pair) -> None:
    assert visible(pair.mounted.stat()) == visible(pair.data.stat())


def test_one_device_for_the_whole_tree(pair: Pair, shared: Mounted) -> None:
    (pair.mounted / "a").mkdir()
    (pair.mounted / "a" / "f").touch()
    devices = {
        path.stat().st_dev
        for path in (shared.mnt, pair.mounted, pair.mounted / "a", pair.mounted / "a" / "f")
    }
    assert len(devices) == 1
    assert devices != {pair.data.stat().st_dev}


def test_inode_numbers_are_the_real_ones_also_after_a_remount(
    mount: MountFactory, workspace: Path
) -> None:
    scope = workspace / "scope"
    scope.mkdir()
    first = mount(scope=scope)
    (first.mnt / "v" / "a").mkdir(parents=True)
    for kind in KINDS:
        make(first.mnt / "v" / kind, kind)
    os.link(first.mnt / "v" / "file", first.mnt / "v" / "a" / "second name")

    def numbers(top: Path) -> dict[str, int]:
        found = {"": top.lstat().st_ino}
        found |= {str(path.relative_to(top)): path.lstat().st_ino for path in top.rglob("*")}
        return found

    real = numbers(first.data("v"))
    assert len(real) == 8
    assert numbers(first.mnt / "v") == real
    first.stop()
    again = mount(scope=scope)
    assert numbers(again.mnt / "v") == real


@pytest.fixture
def other_disk(workspace: Path) -> Iterator[Path]:
    path = workspace / "disk"
    path.mkdir()
    syscalls.mount(b"none", os.fsencode(path), b"tmpfs", 0, b"")
    yield path
    syscalls.umount2(os.fsencode(path), syscalls.MNT_DETACH)


def test_a_second_filesystem_gets_numbers_of_its_own(
    mount: MountFactory, workspace: Path, other_disk: Path
) -> None:
    """A data path may be an administrator's link to another disk, which numbers from 1."""
    scope = workspace / "scope"
    (scope / "volumes" / "elsewhere").mkdir(parents=True)
    (scope / "volumes" / "elsewhere" / "_data").symlink_to(other_disk)
    (other_disk / "f").write_bytes(b"there")
    os.link(other_disk / "f", other_disk / "g")
    tree = mount(scope=scope)
    here = tree.mnt / "here"
    here.mkdir()
    (here / "f").touch()
    there = tree.mnt / "elsewhere"
    assert (there / "f").read_bytes() == b"there"
    assert (there / "f").stat().st_ino == (there / "g").stat().st_ino
    everything = {path.stat().st_ino for path in (tree.mnt, here, here / "f", there, there / "f")}
    assert len(everything) == 5
    assert (here / "f").stat().st_ino == (tree.data("here") / "f").stat().st_ino


def test_ls_and_du_agree_with_the_data_path(pair: Pair) -> None:
    (pair.mounted / "deep" / "er").mkdir(parents=True)
    (pair.mounted / "deep" / "big").write_bytes(b"x" * 1_000_000)
    (pair.mounted / "deep" / "er" / "small").write_bytes(b"x")
    with (pair.mounted / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
        sparse.seek(1 << 20)
        sparse.write(b"an island")
        os.fsync(sparse.fileno())
    os.sync()

    def tell(where: Path) -> tuple[str, ...]:
        commands = (["ls", "-ilR", "--time-style=full-iso"], ["du", "-a"], ["du", "-sb"])
        return tuple(
            subprocess.run([*command, "."], cwd=where, check=True, stdout=-1, text=True).stdout
            for command in commands
        )

    assert tell(pair.mounted) == tell(pair.data)


# -- size and blocks


def test_size_is_right_at_once_after_append_write_and_truncate(pair: Pair) -> None:
    def operation(top: Path) -> list[int]:
        path = top / "f"
        sizes: list[int] = []

        def note() -> None:
            sizes.extend((path.stat().st_size, os.fstat(fd).st_size))

        fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        note()
        os.write(fd, b"x" * 5000)
        note()
        with path.open("ab") as other:
            other.write(b"y" * 3000)
        note()
        os.ftruncate(fd, 100)
        note()
        os.truncate(path, 123_456)
        note()
        os.pwrite(fd, b"z", 1_000_000)
        note()
        path.open("wb").close()
        note()
        os.close(fd)
        return sizes

    pair.same(operation)


def test_blocks_are_the_real_ones_also_of_a_sparse_file(pair: Pair) -> None:
    def operation(top: Path) -> list[int]:
        blocks = []
        with (top / "f").open("wb") as file:
            for step in range(3):
                file.seek(step << 20)
                file.write(b"x" * (step + 1) * 10_000)
                file.flush()
                os.fsync(file.fileno())
                blocks.append((top / "f").stat().st_blocks)
            file.truncate(4096)
            blocks.append((top / "f").stat().st_blocks)
        return blocks

    pair.same(operation)


# -- times


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


# -- mode and owner


@pytest.mark.parametrize("mode", [0, 0o600, 0o777, 0o1777, 0o2755, 0o4711, 0o7777])
@pytest.mark.parametrize("kind", KINDS)
def test_chmod_by_path(pair: Pair, kind: str, mode: int) -> None:
    def operation(top: Path) -> str:
        path = make(top / "it", kind)
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            os.chmod(f"/proc/self/fd/{fd}", mode)  # of the symlink itself: fails
        finally:
            os.close(fd)
        return oct(os.lstat(path).st_mode)

    pair.same(operation)


@pytest.mark.parametrize("kind", KINDS)
def test_chown_by_path(pair: Pair, kind: str) -> None:
    def operation(top: Path) -> list[tuple[int, int, str]]:
        path = make(top / "it", kind)
        seen = []
        if kind != "symlink":
            path.chmod(0o6755)
        for uid, gid in ((1000, 1001), (-1, 7), (8, -1), (2**31 + 5, 2**32 - 2), (-1, -1)):
            os.lchown(path, uid, gid)
            status = os.lstat(path)
            seen.append((status.st_uid, status.st_gid, oct(status.st_mode)))
        return seen

    pair.same(operation)


@pytest.mark.parametrize("access", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR], ids=["r", "w", "rw"])
@pytest.mark.parametrize("state", ["linked", "unlinked", "replaced", "created unlinked"])
def test_an_open_file_can_be_changed_by_descriptor(pair: Pair, access: int, state: str) -> None:
    def operation(top: Path) -> list[object]:
        path = top / "f"
        if state == "created unlinked":
            fd = os.open(path, access | os.O_CREAT | os.O_EXCL, 0o644)
        else:
            path.write_bytes(b"content")
            fd = os.open(path, access)
        if state == "replaced":
            (top / "g").touch()
            (top / "g").rename(path)
        elif state != "linked":
            path.unlink()
        os.fchmod(fd, 0o640)
        os.fchown(fd, 12, 34)
        os.fchmod(fd, 0o6640)
        os.utime(fd, ns=(OLD, OLD + 5))
        status = os.fstat(fd)
        size = -1
        if access != os.O_RDONLY:
            os.ftruncate(fd, 3)
            size = os.fstat(fd).st_size
        os.close(fd)
        return [
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_nlink,
            status.st_size,
            size,
        ]

    pair.same(operation)


def test_a_removed_open_directory_can_be_changed_by_descriptor(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        (top / "d").mkdir()
        fd = os.open(top / "d", os.O_RDONLY | os.O_DIRECTORY)
        (top / "d").rmdir()
        os.fchmod(fd, 0o1700)
        os.fchown(fd, 12, 34)
        os.utime(fd, ns=(OLD, OLD + 5))
        status = os.fstat(fd)
        listing = os.listdir(fd)
        try:
            os.mkdir("sub", dir_fd=fd)
            made = "made"
        except FileNotFoundError:
            made = "ENOENT"
        os.close(fd)
        return [
            oct(status.st_mode),
            status.st_uid,
            status.st_mtime_ns,
            status.st_nlink,
            listing,
            made,
        ]

    pair.same(operation)


# -- links


def test_hard_links_show_one_inode_and_the_count_at_once(pair: Pair) -> None:
    def operation(top: Path) -> list[int]:
        first, second, third = top / "first", top / "d" / "second", top / "third"
        (top / "d").mkdir()
        first.write_bytes(b"1")
        (top / "other").write_bytes(b"2")
        fd = os.open(first, os.O_RDONLY)
        counts = [first.stat().st_nlink]
        os.link(first, second)
        counts += [first.stat().st_nlink, second.stat().st_nlink, os.fstat(fd).st_nlink]
        assert first.stat().st_ino == second.stat().st_ino == os.fstat(fd).st_ino
        os.link(second, third)
        counts += [first.stat().st_nlink, second.stat().st_nlink, third.stat().st_nlink]
        third.unlink()
        counts += [first.stat().st_nlink, second.stat().st_nlink]
        (top / "other").rename(second)
        counts += [first.stat().st_nlink, second.stat().st_nlink, os.fstat(fd).st_nlink]
        second.rename(first)
        counts += [first.stat().st_nlink, os.fstat(fd).st_nlink]
        os.close(fd)
        return counts

    pair.same(operation)


def test_renaming_a_hard_link_onto_itself_does_nothing(pair: Pair) -> None:
    def operation(top: Path) -> tuple[list[str], int]:
        (top / "a").touch()
        os.link(top / "a", top / "b")
        (top / "a").rename(top / "b")
        return sorted(os.listdir(top)), (top / "a").stat().st_nlink

    assert pair.same(operation) == (["a", "b"], 2)


def test_link_to_a_symlink_links_the_symlink(pair: Pair) -> None:
    def operation(top: Path) -> tuple[str, int]:
        (top / "s").symlink_to("/nowhere")
        os.link(top / "s", top / "t", follow_symlinks=False)
        return os.readlink(top / "t"), os.lstat(top / "s").st_nlink

    assert pair.same(operation) == ("/nowhere", 2)


def test_link_by_descriptor(pair: Pair) -> None:
    def operation(top: Path) -> list[int]:
        (top / "f").write_bytes(b"content")
        fd = os.open(top / "f", os.O_RDONLY)
        descriptors = os.open("/proc/self/fd", os.O_RDONLY)
        os.link(str(fd), top / "g", src_dir_fd=descriptors, follow_symlinks=True)
        os.close(descriptors)
        counts = [os.fstat(fd).st_nlink, (top / "g").stat().st_size]
        (top / "f").unlink()
        counts.append((top / "g").stat().st_nlink)
        os.close(fd)
        return counts

    assert pair.same(operation) == [2, 7, 1]


@pytest.mark.parametrize("step", ["mkdir", "rmdir", "move in", "move out"])
def test_link_count_of_directories(pair: Pair, step: str) -> None:
    def operation(top: Path) -> list[int]:
        (top / "a" / "sub").mkdir(parents=True)
        (top / "b").mkdir()
        for path in (top, top / "a", top / "b"):
            path.stat()  # so that there is something stale to show
        if step == "mkdir":
            (top / "a" / "new").mkdir()
        elif step == "rmdir":
            (top / "a" / "sub").rmdir()
        elif step == "move in":
            (top / "b").rename(top / "a" / "b")
        else:
            (top / "a" / "sub").rename(top / "sub")
        return [
            path.stat().st_nlink
            for path in (top, top / "a", top / "b", top / "a" / "b")
            if path.exists()
        ]

    pair.same(operation)
