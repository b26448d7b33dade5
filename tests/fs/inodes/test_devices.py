"""Node ids: real inode numbers on the scope's device, a range of their own on others."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyfuse3 import FUSEError

from tests.fs.conftest import Filesystem, FilesystemFactory
from volfs.fs.inodes import ROOT_ID
from volfs.linux import syscalls

FOREIGN = 1 << 47
MS_BIND = 4096
MS_REMOUNT = 32
MS_PRIVATE = 1 << 18


@pytest.fixture
def tmpfs(workspace: Path) -> Iterator[list[Path]]:
    """Mount points to be unmounted; a test adds what it mounts."""
    mounted: list[Path] = []
    # What is mounted below stays with this mount.
    syscalls.mount(os.fsencode(workspace), os.fsencode(workspace), b"", MS_BIND, b"")
    syscalls.mount(b"", os.fsencode(workspace), b"", MS_PRIVATE, b"")
    yield mounted
    for path in reversed(mounted):
        syscalls.umount2(os.fsencode(path), syscalls.MNT_DETACH)
    syscalls.umount2(os.fsencode(workspace), syscalls.MNT_DETACH)


def mount_tmpfs(path: Path, mounted: list[Path]) -> None:
    path.mkdir()
    syscalls.mount(b"volfs-test", os.fsencode(path), b"tmpfs", 0, b"size=1m")
    mounted.append(path)


def fabricated(fs: Filesystem, ino: int) -> os.stat_result:
    """The stat of a file with this inode number, on the scope's device."""
    dev = fs.root_inode.device.dev
    return os.stat_result((stat.S_IFREG | 0o644, ino, dev, 1, 0, 0, 0, 0, 0, 0))


async def test_numbers_of_the_scope_are_the_real_ones(fs: Filesystem) -> None:
    top, data = fs.volume()
    assert top == data.stat().st_ino
    entry = await fs.create(top, b"f")
    assert entry.st_ino == (data / "f").stat().st_ino


async def test_foreign_device_has_numbers_apart(tmpfs: list[Path], fs: Filesystem) -> None:
    top, data = fs.volume()
    mount_tmpfs(data / "sub", tmpfs)
    (data / "sub" / "f").write_text("on tmpfs")
    entry = await fs.lookup(top, b"sub", b"f")
    real = (data / "sub" / "f").stat()
    assert FOREIGN <= entry.st_ino < 2 * FOREIGN
    assert entry.st_ino % (1 << 32) == real.st_ino
    assert await fs.content(entry.st_ino) == b"on tmpfs"
    made = await fs.create((await fs.lookup(top, b"sub")).st_ino, b"made", b"x")
    assert made.st_ino >= FOREIGN


async def test_foreign_numbers_stay(tmpfs: list[Path], filesystem: FilesystemFactory) -> None:
    """Over forgetting, and in another daemon."""
    first = filesystem()
    top, data = first.volume()
    mount_tmpfs(data / "sub", tmpfs)
    (data / "sub" / "f").touch()
    node = (await first.lookup(top, b"sub", b"f")).st_ino
    await first.operations.forget([(node, 1)])
    assert (await first.lookup(top, b"sub", b"f")).st_ino == node
    (link := data.parent / "second").symlink_to(data)
    second = filesystem()
    other, other_data = second.volume()
    other_data.rmdir()
    other_data.symlink_to(link)
    await second.operations.forget([(other, 1)])
    top = (await second.lookup(ROOT_ID, b"vol")).st_ino
    assert (await second.lookup(top, b"sub", b"f")).st_ino == node


async def test_two_foreign_devices_are_kept_apart(tmpfs: list[Path], fs: Filesystem) -> None:
    top, data = fs.volume()
    nodes = []
    for name in ("one", "two"):
        mount_tmpfs(data / name, tmpfs)
        (data / name / "f").write_text(name)
        nodes.append((await fs.lookup(top, name.encode(), b"f")).st_ino)
    # tmpfs numbers its files alike.
    assert (data / "one" / "f").stat().st_ino == (data / "two" / "f").stat().st_ino
    assert nodes[0] != nodes[1]
    for node in nodes:
        fs.evict(node)
    assert [await fs.content(node) for node in nodes] == [b"one", b"two"]


async def test_listing_shows_mount_points_as_what_is_mounted(
    tmpfs: list[Path], fs: Filesystem
) -> None:
    top, data = fs.volume()
    mount_tmpfs(data / "sub", tmpfs)
    listing = await fs.listing(top)
    (entry,) = [
        entry for name, entry in zip(listing.names, listing.entries, strict=True) if name == b"sub"
    ]
    assert entry.st_ino == (await fs.lookup(top, b"sub")).st_ino
    assert entry.st_ino >= FOREIGN


async def test_evicted_file_of_a_read_only_mount_stays_read_only(
    tmpfs: list[Path], fs: Filesystem
) -> None:
    """A directory of the scope's own filesystem, bind-mounted read-only into a volume."""
    top, data = fs.volume()
    source = fs.scope / "source"
    source.mkdir()
    (source / "f").write_text("kept")
    target = data / "sub"
    target.mkdir()
    syscalls.mount(os.fsencode(source), os.fsencode(target), b"", MS_BIND, b"")
    tmpfs.append(target)
    syscalls.mount(b"", os.fsencode(target), b"", MS_BIND | MS_REMOUNT | syscalls.MS_RDONLY, b"")
    node = (await fs.lookup(top, b"sub", b"f")).st_ino
    for evict in (False, True):
        if evict:
            fs.evict(node)
        with pytest.raises(FUSEError) as raised:
            await fs.open(node, os.O_WRONLY)
        assert raised.value.errno == errno.EROFS


def test_inode_number_one_is_not_the_root(fs: Filesystem) -> None:
    """Some filesystems number their root 1; FUSE does so too."""
    inode = fs.inodes.remember(fabricated(fs, 1), fs.root_inode, b"one", -1)
    assert inode.node_id not in (0, ROOT_ID)
    assert fs.inodes[ROOT_ID] is fs.root_inode
    assert fs.inodes[inode.node_id] is inode
    assert fs.inodes.remember(fabricated(fs, 1), fs.root_inode, b"again", -1) is inode


def test_inode_number_zero_is_not_nothing(fs: Filesystem) -> None:
    """Node id 0 says to the kernel that there is no such file."""
    inode = fs.inodes.remember(fabricated(fs, 0), fs.root_inode, b"zero", -1)
    assert inode.node_id not in (0, ROOT_ID)


@pytest.mark.parametrize("ino", [1 << 63, (1 << 63) + 5, (1 << 64) - 1])
def test_inode_number_of_64_bits(fs: Filesystem, ino: int) -> None:
    """GlusterFS has them."""
    inode = fs.inodes.remember(fabricated(fs, ino), fs.root_inode, b"big", -1)
    assert inode.node_id == ino
    assert fs.entries.attributes(inode, fs.scope.stat()).st_ino == ino


async def test_big_number_that_a_foreign_file_has_already(
    tmpfs: list[Path], fs: Filesystem
) -> None:
    top, data = fs.volume()
    mount_tmpfs(data / "sub", tmpfs)
    node = (await fs.lookup(top, b"sub")).st_ino
    inode = fs.inodes.remember(fabricated(fs, node), fs.root_inode, b"same", -1)
    assert inode.node_id != node
    assert fs.inodes[inode.node_id] is inode
    assert fs.inode(node).ino == (data / "sub").stat().st_ino
    # Looked up again, both are who they were.
    assert (await fs.lookup(top, b"sub")).st_ino == node
    assert fs.inodes.remember(fabricated(fs, node), fs.root_inode, b"same", -1) is inode
    # A rename is noted for the right one.
    fs.inodes.moved(fabricated(fs, node), fs.root_inode, b"moved")
    assert inode.name == b"moved"
