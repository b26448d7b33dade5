"""Mounts of which something is asked or taken: remembering, descriptors, backing files, rights."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests import levels
from tests.children import USER, run_as
from tests.conftest import (
    Mounted,
    MountFactory,
    few_descriptors,
    mounting,
    open_workspace,
    wait_for,
)
from tests.mount.comparing import Pair, outcome
from tests.mount.conftest import make_pair
from tests.mount.open_files import ACCESSES, use, wait_until_idle
from tests.mount.test_reading_and_writing import content
from tests.mount.workout import WORKOUT

# -- inodes that the daemon has let go of


FEW = 128


def test_files_are_opened_again_whose_descriptors_were_given_up(mount: MountFactory) -> None:
    tree = mount(prepare=few_descriptors(FEW))
    pair = make_pair(tree)

    def crowd(top: Path) -> None:
        """Use so many others that the first inodes lose their descriptors."""
        for number in range(2 * FEW):
            os.mknod(top / f"other{number}")

    def operation(top: Path) -> list[object]:
        closed, opened, unlinked = top / "closed", top / "opened", top / "unlinked"
        for path in (closed, opened, unlinked):
            path.write_bytes(content(10_000))
        reader = os.open(opened, os.O_RDONLY)
        lost = os.open(unlinked, os.O_RDWR)
        with mmap.mmap(reader, 0, prot=mmap.PROT_READ) as mapped:
            unlinked.unlink()
            crowd(top)
            told: list[object] = []
            for access in ACCESSES.values():
                for each in (closed, opened, f"/proc/self/fd/{lost}"):
                    fd = os.open(each, access)
                    told += use(fd, b"1")
                    os.close(fd)
                told += [*use(reader, b"2"), *use(lost, b"3"), mapped[90:150]]
        os.close(reader)
        os.close(lost)
        return [*told, closed.read_bytes(), opened.read_bytes()]

    pair.same(operation)
    assert len(os.listdir(f"/proc/{tree.pid}/fd")) < FEW
    wait_until_idle(tree)


@pytest.mark.allow_warnings
def test_more_files_open_for_reading_than_descriptors(mount: MountFactory) -> None:
    """Whoever comes too late is told so; nobody else meets that there are few."""
    tree = mount(prepare=few_descriptors(FEW))
    pair = make_pair(tree)
    files = [pair.mounted / f"file{number}" for number in range(2 * FEW)]
    for number, path in enumerate(files):
        path.write_bytes(b"%d" % number)
    tree.drop_caches()
    opened: list[int] = []
    refused = set()
    try:
        for path in files:
            fd = outcome(os.open, path, os.O_RDONLY)
            if isinstance(fd, str):
                refused.add(fd)
            else:
                opened.append(fd)
        assert refused <= {"ENFILE"}
        assert len(opened) > FEW // 2
        for number, fd in enumerate(opened):
            assert os.pread(fd, 10, 0) == b"%d" % number
        # Looking at others needs none for long, if there is any.
        seen = {outcome(lambda path=path: path.stat().st_nlink) for path in files}  # type: ignore[misc]
        assert seen <= {1, "ENFILE"}
        # A few closed, and all else goes on beside those that are still open.
        for _ in range(FEW // 4):
            os.close(opened.pop())
        wait_for(lambda: outcome(files[-1].stat) != "ENFILE", "the releases")
        assert [path.stat().st_nlink for path in files] == [1] * len(files)
        (pair.mounted / "directory").mkdir()
        (pair.mounted / "directory" / "new").write_bytes(b"content")
        assert (pair.data / "directory" / "new").read_bytes() == b"content"
        files[-1].rename(pair.mounted / "renamed")
        (tree.mnt / "another").mkdir()
    finally:
        for fd in opened:
            os.close(fd)
    wait_until_idle(tree)


def test_a_file_replaced_behind_the_mount_is_the_new_one(mount: MountFactory) -> None:
    """ext4 gives the inode number of the old one to the new one at once."""
    tree = mount(cache="never")
    pair = make_pair(tree)
    path, behind = pair.mounted / "f", pair.data / "f"
    numbers = set()
    for number in range(40):
        new = b"%d" % number * 5000
        behind.write_bytes(new)
        numbers.add(behind.stat().st_ino)
        assert path.read_bytes() == new
        if number % 2:
            with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
                mapped[0:1] = b"m"
            assert behind.read_bytes() == b"m" + new[1:]
        behind.unlink()
        with pytest.raises(FileNotFoundError):
            path.read_bytes()
    assert len(numbers) < 40, "no inode number was used again: this tests nothing"


@pytest.mark.parametrize("cache", ["auto", "always"])
def test_size_and_times_are_right_at_once_after_each_change(
    mount: MountFactory, cache: str
) -> None:
    """For stat(2) of the path, in another process too, whatever is remembered for how long."""
    tree = mount(cache=cache)
    pair = make_pair(tree)
    path = pair.mounted / "f"
    path.write_bytes(content(10_000))
    fd = os.open(path, os.O_RDWR)
    appender = os.open(path, os.O_WRONLY | os.O_APPEND)
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    block = mmap.mmap(-1, 4096)

    def send() -> None:
        with path.open("rb") as reader:
            os.lseek(fd, 50_000, os.SEEK_SET)
            os.sendfile(fd, reader.fileno(), 0, 5000)

    steps: dict[str, Callable[[], object]] = {
        "write": lambda: os.pwrite(fd, b"x", 5),
        "write beyond": lambda: os.pwrite(fd, b"x" * 100, 30_000),
        "append": lambda: os.write(appender, b"appended"),
        "direct": lambda: os.pwritev(direct, [block], 8192),
        "direct beyond": lambda: os.pwritev(direct, [block], 40_960),
        "sendfile": send,
        "truncate": lambda: os.truncate(path, 70_000),
        "ftruncate": lambda: os.ftruncate(fd, 12),
        "synchronously": lambda: os.pwritev(fd, [b"x" * 5000], 7, os.RWF_SYNC),
        "by the path": lambda: path.write_bytes(b"anew"),
    }

    def found(at: Path) -> tuple[int, ...]:
        status = os.stat(at)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_blocks

    last = found(path)
    for name, step in steps.items():
        step()
        # What is not yet allocated on the disk may be while we look.
        os.fsync(fd)
        seen, other, real = found(path), run_as(partial(found, path), 0), found(pair.data / "f")
        assert seen == other == real, name
        assert found(Path(f"/proc/self/fd/{fd}")) == real, name
        assert seen[1] >= last[1] and seen != last, name
        last = seen
    for each in (fd, appender, direct):
        os.close(each)
    assert found(path) == found(pair.data / "f")


# -- when the kernel refuses

SYS_IOCTL = 16  # on x86-64
BACKING_OPEN = 0x4010E501
"""FUSE_DEV_IOC_BACKING_OPEN of linux/fuse.h: _IOW(229, 1, struct fuse_backing_map)."""


def refuse_backing_files() -> None:
    """Have the kernel answer EPERM to FUSE_DEV_IOC_BACKING_OPEN in this process: seccomp(2)."""
    if os.uname().machine != "x86_64":
        return
    load, equal, give = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    code = b"".join(
        struct.pack("HBBI", *line)
        for line in (
            (load, 0, 0, 0),  # the number of the system call
            (equal, 0, 3, SYS_IOCTL),
            (load, 0, 0, 24),  # its second argument
            (equal, 0, 1, BACKING_OPEN),
            (give, 0, 0, refuse),
            (give, 0, 0, allow),
        )
    )
    program = ctypes.create_string_buffer(code, len(code))
    filters = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(program))
    set_seccomp, filter_mode = 22, 2
    if ctypes.CDLL(None).prctl(set_seccomp, filter_mode, filters, 0, 0) != 0:
        os._exit(77)


@pytest.fixture(scope="module")
def refusing() -> Iterator[Mounted]:
    """A mount to which the kernel gives no backing file."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        highest: levels.Level = "tap" if levels.chosen() == "passthrough" else levels.chosen()
        yield mount(prepare=refuse_backing_files, execute=True, level=highest)


@pytest.mark.parametrize("way", WORKOUT)
def test_everything_works_without_backing_files(refusing: Mounted, way: str) -> None:
    make_pair(refusing).same(WORKOUT[way])
    assert not refusing.statistics().get("backing_ids")


@pytest.fixture(scope="module")
def users() -> Iterator[Mounted]:
    """The mount of a user without privileges, who never gets backing files."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        workspace.chmod(0o777)
        yield mount(user=USER)


@pytest.mark.parametrize("way", WORKOUT)
def test_everything_works_in_a_mount_of_a_user(users: Mounted, way: str) -> None:
    mounted, plain = users.mnt / way, users.scope.parent / f"plain-{way}"
    run_as(mounted.mkdir)
    run_as(plain.mkdir)
    pair = Pair(mounted, users.data(way), plain)
    pair.same(lambda top: run_as(partial(WORKOUT[way], top)))
