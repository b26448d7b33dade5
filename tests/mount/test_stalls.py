"""What is slow for one is not felt by others: their stat is answered meanwhile."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.children import USER, Child
from tests.conftest import Mounted, MountFactory, mounting, open_workspace, wait_for
from tests.filesystems import btrfs, ext4, frozen, thaw
from volfs.linux import syscalls

pytestmark = [pytest.mark.alone, pytest.mark.any_level]

MEDIAN = 0.02
WORST = 0.5
"""Seconds that a stat may take. (200 ms where nothing else keeps the machine busy.)"""

EXTENTS = 20_000
FILES = 100_000


@dataclass
class Watch:
    """How long another user's stats took, once it is over."""

    times: list[float] = field(default_factory=list)

    def assert_smooth(self) -> None:
        assert len(self.times) > 20
        assert statistics.median(self.times) < MEDIAN
        assert max(self.times) < WORST


@contextmanager
def watching(tree: Mounted) -> Iterator[Watch]:
    """Another user looks at a file of another volume, again and again."""
    quiet = tree.mnt / "quiet"
    quiet.mkdir(exist_ok=True)
    (quiet / "f").touch()
    begun, begin = os.pipe()
    ended, end = os.pipe()

    def look() -> list[float]:
        os.set_blocking(ended, False)
        times = []
        while True:
            start = time.monotonic()
            (quiet / "f").stat()
            times.append(time.monotonic() - start)
            if len(times) == 1:
                os.write(begin, b"x")
            try:
                os.read(ended, 1)
                return times
            except BlockingIOError:
                time.sleep(0.002)

    watch = Watch()
    with Child(look, uid=USER) as child:
        os.read(begun, 1)
        try:
            yield watch
        finally:
            os.write(end, b"x")
        watch.times = child.result()
    for fd in (begun, begin, ended, end):
        os.close(fd)


# -- files of many extents


def fragment(path: Path) -> None:
    """Make a file of EXTENTS extents, in random order."""
    order = list(range(EXTENTS))
    random.Random(1).shuffle(order)
    with path.open("wb") as file:
        for number in order:
            syscalls.fallocate(file.fileno(), 0, number * 8192, 4096)


@pytest.fixture(scope="module")
def slow() -> Iterator[Mounted]:
    """A tree on a filesystem that takes its time to free extents."""
    with (
        open_workspace() as workspace,
        btrfs(workspace / "btrfs") as filesystem,
        mounting(workspace) as mount,
    ):
        (filesystem / "scope").mkdir()
        yield mount(scope=filesystem / "scope", cache="never")


@pytest.fixture
def extents(slow: Mounted) -> Iterator[Mounted]:
    """The same with a file of many."""
    (slow.mnt / "vol").mkdir()
    fragment(slow.data("vol") / "f")
    yield slow
    (slow.mnt / "vol").rmdir()


def truncate(path: Path) -> None:
    os.truncate(path, 4096)


def open_truncating(path: Path) -> None:
    path.open("wb").close()


def unlink(path: Path) -> None:
    path.unlink()


def unlink_open(path: Path) -> None:
    with path.open("r+b"):
        path.unlink()


def unlink_beside(path: Path) -> None:
    """Its name goes behind the mount, while the tree has it open."""
    with path.open("rb"):
        (path.parents[2] / "btrfs/scope/volumes/vol/_data/f").unlink()


@pytest.mark.parametrize(
    "free",
    [truncate, open_truncating, unlink, unlink_open, unlink_beside],
    ids=lambda call: call.__name__,
)
def test_freeing_many_extents(extents: Mounted, free: Callable[[Path], None]) -> None:
    """Natively that takes one to nine seconds."""
    with watching(extents) as watch:
        free(extents.mnt / "vol/f")
        extents.drop_caches()
        time.sleep(3)  # there is no event when the last extent has gone
    watch.assert_smooth()


# -- leases


def take(fd: int) -> bool:
    """Take a lease on a file, unless somebody has it open for writing."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return False
    return True


@contextmanager
def leased(path: Path) -> Iterator[Callable[[], None]]:
    """Somebody has a lease on a file, and gives it back when the function is called."""
    ready, tell = os.pipe()
    asked, ask = os.pipe()

    def hold() -> None:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        with path.open("rb") as file:
            wait_for(lambda: take(file.fileno()), "a lease")
            os.write(tell, b"x")
            os.read(asked, 1)
            fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_UNLCK)

    with Child(hold) as child:
        os.read(ready, 1)
        returned = False

        def give_back() -> None:
            nonlocal returned
            if not returned:
                returned = True
                os.write(ask, b"x")
                child.result()

        try:
            yield give_back
        finally:
            give_back()
            for fd in (ready, tell, asked, ask):
                os.close(fd)


def is_wanted_back(path: Path) -> bool:
    """Whether somebody waits for the lease on a file."""
    file = f":{path.stat().st_ino} "
    locks = Path("/proc/locks").read_text().splitlines()
    return any("BREAKING" in lock and file in lock for lock in locks)


def open_for_writing(path: Path) -> None:
    path.open("r+b").close()


@pytest.mark.parametrize(
    "use", [open_for_writing, open_truncating, truncate], ids=lambda call: call.__name__
)
def test_waiting_for_a_lease(mount: MountFactory, use: Callable[[Path], None]) -> None:
    tree = mount(cache="never")
    (tree.mnt / "vol").mkdir()
    path = tree.mnt / "vol/f"
    path.write_bytes(b"content" * 2000)
    with leased(tree.data("vol") / "f") as give_back, watching(tree) as watch:
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        with Child(lambda: use(path)) as waiting:
            time.sleep(1)  # that nothing happens has no event
            assert os.waitpid(waiting.pid, os.WNOHANG) == (0, 0)
            give_back()
            waiting.result()
    watch.assert_smooth()


def test_who_waits_for_a_lease_can_be_killed(mount: MountFactory) -> None:
    tree = mount()
    (tree.mnt / "vol").mkdir()
    path = tree.mnt / "vol/f"
    path.touch()
    with leased(tree.data("vol") / "f"):
        start = time.monotonic()
        with Child(lambda: truncate(path)) as waiting:
            wait_for(lambda: is_wanted_back(tree.data("vol") / "f"), "somebody who waits")
            assert os.waitpid(waiting.pid, os.WNOHANG) == (0, 0)
            os.kill(waiting.pid, signal.SIGKILL)
            assert waiting.was_killed()
        assert time.monotonic() - start < 10  # of the 45 s of the lease


# -- freezing


def test_frozen_filesystem(workspace: Path, mount: MountFactory) -> None:
    with ext4(workspace / "ext4", size=64 << 20) as filesystem:
        (filesystem / "scope").mkdir()
        tree = mount(scope=filesystem / "scope", cache="never")
        try:
            (tree.mnt / "vol").mkdir()
            for _ in range(2):
                with (
                    watching(tree) as watch,
                    frozen(filesystem),
                    Child((tree.mnt / "vol/new").mkdir) as waiting,
                ):
                    time.sleep(2)  # that nothing happens has no event
                    assert os.waitpid(waiting.pid, os.WNOHANG) == (0, 0)
                    thaw(filesystem)
                    waiting.result()
                watch.assert_smooth()
                (tree.mnt / "vol/new").rmdir()
        finally:
            tree.stop()


# -- removing


def test_deleting_many_files(mount: MountFactory) -> None:
    """The daemon does, once a volume was removed for good."""
    tree = mount(cache="never", keep_removed="0s")
    (tree.mnt / "vol").mkdir()
    for directory in range(100):
        (tree.data("vol") / str(directory)).mkdir()
        for number in range(FILES // 100):
            os.mknod(tree.data("vol") / f"{directory}/{number}")
    with watching(tree) as watch:
        (tree.mnt / "vol").rmdir()
        wait_for(lambda: not os.listdir(tree.scope / "trash"), "the deletion", 60)
    watch.assert_smooth()
