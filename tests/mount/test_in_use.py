"""What is in use is known over all trees of a scope, and nobody makes up a use."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from tests.children import CLONE_NEWNS, OTHER, USER, Child, needs_root, run_as
from tests.conftest import Mounted, MountFactory, volfs, wait_for
from tests.unprivileged import shared
from volfs.errors import VolumeInUseError
from volfs.linux import syscalls
from volfs.local import LocalDriver
from volfs.store import Scan, open_scope, tree_mounts

pytestmark = [needs_root, pytest.mark.no_data]

T = TypeVar("T")
CLONE_NEWUSER = 0x10000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
PR_SET_DUMPABLE = 4


def detach(mnt: Path) -> None:
    syscalls.umount2(os.fsencode(mnt), syscalls.MNT_DETACH)


def bind(source: str | Path, target: Path, *, recursive: bool = False) -> None:
    flags = MS_BIND | (MS_REC if recursive else 0)
    syscalls.mount(os.fsencode(source), os.fsencode(target), b"", flags, b"")


def refused(volume: Path) -> bool:
    try:
        volume.rmdir()
    except OSError as error:
        assert error.errno == errno.EBUSY
        return True
    return False


def users(scope: Path, name: str) -> list[str]:
    """Who uses a volume, as a program on the scope sees it."""
    with open_scope(scope) as opened:
        return [str(holder) for holder in opened.store.holders(name)]


@contextmanager
def holding(call: Callable[[], object], *, uid: int = 0) -> Iterator[int]:
    """A process that has done ``call`` and keeps what it returned; its pid."""
    reader, writer = os.pipe()

    def hold() -> None:
        kept = call()
        os.write(writer, b"x")
        signal.pause()
        del kept

    with Child(hold, uid=uid or None) as child:
        os.close(writer)
        done = os.read(reader, 1)
        os.close(reader)
        if not done:
            child.result()
        yield child.pid


def as_guest(call: Callable[[], T]) -> T:
    """Do something in user and mount namespaces of one's own, as anybody can."""
    uid, gid = os.getuid(), os.getgid()
    syscalls.prctl(PR_SET_DUMPABLE, 1)
    syscalls.unshare(CLONE_NEWUSER | CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    syscalls.mount(b"", b"/", b"", MS_REC | MS_PRIVATE, b"")
    return call()


@pytest.fixture
def two(mount: MountFactory) -> tuple[Mounted, Mounted]:
    """Two trees of one scope, with a volume that has a file and a directory."""
    first = mount()
    second = mount(scope=first.scope)
    (first.mnt / "vol" / "sub").mkdir(parents=True)
    (first.mnt / "vol" / "file").write_text("content")
    return first, second


class TestTwoTrees:
    @pytest.mark.parametrize("what", ["file", "sub"])
    def test_what_is_open_in_one_is_not_removed_through_the_other(
        self, two: tuple[Mounted, Mounted], what: str
    ) -> None:
        first, second = two
        with holding(lambda: os.open(first.mnt / "vol" / what, os.O_RDONLY)) as pid:
            assert refused(second.mnt / "vol")
            told = os.getxattr(second.mnt / "vol", "volfs.users").decode()
            assert f"vol/{what} by process {pid} " in told
        (second.mnt / "vol").rmdir()

    def test_what_is_open_is_told_once_by_each(self, two: tuple[Mounted, Mounted]) -> None:
        first, second = two
        with (first.mnt / "vol" / "file").open(), (second.mnt / "vol" / "file").open():
            for tree in two:
                told = os.getxattr(tree.mnt / "vol", "volfs.users").decode().splitlines()
                assert len(told) == 2, told
            assert len(users(first.scope, "vol")) == 2

    def test_nor_when_it_was_renamed_through_the_other(self, two: tuple[Mounted, Mounted]) -> None:
        first, second = two
        with holding(lambda: os.open(first.mnt / "vol" / "file", os.O_RDONLY)):
            (second.mnt / "vol").rename(second.mnt / "new")
            (second.mnt / "vol").mkdir()
            assert refused(second.mnt / "new")
            with pytest.raises(VolumeInUseError), open_scope(second.scope) as opened:
                opened.store.remove("new")
        (second.mnt / "new").rmdir()

    def test_what_was_closed_is_removed_at_once(self, two: tuple[Mounted, Mounted]) -> None:
        first, second = two
        for number in range(10):
            (first.mnt / "vol" / f"file{number}").write_text("closed")
        (second.mnt / "vol").rmdir()

    def test_a_daemon_that_hangs_may_have_anything_open(
        self, two: tuple[Mounted, Mounted], workspace: Path
    ) -> None:
        first, second = two
        (second.mnt / "other").mkdir()
        os.kill(first.pid, 19)
        try:
            begun = time.monotonic()
            assert refused(second.mnt / "other")
            assert time.monotonic() - begun < 20
            assert any(f"by process {first.pid} " in user for user in users(first.scope, "other"))
        finally:
            os.kill(first.pid, 18)
        (second.mnt / "other").rmdir()

    def test_one_that_was_killed_has_nothing_open(self, mount: MountFactory) -> None:
        first = mount()
        second = mount(scope=first.scope)
        (second.mnt / "vol").mkdir()
        first.process.kill()
        first.process.wait()
        first.stopped = True
        detach(first.mnt)
        (second.mnt / "vol").rmdir()
        assert len(os.listdir(first.scope / "trees")) == 2
        mount(scope=first.scope)
        assert len(os.listdir(first.scope / "trees")) == 2, "what a dead one left is taken away"

    def test_both_are_known_wherever_they_are_mounted(self, two: tuple[Mounted, Mounted]) -> None:
        first, second = two
        assert tree_mounts(str(first.scope)) == [str(first.mnt), str(second.mnt)]
        assert len(os.listdir(first.scope / "trees")) == 2
        second.stop()
        assert len(os.listdir(first.scope / "trees")) == 1


def test_who_owns_the_scope_is_told_by_a_daemon_of_root(
    mount: MountFactory, workspace: Path
) -> None:
    (scope := workspace / "scope").mkdir()
    os.chown(scope, USER, USER)
    tree = mount(scope=scope)
    made = scope / "trees"
    assert {path.lstat().st_uid for path in (made, *made.iterdir())} == {USER}
    (tree.mnt / "vol").mkdir()
    for path in ("volumes", "volumes/vol", "volumes/vol/_data", "trash"):
        os.chown(scope / path, USER, USER)
    (tree.mnt / "vol" / "file").touch()
    with holding(lambda: os.open(tree.mnt / "vol" / "file", os.O_RDONLY)) as pid:
        (told,) = run_as(lambda: users(scope, "vol"), USER)
    assert told.startswith(f"open vol/file by process {pid} (")


class TestUnmountedLazily:
    """The old tree is in no mount table, and lives on for who has something open in it."""

    @pytest.mark.parametrize("what", ["file", "sub"])
    def test_and_mounted_again(
        self, mount: MountFactory, what: str, two: tuple[Mounted, Mounted]
    ) -> None:
        old, new = two
        with holding(lambda: os.open(old.mnt / "vol" / what, os.O_RDONLY)) as pid:
            detach(old.mnt)
            assert refused(new.mnt / "vol")
            (user,) = users(old.scope, "vol")
            assert user.startswith(f"open vol/{what} by process {pid} (")
            with pytest.raises(VolumeInUseError), open_scope(old.scope) as opened:
                opened.store.remove("vol")
        wait_for(lambda: old.process.poll() is not None, "the end of the old daemon")
        (new.mnt / "vol").rmdir()

    def test_a_part_of_it_that_was_mounted_elsewhere(
        self, two: tuple[Mounted, Mounted], workspace: Path
    ) -> None:
        old, new = two
        (target := workspace / "target").mkdir()
        bind(old.mnt / "vol" / "sub", target)
        try:
            detach(old.mnt)
            assert refused(new.mnt / "vol")
            assert users(new.scope, "vol") == [f"mounted at {target}"]
            fd = os.open(target, os.O_RDONLY)
        finally:
            detach(target)
        assert refused(new.mnt / "vol")
        assert any(f"by process {os.getpid()} " in user for user in users(new.scope, "vol"))
        os.close(fd)
        wait_for(lambda: old.process.poll() is not None, "the end of the old daemon")
        (new.mnt / "vol").rmdir()

    def test_references_are_not_dropped(self, two: tuple[Mounted, Mounted]) -> None:
        """The look by which a reference is found stale sees it too."""
        old, new = two
        with holding(lambda: os.open(old.mnt / "vol" / "file", os.O_RDONLY)):
            detach(old.mnt)
            driver = LocalDriver(new.scope)
            assert len(Scan(str(new.scope)).open_holders(driver.get("vol"))) == 1
            driver.close()


class TestDisks:
    def test_a_disk_on_the_data_path_is_not_removed_with_the_volume(self, tree: Mounted) -> None:
        (volume := tree.mnt / "vol").mkdir()
        data = tree.data("vol")
        syscalls.mount(b"disk", os.fsencode(data), b"tmpfs", 0, b"")
        try:
            assert refused(volume)
            assert users(tree.scope, "vol") == [f"mounted at {data}"]
            with pytest.raises(OSError, match="busy"):
                volume.rename(tree.mnt / "new")
        finally:
            detach(data)
        wait_for(lambda: not refused(volume), "the removal")
        volfs(tree.scope, "purge", "--yes")
        assert os.listdir(tree.scope / "trash") == []

    def test_it_holds_no_reference(self, tree: Mounted) -> None:
        (tree.mnt / "vol").mkdir()
        data = tree.data("vol")
        syscalls.mount(b"disk", os.fsencode(data), b"tmpfs", 0, b"")
        try:
            driver = LocalDriver(tree.scope)
            assert Scan(str(tree.scope)).mount_holders(driver.get("vol")) == []
            driver.close()
        finally:
            detach(data)


class TestOthers:
    """Nobody keeps from its removal what is none of their business."""

    def test_a_bind_mount_of_a_volume_that_one_may_not_enter(
        self, tree: Mounted, workspace: Path
    ) -> None:
        (tree.mnt / "vol").mkdir(0o700)
        (target := workspace / "target").mkdir()
        with holding(lambda: as_guest(lambda: bind(tree.mnt / "vol", target)), uid=USER):
            assert users(tree.scope, "vol") == []
            (tree.mnt / "vol").rmdir()

    @pytest.mark.parametrize("mode", [0o755, 0o700])
    def test_one_of_a_volume_that_one_may_enter_counts(
        self, tree: Mounted, workspace: Path, mode: int
    ) -> None:
        (tree.mnt / "vol").mkdir(mode)
        if mode == 0o700:
            os.chown(tree.mnt / "vol", USER, USER)
        (target := workspace / "target").mkdir()
        with holding(lambda: as_guest(lambda: bind(tree.mnt / "vol", target)), uid=USER) as pid:
            assert refused(tree.mnt / "vol")
            (user,) = users(tree.scope, "vol")
            assert user.startswith(f"mounted at {target} by process {pid} (")
            assert user.endswith(f") of uid {USER}")
        (tree.mnt / "vol").rmdir()

    def test_one_of_a_group_that_may_enter_counts(self, tree: Mounted, workspace: Path) -> None:
        (tree.mnt / "vol").mkdir()
        (target := workspace / "target").mkdir()
        with holding(lambda: as_guest(lambda: bind(tree.mnt / "vol", target)), uid=USER):
            (tree.mnt / "vol").chmod(0o710)
            os.chown(tree.mnt / "vol", OTHER, OTHER)
            assert users(tree.scope, "vol") == []
            os.chown(tree.mnt / "vol", OTHER, USER)
            assert len(users(tree.scope, "vol")) == 1

    def test_a_filesystem_that_calls_itself_a_tree(self, tree: Mounted, workspace: Path) -> None:
        (tree.mnt / "vol").mkdir()
        (pretended := workspace / "pretended").mkdir()
        os.chown(pretended, USER, USER)
        command: list[str | Path] = [
            *(sys.executable, "-m", "tests.mount.pretender", str(USER), workspace),
            *(pretended, tree.scope, "vol"),
        ]
        with (
            shared(workspace),
            subprocess.Popen(command, cwd=Path(__file__).parents[2]) as pretender,
        ):
            try:
                wait_for(
                    lambda: f" {pretended} " in Path("/proc/self/mountinfo").read_text(),
                    "the mount",
                )
                with holding(
                    lambda: os.open(pretended / "vol" / "file", os.O_RDONLY), uid=USER
                ) as pid:
                    opened = [
                        os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")
                    ]
                    assert f"{pretended}/vol/file" in opened
                    assert tree_mounts(str(tree.scope)) == [str(tree.mnt)]
                    assert users(tree.scope, "vol") == []
                    volfs(tree.scope, "rm", "vol")
            finally:
                if f" {pretended} " in Path("/proc/self/mountinfo").read_text():
                    detach(pretended)
                pretender.wait(20)

    @pytest.mark.alone
    @pytest.mark.any_level
    def test_very_many_very_deep_mounts_take_no_time(self, tree: Mounted, workspace: Path) -> None:
        (tree.mnt / "vol").mkdir()
        (target := workspace / "target").mkdir(mode=0o777)
        with holding(lambda: as_guest(lambda: mount_a_lot(target)), uid=USER) as pid:
            # Reading this file to its end takes the kernel many seconds.
            with Path(f"/proc/{pid}/mountinfo").open("rb") as file:
                assert sum(b"/deep/deep/" in line for line in (file.readline() for _ in range(500)))
            before = peak(tree.pid)
            begun = time.monotonic()
            (tree.mnt / "vol").rmdir()
            took = time.monotonic() - begun
            more = peak(tree.pid) - before
        assert took < 1, f"{took:.1f} s"
        assert more < 8 << 20, f"{more >> 20} MiB"

    @pytest.mark.alone
    @pytest.mark.any_level
    def test_those_in_a_volume_of_theirs_neither(self, tree: Mounted, workspace: Path) -> None:
        for name in ("vol", "theirs"):
            (tree.mnt / name).mkdir()
        os.chown(tree.mnt / "theirs", USER, USER)
        with holding(
            lambda: as_guest(lambda: mount_a_lot(tree.mnt / "theirs", tmpfs=False)), uid=USER
        ):
            begun = time.monotonic()
            (tree.mnt / "vol").rmdir()
            took = time.monotonic() - begun
            assert refused(tree.mnt / "theirs")
        assert took < 1, f"{took:.1f} s"


def mount_a_lot(place: Path, *, tmpfs: bool = True) -> None:
    """Have more than 20,000 mounts of directories that are 500 deep."""
    if tmpfs:
        syscalls.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, b"")
    os.chdir(place)
    for _ in range(500):
        os.mkdir("deep")
        os.chdir("deep")
    here = os.getcwd()
    bind(here, Path(here))
    os.chdir(here)
    for number in range(15):
        os.mkdir(str(number))
        bind(here, Path(str(number)), recursive=True)


def peak(pid: int) -> int:
    """How much memory a process has had at most, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM:"))) << 10
