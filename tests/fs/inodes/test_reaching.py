"""Inodes whose descriptor was closed are found again, and as themselves or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
from pyfuse3 import EntryAttributes, FileNameT, FlagT, FUSEError, InodeT, ModeT

from tests.fs.conftest import ROOT, Filesystem, FilesystemFactory, context
from volfs.fs.agreement import PLAIN, Agreement

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


# -- recycled inode numbers: files that others make at the same time would take them


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


@pytest.mark.alone
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


@pytest.mark.alone
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


@pytest.mark.alone
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


@pytest.mark.alone
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
