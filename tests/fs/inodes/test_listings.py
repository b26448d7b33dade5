"""Listings: right at any offset, under change, for many names, and cheap."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyfuse3 import FileHandleT, FUSEError, InodeT

from tests.conftest import open_descriptors
from tests.fs.conftest import ROOT, Filesystem, FilesystemFactory
from volfs.fs.inodes import Inode, InodeTable
from volfs.fs.native import Status, fstatat
from volfs.fs.plain import entries

DOTS = [b".", b".."]


def fill(directory: Path, count: int) -> set[bytes]:
    for number in range(count):
        (directory / f"name{number:06d}").touch()
    return {b"name%06d" % number for number in range(count)}


async def all_from(fs: Filesystem, handle: int, offset: int, room: int) -> list[bytes]:
    names: list[bytes] = []
    while True:
        listing = await fs.readdir(handle, offset, room)
        if not listing.names:
            return names
        names += listing.names
        offset = listing.offset


@pytest.mark.parametrize("room", [1, 2, 3, 7, 1000])
async def test_whole_listing_in_pieces(fs: Filesystem, room: int) -> None:
    top, data = fs.volume()
    expected = fill(data, 50)
    handle = await fs.opendir(top)
    names = await all_from(fs, handle, 0, room)
    assert names[:2] == DOTS
    assert sorted(names[2:]) == sorted(expected)


async def test_every_offset_resumes_where_it_was(fs: Filesystem) -> None:
    top, data = fs.volume()
    fill(data, 30)
    handle = await fs.opendir(top)
    names = await all_from(fs, handle, 0, 1000)
    offsets = [0]
    while (listing := await fs.readdir(handle, offsets[-1], 1)).names:
        offsets.append(listing.offset)
    for position, offset in reversed(list(enumerate(offsets))):
        if offset:  # offset 0 starts again
            assert await all_from(fs, handle, offset, 4) == names[position:]


async def test_removed_and_added_in_between(fs: Filesystem) -> None:
    """What was there all the time is listed exactly once."""
    top, data = fs.volume()
    expected = fill(data, 1000)
    handle = await fs.opendir(top)
    listing = await fs.readdir(handle, 0, 300)
    seen = listing.names[2:]
    removed = {*sorted(expected - {*seen})[::2], *seen[::3]}
    for name in removed:
        os.unlink(os.fsencode(data) + b"/" + name)
    for number in range(500):
        (data / f"added{number}").touch()
    rest = await all_from(fs, handle, listing.offset, 100)
    assert len({*rest}) == len(rest)
    assert not {*rest} & {*seen}
    assert expected - removed <= {*seen, *rest}
    # Whether what came or went meanwhile is listed, readdir(3p) leaves open.
    assert {*rest} <= expected | {b"added%d" % number for number in range(500)}


async def test_rewinding_shows_what_is_there_now(fs: Filesystem) -> None:
    top, data = fs.volume()
    fill(data, 20)
    handle = await fs.opendir(top)
    await fs.readdir(handle, 0, 10)
    for path in data.iterdir():
        path.unlink()
    (data / "new").touch()
    assert (await fs.readdir(handle)).names == [*DOTS, b"new"]
    assert (await fs.readdir(handle, 3)).names == []


async def test_rmdir_while_listing(fs: Filesystem) -> None:
    top, data = fs.volume()
    (data / "dir").mkdir()
    fill(data / "dir", 10)
    handle = await fs.opendir((await fs.lookup(top, b"dir")).st_ino)
    listing = await fs.readdir(handle, 0, 5)
    for path in (data / "dir").iterdir():
        path.unlink()
    (data / "dir").rmdir()
    assert (await fs.readdir(handle, listing.offset)).names == []


async def test_dots_have_the_numbers_of_the_directories(fs: Filesystem) -> None:
    top, data = fs.volume()
    (data / "dir").mkdir()
    listing = await fs.listing((await fs.lookup(top, b"dir")).st_ino)
    assert [entry.st_ino for entry in listing.entries] == [
        (data / "dir").stat().st_ino,
        data.stat().st_ino,
    ]


async def test_odd_names(fs: Filesystem) -> None:
    top, data = fs.volume()
    names = {b"\xff\xfe", b"new\nline", b" ", b"x" * 255, "ä".encode(), b"-rf"}
    for name in names:
        os.mknod(os.fsencode(data) + b"/" + name)
    assert {*(await fs.listing(top)).names} == {*DOTS, *names}


async def test_each_entry_replied_counts_as_looked_up(fs: Filesystem) -> None:
    top, data = fs.volume()
    fill(data, 20)
    handle = await fs.opendir(top)
    before = fs.statistics()
    listing = await fs.readdir(handle, 0, 12)
    after = fs.statistics()
    assert len(listing.names) == 12
    assert after["lookups"] - before["lookups"] == 10
    assert after["inodes"] - before["inodes"] == 10
    await fs.operations.forget([(InodeT(entry.st_ino), 1) for entry in listing.entries[2:]])
    assert fs.statistics() == before


class Trouble:
    """Makes a listing meet an error at the name ``bad``, in one of the calls it consists of.

    ``gone`` is a name that is deleted between being read and being looked at.
    """

    def __init__(self, patch: pytest.MonkeyPatch, call: str, bad: str, gone: str | None) -> None:
        scandir, remember = os.scandir, InodeTable.remember

        def check(name: object) -> None:
            if name == bad:
                raise OSError(errno.EIO, "disk trouble")

        def failing_stat(directory: int, name: bytes) -> Status:
            if os.fsdecode(name) == gone:
                raise FileNotFoundError(errno.ENOENT, "gone")
            if call == "stat":
                check(os.fsdecode(name))
            return fstatat(directory, name)

        def failing_remember(table: InodeTable, *arguments: Any, **options: Any) -> Inode:
            check(os.fsdecode(arguments[2]))
            return remember(table, *arguments, **options)

        class Entries:
            """Like what os.scandir returns, which ends with its first error."""

            def __init__(self, fd: int) -> None:
                self._entries = scandir(fd)
                self.close = self._entries.close

            def __next__(self) -> os.DirEntry[str]:
                entry = next(self._entries)
                if entry.name == bad:
                    self.close()
                check(entry.name)
                return entry

        patch.setattr(entries, "fstatat", failing_stat)
        if call == "remember":
            patch.setattr(InodeTable, "remember", failing_remember)
        elif call == "scandir":
            patch.setattr(os, "scandir", Entries)


@pytest.mark.parametrize("gone_before", [False, True])
@pytest.mark.parametrize("at", [2, 3, 4, 7])
@pytest.mark.parametrize("broken", ["stat", "remember", "scandir"])
async def test_error_in_the_middle_loses_no_count_and_is_told(
    fs: Filesystem, monkeypatch: pytest.MonkeyPatch, broken: str, at: int, gone_before: bool
) -> None:
    """What was replied before the error counts if the reply is sent, and only then.

    A directory that cannot be read on is an error; an entry whose attributes cannot be had is
    listed without them.
    """
    top, data = fs.volume()
    fill(data, 10)
    names = (await fs.listing(top)).names
    before = fs.statistics()["lookups"]
    handle = await fs.opendir(top)
    seen: list[bytes] = []
    counted = offset = 0
    error = None
    with monkeypatch.context() as patch:
        gone = names[at - 1].decode() if gone_before else None
        Trouble(patch, broken, names[at].decode(), gone)
        while error is None:
            try:
                listing = await fs.readdir(handle, offset)
            except FUSEError as raised:
                error = raised.errno
                break
            if not listing.names:
                break
            seen += listing.names
            counted += listing.counted
            offset = listing.offset
    if broken == "scandir":
        assert error == errno.EIO
    else:
        assert error is None
        assert {*names} - {*seen} <= {names[at - 1]}
    assert fs.statistics()["lookups"] - before == counted


async def test_entry_that_does_not_fit_is_not_remembered(fs: Filesystem) -> None:
    top, data = fs.volume()
    fill(data, 3)
    handle = await fs.opendir(top)
    before = fs.statistics()["inodes"]
    assert (await fs.readdir(handle, 2, 0)).names == []
    assert fs.statistics()["inodes"] == before


async def test_two_handles_do_not_share_a_position(fs: Filesystem) -> None:
    top, data = fs.volume()
    expected = fill(data, 20)
    one, two = await fs.opendir(top), await fs.opendir(top)
    first = await fs.readdir(one, 0, 10)
    assert {*(await fs.readdir(two)).names} == {*DOTS, *expected}
    rest = await fs.readdir(one, first.offset)
    assert {*first.names, *rest.names} == {*DOTS, *expected}


async def test_descriptors_are_given_back(fs: Filesystem) -> None:
    top, data = fs.volume()
    fill(data, 20)
    await fs.listing(top)
    before = open_descriptors()
    handle = await fs.opendir(top)
    await fs.readdir(handle, 0, 5)  # not to the end
    await fs.readdir(handle, 0, 5)
    await fs.operations.releasedir(FileHandleT(handle))
    assert open_descriptors() == before


async def test_a_hundred_thousand_names(
    filesystem: FilesystemFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, each once, for one system call each and no descriptor."""
    fs = filesystem(descriptors=1000)
    top, data = fs.volume()
    directory = os.open(data, os.O_RDONLY)
    # Links to a few files: quicker to make and to remove.
    count = 100_000
    for number in range(count):
        first = number // 50_000 * 50_000
        if number == first:
            os.mknod(f"n{first}", dir_fd=directory)
        else:
            os.link(f"n{first}", f"n{number}", src_dir_fd=directory, dst_dir_fd=directory)
    os.close(directory)
    handle = await fs.opendir(top)
    calls: Counter[str] = Counter()
    with monkeypatch.context() as patch:
        for name in ("stat", "lstat", "fstat", "open", "scandir"):
            patch.setattr(os, name, counting(getattr(os, name), calls))
        for name in ("fstat", "fstatat"):
            patch.setattr(entries, name, counting(getattr(entries, name), calls))
        names = await all_from(fs, handle, 0, 100)
    assert len(names) == len({*names}) == count + 2
    # Once more for the entry that a reply has no room for.
    assert calls["fstatat"] <= count + count // 90
    # One for each reply tells whether the directory was removed.
    assert calls.total() - calls["fstatat"] <= 1 + count // 90


def counting(call: Callable[..., Any], calls: Counter[str]) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        calls[call.__name__] += 1
        return call(*arguments, **options)

    return counted


# -- the root


async def test_listing_of_the_root(fs: Filesystem) -> None:
    for number in range(20):
        fs.store.create(f"v{number:02d}")
    (fs.scope / "volumes" / ".hidden").mkdir()
    handle = await fs.opendir(ROOT)
    names = await all_from(fs, handle, 0, 3)
    assert names == [*DOTS, *[b"v%02d" % number for number in range(20)]]
    assert fs.statistics()["lookups"] == 20


async def test_root_lists_what_was_there_when_it_was_rewound(fs: Filesystem) -> None:
    for number in range(10):
        fs.store.create(f"v{number}")
    handle = await fs.opendir(ROOT)
    listing = await fs.readdir(handle, 0, 5)
    fs.store.remove("v9")
    fs.store.create("w")
    rest = await fs.readdir(handle, listing.offset)
    assert [*listing.names[2:], *rest.names] == [b"v%d" % number for number in range(9)]
    again = await fs.readdir(handle)
    assert again.names[2:] == [*[b"v%d" % number for number in range(9)], b"w"]


async def test_root_entry_that_does_not_fit_is_not_counted(fs: Filesystem) -> None:
    for number in range(5):
        fs.store.create(f"v{number}")
    handle = await fs.opendir(ROOT)
    await fs.readdir(handle, 0, 4)
    assert fs.statistics()["lookups"] == 2
    assert fs.statistics()["inodes"] == 3


async def test_broken_volume_does_not_hide_the_others(fs: Filesystem) -> None:
    for name in ("a", "broken", "c"):
        _, data = fs.volume(name)
        if name == "broken":
            data.rmdir()
            data.symlink_to(data)
    names = (await fs.listing(ROOT)).names
    assert {b"a", b"c"} <= {*names}
