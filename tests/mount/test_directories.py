"""Listing, renaming and removing directories, also while others do the same."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.mount.children import OTHER, USER, Child, run_as
from tests.mount.comparing import Pair, outcome
from volfs import syscalls

NOREPLACE = syscalls.RENAME_NOREPLACE
EXCHANGE = syscalls.RENAME_EXCHANGE


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


# -- listing


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
    stop = threading.Event()
    changes = 0

    def change() -> None:
        nonlocal changes
        for number in itertools.count():
            if stop.is_set():
                return
            (pair.mounted / f"fleeting{number}").touch()
            if number >= 20:
                (pair.mounted / f"fleeting{number - 20}").unlink()
            changes += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(2):
            before = changes
            with stream(pair.mounted) as listing:
                names = Counter(name for name, _, _ in listing)
            assert all(names[name] == 1 for name in kept)
            assert max(names.values()) == 1
            assert changes > before
    finally:
        stop.set()
        thread.join()


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


# -- removing


def test_rmdir_errors(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        (top / "full" / "sub").mkdir(parents=True)
        (top / "file").touch()
        (top / "link").symlink_to("full")
        directories = ("full", "file", "link", "missing", "full/.", "full/..", "full/sub/")
        told: list[object] = [outcome(os.rmdir, f"{top}/{name}") for name in directories]
        told += [outcome(os.unlink, f"{top}/{name}") for name in ("full", "link", "no", "file/")]
        return told

    pair.same(operation)


def test_removing_the_current_directory(pair: Pair) -> None:
    def live_on(top: Path) -> list[object]:
        (top / "d").mkdir()
        os.chdir(top / "d")
        (top / "d").rmdir()
        return [
            outcome(os.getcwd),
            outcome(os.listdir),
            outcome(os.listdir, "."),
            outcome(os.mkdir, "new"),
            outcome(lambda: os.close(os.open("new", os.O_CREAT))),
            outcome(lambda: os.stat(".").st_nlink),
            outcome(lambda: os.stat("..").st_ino == top.stat().st_ino),
            outcome(os.rmdir, "."),
            outcome(os.symlink, "x", "y"),
            outcome(os.rename, ".", "../e"),
            outcome(os.chdir, ".."),
            os.getcwd() == str(top),
        ]

    pair.same(lambda top: run_as(partial(live_on, top), 0))


def test_two_processes_walk_and_delete_the_same_tree(pair: Pair) -> None:
    for number in range(10):
        for sub in range(3):
            directory = pair.mounted / "tree" / f"{number}" / f"{sub}"
            directory.mkdir(parents=True)
            for file in range(5):
                (directory / f"{file}").touch()

    def remove() -> int:
        return subprocess.run(
            ["rm", "-rf", pair.mounted / "tree"], stderr=subprocess.DEVNULL
        ).returncode

    with Child(remove) as one, Child(remove) as two:
        assert 0 in (one.result(), two.result()) or not (pair.mounted / "tree").exists()
    shutil.rmtree(pair.mounted / "tree", ignore_errors=True)
    assert os.listdir(pair.mounted) == os.listdir(pair.data) == []


def test_one_process_walks_while_another_moves_directories(pair: Pair) -> None:
    for number in range(30):
        (pair.mounted / f"d{number}" / "sub").mkdir(parents=True)
        (pair.mounted / f"d{number}" / "sub" / "f").touch()

    def move() -> None:
        for turn in range(60):
            number = turn % 30
            here = pair.mounted / f"d{number}"
            there = pair.mounted / f"d{(number + 1) % 30}" / "guest"
            here.rename(there)
            there.rename(here)

    with Child(move) as child:
        for _ in range(5):
            for _, directories, files in os.walk(pair.mounted):
                assert set(files) <= {"f"}
                assert len(directories) <= 31
        child.result()
    left = {path.relative_to(pair.mounted) for path in pair.mounted.rglob("f")}
    assert left == {Path(f"d{number}/sub/f") for number in range(30)}


# -- renaming


def rename(source: Path, target: Path, flags: int) -> None:
    syscalls.renameat2(
        syscalls.AT_FDCWD, os.fsencode(source), syscalls.AT_FDCWD, os.fsencode(target), flags
    )


def build(top: Path) -> list[str]:
    top.mkdir()
    (top / "file").write_bytes(b"file")
    os.link(top / "file", top / "hard link")
    (top / "empty").mkdir()
    (top / "full").mkdir()
    (top / "full" / "inside").write_bytes(b"inside")
    (top / "full" / "sub").mkdir()
    (top / "symlink").symlink_to("full")
    os.mkfifo(top / "fifo")
    return [
        *("file", "hard link", "empty", "full", "symlink", "fifo", "missing"),
        *("full/inside", "full/sub", "full/sub/new", "."),
    ]


def tell(top: Path) -> list[object]:
    told: list[object] = []
    for directory, directories, files in os.walk(top):
        directories.sort()
        for name in sorted(directories + files):
            path = Path(directory, name)
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            told.append((str(path.relative_to(top)), oct(status.st_mode), status.st_nlink, content))
    return told


@pytest.mark.parametrize(
    "flags",
    [0, NOREPLACE, EXCHANGE, NOREPLACE | EXCHANGE, syscalls.RENAME_WHITEOUT, 64],
    ids=["plain", "noreplace", "exchange", "both", "whiteout", "unknown"],
)
def test_every_rename_ends_as_on_the_disk(pair: Pair, flags: int) -> None:
    def operation(top: Path) -> list[object]:
        told: list[object] = []
        names = build(top / "start")
        here = top / "start"
        for source, target in itertools.product(names, names[1:]):
            done = outcome(rename, here / source, here / target, flags)
            told.append((source, target, done))
            if done is None:
                told.append(tell(here))
                shutil.rmtree(here)
                build(here)
        return told

    pair.same(operation)


def test_renaming_a_directory_into_itself(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        (top / "a" / "b" / "c").mkdir(parents=True)
        return [
            outcome(rename, top / source, top / target, flags)
            for source, target in (("a", "a/b/new"), ("a", "a/new"), ("a/b", "a"), ("a", "a/b/c"))
            for flags in (0, NOREPLACE, EXCHANGE)
        ]

    pair.same(operation)


def test_renaming_into_a_removed_directory(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        (top / "d").mkdir()
        (top / "f").touch()
        fd = os.open(top / "d", os.O_RDONLY)
        (top / "d").rmdir()
        told: list[object] = [
            outcome(os.rename, top / "f", "f", dst_dir_fd=fd),
            outcome(os.link, top / "f", "f", dst_dir_fd=fd),
        ]
        os.close(fd)
        return told

    pair.same(operation)


def test_a_directory_renamed_while_in_use_keeps_working(pair: Pair) -> None:
    def use(top: Path) -> list[object]:
        (top / "d" / "sub").mkdir(parents=True)
        (top / "d" / "f").write_bytes(b"content")
        (top / "elsewhere").mkdir()
        os.chdir(top / "d" / "sub")
        directory = os.open(top / "d", os.O_RDONLY)
        path_only = os.open(top / "d", os.O_PATH)
        file = os.open(top / "d" / "f", os.O_RDWR)
        told: list[object] = []
        for target in ("e", "elsewhere/d", "elsewhere/deeper/d"):
            (top / target).parent.mkdir(exist_ok=True)
            previous = Path(os.getcwd()).parent
            previous.rename(top / target)
            told += [
                os.path.relpath(os.getcwd(), top),
                sorted(os.listdir(directory)),
                os.pread(file, 10, 0),
                os.stat("f", dir_fd=path_only).st_size,
            ]
            Path(f"here {len(told)}").write_bytes(b"cwd")
            made = os.open(f"there {len(told)}", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
            os.write(made, b"fd")
            os.close(made)
            os.mkdir(f"dir {len(told)}", dir_fd=path_only)
            os.rename("f", "g", src_dir_fd=directory, dst_dir_fd=directory)
            os.rename("g", "f", src_dir_fd=path_only, dst_dir_fd=directory)
            told += [tell(top), os.stat("..").st_ino == os.fstat(directory).st_ino]
        for fd in (directory, path_only, file):
            os.close(fd)
        return told

    pair.same(lambda top: run_as(partial(use, top), 0))


def test_exchanged_directories_keep_their_content_and_parents(pair: Pair) -> None:
    def operation(top: Path) -> list[object]:
        (top / "a" / "one").mkdir(parents=True)
        (top / "b" / "two").mkdir(parents=True)
        (top / "a" / "one" / "f").write_bytes(b"1")
        (top / "b" / "two" / "f").write_bytes(b"2")
        fd = os.open(top / "a" / "one", os.O_RDONLY)
        rename(top / "a" / "one", top / "b" / "two", EXCHANGE)
        told: list[object] = [
            tell(top),
            os.stat("..", dir_fd=fd).st_ino == (top / "b").stat().st_ino,
            os.stat("f", dir_fd=fd).st_size,
        ]
        os.close(fd)
        rename(top / "a" / "one" / "f", top / "b", EXCHANGE)
        told.append(tell(top))
        return told

    pair.same(operation)


def test_renames_between_volumes_pass_to_the_disk(pair: Pair) -> None:
    other = pair.mounted.parent / f"{pair.mounted.name} second"
    other.mkdir()
    (pair.mounted / "d").mkdir()
    (pair.mounted / "d" / "f").write_bytes(b"content")
    number = (pair.mounted / "d" / "f").stat().st_ino
    (pair.mounted / "d").rename(other / "d")
    assert (other / "d" / "f").read_bytes() == b"content"
    assert (other / "d" / "f").stat().st_ino == number
    assert os.listdir(pair.mounted) == []
    os.link(other / "d" / "f", pair.mounted / "link")
    assert (pair.mounted / "link").stat().st_nlink == 2
    (pair.mounted / "x").mkdir()
    rename(pair.mounted / "x", other / "d", EXCHANGE)
    assert os.listdir(pair.mounted / "x") == ["f"]


@pytest.mark.parametrize("uid", [USER, OTHER], ids=["owner", "other"])
def test_who_may_rename_directories(pair: Pair, uid: int) -> None:
    """Moving a directory changes its "..", which takes write permission on it."""

    def operation(top: Path) -> list[object]:
        top.chmod(0o777)
        told: list[object] = []
        for mode, parent in itertools.product((0o755, 0o555, 0o000), (0o777, 0o1777)):
            here = top / f"{mode:o} {parent:o}"
            for path in (here, here / "d", here / "target"):
                path.mkdir()
                os.chown(path, USER, USER)
            here.chmod(parent)
            (here / "target").chmod(0o777)
            (here / "d").chmod(mode)
            moves: list[Callable[[], object]] = [
                partial(rename, here / "d", here / "e", 0),
                partial(rename, here / "e", here / "target" / "d", 0),
                partial(rename, here / "target", here / "target2", NOREPLACE),
            ]
            told += [outcome(run_as, move, uid) for move in moves]
        return told

    pair.same(operation)
