"""Hard links, and the link counts of directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mount.comparing import Pair

pytestmark = pytest.mark.no_data


def test_hard_links_show_one_inode_and_the_count_at_once(pair: Pair) -> None:
    def operation(top: Path) -> list[int]:
        first, second, third = top / "first", top / "d" / "second", top / "third"
        (top / "d").mkdir()
        first.write_bytes(b"1")
        (top / "other").write_bytes(b"2")
        fd = os.open(first, os.O_RDONLY)
        counts = [first.stat().st_nlink]
        os.link(first, second)
        counts += [first.stat().st_nlink, second.stat().st_nlink, os.fstat(fd).st_nlink]
        assert first.stat().st_ino == second.stat().st_ino == os.fstat(fd).st_ino
        os.link(second, third)
        counts += [first.stat().st_nlink, second.stat().st_nlink, third.stat().st_nlink]
        third.unlink()
        counts += [first.stat().st_nlink, second.stat().st_nlink]
        (top / "other").rename(second)
        counts += [first.stat().st_nlink, second.stat().st_nlink, os.fstat(fd).st_nlink]
        second.rename(first)
        counts += [first.stat().st_nlink, os.fstat(fd).st_nlink]
        os.close(fd)
        return counts

    pair.same(operation)


def test_renaming_a_hard_link_onto_itself_does_nothing(pair: Pair) -> None:
    def operation(top: Path) -> tuple[list[str], int]:
        (top / "a").touch()
        os.link(top / "a", top / "b")
        (top / "a").rename(top / "b")
        return sorted(os.listdir(top)), (top / "a").stat().st_nlink

    assert pair.same(operation) == (["a", "b"], 2)


def test_link_to_a_symlink_links_the_symlink(pair: Pair) -> None:
    def operation(top: Path) -> tuple[str, int]:
        (top / "s").symlink_to("/nowhere")
        os.link(top / "s", top / "t", follow_symlinks=False)
        return os.readlink(top / "t"), os.lstat(top / "s").st_nlink

    assert pair.same(operation) == ("/nowhere", 2)


def test_link_by_descriptor(pair: Pair) -> None:
    def operation(top: Path) -> list[int]:
        (top / "f").write_bytes(b"content")
        fd = os.open(top / "f", os.O_RDONLY)
        descriptors = os.open("/proc/self/fd", os.O_RDONLY)
        os.link(str(fd), top / "g", src_dir_fd=descriptors, follow_symlinks=True)
        os.close(descriptors)
        counts = [os.fstat(fd).st_nlink, (top / "g").stat().st_size]
        (top / "f").unlink()
        counts.append((top / "g").stat().st_nlink)
        os.close(fd)
        return counts

    assert pair.same(operation) == [2, 7, 1]


@pytest.mark.parametrize("step", ["mkdir", "rmdir", "move in", "move out"])
def test_link_count_of_directories(pair: Pair, step: str) -> None:
    def operation(top: Path) -> list[int]:
        (top / "a" / "sub").mkdir(parents=True)
        (top / "b").mkdir()
        for path in (top, top / "a", top / "b"):
            path.stat()  # so that there is something stale to show
        if step == "mkdir":
            (top / "a" / "new").mkdir()
        elif step == "rmdir":
            (top / "a" / "sub").rmdir()
        elif step == "move in":
            (top / "b").rename(top / "a" / "b")
        else:
            (top / "a" / "sub").rename(top / "sub")
        return [
            path.stat().st_nlink
            for path in (top, top / "a", top / "b", top / "a" / "b")
            if path.exists()
        ]

    pair.same(operation)
