"""umount: it returns when the daemon has ended, or says who keeps it; and no daemon takes away
what another has mounted at its place since."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests import levels
from tests.children import USER, run_as
from tests.cli.background import Background
from tests.cli.running import PROGRAM, ROOT, elsewhere, process, program, running, shell
from tests.conftest import Mounted, is_mounted, wait_for
from tests.interpreter import User
from tests.unprivileged import shared
from volfs.errors import MountError
from volfs.fs.mount.daemons import mark
from volfs.fs.mount.mounted import Mounted as Served
from volfs.fs.mount.unmounting import unmount
from volfs.linux.mountinfo import MountTable
from volfs.store import tree_mounts

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="these mount as root")


def is_gone(pid: int) -> bool:
    return pid not in running("mount")


class TestSuccessor:
    """The three ways in which an old daemon lives on while its successor serves."""

    def test_after_a_lazy_unmount(self, place: Background) -> None:
        assert place.mount().code == 0
        old = place.daemon()
        (place.mnt / "one").mkdir()
        with process(*shell(":"), cwd=place.mnt / "one") as user:
            result = place.umount("--lazy")
            assert result.code == 0
            assert f"/one (working directory) by process {user} (sh)" in result.err
            assert not is_mounted(place.mnt)
            assert place.mount().code == 0
        wait_for(lambda: is_gone(old), "the old daemon's end")
        self.still_serves(place)

    def test_kept_by_a_container(self, place: Background) -> None:
        assert place.mount().code == 0
        old = place.daemon()
        (place.mnt / "one").mkdir()
        (target := place.mnt.parent / "target").mkdir()
        script = f"mount --bind '{place.mnt}/one' '{target}'; umount '{place.mnt}'"
        with process(*elsewhere(script)) as container:
            result = place.umount()
            assert result.code == 10
            assert f"mounted at {target} by process {container} (sh)" in result.err
            assert f"its daemon (process {old}) serves on" in result.err
            assert not is_mounted(place.mnt)
            assert place.mount().code == 0
        wait_for(lambda: is_gone(old), "the old daemon's end")
        self.still_serves(place)

    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
    def test_the_old_one_is_told_to_end(self, place: Background, how: signal.Signals) -> None:
        assert place.mount().code == 0
        old = place.daemon()
        (place.mnt / "one").mkdir()
        with process(*shell(":"), cwd=place.mnt / "one"):
            assert place.umount("--lazy").code == 0
            assert place.mount().code == 0
            os.kill(old, how)
            wait_for(lambda: is_gone(old), "the old daemon's end")
            self.still_serves(place)

    def test_when_it_has_the_old_ones_number(self, workspace: Path) -> None:
        """Device numbers are given again once the superblock is gone."""
        (target := workspace / "target").mkdir()
        connection = os.open("/dev/fuse", os.O_RDWR)  # that is none any more
        subprocess.run(["mount", "-t", "tmpfs", "successor", target], check=True)
        try:
            device = MountTable.of_process().way_to(str(target))[-1].device
            old = Served(str(target), device, connection)
            old.leave()
            old.end(lambda: os.close(connection))
            assert is_mounted(target)
        finally:
            subprocess.run(["umount", target], check=True)

    def still_serves(self, place: Background) -> None:
        assert tree_mounts(str(place.scope)) == [str(place.mnt)], "the successor's tree is gone"
        (place.mnt / "successors").mkdir()
        assert (place.scope / "volumes/successors/_data").is_dir()


def test_a_users_successor(place: Background) -> None:
    """Through fusermount3, which knows paths only."""
    place.log.touch()
    for path in (place.scope, place.scope / "volumes", place.mnt, place.log):
        os.chown(path, USER, USER)
    them = User(USER, place.mnt.parent)
    words: tuple[str | Path, ...] = ("mount", place.scope, place.mnt, "--log-file", place.log)
    words += tuple(levels.mount_options())
    with shared(place.mnt.parent):
        assert program(*words, user=them).code == 0
        old = place.daemon()
        script = f"mkdir '{place.mnt}/one'; cd '{place.mnt}/one'"
        as_user = ("--reuid", str(USER), "--regid", str(USER), "--clear-groups")
        with process("setpriv", *as_user, *shell(script)):
            result = program("umount", "--lazy", place.mnt, user=them)
            assert (result.code, "working directory" in result.err) == (0, True), result
            assert program(*words, user=them).code == 0
            os.kill(old, signal.SIGTERM)
            wait_for(lambda: is_gone(old), "the old daemon's end")
            assert is_mounted(place.mnt)
        result = program("umount", place.mnt, user=them)
        assert (result.code, result.err) == (0, "")
        assert place.ended()
    assert "ERROR" not in place.log.read_text()


class TestReturning:
    def test_when_the_daemon_has_ended(self, place: Background) -> None:
        assert place.mount().code == 0
        pid = place.daemon()
        os.kill(pid, signal.SIGSTOP)
        try:
            with subprocess.Popen([*PROGRAM, "umount", place.mnt], cwd=ROOT) as command:
                wait_for(lambda: not is_mounted(place.mnt), "the unmount")
                with pytest.raises(subprocess.TimeoutExpired):
                    command.wait(3)
                os.kill(pid, signal.SIGCONT)
                assert command.wait(20) == 0
            assert place.ended()
        finally:
            if pid in place.daemons():
                os.kill(pid, signal.SIGCONT)

    def test_lazily_when_nobody_keeps_it(self, place: Background) -> None:
        assert place.mount().code == 0
        result = place.umount("--lazy")
        assert (result.code, result.err) == (0, "")
        assert place.ended()

    def test_when_the_daemon_is_dead(self, place: Background) -> None:
        assert place.mount().code == 0
        os.kill(place.daemon(), signal.SIGKILL)
        wait_for(place.ended, "the daemon's end")
        result = place.umount()
        assert (result.code, result.err) == (0, "")
        assert not is_mounted(place.mnt)

    def test_whoever_else_says_that_it_serves_the_tree(self, place: Background) -> None:
        """Another user's process has the mark of root's daemon."""
        assert place.mount().code == 0
        device = MountTable.of_process().way_to(str(place.mnt))[-1].device
        child = os.fork()
        if child == 0:
            os.setresuid(USER, USER, USER)
            mark(device)
            signal.pause()
        try:
            assert place.umount().code == 0
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


class TestRefusals:
    def test_something_else(self, workspace: Path) -> None:
        (disk := workspace / "disk").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "disk", disk], check=True)
        try:
            result = program("umount", disk)
            assert result.code == 10
            assert re.search(r"no tree of volumes \(tmpfs\); umount\(8\)", result.err)
            assert is_mounted(disk)
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_roots_tree_by_a_user(self, tree: Mounted) -> None:
        def refused() -> None:
            with pytest.raises(MountError, match="root mounted it: only root can unmount it"):
                unmount(str(tree.mnt))

        run_as(refused)
        assert is_mounted(tree.mnt)

    def test_a_link_to_the_mount_point(self, place: Background) -> None:
        assert place.mount().code == 0
        (link := place.mnt.with_name("link")).symlink_to(place.mnt)
        assert program("umount", link).code == 0
        assert place.ended()


class TestUmount:
    def test_busy_says_who(self, tree: Mounted) -> None:
        (tree.mnt / "vol").mkdir()
        with (tree.mnt / "vol/file").open("w"):
            result = program("umount", tree.mnt)
            assert result.code == 10
            who = f"open {tree.mnt}/vol/file by process {os.getpid()} "
            assert who in result.err
            assert is_mounted(tree.mnt)
        child = subprocess.Popen(["sleep", "100"], cwd=tree.mnt / "vol")
        try:
            result = program("umount", tree.mnt)
            assert f"{tree.mnt}/vol (working directory) by process {child.pid} " in result.err
        finally:
            child.kill()
            child.wait()
        assert program("umount", tree.mnt).code == 0
        assert tree.process.wait(20) == 0

    def test_lazy(self, tree: Mounted) -> None:
        (tree.mnt / "vol").mkdir()
        with (tree.mnt / "vol/file").open("w") as file:
            assert program("umount", "--lazy", tree.mnt).code == 0
            assert not is_mounted(tree.mnt)
            file.write("still served")
            file.flush()
        assert tree.process.wait(20) == 0, tree.log
        assert (tree.data("vol") / "file").read_text() == "still served"

    def test_nothing_there(self, workspace: Path, tree: Mounted) -> None:
        result = program("umount", workspace, tree.mnt)
        assert result.code == 10
        assert re.fullmatch(r"volfs: cannot unmount .*\n", result.err)
        assert not is_mounted(tree.mnt), "the others are unmounted all the same"
        assert tree.process.wait(20) == 0
