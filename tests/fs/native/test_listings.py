"""What getdents64(2) tells, as the structures of linux/fuse.h."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.fs.native.records import (
    DIRENT,
    ENTRY,
    FAR,
    SECOND,
    Entry,
    Opened,
    entries_in,
    failing,
    listed,
)
from volfs.fs.native import _records

pytestmark = pytest.mark.any_level


@pytest.mark.parametrize("plus", [False, True])
def test_listing_is_what_scandir_says(zoo: Path, opened: Opened, plus: bool) -> None:
    entries = {entry.name: entry for entry in listed(opened(zoo), 4096, plus=plus)}
    dots = [entries.pop(name) for name in (b".", b"..")]
    assert [(dot.ino, dot.kind) for dot in dots] == [(11, 4), (12, 4)]
    # d_type is the type in the mode, shifted: IFTODT of dirent.h
    assert {name: (entry.ino, entry.kind) for name, entry in entries.items()} == {
        os.fsencode(path.name): (path.lstat().st_ino, path.lstat().st_mode >> 12)
        for path in zoo.iterdir()
    }


def test_numbers_of_another_device(zoo: Path, opened: Opened) -> None:
    base = 2**47 | 0x1234 << 32
    for entry in listed(opened(zoo), 4096, plus=False, base=base):
        if entry.name not in (b".", b".."):
            ino = (zoo / os.fsdecode(entry.name)).lstat().st_ino
            assert entry.ino == base | ino


def test_each_entry_is_listed_once(workspace: Path, opened: Opened) -> None:
    directory = workspace / "many"
    directory.mkdir()
    # Names of all lengths, so that records end everywhere in the room.
    names = {str(number) + "-" * (number % 250) for number in range(10_000)}
    for name in names:
        os.mknod(directory / name)
    fd = opened(directory)
    for plus in (False, True):
        for room in (448, 4096, 100_000):
            found = [os.fsdecode(entry.name) for entry in listed(fd, room, plus=plus)]
            assert len(found) == len(names) + 2
            assert set(found) == names | {".", ".."}


@pytest.mark.parametrize("plus", [False, True])
def test_a_reply_fills_its_room(workspace: Path, opened: Opened, plus: bool) -> None:
    directory = workspace / "long"
    directory.mkdir()
    for number in range(500):
        os.mknod(directory / f"{number:0255}")
    record = (ENTRY.size if plus else 0) + DIRENT.size + 256
    for room in (2 * record, 10_000, 60_000):
        reply = _records.list_bare(opened(directory), 0, room, plus, 0, 11, 12)
        assert room - record < len(reply) <= room


def test_listing_goes_on_from_any_entry(zoo: Path, opened: Opened) -> None:
    fd = opened(zoo)
    whole = entries_in(_records.list_bare(fd, 0, 65536, False, 0, 11, 12))
    for position in reversed(range(len(whole))):
        rest = _records.list_bare(fd, whole[position].offset, 65536, False, 0, 11, 12)
        assert entries_in(rest) == whole[position + 1 :]


def test_no_room_is_not_the_end(zoo: Path, opened: Opened) -> None:
    fd = opened(zoo)
    for room in (0, DIRENT.size, DIRENT.size + 7):
        failing(errno.EINVAL, lambda room=room: _records.list_bare(fd, 0, room, False, 0, 1, 1))  # type: ignore[misc]
    end = entries_in(_records.list_bare(fd, 0, 65536, False, 0, 1, 1))[-1].offset
    assert _records.list_bare(fd, end, 0, False, 0, 1, 1) == b""


def test_removed_directory_is_at_its_end(workspace: Path, opened: Opened) -> None:
    directory = workspace / "removed"
    directory.mkdir()
    fd = opened(directory)
    directory.rmdir()
    assert _records.list_bare(fd, 0, 4096, True, 0, 1, 1) == b""
    assert _records.read_entries(fd, 0, 10) == []


def test_errors_of_listing(zoo: Path, opened: Opened) -> None:
    file = opened(zoo / "file")
    failing(errno.ENOTDIR, lambda: _records.list_bare(file, 0, 4096, False, 0, 1, 1))
    failing(errno.ENOTDIR, lambda: _records.read_entries(file, 0, 1))
    # A position is signed to lseek(2).
    failing(errno.EINVAL, lambda: _records.list_bare(opened(zoo), FAR, 4096, False, 0, 1, 1))


@pytest.mark.parametrize("count", [1, 3, 10_000])
def test_entries_read_some_at_a_time(workspace: Path, opened: Opened, count: int) -> None:
    directory = workspace / "some"
    directory.mkdir()
    for number in range(300):
        os.mknod(directory / (str(number) + "-" * (number % 250)))
    fd = opened(directory)
    found: list[tuple[bytes, int, int, int]] = []
    while entries := _records.read_entries(fd, found[-1][3] if found else 0, count):
        assert len(entries) <= count
        found += entries
        assert len(entries) == count or len(found) == 302
    assert [
        Entry(ino, offset, kind, name) for name, ino, kind, offset in found if name[:1] != b"."
    ] == [entry for entry in listed(fd, 4096, plus=False) if entry.name[:1] != b"."]
    assert {name for name, *_ in found} == {b".", b".."} | set(
        map(os.fsencode, os.listdir(directory))
    )
    assert _records.read_entries(fd, 0, 0) == []


@pytest.mark.parametrize("length", [1, 7, 8, 9, 255])
def test_record_with_attributes(zoo: Path, opened: Opened, length: int) -> None:
    entry = _records.fstat(opened(zoo)).entry_out(FAR, 0, 1, SECOND, SECOND)
    record = _records.direntplus(entry, FAR, 2**63 - 1, 4, b"n" * length)
    assert record[: ENTRY.size] == entry
    assert entries_in(record[ENTRY.size :]) == [Entry(FAR, 2**63 - 1, 4, b"n" * length)]


def test_record_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="128"):
        _records.direntplus(bytes(127), 1, 1, 4, b"n")
    with pytest.raises(TypeError):
        _records.direntplus(bytes(128), 1, 1, 4, "n")  # type: ignore[arg-type]
