"""A number that is given away again never leads from an old file to a new one.

On an ext4 of the test's own, which gives the lowest free inode number to whatever is made next.
Whichever way the old one became known to the kernel, and whichever way the new one came about.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Mounted, few_descriptors, mounting, open_workspace, volfs
from tests.daemons import DEADLINE
from tests.filesystems import ext4
from tests.interpreter import Piped

COUNT = 6
"""Directories, and as many files, that are there before; what comes after gets their numbers."""

FEW = 256
"""Descriptors of a daemon that cannot keep many."""


@dataclass
class Known:
    """Something old, which somebody still has an O_PATH descriptor of."""

    fd: int
    number: int
    is_directory: bool

    def content(self) -> object:
        """What is in it now, as far as the kernel lets us: None if it does not."""
        path = f"/proc/self/fd/{self.fd}"
        try:
            if self.is_directory:
                return os.listdir(path)
            return Path(path).read_bytes()
        except OSError:
            return None


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    with open_workspace() as workspace, ext4(workspace / "disk", size=64 << 20) as disk:
        yield disk


@pytest.fixture(scope="module")
def plenty(disk: Path) -> Iterator[Mounted]:
    """A tree on that disk, whose daemon has as many descriptors as it wants."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        (disk / "plenty").mkdir()
        yield mount(scope=disk / "plenty", keep_removed="1h")


@pytest.fixture(scope="module")
def scarce(disk: Path) -> Iterator[Mounted]:
    """Another one, whose daemon has few."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        (disk / "scarce").mkdir()
        yield mount(scope=disk / "scarce", prepare=few_descriptors(FEW), keep_removed="1h")


def names() -> list[str]:
    return [f"{kind}{number}" for number in range(COUNT) for kind in ("dir", "file")]


def fill(directory: Path) -> None:
    """Make the old ones."""
    for name in names():
        if name.startswith("dir"):
            (directory / name).mkdir()
        else:
            (directory / name).write_bytes(b"old")


def know(tree: Mounted) -> list[Known]:
    """Have descriptors of them, by which the kernel goes on knowing them.

    Nothing is asked of the daemon, which might keep a descriptor then.
    """
    numbers = [(tree.data("old") / name).stat().st_ino for name in names()]
    fds = [os.open(tree.mnt / "old" / name, os.O_PATH) for name in names()]
    return [
        Known(fd, number, name.startswith("dir"))
        for fd, number, name in zip(fds, numbers, names(), strict=True)
    ]


def delete(directory: Path) -> None:
    for name in names():
        path = directory / name
        path.rmdir() if path.is_dir() else path.unlink()


# -- ways in which the old ones became known, and went


def listed(tree: Mounted) -> list[Known]:
    """By a listing only; deleted behind the mount."""
    (tree.mnt / "old").mkdir()
    fill(tree.data("old"))
    assert len(os.listdir(tree.mnt / "old")) == 2 * COUNT
    known = know(tree)
    delete(tree.data("old"))
    return known


def created(tree: Mounted) -> list[Known]:
    """Made through the tree; deleted behind the mount."""
    (tree.mnt / "old").mkdir()
    fill(tree.mnt / "old")
    known = know(tree)
    delete(tree.data("old"))
    return known


def looked_up(tree: Mounted) -> list[Known]:
    """By name; deleted through the tree."""
    (tree.mnt / "old").mkdir()
    fill(tree.data("old"))
    known = know(tree)
    delete(tree.mnt / "old")
    return known


def evicted(tree: Mounted) -> list[Known]:
    """By name, but then others were looked up; deleted behind the mount."""
    known = looked_up_only(tree)
    others = tree.mnt / "others"
    others.mkdir()
    for number in range(FEW):
        (tree.data("others") / str(number)).touch()
    for number in range(FEW):
        os.stat(others / str(number))
    for number in range(FEW):
        (tree.data("others") / str(number)).unlink()
    os.rmdir(others)
    delete(tree.data("old"))
    return known


def looked_up_only(tree: Mounted) -> list[Known]:
    (tree.mnt / "old").mkdir()
    fill(tree.data("old"))
    return know(tree)


def moved(tree: Mounted) -> list[Known]:
    """By a listing; moved away behind the mount, and deleted there."""
    (tree.mnt / "old").mkdir()
    fill(tree.data("old"))
    assert len(os.listdir(tree.mnt / "old")) == 2 * COUNT
    known = know(tree)
    away = tree.scope / "away"
    tree.data("old").joinpath("dir0").rename(away)
    away.rename(tree.data("old") / "dir0")
    tree.data("old").rename(away)
    away.rename(tree.data("old"))
    delete(tree.data("old"))
    return known


def removed(tree: Mounted) -> list[Known]:
    """By name; removed with their volume, whose data was then deleted."""
    known = looked_up_only(tree)
    os.rmdir(tree.mnt / "old")
    volfs(tree.scope, "purge", "--yes")
    return known


# -- ways in which new ones come about: where they are in the tree and on the disk


def by_the_tree(tree: Mounted) -> Path:
    (tree.mnt / "new").mkdir()
    for name in names():
        path = tree.mnt / "new" / name
        path.mkdir() if name.startswith("dir") else path.write_bytes(b"new")
    return tree.mnt / "new"


def by_the_native_path(tree: Mounted) -> Path:
    (tree.mnt / "new").mkdir()
    for name in names():
        path = tree.data("new") / name
        path.mkdir() if name.startswith("dir") else path.write_bytes(b"new")
    return tree.mnt / "new"


def by_commands(tree: Mounted) -> Path:
    """Volumes, whose data paths themselves get the numbers."""
    volfs(tree.scope, "create", "new", *(f"new{number}" for number in range(COUNT)))
    return tree.mnt / "new"


def by_import(tree: Mounted) -> Path:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in names():
            info = tarfile.TarInfo(name)
            if name.startswith("dir"):
                info.type = tarfile.DIRTYPE
                info.mode = 0o755
                tar.addfile(info)
            else:
                info.size = 3
                tar.addfile(info, io.BytesIO(b"new"))
    with Piped("import", "--scope", tree.scope, "new") as process:
        process.stdin.write(archive.getvalue())
        process.stdin.close()
        assert process.wait(DEADLINE) == 0, process.log
    return tree.mnt / "new"


OLD: list[Callable[[Mounted], list[Known]]] = [
    listed, created, looked_up, evicted, moved, removed
]  # fmt: skip
NEW: list[Callable[[Mounted], Path]] = [by_the_tree, by_the_native_path, by_commands, by_import]
PINNED = (looked_up,)
"""The daemon has descriptors of these for a while at least, so that no number need recur."""


@pytest.mark.parametrize("come", NEW, ids=lambda way: way.__name__)
@pytest.mark.parametrize("know_old", OLD, ids=lambda way: way.__name__)
def test_a_number_given_away_again_leads_to_nobody(
    plenty: Mounted,
    scarce: Mounted,
    know_old: Callable[[Mounted], list[Known]],
    come: Callable[[Mounted], Path],
) -> None:
    tree = scarce if know_old is evicted else plenty
    known = know_old(tree)
    try:
        new = come(tree)
        volumes = [name for name in os.listdir(tree.mnt) if name.startswith("new")]
        here = {
            os.stat(path).st_ino
            for name in volumes
            for path in (tree.data(name), *tree.data(name).iterdir())
        }
        recurred = here & {old.number for old in known}
        assert recurred or know_old in PINNED, "no number came up again: this shows nothing"
        for old in known:
            # Nothing, or what it was: an empty directory, or what the kernel still has of it.
            assert old.content() in (None, [], b"old", b""), old
        # And the new ones are alive, whoever stands in the old ones.
        for name in volumes:
            top = tree.mnt / name
            (top / "made").write_bytes(b"made")
            assert (top / "made").read_bytes() == b"made"
            (top / "made").unlink()
        for entry in list(new.iterdir()):
            if entry.is_dir():
                (entry / "made").write_bytes(b"made")
                assert os.listdir(entry) == ["made"]
                (entry / "made").unlink()
            else:
                assert entry.read_bytes() == b"new"
        for old in known:
            assert old.content() in (None, [], b"old", b""), old
    finally:
        for old in known:
            os.close(old.fd)
        for name in os.listdir(tree.mnt):
            os.rmdir(tree.mnt / name)
        volfs(tree.scope, "purge", "--yes")
