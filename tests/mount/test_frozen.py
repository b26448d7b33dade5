"""While a filesystem is frozen, who changes something waits, and nobody else does."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.children import USER, Child
from tests.conftest import Mounted, mounting, open_workspace, wait_for
from tests.filesystems import PATIENCE, btrfs, ext4, frozen, thaw, tmpfs, xfs

FILESYSTEMS: dict[str, Callable[[Path], AbstractContextManager[Path]]] = {
    "ext4": partial(ext4, size=64 << 20),
    "xfs": xfs,
    "btrfs": btrfs,
}


@pytest.fixture(scope="module", params=FILESYSTEMS)
def tree(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A tree on a filesystem of its own, of which nothing is cached."""
    with (
        open_workspace() as workspace,
        FILESYSTEMS[request.param](workspace / "disk") as disk,
        mounting(workspace) as mount,
    ):
        tree = mount(scope=disk / "scope", cache="never")
        quiet = tree.mnt / "quiet"
        quiet.mkdir()
        (quiet / "f").write_text("content")
        (quiet / "dir").mkdir()
        yield tree


@pytest.fixture
def volume(tree: Mounted) -> Iterator[Path]:
    volume = tree.mnt / "vol"
    volume.mkdir()
    (volume / "f").write_text("content" * 1000)
    (volume / "dir").mkdir()
    yield volume
    volume.rmdir()


def is_waiting(pid: int) -> bool:
    """Whether a thread of a process waits uninterruptibly."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):
            if (thread / "stat").read_text().rpartition(")")[2].split()[0] == "D":
                return True
    return False


CHANGES: dict[str, Callable[[Path], object]] = {
    "create": lambda vol: (vol / "new").touch(),
    "mkdir": lambda vol: (vol / "new").mkdir(),
    "symlink": lambda vol: (vol / "new").symlink_to("f"),
    "link": lambda vol: (vol / "new").hardlink_to(vol / "f"),
    "mknod": lambda vol: os.mkfifo(vol / "new"),
    "rename": lambda vol: (vol / "f").rename(vol / "new"),
    "unlink": lambda vol: (vol / "f").unlink(),
    "rmdir": lambda vol: (vol / "dir").rmdir(),
    "chmod": lambda vol: (vol / "f").chmod(0o600),
    "utime": lambda vol: os.utime(vol / "f", (1, 1)),
    "truncate": lambda vol: os.truncate(vol / "f", 1),
    "open, truncating": lambda vol: (vol / "f").write_text(""),
    "write": lambda vol: (vol / "f").write_text("more"),
    "setxattr": lambda vol: os.setxattr(vol / "f", "user.a", b"1"),
    "removing a volume": lambda vol: os.rmdir(vol.parent / "other"),
    "making a volume": lambda vol: os.mkdir(vol.parent / "another"),
}


def read_all(tree: Mounted, *, root: bool) -> list[object]:
    """All that another user may do without changing anything.

    ``root``: also list the root. (While a change of a directory waits, the kernel lets nobody list
    that.)
    """
    quiet = tree.mnt / "quiet"
    with (quiet / "f").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        done: list[object] = [file.read(), os.fstat(file.fileno()).st_size]
    with suppress(OSError):
        os.getxattr(quiet / "f", "user.absent")
    done += [sorted(os.listdir(quiet)), os.statvfs(quiet).f_bsize]
    if root:
        done.append(sorted(os.listdir(tree.mnt)))
    done.append((quiet / "absent").exists())
    return done


@pytest.mark.parametrize(
    "change",
    [pytest.param(name, marks=[] if name == "write" else pytest.mark.no_data) for name in CHANGES],
)
def test_others_go_on_reading(tree: Mounted, volume: Path, change: str) -> None:
    if "removing" in change:
        (tree.mnt / "other").mkdir()
    read = partial(read_all, tree, root="volume" not in change)
    before = read()
    with frozen(tree.scope), Child(lambda: CHANGES[change](volume)) as changing:
        wait_for(lambda: is_waiting(tree.pid) or is_waiting(changing.pid), "somebody to wait")
        for _ in range(3):
            start = time.monotonic()
            with Child(read, uid=USER) as reading:
                assert reading.result() == before
            assert time.monotonic() - start < PATIENCE / 4
        assert os.waitpid(changing.pid, os.WNOHANG) == (0, 0)
        thaw(tree.scope)
        changing.result()
    for name in ("other", "another"):
        with suppress(FileNotFoundError):
            (tree.mnt / name).rmdir()


def test_what_was_deleted_is_closed(tree: Mounted, volume: Path) -> None:
    """Which frees its data, and so is a change: it waits, but nobody waits for it."""
    opened = [(volume / f"{number}").open("w") for number in range(40)]
    for number, file in enumerate(opened):
        file.write("content")
        file.flush()
        (volume / f"{number}").unlink()
    (volume / "dir").rmdir()
    with frozen(tree.scope):
        for file in opened:
            file.close()
        for _ in range(3):
            with Child(partial(read_all, tree, root=True), uid=USER) as reading:
                reading.result()
        tree.drop_caches()
        with Child(partial(read_all, tree, root=True), uid=USER) as reading:
            reading.result()
    wait_for(lambda: tree.statistics()["open_files"] == 0, "the files to be closed")


def test_all_that_waited_is_done_once(tree: Mounted, volume: Path) -> None:
    """Also what came while the event loop was relieved, and what was given up meanwhile."""
    count = 40
    (volume / "log").touch()

    def change(number: int) -> None:
        with (volume / "log").open("ab", buffering=0) as log:
            log.write(f"{number:07}\n".encode())
        (volume / f"dir{number}").mkdir()
        (volume / f"dir{number}").chmod(0o700)
        (volume / f"dir{number}").rename(volume / f"done{number}")

    with frozen(tree.scope), ExitStack() as stack:
        waiting = [stack.enter_context(Child(partial(change, n))) for n in range(count)]
        killed = stack.enter_context(Child((volume / "never").mkdir))
        wait_for(lambda: is_waiting(tree.pid) or is_waiting(waiting[0].pid), "somebody to wait")
        os.kill(killed.pid, signal.SIGKILL)
        with Child(partial(read_all, tree, root=True), uid=USER) as reading:
            reading.result()
        thaw(tree.scope)
        for child in waiting:
            child.result()
        assert killed.was_killed()
    lines = (volume / "log").read_text().splitlines()
    assert sorted(lines) == [f"{n:07}" for n in range(count)]
    left = set(os.listdir(volume)) - {"never"}
    assert left == {"log", "f", "dir", *(f"done{n}" for n in range(count))}
    assert all((volume / f"done{n}").stat().st_mode & 0o7777 == 0o700 for n in range(count))


def test_changes_elsewhere_go_on(tree: Mounted, volume: Path) -> None:
    """On another filesystem, mounted inside a volume."""
    with tmpfs(tree.data("quiet") / "inside") as inside:
        other = tree.mnt / "quiet/inside"

        def use() -> list[str]:
            (other / "sub").mkdir()
            (other / "sub").chmod(0o700)
            (other / "file").write_text("content")
            (other / "file").rename(other / "sub/file")
            (other / "sub/file").write_text("changed")
            (other / "sub/link").symlink_to("file")
            os.setxattr(other / "sub/file", "trusted.a", b"1")
            os.truncate(other / "sub/file", 4)
            found = sorted(os.listdir(other / "sub"))
            text = (other / "sub/file").read_text()
            (other / "sub/file").unlink()
            (other / "sub/link").unlink()
            (other / "sub").rmdir()
            return [*found, text]

        assert use() == ["file", "link", "chan"]
        with frozen(tree.scope), Child((volume / "new").touch) as changing:
            wait_for(lambda: is_waiting(tree.pid), "somebody to wait")
            with Child(use) as going_on:
                assert going_on.result() == ["file", "link", "chan"]
            assert os.waitpid(changing.pid, os.WNOHANG) == (0, 0)
            thaw(tree.scope)
            changing.result()
        assert os.listdir(inside) == []
        tree.drop_caches()
