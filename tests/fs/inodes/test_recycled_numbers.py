"""Inode numbers that are given away again, on a filesystem where nobody else takes them."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from pyfuse3 import EntryAttributes, FileNameT, FUSEError, InodeT, ModeT

from tests.children import needs_root
from tests.conftest import open_workspace
from tests.filesystems import ext4
from tests.fs.conftest import Filesystem, context
from tests.fs.inodes.test_reaching import by_either_way, rename, stale
from volfs.fs.agreement import PLAIN, Agreement

pytestmark = needs_root


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """An ext4, which gives the number of a deleted file to the next one."""
    with open_workspace() as workspace, ext4(workspace / "disk", size=16 << 20) as disk:
        yield disk


@pytest.fixture
def workspace(disk: Path) -> Path:
    """A directory there for each test."""
    path = disk / str(len(os.listdir(disk)))
    path.mkdir()
    return path


TAPPED = Agreement(device=0)
"""As when requests are answered in the tap."""


def recur(make: Callable[[int], Path], wanted: int) -> Path:
    """Make files until one has the inode number ``wanted``; the others are removed."""
    for number in range(2000):
        path = make(number)
        if path.lstat().st_ino == wanted:
            return path
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    pytest.fail("the inode number did not come up again")


def make_new(data: Path, number: int) -> Path:
    path = data / f"new{number}"
    path.write_text("new")
    return path


async def deleted(fs: Filesystem, top: InodeT, data: Path) -> int:
    """A file that the kernel knows, has read, and that was deleted behind the mount."""
    old = (await fs.create(top, b"old", b"secret")).st_ino
    assert await fs.content(old) == b"secret"
    fs.evict(old)
    (data / "old").unlink()
    return old


@pytest.fixture(params=["node id", "generation"])
def renumbering(request: pytest.FixtureRequest, fs: Filesystem) -> bool:
    """Whether the kernel tells two files of one number by node ids of their own."""
    fs.agree(TAPPED if request.param == "node id" else PLAIN)
    return fs.parts.connection.agreement.tapped


def is_told_apart(entry: EntryAttributes, old: int, generation: int, renumbering: bool) -> bool:
    """Whether ``entry`` is another file to the kernel than the one that was ``old``."""
    if renumbering:
        return entry.st_ino != old
    return entry.st_ino == old and entry.generation != generation


@by_either_way
async def test_number_recycled_under_the_same_name_is_not_the_old_file(
    fs: Filesystem, handles: bool, renumbering: bool
) -> None:
    top, data = fs.volume()
    if not handles:
        fs.without_handles()
    old = await deleted(fs, top, data)
    recur(partial(make_new, data), old).rename(data / "old")
    for attempt in (fs.getattr, fs.content):
        with pytest.raises(FUSEError, check=stale):
            await attempt(old)
    generation = fs.inode(old).generation
    entry = await fs.lookup(top, b"old")
    assert is_told_apart(entry, old, generation, renumbering)
    assert await fs.content(entry.st_ino) == b"new"
    if renumbering:
        for attempt in (fs.getattr, fs.content):
            with pytest.raises(FUSEError, check=stale):
                await attempt(old)


async def test_a_file_with_a_recycled_number_is_removed(fs: Filesystem) -> None:
    """Nothing is kept of it: the kernel has never heard of it."""
    fs.agree(TAPPED)
    top, data = fs.volume()
    old = await deleted(fs, top, data)
    new = recur(partial(make_new, data), old)
    before = fs.statistics()["inodes"]
    await fs.operations.unlink(top, FileNameT(os.fsencode(new.name)), context())
    assert not new.exists()
    assert fs.statistics()["inodes"] == before
    with pytest.raises(FUSEError, check=stale):
        await fs.getattr(old)


async def test_number_recycled_by_listing_is_not_the_old_file(fs: Filesystem) -> None:
    """A listing sees names only: it must not make the old node the new file unnoticed."""
    fs.agree(TAPPED)
    top, data = fs.volume()
    old = await deleted(fs, top, data)
    recur(partial(make_new, data), old)
    await fs.listing(top)
    with pytest.raises(FUSEError, check=stale):
        await fs.content(old)


Maker = Callable[[Filesystem, InodeT, bytes], Awaitable[EntryAttributes]]
MAKERS: dict[str, Maker] = {
    "create": lambda fs, top, name: fs.create(top, name, b"new"),
    "mkdir": lambda fs, top, name: fs.mkdir(top, name),
    "mknod": lambda fs, top, name: fs.operations.mknod(
        top, FileNameT(name), ModeT(stat.S_IFREG | 0o600), 0, context()
    ),
    "symlink": lambda fs, top, name: fs.operations.symlink(
        top, FileNameT(name), FileNameT(b"t"), context()
    ),
}


@pytest.mark.parametrize("seen", ["used", "listed"])
@pytest.mark.parametrize("how", MAKERS)
async def test_number_recycled_through_the_mount_is_told_apart(
    fs: Filesystem, how: str, seen: str, renumbering: bool
) -> None:
    top, data = fs.volume()
    old = data / "old"
    if how == "mkdir":
        old.mkdir()  # ext4 numbers directories from elsewhere
    else:
        old.write_text("secret")
    node = old.stat().st_ino
    await fs.listing(top)
    if seen == "used":
        await fs.getattr(node)
        fs.evict(node)
    old.rmdir() if how == "mkdir" else old.unlink()
    generation = fs.inode(node).generation
    for number in range(2000):
        name = b"new%d" % number
        entry = await MAKERS[how](fs, top, name)
        if (data / name.decode()).lstat().st_ino == node:
            break
        if how == "mkdir":
            await fs.operations.rmdir(top, FileNameT(name), context())
        else:
            await fs.operations.unlink(top, FileNameT(name), context())
        await fs.operations.forget([(InodeT(entry.st_ino), 1)])
    else:
        pytest.fail("the inode number did not come up again")
    assert is_told_apart(entry, node, generation, renumbering)
    assert entry.st_size != len("secret")
    if renumbering:
        # Each is forgotten for itself, and what is known of the other stays.
        await fs.operations.forget([(InodeT(node), 1)])
        assert (await fs.lookup(top, name)).st_ino == entry.st_ino
        await fs.operations.forget([(entry.st_ino, 2)])
        assert (await fs.lookup(top, name)).st_ino == node


@pytest.mark.parametrize("way", ["unlink", "rename"])
async def test_what_lost_its_name_in_the_tree_keeps_its_number(fs: Filesystem, way: str) -> None:
    """Until the kernel forgets it: somebody may have it without having it open."""
    top, data = fs.volume()
    old = (await fs.create(top, b"old", b"old")).st_ino
    fs.evict(old)
    if way == "unlink":
        await fs.operations.unlink(top, FileNameT(b"old"), context())
    else:
        await fs.create(top, b"other", b"other")
        await rename(fs, top, b"other", top, b"old")
    assert await fs.content(old) == b"old"
    assert old not in [make_new(data, number).stat().st_ino for number in range(100)]
    assert await fs.content(old) == b"old"
    await fs.operations.forget([(InodeT(old), 1)])
    recur(partial(make_new, data), old)
