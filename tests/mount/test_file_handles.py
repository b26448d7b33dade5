"""A file handle leads to its file again, also when the kernel has forgotten the inode.

As on the backing filesystem: name_to_handle_at(2), open_by_handle_at(2), and what an NFS server
does with them.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Mounted, MountFactory, mounting, open_workspace, volfs
from tests.filesystems import MS_REMOUNT, btrfs, ext4, tmpfs, xfs
from tests.mount.comparing import outcome
from volfs.fs.native import birth_ns, fstat
from volfs.linux import syscalls
from volfs.linux.syscalls import name_to_handle_at, open_by_handle_at

pytestmark = pytest.mark.no_data

FILESYSTEMS: dict[str, Callable[[Path], AbstractContextManager[Path]]] = {
    "ext4": partial(ext4, size=16 << 20),
    "xfs": xfs,
    "btrfs": btrfs,
    "tmpfs": tmpfs,
}


@pytest.fixture(scope="module", params=FILESYSTEMS)
def tree(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A tree on each filesystem, with files in it."""
    filesystem = FILESYSTEMS[request.param]
    with (
        open_workspace() as workspace,
        filesystem(workspace / "disk") as disk,
        mounting(workspace) as mount,
    ):
        yield mount(scope=disk / "scope", keep_removed="1h")


@pytest.fixture
def volume(tree: Mounted, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A volume with three directories below each other, and something in each."""
    volume = tree.mnt / "vol"
    volume.mkdir()
    here = volume
    for number in range(3):
        here /= f"dir{number}"
        here.mkdir()
        (here / "file").write_text(f"content {number}")
        (here / "link").symlink_to("anywhere")
        os.mkfifo(here / "fifo")
    yield volume
    (tree.mnt / "vol").rmdir()


def handle(path: Path) -> bytes:
    """A file handle of what is at a path, links not followed."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return name_to_handle_at(fd)[0]
    finally:
        os.close(fd)


@contextmanager
def opened(top: Path, handle: bytes, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A descriptor of what a file handle leads to."""
    mount = os.open(top, os.O_RDONLY)
    try:
        fd = open_by_handle_at(mount, handle, flags)
    finally:
        os.close(mount)
    try:
        yield fd
    finally:
        os.close(fd)


def everything(volume: Path) -> dict[Path, bytes]:
    """A file handle of each file and directory in a volume, itself included."""
    paths = [volume, *volume.rglob("*")]
    assert len(paths) == 1 + 3 * 4
    return {path: handle(path) for path in paths}


def what(fd: int) -> tuple[object, ...]:
    """What there is to be seen of what a descriptor refers to."""
    status = os.fstat(fd)
    kind = stat.S_IFMT(status.st_mode)
    content: object = None
    if kind == stat.S_IFREG:
        content = Path(f"/proc/self/fd/{fd}").read_bytes()
    elif kind == stat.S_IFDIR:
        content = sorted(os.listdir(f"/proc/self/fd/{fd}"))
    elif kind == stat.S_IFLNK:
        content = os.readlink("", dir_fd=fd)
    return kind, status.st_ino, status.st_size if kind != stat.S_IFDIR else 0, content


def seen(path: Path) -> tuple[object, ...]:
    """``what`` of what is at a path."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return what(fd)
    finally:
        os.close(fd)


def test_it_is_found_again(tree: Mounted, volume: Path) -> None:
    handles = everything(volume)
    wanted = {path: seen(path) for path in handles}
    tree.drop_caches()
    for path, known in handles.items():
        with opened(tree.mnt, known, os.O_PATH) as fd:
            assert what(fd) == wanted[path], path
            assert os.readlink(f"/proc/self/fd/{fd}") == str(path) or not path.is_dir()
        tree.drop_caches()


def test_it_is_found_though_no_name_is_remembered(tree: Mounted, volume: Path) -> None:
    """Neither by the kernel: by the number of the directory that it was in."""
    handles = everything(volume)
    wanted = {path: seen(path) for path in handles}
    for path, known in handles.items():
        tree.drop_caches()
        syscalls.mount(b"", os.fsencode(tree.scope.parent), b"", MS_REMOUNT, b"")
        with opened(tree.mnt, known, os.O_PATH) as fd:
            assert what(fd) == wanted[path], path


def test_it_is_found_by_the_next_daemon(
    tree: Mounted, volume: Path, mount: MountFactory, request: pytest.FixtureRequest
) -> None:
    """Directories, and files whose names the kernel remembers; where there are numbers."""
    handles = everything(volume)
    wanted = {path: seen(path) for path in handles}
    tree.drop_caches()
    other = mount(scope=tree.scope)
    for path, known in handles.items():
        if "tmpfs" in request.node.name:
            assert outcome(reaches, other.mnt, known) == "ESTALE"
        else:
            with opened(other.mnt, known, os.O_PATH) as fd:
                assert what(fd) == wanted[path], path


def reaches(top: Path, known: bytes) -> None:
    with opened(top, known, os.O_PATH):
        pass


def test_it_is_written_to(tree: Mounted, volume: Path) -> None:
    known = handle(volume / "dir0/dir1/file")
    tree.drop_caches()
    with opened(tree.mnt, known, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b", and more")
    assert (tree.data("vol") / "dir0/dir1/file").read_text() == "content 1, and more"


def test_what_it_leads_to_is_in_use(tree: Mounted, volume: Path) -> None:
    known = handle(volume / "dir0/dir1/file")
    tree.drop_caches()
    with opened(tree.mnt, known):
        assert outcome(os.rmdir, volume) == "EBUSY"


def test_it_has_moved(tree: Mounted, volume: Path) -> None:
    known = handle(volume / "dir0/dir1/file")
    (volume / "dir0/dir1").rename(volume / "elsewhere")
    (volume / "elsewhere/file").rename(volume / "elsewhere/renamed")
    tree.drop_caches()
    with opened(tree.mnt, known) as fd:
        assert os.read(fd, 100) == b"content 1"


def test_it_has_moved_behind_the_mount(tree: Mounted, volume: Path) -> None:
    known = handle(volume / "dir0/dir1/file"), handle(volume / "dir0/dir1/dir2")
    tree.drop_caches()
    data = tree.data("vol")
    (data / "dir0/dir1/file").rename(data / "dir0/dir1/renamed")
    (data / "dir0/dir1/dir2").rename(data / "dir0/dir1/other")
    (data / "dir0/dir1/file").write_text("another")
    with opened(tree.mnt, known[0]) as fd:
        assert os.read(fd, 100) == b"content 1"
    with opened(tree.mnt, known[1]) as fd:
        assert sorted(os.listdir(fd)) == ["fifo", "file", "link"]


@pytest.mark.parametrize("where", ["tree", "behind"])
def test_it_was_deleted(tree: Mounted, volume: Path, where: str) -> None:
    top = volume if where == "tree" else tree.data("vol")
    known = handle(volume / "dir0/file")
    (top / "dir0/file").unlink()
    tree.drop_caches()
    assert outcome(reaches, tree.mnt, known) == "ESTALE"


def test_its_number_was_given_away(
    tree: Mounted, volume: Path, request: pytest.FixtureRequest
) -> None:
    path = volume / "dir0/file"
    known, number = handle(path), path.stat().st_ino
    others = tree.data("vol") / "others"
    others.mkdir()
    tree.drop_caches()
    (tree.data("vol") / "dir0/file").unlink()
    for count in range(64):
        other = others / str(count)
        other.write_text("secret")
        if other.stat().st_ino == number:
            break
    else:
        if "ext4" in request.node.name:
            pytest.fail("the number did not come up again")
    assert outcome(reaches, tree.mnt, known) == "ESTALE"
    assert (volume / "others" / str(count)).read_text() == "secret"
    assert outcome(reaches, tree.mnt, known) == "ESTALE"


def test_its_volume_was_removed(tree: Mounted, volume: Path) -> None:
    known = [handle(path) for path in (volume, volume / "dir0", volume / "dir0/file")]
    volume.rmdir()
    tree.drop_caches()
    for one in known:
        assert outcome(reaches, tree.mnt, one) == "ESTALE"
    volfs(tree.scope, "restore", "vol")
    for one in known:
        reaches(tree.mnt, one)


def forged(known: bytes, path: Path) -> bytes:
    """The file handle that a file would have if it were in the tree."""
    fd = os.open(path, os.O_PATH)
    try:
        status = fstat(fd)
    finally:
        os.close(fd)
    generation = birth_ns(status) & 0xFFFFFFFF
    kind, *_ = struct.unpack("=IIII", known)
    return struct.pack("=IIII", kind, status.st_ino >> 32, status.st_ino & 0xFFFFFFFF, generation)


def test_nothing_outside_of_the_volumes_is_found(tree: Mounted, volume: Path) -> None:
    outside = tree.scope / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    known = handle(volume / "dir0/file")
    inside = tree.data("vol") / "dir0/file"
    assert forged(known, inside) == known
    for path in (
        tree.scope,
        tree.scope / "volumes",
        inside.parents[2],
        outside,
        outside / "secret",
    ):
        assert outcome(reaches, tree.mnt, forged(known, path)) == "ESTALE", path
    (outside / "secret").unlink()
    outside.rmdir()
