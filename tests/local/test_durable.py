"""What is acknowledged is on disk: all that an operation changed was synced after the change.

A stand-in for pulling the plug. The system calls are watched: each change makes the file or
directory it touches unsynced, fsync(2) and syncfs(2) make it synced; fdatasync(2) and
sync_file_range(2) do not, as they write no more than data. When the operation returns, nothing
of the volume may be unsynced. (What is left of work in the trash may: a crash's leftovers are
cleared anyway.) What is in a volume that is published is more than is watched, so it is compared
with what it was when it was last synced.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.copies.trees import make_tree
from tests.local.scopes import SOMEBODY, OpenDriver, write
from volfs.linux import syscalls
from volfs.local import LocalDriver
from volfs.local import names as naming
from volfs.store import References, VolumeStore
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
        self.on_syncfs: Callable[[], None] = lambda: None

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
    real_unlink, real_rmdir = os.unlink, os.rmdir
    real_renameat2 = syscalls.renameat2
    real_syncfs = syscalls._libc.syncfs

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

    def watch_unlink(path: str, *, dir_fd: int) -> None:
        real_unlink(path, dir_fd=dir_fd)
        disk.change_parent(path, dir_fd, f"unlink of {path}")

    def watch_rmdir(path: str, *, dir_fd: int) -> None:
        real_rmdir(path, dir_fd=dir_fd)
        disk.change_parent(path, dir_fd, f"rmdir of {path}")

    def watch_syncfs(fd: ctypes.c_int) -> int:
        device, _ = place(fd.value)
        done: int = real_syncfs(fd)
        disk.syncs += 1
        disk.unsynced = {key: what for key, what in disk.unsynced.items() if key[0] != device}
        disk.on_syncfs()
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", watch_unlink)
        patch.setattr(os, "rmdir", watch_rmdir)
        patch.setattr(syscalls._libc, "syncfs", watch_syncfs)
        patch.setattr(os, "open", watch_open)
        patch.setattr(os, "mkdir", watch_mkdir)
        patch.setattr(os, "rename", watch_rename)
        patch.setattr(os, "write", watch_write)
        patch.setattr(os, "fchown", watch_fchown)
        patch.setattr(os, "fchmod", watch_fchmod)
        patch.setattr(os, "fsync", watch_fsync)
        patch.setattr(naming, "renameat2", watch_renameat2)
        yield disk


Looks = dict[str, tuple[int, int, int]]


def looks_of(top: Path) -> Looks:
    """All that is in a directory, and when each of it was last changed."""
    found = {}
    for directory, names, files in os.walk(top):
        for path in (directory, *(os.path.join(directory, name) for name in (*names, *files))):
            status = os.lstat(path)
            found[os.path.relpath(path, top)] = (status.st_ino, status.st_ctime_ns, status.st_size)
    return found


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


def clone(driver: LocalDriver) -> None:
    driver.clone("one", "new")


def create_from(driver: LocalDriver) -> None:
    driver.create(NewVolume("new", {"from": "one", "mode": "750"}))


def fill(driver: LocalDriver) -> None:
    def put(data: int, keep_alive: Callable[[], None]) -> None:
        make_tree(Path(f"/proc/self/fd/{data}"))

    driver.make_filled(NewVolume("new", {"mode": "750"}), put)


@pytest.mark.parametrize("operation", [clone, create_from, fill])
def test_what_is_published_is_synced_with_all_in_it(
    operation: Callable[[LocalDriver], None],
    driver: LocalDriver,
    scope: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_tree(Path(driver.create("one").path))
    synced: dict[str, Looks] = {}
    published: list[Looks] = []

    def looks() -> dict[str, Looks]:
        return {str(data.parent): looks_of(data) for data in scope.glob("trash/.new-*/_data")}

    with watched(monkeypatch) as disk:
        disk.on_syncfs = lambda: synced.update(looks())
        watch_rename = os.rename

        def rename(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
            if target == "new":
                (now,) = looks().values()
                published.append(now)
                # Else the rename is on disk before what it publishes.
                below = {(os.stat(scope).st_dev, number) for number, *_ in now.values()}
                assert not below & set(disk.unsynced)
            watch_rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            operation(driver)
    (now,) = published
    assert len(now) > 5
    assert now in synced.values()
    assert place_of(scope / "volumes") not in disk.unsynced


def purge(driver: LocalDriver) -> None:
    assert len(driver.purge()) == 2


def housekeep(driver: LocalDriver) -> None:
    other = LocalDriver(driver.scope, keep_removed=0)
    other.housekeep(lambda: False)
    other.close()


def run_out_of_space(driver: LocalDriver) -> None:
    other = LocalDriver(driver.scope, keep_free=1.0)
    other.housekeep(lambda: False)
    other.close()


@pytest.mark.parametrize("operation", [purge, housekeep, run_out_of_space])
def test_the_first_file_goes_when_it_is_on_disk_that_the_volume_is_no_more(
    operation: Callable[[LocalDriver], None],
    driver: LocalDriver,
    scope: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a crash could bring back, restorable, a volume of which a part is missing."""
    for name in ("one", "other"):
        make_tree(Path(driver.create(name).path))
        driver.remove(driver.get(name))
    trash = place_of(scope / "trash")
    doomed: set[str] = set()
    gone = 0

    with watched(monkeypatch) as disk:

        def watching(
            call: Callable[..., None],
        ) -> Callable[..., None]:
            def watch(path: str, *, dir_fd: int) -> None:
                nonlocal gone
                now = {entry.name for entry in scope.glob("trash/.doomed-*")}
                if not now <= doomed:
                    assert trash not in disk.unsynced
                    doomed.update(now)
                    gone += 1
                call(path, dir_fd=dir_fd)

            return watch

        with monkeypatch.context() as patch:
            for name in ("unlink", "rmdir"):
                patch.setattr(os, name, watching(getattr(os, name)))
            operation(driver)
    assert gone == 2


def acquire(store: VolumeStore) -> None:
    store.acquire("vol", "first")


def acquire_again(store: VolumeStore) -> None:
    store.acquire("known", "second")


def release(store: VolumeStore) -> None:
    store.release("known", "first")


@pytest.mark.parametrize("operation", [acquire, acquire_again, release])
def test_references_are_synced_with_their_directories(
    operation: Callable[[VolumeStore], None],
    driver: LocalDriver,
    scope: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    references = References(str(scope))
    store = VolumeStore([driver], references=references)
    for name in ("vol", "known"):
        store.create(name)
    if operation is not acquire:
        store.acquire("known", "first")
    with watched(monkeypatch) as disk:
        operation(store)
    references.close()
    assert disk.syncs > 0
    below = [scope, *(scope / "references").rglob("*"), scope / "references"]
    unsynced = {str(path): disk.unsynced.get(place_of(path)) for path in below}
    # The lock's file says nothing, and is made again when it is missing.
    unsynced.pop(str(scope / "references" / ".lock"))
    assert set(unsynced.values()) <= {None, "creation of .lock"}, unsynced


def place_of(path: Path) -> Place:
    status = path.stat()
    return status.st_dev, status.st_ino
