"""Mounting, serving and unmounting: how a session begins, ends and survives."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.children import NOBODY, run_as
from tests.conftest import MountFactory, few_descriptors, is_mounted, volfs, wait_for
from volfs.errors import MountError
from volfs.fs.mount.checks import check
from volfs.fs.mount.options import MountOptions
from volfs.fs.mount.unmounting import unmount
from volfs.linux import syscalls


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_ends_with_0(mount: MountFactory, number: int) -> None:
    tree = mount()
    (tree.mnt / "vol").mkdir()
    (tree.mnt / "vol" / "file").write_text("data")
    tree.stop(number)
    assert not is_mounted(tree.mnt)
    assert (tree.data("vol") / "file").read_text() == "data"


def test_a_signal_while_files_are_open_ends_it_too(mount: MountFactory) -> None:
    tree = mount()
    (tree.mnt / "vol").mkdir()
    fd = os.open(tree.mnt / "vol" / "file", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"written")
    tree.process.terminate()
    assert tree.process.wait(20) == 0
    assert not is_mounted(tree.mnt)
    with pytest.raises(OSError, match="not connected"):
        os.fsync(fd)
    # At the plain level the kernel asks at close too.
    with pytest.raises(OSError, match="not connected") if tree.level == "plain" else nullcontext():
        os.close(fd)
    assert (tree.data("vol") / "file").read_text() == "written"


def test_unmounting_from_outside_ends_the_daemon(mount: MountFactory) -> None:
    tree = mount()
    unmount(str(tree.mnt))
    assert tree.process.wait(20) == 0


def test_unmounting_a_busy_mount_says_so(mount: MountFactory) -> None:
    tree = mount()
    (tree.mnt / "vol").mkdir()
    with (tree.mnt / "vol" / "file").open("w"):
        with pytest.raises(MountError, match="in use") as caught:
            unmount(str(tree.mnt))
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EBUSY
        assert is_mounted(tree.mnt)
    unmount(str(tree.mnt))


def test_what_is_mounted_says_what_it_is(mount: MountFactory) -> None:
    tree = mount()
    line = next(
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == str(tree.mnt)
    )
    fields = line.split()
    assert fields[fields.index("-") + 1 :][:2] == ["fuse.volfs", str(tree.scope)]
    assert {"nosuid", "nodev"} <= set(fields[5].split(","))
    assert {"default_permissions", "allow_other"} <= set(fields[-1].split(","))


def test_options_of_the_mount(mount: MountFactory) -> None:
    tree = mount(suid=True, dev=True, noexec=True)
    fields = next(
        line.split()
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == str(tree.mnt)
    )
    options = set(fields[5].split(","))
    assert not {"nosuid", "nodev"} & options
    assert "noexec" in options


class TestCheck:
    """Each mount that cannot work is refused with its reason."""

    def test_missing_mount_point(self, workspace: Path) -> None:
        with pytest.raises(MountError, match=r"does not exist.*mkdir"):
            check(str(workspace), str(workspace / "none"), MountOptions())

    def test_mount_point_that_is_a_file(self, workspace: Path) -> None:
        (workspace / "file").touch()
        with pytest.raises(MountError, match="not a directory"):
            check("/nowhere", str(workspace / "file"), MountOptions())

    def test_mount_point_that_is_not_empty(self, workspace: Path) -> None:
        (workspace / "mnt").mkdir()
        (workspace / "mnt" / "file").touch()
        with pytest.raises(MountError, match="not empty"):
            check("/nowhere", str(workspace / "mnt"), MountOptions())

    def test_scope_inside_the_mount_point(self, workspace: Path) -> None:
        (workspace / "mnt" / "scope").mkdir(parents=True)
        for scope in (workspace / "mnt" / "scope", workspace / "mnt"):
            with pytest.raises(MountError, match="lies inside"):
                check(str(scope), str(workspace / "mnt"), MountOptions())

    def test_mount_point_inside_the_scope(self, workspace: Path) -> None:
        (workspace / "volumes" / "mnt").mkdir(parents=True)
        with pytest.raises(MountError, match="inside the scope"):
            check(str(workspace), str(workspace / "volumes" / "mnt"), MountOptions())

    def test_mounted_already(self, mount: MountFactory) -> None:
        tree = mount()
        with pytest.raises(MountError, match="mount point already"):
            check("/nowhere", str(tree.mnt), MountOptions())

    def test_a_mount_whose_daemon_is_gone(self, mount: MountFactory, workspace: Path) -> None:
        tree = mount()
        tree.process.kill()
        tree.process.wait()
        tree.stopped = True
        with pytest.raises(MountError, match="volfs umount"):
            check("/nowhere", str(tree.mnt), MountOptions())
        volfs(tree.scope, "umount", str(tree.mnt))
        assert not is_mounted(tree.mnt)
        again = mount(scope=tree.scope)
        assert again.statistics()["inodes"] == 1

    def test_no_permission_for_the_mount_point(self, workspace: Path) -> None:
        (workspace / "mnt").mkdir()

        def refused() -> None:
            with pytest.raises(MountError, match="no permission to write"):
                check("/nowhere", str(workspace / "mnt"), MountOptions())

        run_as(refused, NOBODY)


# -- unprivileged


def test_an_unprivileged_user_mounts_and_uses_a_tree(mount: MountFactory) -> None:
    tree = mount(user=1000)

    def use() -> None:
        volume = tree.mnt / "vol"
        volume.mkdir()
        (volume / "dir").mkdir()
        (volume / "file").write_text("data")
        os.link(volume / "file", volume / "dir" / "link")
        os.rename(volume / "dir", volume / "moved")
        assert (volume / "moved" / "link").read_text() == "data"
        os.setxattr(volume / "file", "user.x", b"y")
        os.utime(volume / "file", ns=(5, 7))
        status = (volume / "file").stat()
        assert (status.st_nlink, status.st_mtime_ns, status.st_uid) == (2, 7, 1000)
        (volume / "file").chmod(0o600)
        os.truncate(volume / "file", 2)
        assert (volume / "file").read_text() == "da"
        counters = json.loads(os.getxattr(tree.mnt, "volfs.stats"))
        assert counters["open_files"] == 0

    run_as(use, 1000)
    assert tree.data("vol").stat().st_uid == 1000
    # Without allow_other nobody else gets in, not even root.
    with pytest.raises(PermissionError):
        os.stat(tree.mnt / "vol")
    run_as(lambda: os.rmdir(tree.mnt / "vol"), 1000)
    run_as(lambda: unmount(str(tree.mnt)), 1000)
    assert tree.process.wait(20) == 0


def test_an_unprivileged_daemon_ends_upon_a_signal(mount: MountFactory) -> None:
    tree = mount(user=1000)
    tree.stop(signal.SIGTERM)
    assert not is_mounted(tree.mnt)


# -- under load


def read_at(directory: int, name: str) -> str:
    fd = os.open(name, os.O_RDONLY, dir_fd=directory)
    try:
        return os.read(fd, 100).decode()
    finally:
        os.close(fd)


def test_a_filesystem_that_hangs_does_not_hold_up_the_others(
    mount: MountFactory, workspace: Path
) -> None:
    slow = mount()
    (slow.mnt / "vol").mkdir()
    (slow.mnt / "vol" / "file").write_text("slow")
    tree = mount(cache="never")
    (tree.mnt / "quick").mkdir()
    (tree.scope / "volumes" / "linked").mkdir()
    tree.data("linked").symlink_to(slow.mnt / "vol")  # as an administrator may
    linked = os.open(tree.mnt / "linked", os.O_RDONLY)
    assert read_at(linked, "file") == "slow"
    slow.process.send_signal(signal.SIGSTOP)
    answers: list[str] = []
    waiting = [
        threading.Thread(target=lambda: answers.append(read_at(linked, "file"))) for _ in range(120)
    ]
    try:
        for thread in waiting:
            thread.start()
        for number in range(50):
            file = tree.mnt / "quick" / f"file{number}"
            file.write_text("quick")
            with file.open("r+") as opened:
                os.fsync(opened.fileno())
            file.unlink()
        (tree.mnt / "other").mkdir()
        (tree.mnt / "other").rmdir()
        assert answers == []
    finally:
        slow.process.send_signal(signal.SIGCONT)
        for thread in waiting:
            thread.join(20)
        os.close(linked)
    assert answers == ["slow"] * len(waiting)


def test_many_more_files_than_descriptors(mount: MountFactory) -> None:
    limit = 128
    tree = mount(prepare=few_descriptors(limit))
    volume = tree.mnt / "vol"
    volume.mkdir()
    for outer in range(20):
        (volume / f"dir{outer}").mkdir()
        for inner in range(50):
            (volume / f"dir{outer}" / f"file{inner}").write_text(f"{outer} {inner}")
    tree.drop_caches()
    seen = 0
    for directory, _, files in os.walk(volume):
        for name in files:
            path = Path(directory) / name
            assert path.read_text() == f"{path.parent.name[3:]} {name[4:]}"
            assert path.stat().st_size
            seen += 1
    assert seen == 1000
    counters = tree.statistics()
    assert counters["inodes"] > 900
    assert len(os.listdir(f"/proc/{tree.pid}/fd")) < limit


@pytest.mark.allow_warnings
def test_more_open_files_than_descriptors(mount: MountFactory) -> None:
    """Where the daemon has to serve them: with passthrough they cost none."""
    limit = 256
    tree = mount(prepare=few_descriptors(limit), no_passthrough=True)
    volume = tree.mnt / "vol"
    volume.mkdir()
    opened = []
    try:
        with pytest.raises(OSError, match="Too many open files in system") as caught:
            for number in range(limit):
                opened.append(os.open(volume / f"file{number}", os.O_CREAT | os.O_WRONLY))
        assert caught.value.errno == errno.ENFILE
        assert len(opened) > limit // 2
        for fd in opened:
            assert os.write(fd, b"x") == 1
    finally:
        for fd in opened:
            os.close(fd)
    wait_for(lambda: tree.statistics()["open_files"] == 0, "the releases")
    assert sum(path.stat().st_size for path in volume.iterdir()) == len(opened)


def test_a_client_killed_in_the_middle_leaves_nothing_open(mount: MountFactory) -> None:
    tree = mount()
    (tree.mnt / "vol").mkdir()
    script = "exec 3>file; while :; do echo x >&3; cat file > copy; mv copy moved; done"
    with subprocess.Popen(["sh", "-c", script], cwd=tree.mnt / "vol") as shell:
        wait_for((tree.mnt / "vol" / "moved").exists, "the client's work")
        shell.kill()
    wait_for(lambda: tree.statistics()["open_files"] == 0, "the releases")
    (tree.mnt / "vol").rmdir()


def test_a_device_is_usable_only_with_dev(mount: MountFactory) -> None:
    tree = mount()
    (tree.mnt / "vol").mkdir()
    null = tree.mnt / "vol" / "null"
    os.mknod(null, 0o020666, os.makedev(1, 3))
    assert null.stat().st_rdev == os.makedev(1, 3)
    with pytest.raises(PermissionError):
        null.read_bytes()
    syscalls.umount2(os.fsencode(tree.mnt))
    assert tree.process.wait(20) == 0
    with_devices = mount(scope=tree.scope, dev=True)
    assert (with_devices.mnt / "vol" / "null").read_bytes() == b""
