"""Renaming and exchanging, also of what is in use."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.children import OTHER, USER, run_as
from tests.mount.comparing import Pair, outcome, owned
from volfs.linux import syscalls

pytestmark = pytest.mark.no_data

NOREPLACE = syscalls.RENAME_NOREPLACE

EXCHANGE = syscalls.RENAME_EXCHANGE


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


@pytest.mark.parametrize("uid", [0, USER], ids=["root", "user"])
def test_a_whiteout_is_who_left_its(pair: Pair, uid: int) -> None:
    """What RENAME_WHITEOUT leaves is a new file, in a setgid directory of the group's."""

    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for mode in (0o1777, 0o3777):
            here = top / f"{mode:o}"
            here.mkdir()
            os.chown(here, OTHER, OTHER)
            here.chmod(mode)
            (here / "f").write_bytes(b"content")
            os.chown(here / "f", uid, uid)

            def work(here: Path = here) -> object:
                return outcome(rename, here / "f", here / "moved", syscalls.RENAME_WHITEOUT)

            told += [run_as(work, uid), owned(here / "f"), (here / "f").lstat().st_rdev]
            told += [owned(pair.behind(here / "f")), owned(here / "moved")]
        return told

    assert None in pair.same(operation)


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
