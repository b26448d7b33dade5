"""What stat tells and what chmod and chown change, as on the backing filesystem."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import filesystems
from tests.conftest import Mounted, MountFactory
from tests.mount.comparing import Pair
from tests.mount.kinds import KINDS, make

OLD = 1_000_000_000_123_456_789
"""A time long ago, in nanoseconds, that sets every digit."""


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
    with filesystems.tmpfs(workspace / "disk") as path:
        yield path


def test_a_second_filesystem_gets_numbers_of_its_own(
    workspace: Path, other_disk: Path, mount: MountFactory
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
