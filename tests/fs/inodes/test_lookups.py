"""Lookup counts: an inode is known for as long as the kernel knows it."""

from __future__ import annotations

import errno
import os
from collections import Counter

import pytest
from pyfuse3 import FileNameT, FlagT, FUSEError, InodeT, ModeT

from tests.conftest import IDLE
from tests.fs.conftest import ROOT, Filesystem, context
from volfs.linux import syscalls


async def known(fs: Filesystem, node_id: int) -> bool:
    try:
        await fs.getattr(node_id)
    except FUSEError as error:
        assert error.errno == errno.ESTALE
        return False
    return True


async def test_each_lookup_counts_and_forget_takes_back(fs: Filesystem) -> None:
    top, data = fs.volume()
    (data / "f").touch()
    node = (await fs.lookup(top, b"f")).st_ino
    for _ in range(4):
        assert (await fs.lookup(top, b"f")).st_ino == node
    await fs.operations.forget([(InodeT(node), 3)])
    assert await known(fs, node)
    assert fs.inode(node).lookups == 2
    await fs.operations.forget([(InodeT(node), 2)])
    assert not await known(fs, node)
    assert fs.statistics()["descriptors"] == 1  # the volume's top directory


async def test_forget_of_many(fs: Filesystem) -> None:
    top, data = fs.volume()
    nodes = []
    for number in range(50):
        (data / f"f{number}").touch()
        nodes.append(InodeT((await fs.lookup(top, b"f%d" % number)).st_ino))
    await fs.operations.forget([(node, 1) for node in nodes] + [(top, 1)])
    assert fs.statistics() == IDLE


async def test_forget_of_more_than_known(fs: Filesystem) -> None:
    top, data = fs.volume()
    (data / "f").touch()
    node = InodeT((await fs.lookup(top, b"f")).st_ino)
    await fs.operations.forget([(node, 1000)])
    assert not await known(fs, node)
    await fs.operations.forget([(node, 1)])
    assert (await fs.lookup(top, b"f")).st_ino == node
    assert fs.inode(node).lookups == 1


async def test_forget_of_the_unknown_is_no_harm(
    fs: Filesystem, caplog: pytest.LogCaptureFixture
) -> None:
    top, data = fs.volume()
    (data / "f").touch()
    node = InodeT((await fs.lookup(top, b"f")).st_ino)
    await fs.operations.forget([(InodeT(12345678), 1), (node, 1), (InodeT(2**64 - 1), 5)])
    assert not await known(fs, node)
    assert not caplog.records


async def test_root_is_never_forgotten(fs: Filesystem) -> None:
    await fs.operations.forget([(ROOT, 5)])
    assert (await fs.getattr(ROOT)).st_ino == ROOT
    top, _ = fs.volume()
    assert await known(fs, top)


async def test_every_reply_with_an_entry_counts_once(fs: Filesystem) -> None:
    top, _ = fs.volume()
    entries = [
        await fs.mkdir(top, b"dir"),
        await fs.create(top, b"file"),
        await fs.operations.mknod(top, FileNameT(b"node"), ModeT(0o100644), 0, context()),
        await fs.operations.symlink(top, FileNameT(b"link"), FileNameT(b"file"), context()),
    ]
    hard = await fs.operations.link(InodeT(entries[1].st_ino), top, FileNameT(b"hard"), context())
    assert hard.st_ino == entries[1].st_ino
    assert hard.st_nlink == 2
    counts = {entry.st_ino: fs.inode(entry.st_ino).lookups for entry in entries}
    assert counts == Counter([entry.st_ino for entry in (*entries, hard)])


async def test_open_file_outlives_unlink_and_descriptor(fs: Filesystem) -> None:
    """Open handles keep a file reachable although it has no name and no descriptor is kept."""
    top, _ = fs.volume()
    entry = await fs.create(top, b"f", b"content")
    handle = await fs.open(entry.st_ino, os.O_RDWR)
    await fs.operations.unlink(top, FileNameT(b"f"), context())
    fs.descriptors.evict(fs.inode(entry.st_ino))
    now = await fs.getattr(entry.st_ino)
    assert (now.st_nlink, now.st_size) == (0, 7)
    assert bytes(await fs.operations.read(handle, 0, 100)) == b"content"
    await fs.operations.release(handle)
    await fs.operations.forget([(InodeT(entry.st_ino), 1)])
    assert not await known(fs, entry.st_ino)


async def test_failed_create_leaves_nothing(fs: Filesystem) -> None:
    top, data = fs.volume()
    (data / "f").touch()
    before = fs.statistics()
    # Without O_EXCL it is there behind the kernel's back: look it up, with its permissions.
    for flags, answer in ((os.O_EXCL, errno.EEXIST), (0, errno.ESTALE)):
        with pytest.raises(FUSEError) as raised:
            await fs.operations.create(
                top, FileNameT(b"f"), ModeT(0o644), FlagT(os.O_WRONLY | flags), context()
            )
        assert raised.value.errno == answer
    assert fs.statistics() == before


async def test_exchange_and_rename_keep_nodes(fs: Filesystem) -> None:
    top, _ = fs.volume()
    one = await fs.create(top, b"one", b"1")
    two = await fs.create(top, b"two", b"2")
    await fs.operations.rename(
        top, FileNameT(b"one"), top, FileNameT(b"two"),
        FlagT(syscalls.RENAME_EXCHANGE), context(),
    )  # fmt: skip
    assert (await fs.lookup(top, b"one")).st_ino == two.st_ino
    assert (await fs.lookup(top, b"two")).st_ino == one.st_ino
    assert await fs.content(one.st_ino) == b"1"
