"""Deleting trees that are deep, wide, unwritable, or changing meanwhile."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.children import NOBODY, all_at_once, in_namespace, needs_root, run_as
from tests.copies.trees import make_chain
from tests.local.test_scope import mount_tmpfs
from volfs.linux.deletion import UndeletedError, delete_tree, never

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IMMUTABLE_FL = 0x10


@pytest.fixture
def top(workspace: Path) -> Path:
    path = workspace / "doomed"
    path.mkdir()
    return path


def delete(top: Path) -> bool:
    parent = os.open(top.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return delete_tree(top.name, dir_fd=parent, stopping=never)
    finally:
        os.close(parent)


def make_tree(top: Path, depth: int, width: int) -> None:
    for number in range(width):
        (top / f"file{number}").write_text("x")
        if depth > 1:
            (top / f"dir{number}").mkdir()
            make_tree(top / f"dir{number}", depth - 1, width)


def test_all_kinds_of_files_go_and_links_are_not_followed(top: Path) -> None:
    outside = top.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    (top / "to-directory").symlink_to(outside)
    (top / "dir").mkdir()
    (top / "dir" / "to-file").symlink_to(outside / "file")
    (top / "dir" / "up").symlink_to("..")
    os.link(outside / "file", top / "dir" / "hard")
    os.mkfifo(top / "fifo")
    if os.geteuid() == 0:
        os.mknod(top / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (top / os.fsdecode(b"\xff\n")).write_text("x")
    assert delete(top)
    assert not top.exists()
    assert (outside / "file").read_text() == "kept"


def test_what_is_not_there_counts_as_gone(top: Path) -> None:
    top.rmdir()
    assert delete(top)


def test_a_link_in_the_trees_place_is_not_followed(top: Path) -> None:
    outside = top.parent / "outside"
    top.rename(outside)
    (outside / "file").write_text("kept")
    top.symlink_to(outside)
    with pytest.raises(OSError, match=r".") as caught:
        delete(top)
    assert caught.value.errno in (errno.ENOTDIR, errno.ELOOP)
    assert (outside / "file").read_text() == "kept"


def test_depth_costs_neither_descriptors_nor_recursion(top: Path) -> None:
    def attempt() -> tuple[bool, list[str]]:
        mount_tmpfs(top.parent)  # for speed
        top.mkdir()
        make_chain(top, 40_000, files=False)
        spare = len(os.listdir("/proc/self/fd")) + 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, spare))
        return delete(top), os.listdir(top.parent)

    assert in_namespace(attempt) == (True, [])


def test_width_is_no_obstacle(top: Path) -> None:
    for number in range(300):
        (top / f"dir{number}").mkdir()
        (top / f"file{number}").write_text("")
    assert delete(top)
    assert not top.exists()


@pytest.mark.parametrize("calls", [0, 1, 5, 30])
def test_stopped_anywhere_it_can_be_begun_again(top: Path, calls: int) -> None:
    make_tree(top, 3, 3)
    parent = os.open(top.parent, os.O_RDONLY | os.O_DIRECTORY)
    left = iter(range(calls))
    assert not delete_tree(top.name, dir_fd=parent, stopping=lambda: next(left, None) is None)
    os.close(parent)
    assert top.exists()
    assert delete(top)
    assert not top.exists()


def test_several_at_one_tree_share_the_work(top: Path) -> None:
    make_tree(top, 4, 4)
    all_at_once([lambda: delete(top)] * 3)
    assert delete(top)
    assert not top.exists()


@needs_root
def test_a_user_can_delete_what_he_locked_himself_out_of(top: Path) -> None:
    make_tree(top, 3, 2)
    for directory, _, files in os.walk(top, topdown=False):
        for name in files:
            os.chown(os.path.join(directory, name), NOBODY, NOBODY)
            os.chmod(os.path.join(directory, name), 0)
        os.chown(directory, NOBODY, NOBODY)
        os.chmod(directory, 0o500 if directory.endswith("0") else 0)
    top.chmod(0o700)
    os.chown(top.parent, NOBODY, NOBODY)
    assert run_as(lambda: delete(top), NOBODY)
    assert not top.exists()


@needs_root
def test_what_a_user_may_not_delete_stays_and_the_rest_goes(top: Path) -> None:
    make_tree(top, 2, 3)
    for path in (top.parent, top, *top.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    os.chown(top / "dir1", 0, 0)

    def attempt() -> int | None:
        try:
            delete(top)
        except OSError as error:
            return error.errno
        return None

    assert run_as(attempt, NOBODY) == errno.EACCES
    (left,) = os.listdir(top)
    assert len(os.listdir(top / left)) == 3
    assert delete(top)


def test_an_immutable_file_stays_and_the_rest_goes(top: Path) -> None:
    make_tree(top, 3, 2)
    with immutable(top / "dir0" / "dir1" / "file1"):
        for _ in range(2):
            with pytest.raises(UndeletedError) as caught:
                delete(top)
            assert caught.value.errno == errno.EPERM
            (file,) = [path for path in top.rglob("*") if path.is_file()]
            assert file.name == "file1"
            assert caught.value.left == ((str(file.relative_to(top)), "Operation not permitted"),)
    assert delete(top)
    assert not top.exists()


BTRFS_SUBVOL_CREATE = 0x5000940E
BTRFS_SUBVOL_SETFLAGS = 0x4008941A


def make_subvolume(path: Path) -> None:
    parent = os.open(path.parent, os.O_RDONLY)
    fcntl.ioctl(
        parent, BTRFS_SUBVOL_CREATE, bytearray(struct.pack("q4088s", 0, path.name.encode()))
    )
    os.close(parent)


def make_read_only(subvolume: Path) -> None:
    fd = os.open(subvolume, os.O_RDONLY)
    fcntl.ioctl(fd, BTRFS_SUBVOL_SETFLAGS, struct.pack("=Q", 2))
    os.close(fd)


def make_subvolumes(top: Path) -> None:
    """Subvolumes with directories, in each other, empty, deep, and read-only."""
    make_subvolume(top / "empty")
    here = top
    for depth in range(6):
        make_subvolume(here / f"sub{depth}")
        make_tree(here / f"sub{depth}", 2, 2)
        here = here / f"sub{depth}" / "dir1"
    make_subvolume(top / "dir")
    make_tree(top / "dir", 3, 2)
    (top / "plain").mkdir()
    for name in ("one", "two"):
        make_subvolume(top / "plain" / name)
        make_tree(top / "plain" / name, 2, 2)
    make_read_only(top / "plain" / "two")
    make_read_only(top / "sub0")


class TestSubvolumes:
    @pytest.fixture
    def volume(self, filesystems: Callable[[str], Path]) -> Path:
        return filesystems("btrfs")

    @needs_root
    def test_subvolumes_go_too(self, volume: Path) -> None:
        top = volume / "doomed"
        top.mkdir()
        make_subvolumes(top)
        assert delete(top)
        assert os.listdir(volume) == []

    @needs_root
    def test_a_user_can_delete_his_own(self, volume: Path) -> None:
        """Who may not destroy a subvolume can empty and remove it."""
        place = volume / "place"
        place.mkdir()
        os.chown(place, NOBODY, NOBODY)
        top = place / "doomed"

        def attempt() -> bool:
            top.mkdir()
            make_subvolumes(top)
            return delete(top)

        assert run_as(attempt, NOBODY)
        place.rmdir()


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Make a file undeletable, even for root."""
    fd = os.open(path, os.O_RDONLY)
    try:
        (flags,) = struct.unpack("i", fcntl.ioctl(fd, FS_IOC_GETFLAGS, b"\0" * 4))
        try:
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("i", flags | FS_IMMUTABLE_FL))
        except OSError as error:
            pytest.skip(f"no immutable files here: {error}")
        try:
            yield
        finally:
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("i", flags))
    finally:
        os.close(fd)
