"""Listing directories, also while others change them."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.children import OTHER, USER, Child, run_as
from tests.mount.comparing import Pair, outcome
from tests.threads import again_and_again

pytestmark = pytest.mark.no_data


class Entry(ctypes.Structure):
    """struct dirent of the C library (64-bit)."""

    _fields_ = (
        ("ino", ctypes.c_ulong),
        ("off", ctypes.c_long),
        ("reclen", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.opendir.argtypes = (ctypes.c_char_p,)
_libc.readdir.restype = ctypes.POINTER(Entry)
_libc.readdir.argtypes = (ctypes.c_void_p,)
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
_libc.rewinddir.argtypes = (ctypes.c_void_p,)
_libc.closedir.argtypes = (ctypes.c_void_p,)


class Stream:
    """A directory stream of the C library, with positions."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        if not self._stream:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def next(self) -> tuple[str, int, int] | None:
        """The next entry: name, inode number, type; None at the end."""
        entry = _libc.readdir(self._stream)
        if not entry:
            return None
        content = entry.contents
        return os.fsdecode(content.name), content.ino, content.type

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        while (entry := self.next()) is not None:
            yield entry

    def tell(self) -> int:
        position: int = _libc.telldir(self._stream)
        return position

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


@contextmanager
def stream(path: Path) -> Iterator[Stream]:
    opened = Stream(path)
    try:
        yield opened
    finally:
        opened.close()


def fill(directory: Path, names: range) -> None:
    fd = os.open(directory, os.O_RDONLY)
    for number in names:
        os.close(os.open(f"{number:06}", os.O_CREAT | os.O_EXCL, dir_fd=fd))
    os.close(fd)


def test_a_hundred_thousand_entries_are_listed_once_each(pair: Pair) -> None:
    count = 100_000
    fd = os.open(pair.data, os.O_RDONLY)
    file = ""
    for number in range(count):
        # Behind the mount, and mostly links: quicker, and as many entries.
        if number % 100:
            os.link(file, f"{number:06}", src_dir_fd=fd, dst_dir_fd=fd)
        else:
            file = f"{number:06}"
            os.mknod(file, dir_fd=fd)
    os.close(fd)
    expected = {f"{number:06}" for number in range(count)}
    with stream(pair.mounted) as listing:
        names = Counter(name for name, _, _ in listing)
    assert names.pop(".") == names.pop("..") == 1
    assert len(names) == count
    assert set(names.values()) == {1}
    assert names.keys() == expected
    subprocess.run(["rm", "-rf", pair.data], check=True)


def test_what_stays_is_listed_once_while_others_come_and_go(pair: Pair) -> None:
    kept = {f"kept{number}" for number in range(3000)}
    for name in kept:
        (pair.data / name).touch()
    changes = 0

    def change(number: int) -> None:
        nonlocal changes
        (pair.mounted / f"fleeting{number}").touch()
        if number >= 20:
            (pair.mounted / f"fleeting{number - 20}").unlink()
        changes += 1

    with again_and_again(change):
        for _ in range(2):
            before = changes
            with stream(pair.mounted) as listing:
                names = Counter(name for name, _, _ in listing)
            assert all(names[name] == 1 for name in kept)
            assert max(names.values()) == 1
            assert changes > before


def test_removing_while_listing_removes_everything(pair: Pair) -> None:
    fill(pair.data, range(1000))
    with stream(pair.mounted) as listing:
        for name, _, _ in listing:
            if name not in (".", ".."):
                (pair.mounted / name).unlink()
    assert os.listdir(pair.mounted) == []
    assert os.listdir(pair.data) == []


def test_positions_can_be_returned_to(pair: Pair) -> None:
    fill(pair.data, range(1500))
    with stream(pair.mounted) as listing:
        places = [(listing.tell(), listing.next()) for _ in range(1400)]
        for place, entry in places[::97] + places[-1:] + places[:3]:
            listing.seek(place)
            assert listing.next() == entry
        place, entry = places[700]
        (pair.mounted / "between").touch()
        (pair.mounted / str(places[701][1] and places[701][1][0])).unlink()
        listing.seek(place)
        rest = [found[0] for found in listing]
        assert entry is not None
        assert rest[0] == entry[0]
        assert len(rest) == len(set(rest))
        listing.rewind()
        again = {found[0] for found in listing}
    assert again == {".", "..", *os.listdir(pair.data)}
    assert "between" in again


def test_rewinding_shows_what_has_changed(pair: Pair) -> None:
    def operation(top: Path) -> list[list[str]]:
        (top / "a").touch()
        (top / "b").touch()
        fd = os.open(top, os.O_RDONLY)
        listings = [sorted(os.listdir(fd))]
        (top / "c").touch()
        (top / "a").unlink()
        listings.append(sorted(os.listdir(fd)))
        os.lseek(fd, 0, os.SEEK_SET)
        listings.append(sorted(entry.name for entry in os.scandir(fd)))
        listings.append(sorted(entry.name for entry in os.scandir(fd)))
        os.close(fd)
        return listings

    pair.same(operation)


def test_a_listing_begun_before_a_change_ends(pair: Pair) -> None:
    fill(pair.mounted, range(500))
    with stream(pair.mounted) as listing:
        first = listing.next()
        for path in pair.mounted.iterdir():
            path.unlink()
        rest = [name for name, _, _ in listing]
    assert first is not None
    assert len(rest) == len(set(rest))


def test_the_listing_after_a_storm_is_the_true_one(pair: Pair) -> None:
    pair.mounted.chmod(0o777)

    def storm(seed: int) -> None:
        top = pair.mounted
        for number in range(150):
            name = f"{seed}-{number}"
            (top / name).touch()
            if number % 3 == 0:
                (top / name).rename(top / f"{name}-renamed")
            elif number % 3 == 1:
                (top / name).unlink()
                (top / name).mkdir()
            if number % 5 == 0:
                os.listdir(top)
            if number % 7 == 0:
                (top / f"{seed}-{number // 2}-renamed").unlink(missing_ok=True)

    children = [Child(partial(storm, seed), uid=USER + seed) for seed in range(3)]
    for child in children:
        with child:
            child.result()
    found = {entry.name: entry.is_dir() for entry in os.scandir(pair.mounted)}
    assert found == {entry.name: entry.is_dir() for entry in os.scandir(pair.data)}
    assert {name: (pair.mounted / name).is_dir() for name in found} == found


def test_types_and_numbers_in_the_listing(pair: Pair) -> None:
    def operation(top: Path) -> list[tuple[str, int]]:
        (top / "file").touch()
        (top / "directory").mkdir()
        (top / "symlink").symlink_to("nowhere")
        os.mkfifo(top / "fifo")
        os.mknod(top / "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.mknod(top / "block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(top / "socket"))
        with stream(top) as listing:
            entries = list(listing)
        numbers = {name: number for name, number, _ in entries}
        for name, number in numbers.items():
            # The parent of a top directory is seen from outside: its number is the mount's.
            if name != "..":
                assert number == os.lstat(top / name).st_ino
        return sorted((name, kind) for name, _, kind in entries)

    pair.same(operation)


def test_dot_and_dot_dot_have_the_right_numbers(pair: Pair) -> None:
    (pair.mounted / "a" / "b").mkdir(parents=True)
    (pair.mounted / "c").mkdir()

    def dots(path: Path) -> dict[str, int]:
        with stream(path) as listing:
            return {name: number for name, number, _ in listing if name in (".", "..")}

    def number(path: Path) -> int:
        return path.stat().st_ino

    top, below, deep = pair.mounted, pair.mounted / "a", pair.mounted / "a" / "b"
    assert dots(top) == {".": number(top), "..": number(top.parent)}
    assert dots(below) == {".": number(below), "..": number(top)}
    assert dots(deep) == {".": number(deep), "..": number(below)}
    deep.rename(pair.mounted / "c" / "b")
    moved = pair.mounted / "c" / "b"
    assert dots(moved) == {".": number(moved), "..": number(pair.mounted / "c")}
    assert number(moved / "..") == number(pair.mounted / "c")


def test_listing_without_search_permission(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        directory = top / "d"
        directory.mkdir()
        (directory / "f").touch()
        (directory / "e").mkdir()
        os.chown(directory, USER, USER)
        told: list[object] = []
        for mode in (0o400, 0o500, 0o100, 0o300, 0):
            directory.chmod(mode)
            for uid in (USER, OTHER):
                probe = partial(probe_directory, directory)
                told.append((oct(mode), uid, run_as(probe, uid)))
        return told

    pair.same(operation)


def probe_directory(directory: Path) -> list[object]:
    return [
        outcome(lambda: sorted(os.listdir(directory))),
        outcome(lambda: sorted((e.name, e.is_dir()) for e in os.scandir(directory))),
        outcome(lambda: (directory / "f").stat().st_size),
        outcome(lambda: os.close(os.open(directory, os.O_RDONLY))),
        outcome(lambda: os.close(os.open(directory / "f", os.O_RDONLY))),
        outcome(os.chdir, directory),
    ]
