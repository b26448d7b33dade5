"""What is acknowledged is on disk: all that an operation changed was synced after the change.

A stand-in for pulling the plug. The system calls are watched: each change makes the file or
directory it touches unsynced, fsync(2) makes it synced. When the operation returns, nothing of
the volume may be unsynced. (What is left of work in the trash may: a crash's leftovers are
cleared anyway.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.local.scopes import SOMEBODY, OpenDriver, write
from volfs.linux import syscalls
from volfs.local import LocalDriver
from volfs.local import names as naming
from volfs.volume import NewVolume

Place = tuple[int, int]


def place(fd: int) -> Place:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


class Disk:
    """Which files and directories have changes that are not on disk, by device and inode."""

    def __init__(self) -> None:
        self.unsynced: dict[Place, str] = {}
        self.syncs = 0

    def change(self, fd: int, what: str) -> None:
        self.unsynced[place(fd)] = what

    def change_parent(self, path: str, dir_fd: int, what: str) -> None:
        parent = os.path.dirname(path)
        if not parent:
            self.change(dir_fd, what)
            return
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
        self.change(fd, what)
        os.close(fd)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Watch all changes made by this process."""
    disk = Disk()
    real_open, real_mkdir, real_rename = os.open, os.mkdir, os.rename
    real_write, real_fsync, real_fchown, real_fchmod = os.write, os.fsync, os.fchown, os.fchmod
    real_renameat2 = syscalls.renameat2

    def watch_open(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        fd = real_open(path, flags, mode, dir_fd=dir_fd)
        if flags & os.O_CREAT and dir_fd is not None:
            disk.change_parent(path, dir_fd, f"creation of {path}")
            disk.change(fd, f"creation of {path}")
        return fd

    def watch_mkdir(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real_mkdir(path, mode, dir_fd=dir_fd)
        if dir_fd is None:
            return
        disk.change_parent(path, dir_fd, f"mkdir {path}")
        fd = real_open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
        disk.change(fd, f"mkdir {path}")
        os.close(fd)

    def watch_rename(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        real_rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        disk.change_parent(source, src_dir_fd, f"rename of {source}")
        disk.change_parent(target, dst_dir_fd, f"rename to {target}")

    def watch_renameat2(src_dir: int, src: bytes, dst_dir: int, dst: bytes, flags: int) -> None:
        real_renameat2(src_dir, src, dst_dir, dst, flags)
        disk.change(src_dir, "exchange")
        disk.change(dst_dir, "exchange")

    def watch_write(fd: int, data: bytes) -> int:
        disk.change(fd, "write")
        return real_write(fd, data)

    def watch_fchown(fd: int, uid: int, gid: int) -> None:
        real_fchown(fd, uid, gid)
        disk.change(fd, "chown")

    def watch_fchmod(fd: int, mode: int) -> None:
        real_fchmod(fd, mode)
        disk.change(fd, "chmod")

    def watch_fsync(fd: int) -> None:
        real_fsync(fd)
        disk.syncs += 1
        disk.unsynced.pop(place(fd), None)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", watch_open)
        patch.setattr(os, "mkdir", watch_mkdir)
        patch.setattr(os, "rename", watch_rename)
        patch.setattr(os, "write", watch_write)
        patch.setattr(os, "fchown", watch_fchown)
        patch.setattr(os, "fchmod", watch_fchmod)
        patch.setattr(os, "fsync", watch_fsync)
        patch.setattr(naming, "renameat2", watch_renameat2)
        yield disk


def create(driver: LocalDriver) -> None:
    driver.create(NewVolume("new", {"mode": "750"}, labels={"a": "b"}, owner=SOMEBODY))


def find_existing(driver: LocalDriver) -> None:
    driver.create("one")


def adopt(driver: LocalDriver) -> None:
    driver.create("leftover")


def remove(driver: LocalDriver) -> None:
    driver.remove(driver.get("one"))


def rename(driver: LocalDriver) -> None:
    driver.rename(driver.get("one"), "new")


def exchange(driver: LocalDriver) -> None:
    driver.exchange(driver.get("one"), driver.get("other"))


def relabel(driver: LocalDriver) -> None:
    driver.set_labels(driver.get("one"), {"a": "b"})


def restore(driver: LocalDriver) -> None:
    driver.restore("gone")


@pytest.mark.parametrize(
    "operation", [create, find_existing, adopt, remove, rename, exchange, relabel, restore]
)
def test_what_is_acknowledged_is_synced(
    operation: Callable[[LocalDriver], None],
    driver: LocalDriver,
    scope: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("one", "other", "gone"):
        write(driver.create(name).path, name)
    driver.remove(driver.get("gone"))
    (scope / "volumes" / "leftover").mkdir()
    (scope / "volumes" / "leftover" / "note").write_text("x")
    with watched(monkeypatch) as disk:
        operation(driver)
    assert disk.syncs > 0
    unsynced = {}
    for directory, names, files in os.walk(scope):
        for path in [directory, *(os.path.join(directory, name) for name in (*names, *files))]:
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) in disk.unsynced:
                unsynced[path] = disk.unsynced[status.st_dev, status.st_ino]
    if operation is not remove:
        # Only that something is no longer in the trash: if it is again, it is cleared again.
        unsynced.pop(str(scope / "trash"), None)
    assert unsynced == {}


def test_a_new_scope_is_synced(
    scope: Path, open_driver: OpenDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch) as disk:
        open_driver()
    below = {(status.st_dev, status.st_ino) for status in map(os.stat, (scope, scope.parent))}
    assert not below & set(disk.unsynced)
