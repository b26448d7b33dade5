"""Open files and directories by number, and files made as somebody else."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from pyfuse3 import FileHandleT, FUSEError, InodeT

from tests.conftest import open_descriptors
from tests.fs.conftest import Filesystem, FilesystemFactory, context
from volfs.fs.files import CachePolicy
from volfs.fs.inodes import FileHandle, HandleTable, RootHandle
from volfs.linux.identity import Identity


def file_handle(fs: Filesystem, path: Path) -> FileHandle:
    return FileHandle(os.open(path, os.O_RDONLY), fs.root_inode, os.O_RDONLY, 1)


def test_numbers_are_not_used_twice(fs: Filesystem, workspace: Path) -> None:
    table = HandleTable()
    numbers = set()
    for _ in range(10):
        number = table.add_file(file_handle(fs, workspace))
        numbers.add(number)
        handle = table.remove_file(number)
        assert handle is not None
        os.close(handle.fd)
    assert len(numbers) == 10
    assert 0 not in numbers


def test_files_and_directories_are_told_apart(fs: Filesystem, workspace: Path) -> None:
    table = HandleTable()
    file = table.add_file(file_handle(fs, workspace))
    directory = table.add_directory(RootHandle())
    for wrong in (lambda: table.file(directory), lambda: table.directory(file)):
        with pytest.raises(OSError) as raised:
            wrong()
        assert raised.value.errno == errno.EBADF
    assert table.remove_file(directory) is None
    assert table.remove_directory(file) is None
    assert (table.open_files, table.open_directories) == (1, 1)
    table.close()
    assert (table.open_files, table.open_directories) == (0, 0)


def test_removed_twice_is_removed_once(fs: Filesystem, workspace: Path) -> None:
    table = HandleTable()
    number = table.add_file(file_handle(fs, workspace))
    handle = table.remove_file(number)
    assert handle is not None
    assert table.remove_file(number) is None
    os.close(handle.fd)


def test_closing_the_table_closes_everything(fs: Filesystem, workspace: Path) -> None:
    table = HandleTable()
    before = open_descriptors()
    for _ in range(20):
        table.add_file(file_handle(fs, workspace))
    assert open_descriptors() == before + 20
    table.close()
    assert open_descriptors() == before


def test_a_flock_takes_a_descriptor_of_its_user(fs: Filesystem, workspace: Path) -> None:
    """Where the kernel serves the file the daemon could do without, were it not for the lock."""
    fs.root_inode.backing = 1
    try:
        table = HandleTable()
        handle = file_handle(fs, workspace)
        handle.uid = 1000
        number = table.add_file(handle)
        for _ in range(2):
            assert table.taken == {}
            table.flock(handle, True)
            table.flock(handle, True)  # another kind
            assert table.taken == {1000: 1}
            table.flock(handle, False)
        table.flock(handle, True)
        table.remove_file(number)
        assert table.taken == {}
        os.close(handle.fd)
    finally:
        fs.root_inode.backing = 0


async def test_each_opener_has_the_access_it_asked_for(fs: Filesystem) -> None:
    top, _ = fs.volume()
    node = (await fs.create(top, b"f", b"content")).st_ino
    reader = await fs.open(node, os.O_RDONLY)
    writer = await fs.open(node, os.O_WRONLY)
    both = await fs.open(node, os.O_RDWR)
    await fs.operations.write(writer, 0, b"CON")
    await fs.operations.write(both, 3, b"TENT")
    for handle in (reader, both):
        assert bytes(await fs.operations.read(handle, 0, 10)) == b"CONTENT"
    with pytest.raises(FUSEError, check=lambda error: error.errno == errno.EBADF):
        await fs.operations.write(reader, 0, b"x")
    with pytest.raises(FUSEError, check=lambda error: error.errno == errno.EBADF):
        await fs.operations.read(writer, 0, 1)
    for handle in (reader, writer, both):
        await fs.operations.release(handle)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_000, 3 << 20])
async def test_read_answers_what_is_there(fs: Filesystem, size: int) -> None:
    """In the page cache or not, over the end or not, in more than the buffer."""
    top, data = fs.volume()
    content = os.urandom(size)
    (data / "f").write_bytes(content)
    handle = await fs.open((await fs.lookup(top, b"f")).st_ino)
    for cached in (True, False):
        if not cached:
            fd = os.open(data / "f", os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        for offset in (0, 1, 4096, size, size + 1, 1 << 40):
            for length in (1, 4096, 1 << 20, 2 << 20):
                found = bytes(await fs.operations.read(handle, offset, length))
                assert found == content[offset : offset + length]
    await fs.operations.release(handle)


async def test_cached_pages_are_kept_only_for_an_unchanged_file(
    filesystem: FilesystemFactory,
) -> None:
    async def kept(fs: Filesystem, node: int) -> bool:
        info = await fs.operations.open(InodeT(node), os.O_RDONLY, context())
        await fs.operations.release(FileHandleT(info.fh))
        return info.keep_cache

    for policy, expected in (
        (CachePolicy.AUTO, [False, True, False, True]),
        (CachePolicy.NEVER, [False, False, False, False]),
        (CachePolicy.ALWAYS, [True, True, True, True]),
    ):
        fs = filesystem(cache=policy)
        top, data = fs.volume()
        (data / "f").write_text("one")
        node = (await fs.lookup(top, b"f")).st_ino
        found = [await kept(fs, node), await kept(fs, node)]
        (data / "f").write_text("other")
        found += [await kept(fs, node), await kept(fs, node)]
        assert found == expected, policy


# -- as somebody else


@pytest.fixture
def directory(workspace: Path) -> Path:
    workspace.chmod(0o777)
    return workspace


def test_acting_makes_files_of_the_caller(directory: Path) -> None:
    identity = Identity()
    mask = os.umask(0)
    try:
        with identity.acting(1000, 1001, 0o027):
            (directory / "f").touch(0o666)
        (directory / "own").touch(0o666)
    finally:
        os.umask(mask)
    status = (directory / "f").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1001, 0o640)
    own = (directory / "own").stat()
    assert (own.st_uid, own.st_gid, stat.S_IMODE(own.st_mode)) == (0, 0, 0o666)


def test_acting_ends_when_the_call_fails(directory: Path) -> None:
    mask = os.umask(0)
    try:
        with pytest.raises(FileNotFoundError), Identity().acting(1000, 1000, 0o077):
            (directory / "missing" / "f").mkdir()
        (directory / "own").mkdir()
    finally:
        os.umask(mask)
    assert (directory / "own").stat().st_uid == 0
    assert stat.S_IMODE((directory / "own").stat().st_mode) == 0o777


async def test_descriptors_are_counted_up_and_down(fs: Filesystem) -> None:
    top, data = fs.volume()
    (data / "f").write_bytes(b"content")
    node = (await fs.lookup(top, b"f")).st_ino
    table = fs.requests.handles
    before = (table.descriptors, table.used, dict(table.taken))
    handles = [await fs.open(node), await fs.open(node, os.O_RDWR)]
    directory = await fs.opendir(top)
    assert table.descriptors == 2
    assert table.used == 4
    assert table.taken == {0: 4}
    for handle in handles:
        await fs.operations.release(handle)
    await fs.operations.releasedir(directory)
    assert (table.descriptors, table.used, table.taken) == before == (0, 0, {})
