"""Inodes whose descriptor was closed are found again, and as themselves or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pyfuse3 import FileNameT, FlagT, FUSEError, InodeT

from tests.fs.conftest import ROOT, Filesystem, FilesystemFactory, context

FEW = 32
"""Descriptors: three quarters of them are kept for inodes."""

by_either_way = pytest.mark.parametrize("handles", [True, False], ids=["handle", "name"])


def stale(error: FUSEError) -> bool:
    return error.errno == errno.ESTALE


async def rename(fs: Filesystem, parent: int, name: bytes, new_parent: int, new: bytes) -> None:
    await fs.operations.rename(
        InodeT(parent), FileNameT(name), InodeT(new_parent), FileNameT(new), FlagT(0), context()
    )


@by_either_way
async def test_more_inodes_than_descriptors(filesystem: FilesystemFactory, handles: bool) -> None:
    fs = filesystem(descriptors=FEW)
    top, data = fs.volume()
    if not handles:
        fs.without_handles()
    directory = data / "dir"
    directory.mkdir()
    parent = (await fs.lookup(top, b"dir")).st_ino
    numbers = {}
    for number in range(200):
        (directory / f"f{number}").write_text(str(number))
        numbers[number] = (await fs.lookup(parent, b"f%d" % number)).st_ino
        assert len(fs.descriptors) <= FEW * 3 // 4
    for number, node in numbers.items():
        assert node == (directory / f"f{number}").stat().st_ino
        assert await fs.content(node) == b"%d" % number
        assert len(fs.descriptors) <= FEW * 3 // 4
    assert len(os.listdir("/proc/self/fd")) < FEW * 3


@by_either_way
async def test_found_again_after_its_parents_were_renamed(fs: Filesystem, handles: bool) -> None:
    top, _ = fs.volume()
    if not handles:
        fs.without_handles()
    one = (await fs.mkdir(top, b"one")).st_ino
    two = (await fs.mkdir(one, b"two")).st_ino
    file = (await fs.create(two, b"f", b"content")).st_ino
    other = (await fs.mkdir(top, b"other")).st_ino
    await rename(fs, two, b"f", two, b"g")
    await rename(fs, one, b"two", other, b"moved")
    await rename(fs, top, b"other", top, b"renamed")
    for node in (one, two, file, other):
        fs.descriptors.evict(fs.inode(node))
    assert await fs.content(file) == b"content"


@by_either_way
async def test_exchanged_files_are_told_apart(fs: Filesystem, handles: bool) -> None:
    top, _ = fs.volume()
    if not handles:
        fs.without_handles()
    one = (await fs.create(top, b"one", b"1")).st_ino
    two = (await fs.create(top, b"two", b"2")).st_ino
    await fs.operations.rename(top, FileNameT(b"one"), top, FileNameT(b"two"), FlagT(2), context())
    for node in (one, two):
        fs.descriptors.evict(fs.inode(node))
    assert await fs.content(one) == b"1"
    assert await fs.content(two) == b"2"


async def test_moved_behind_the_mount_is_found_by_handle(fs: Filesystem) -> None:
    top, data = fs.volume()
    file = (await fs.create(top, b"f", b"content")).st_ino
    fs.descriptors.evict(fs.inode(file))
    (data / "f").rename(data / "elsewhere")
    (data / "f").write_text("another")
    assert await fs.content(file) == b"content"


@by_either_way
@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "nothing"])
async def test_replaced_behind_the_mount_is_stale(fs: Filesystem, handles: bool, kind: str) -> None:
    top, data = fs.volume()
    if not handles:
        fs.without_handles()
    (data / "keeps the number in use").write_text("old")
    os.link(data / "keeps the number in use", data / "f")
    file = (await fs.lookup(top, b"f")).st_ino
    fs.evict(file)
    (data / "f").unlink()
    if handles:
        (data / "keeps the number in use").unlink()
    match kind:
        case "file":
            (data / "f").write_text("another")
        case "directory":
            (data / "f").mkdir()
        case "symlink":
            (data / "f").symlink_to("keeps the number in use")
    for attempt in (fs.getattr, fs.content):
        with pytest.raises(FUSEError, check=stale):
            await attempt(file)


async def test_parent_replaced_by_a_link_is_not_followed(fs: Filesystem) -> None:
    """A directory swapped for a link to a like one outside: never followed on the way."""
    top, data = fs.volume()
    fs.without_handles()
    directory = (await fs.mkdir(top, b"dir")).st_ino
    file = (await fs.create(directory, b"f", b"inside")).st_ino
    for node in (directory, file):
        fs.descriptors.evict(fs.inode(node))
    (data / "dir").rename(fs.scope / "outside")
    (data / "dir").symlink_to(fs.scope / "outside")
    with pytest.raises(FUSEError, check=stale):
        await fs.content(file)


async def test_volume_top_keeps_its_descriptor_without_handles(
    filesystem: FilesystemFactory,
) -> None:
    """Only the store knows where a volume is, so its top directory must not need finding."""
    fs = filesystem(descriptors=FEW)
    top, data = fs.volume()
    fs.without_handles()
    for number in range(100):
        (data / f"f{number}").touch()
        await fs.lookup(top, b"f%d" % number)
    assert (await fs.getattr(top)).st_ino == data.stat().st_ino


@by_either_way
async def test_deep_tree_is_found_again(filesystem: FilesystemFactory, handles: bool) -> None:
    """Deeper than paths can be and than Python calls can nest."""
    fs = filesystem(descriptors=FEW)
    top, data = fs.volume()
    if not handles:
        fs.without_handles()
    node = int(top)
    nodes = []
    try:
        for _ in range(2000):
            node = (await fs.mkdir(node, b"d")).st_ino
            nodes.append(node)
        for node in reversed(nodes):
            fs.descriptors.evict(fs.inode(node))
        assert (await fs.getattr(nodes[-1])).st_ino == nodes[-1]
        assert len(fs.descriptors) <= FEW * 3 // 4
    finally:
        # Too deep for shutil.rmtree as well.
        subprocess.run(["rm", "-rf", "--", data], check=True)  # noqa: ASYNC221


def moved_into_each_other(data: Path) -> None:
    """From dir/sub to sub/dir."""
    (data / "dir" / "sub").rename(data / "sub")
    (data / "dir").rename(data / "sub" / "dir")


async def entangled(fs: Filesystem) -> tuple[int, int]:
    """Two directories that were each seen in the other: node ids of dir and sub.

    It takes a change behind the mount, or through another mount of the scope, while somebody
    works in the directories.
    """
    top, data = fs.volume()
    directory = (await fs.mkdir(top, b"dir")).st_ino
    sub = (await fs.mkdir(directory, b"sub")).st_ino
    moved_into_each_other(data)
    assert (await fs.lookup(sub, b"dir")).st_ino == directory
    return directory, sub


def finishes(call: Callable[[], object]) -> bool:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(5.0)
    return not thread.is_alive()


async def test_directories_seen_in_each_other_do_not_stall_who_uses_what(fs: Filesystem) -> None:
    directory, _ = await entangled(fs)
    inode = fs.inode(directory)
    try:
        assert finishes(lambda: inode.volume_top)
    finally:
        inode.parent = None


async def test_directories_seen_in_each_other_are_found_or_stale(fs: Filesystem) -> None:
    directory, sub = await entangled(fs)
    fs.without_handles()
    for node in (directory, sub):
        fs.inode(node).file_handle = None
        fs.descriptors.evict(fs.inode(node))
    try:
        assert (await fs.getattr(directory)).st_ino == directory
    except FUSEError as error:
        assert stale(error)


async def test_forgotten_parent_does_not_keep_a_descriptor(fs: Filesystem) -> None:
    """A hard link's other name may be in a directory that the kernel has forgotten."""
    top, data = fs.volume()
    (data / "f").touch()
    (data / "dir").mkdir()
    os.link(data / "f", data / "dir" / "f")
    directory = (await fs.lookup(top, b"dir")).st_ino
    file = (await fs.lookup(directory, b"f")).st_ino
    fs.without_handles()
    await fs.operations.forget([(InodeT(directory), 1)])
    fs.evict(file)
    await fs.getattr(file)
    await fs.operations.forget([(InodeT(file), 1), (top, 1)])
    assert fs.statistics()["descriptors"] == 0


async def test_file_deleted_behind_the_mount_is_let_go(fs: Filesystem) -> None:
    """Its blocks must not stay in use because of a descriptor that nobody needs."""
    top, data = fs.volume()
    (data / "f").write_bytes(b"x" * 100_000)
    (data / "stays").touch()
    deleted = (await fs.lookup(top, b"f")).st_ino
    stays = (await fs.lookup(top, b"stays")).st_ino
    (data / "f").unlink()
    fs.descriptors.release_deleted(1000)
    fs.descriptors.closing.finish()
    assert fs.inode(deleted).fd == -1
    assert fs.inode(stays).fd >= 0
    with pytest.raises(FUSEError, check=stale):
        await fs.getattr(deleted)


async def test_nodes_of_a_removed_volume_are_stale(fs: Filesystem) -> None:
    top, data = fs.volume()
    file = (await fs.create(top, b"f", b"content")).st_ino
    directory = (await fs.mkdir(top, b"dir")).st_ino
    await fs.operations.rmdir(ROOT, FileNameT(b"vol"), context())
    assert not data.exists()
    for node in (top, file, directory):
        with pytest.raises(FUSEError, check=stale):
            await fs.getattr(node)
    with pytest.raises(FUSEError, check=stale):
        await fs.create(directory, b"late")


async def test_volume_made_again_is_another(fs: Filesystem) -> None:
    top, _ = fs.volume()
    await fs.create(top, b"f", b"old")
    await fs.operations.rmdir(ROOT, FileNameT(b"vol"), context())
    again = await fs.mkdir(ROOT, b"vol")
    assert (again.st_ino, again.generation) != (top, 0)
    assert (await fs.lookup(again.st_ino, b"f")).st_ino == 0


async def test_what_a_thread_uses_is_not_closed_when_it_is_deleted(fs: Filesystem) -> None:
    """The sweep lets go of deleted files, but not under a call that has one in hand."""
    top, data = fs.volume()
    (data / "f").write_bytes(b"content")
    inode = fs.inode((await fs.lookup(top, b"f")).st_ino)

    def use() -> tuple[int, int]:
        fd = fs.inodes.reach(inode)
        (data / "f").unlink()
        fs.descriptors.release_deleted(100)
        return fd, os.fstat(fd).st_size

    assert await fs.requests.threads.run(use, inode) == (inode.fd, len(b"content"))
    fs.descriptors.release_deleted(100)
    assert inode.fd == -1
