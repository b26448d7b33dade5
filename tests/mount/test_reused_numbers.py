"""Inode numbers that the disk gives away again: nobody ever gets the file that came after.

ext4 gives the number of a removed file to the next one. The kernel names files to the daemon by
number, and may still name one that somebody else has removed meanwhile.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.children import Child
from tests.conftest import Mounted, few_descriptors, mounting, open_workspace
from tests.filesystems import ext4
from tests.mount.comparing import Pair, outcome
from tests.mount.conftest import make_pair
from tests.mount.open_files import descriptors_on

DESCRIPTORS = 256
"""How many the daemons here may have: enough, and soon used up."""


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """An ext4 where nobody else takes the numbers."""
    with open_workspace() as workspace, ext4(workspace / "disk", size=64 << 20) as disk:
        yield disk


@pytest.fixture(scope="module")
def shared(disk: Path) -> Iterator[Mounted]:
    (disk / "shared").mkdir()
    with open_workspace() as workspace, mounting(workspace) as mount:
        yield mount(scope=disk / "shared")


@pytest.fixture(scope="module")
def mounts(disk: Path) -> Iterator[dict[str, Mounted]]:
    """A mount of each policy."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        policies = ("never", "auto", "always")
        for policy in policies:
            (disk / policy).mkdir()
        yield {
            policy: mount(scope=disk / policy, cache=policy, prepare=few_descriptors(DESCRIPTORS))
            for policy in policies
        }


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


def test_an_open_that_comes_after_the_removal_does_not_get_another_file(pair: Pair) -> None:
    """One that is on its way when the file is removed and its number given to a new one."""
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


OLD = b"old content" * 100


def make_known(pair: Pair, known: str) -> dict[int, Path]:
    """Files whose inode numbers the daemon learns in one of three ways; by number."""
    numbers = {}
    for turn in range(40):
        path = pair.mounted / f"old{turn}"
        (path if known == "created" else pair.data / path.name).write_bytes(OLD)
        numbers[(pair.data / path.name).stat().st_ino] = path
        if known != "listed":
            assert path.read_bytes() == OLD
            os.setxattr(path, "user.x", b"old")
    assert len(os.listdir(pair.mounted)) == 40
    return numbers


def drive_out(pair: Pair) -> None:
    """Make the daemon use so many other files that it keeps no descriptor of those before."""
    (pair.data / "others").mkdir()
    for number in range(DESCRIPTORS):
        (pair.data / "others" / f"{number}").touch()
        (pair.mounted / "others" / f"{number}").stat()


@pytest.mark.parametrize("known", ["created", "found", "listed"])
@pytest.mark.parametrize("policy", ["never", "auto", "always"])
def test_a_reused_inode_number_is_another_file(
    mounts: dict[str, Mounted], policy: str, known: str
) -> None:
    """ext4 gives the number of a deleted file to the next one, once nobody pins it."""
    pair = make_pair(mounts[policy])
    numbers = make_known(pair, known)
    if known != "listed":
        drive_out(pair)
    assert not any(descriptors_on(mounts[policy].pid, set(numbers)))
    left = list(numbers.values())
    for attempt in range(3000):
        if left:
            (pair.data / left.pop().name).unlink()
        made = pair.data / f"made{attempt}"
        made.write_bytes(b"new")
        number = made.stat().st_ino
        if number in numbers:
            break
    else:
        pytest.fail("the disk gave none of the inode numbers out again")
    new = pair.mounted / made.name
    assert new.stat().st_ino == number
    assert new.read_bytes() == b"new"
    assert os.listxattr(new) == []
    assert outcome(numbers[number].read_bytes) in ("ENOENT", "ESTALE")
    new.write_bytes(b"changed")
    assert made.read_bytes() == b"changed"


def test_a_reused_number_after_deleting_through_the_mount(mounts: dict[str, Mounted]) -> None:
    auto = make_pair(mounts["auto"])
    seen = {}
    for turn in range(50):
        path = auto.mounted / "f"
        path.write_bytes(b"turn %d" % turn)
        status = path.stat()
        assert path.read_bytes() == b"turn %d" % turn
        assert status.st_nlink == 1
        assert status.st_size == len(b"turn %d" % turn)
        seen[status.st_ino] = turn
        path.unlink()
    assert len(seen) < 50, "no number came twice: this test shows nothing here"


def test_a_directory_and_then_a_file_of_the_same_number(mounts: dict[str, Mounted]) -> None:
    """The kernel's inode of the directory must not serve the file."""
    never = make_pair(mounts["never"])
    for _ in range(30):
        (never.mounted / "x").mkdir()
        number = (never.mounted / "x").stat().st_ino
        (never.data / "x").rmdir()
        (never.data / "x").write_bytes(b"file")
        assert (never.mounted / "x").is_file()
        assert (never.mounted / "x").read_bytes() == b"file"
        assert (never.mounted / "x").stat().st_ino == (never.data / "x").stat().st_ino
        (never.data / "x").unlink()
        assert not (never.mounted / "x").exists()
        assert number
