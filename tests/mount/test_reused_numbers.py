"""Inode numbers that the disk gives away again: nobody ever gets the file that came after.

ext4 gives the number of a removed file to the next one. The kernel names files to the daemon by
number, and may still name one that somebody else has removed meanwhile.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random

from tests.children import Child
from tests.conftest import MountFactory
from tests.mount.comparing import Pair, outcome
from tests.mount.conftest import make_pair


def make(path: Path, data: bytes) -> int:
    """Create a file with as few requests as there can be, and return its inode number.

    So the daemon has no reason to keep anything of it when it is closed.
    """
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(fd, data)
    number = os.fstat(fd).st_ino
    os.close(fd)
    return number


def test_a_removed_file_is_not_the_next_one(pair: Pair) -> None:
    """Removed by name or by a rename over it, while somebody knows it by an O_PATH descriptor."""

    def operation(top: Path) -> list[object]:
        told: list[object] = []
        for way in ("unlink", "rename"):
            path = top / way
            number = make(path, b"old")
            known = os.open(path, os.O_PATH)
            if way == "unlink":
                path.unlink()
            else:
                make(top / "other", b"other")
                (top / "other").rename(path)
            for step in range(20):
                make(top / f"new {way} {step}", b"new")
            told.append(outcome(lambda known=known: os.fstat(known).st_size))  # type: ignore[misc]
            for access in (os.O_RDONLY, os.O_RDWR):
                fd = outcome(os.open, f"/proc/self/fd/{known}", access)
                told.append(fd if isinstance(fd, str) else outcome(os.read, fd, 10))
                if not isinstance(fd, str):
                    told += [os.fstat(fd).st_ino == number, os.fstat(fd).st_nlink]
                    os.close(fd)
            os.close(known)
        return told

    pair.same(operation)


def count(work: Callable[[], str], seconds: float) -> Counter[str]:
    """Do it again and again; how often each outcome came."""
    counted: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        counted[work()] += 1
    return counted


def overwrite(top: Path, random: Random) -> str:
    """Open a file that others remove all the time, and write to it."""
    fd = outcome(os.open, top / str(random.randrange(2)), random.choice([os.O_WRONLY, os.O_RDWR]))
    if isinstance(fd, str):
        return "fine" if fd == "ENOENT" else f"open {fd}"
    written, closed = outcome(os.pwrite, fd, b"INTRUDER", 0), outcome(os.close, fd)
    return "fine" if (written, closed) == (8, None) else f"write {written}, close {closed}"


def replace(top: Path, random: Random) -> str:
    """Make such a file, and remove it."""
    path = top / str(random.randrange(2))
    fd = outcome(os.open, path, os.O_CREAT | os.O_WRONLY)
    if isinstance(fd, str):
        return f"create {fd}"
    os.close(fd)
    removed = outcome(path.unlink)
    return "fine" if removed is None else f"unlink {removed}"


def create(top: Path, random: Random) -> str:
    """Make a file of one's own elsewhere, and find in it what one has written."""
    path = top / "own"
    fd = outcome(os.open, path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    if isinstance(fd, str):
        return f"create {fd}"
    wanted = b"%08d" % random.randrange(10**8)
    os.pwrite(fd, wanted, 0)
    time.sleep(0.0005)  # in which others may write to it
    found = outcome(os.pread, fd, 100, 0)
    closed, removed = outcome(os.close, fd), outcome(path.unlink)
    if (found, closed, removed) == (wanted, None, None):
        return "fine"
    return f"found {found!r}, close {closed}, unlink {removed}"


def test_an_open_that_comes_after_the_removal_does_not_get_another_file(
    mount: MountFactory,
) -> None:
    """One that is on its way when the file is removed and its number given to a new one."""
    pair = make_pair(mount())
    shared, others = pair.mounted / "shared", [pair.mounted / "one", pair.mounted / "two"]
    for directory in (shared, *others):
        directory.mkdir()
    works = [
        partial(overwrite, shared, Random(1)),
        partial(overwrite, shared, Random(2)),
        partial(replace, shared, Random(3)),
        *(partial(create, other, Random(4)) for other in others),
    ]
    total: Counter[str] = Counter()
    with ExitStack() as stack:
        children = [stack.enter_context(Child(partial(count, work, 3.0))) for work in works]
        for child in children:
            total += child.result()
    assert set(total) == {"fine"}, total
