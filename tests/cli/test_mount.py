"""The command mount as a program: the background, the foreground, and every refusal."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests import levels
from tests.children import NOBODY
from tests.cli.background import Background
from tests.cli.running import SERVING, Result, program, running, volfs
from tests.conftest import MountFactory, is_mounted, wait_for
from tests.daemons import ServiceManager
from tests.interpreter import PROGRAM, ROOT, User
from tests.unprivileged import shared
from volfs.linux import syscalls
from volfs.store import tree_mounts

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="these mount as root")


class TestBackground:
    def test_serves_when_the_command_returns(self, place: Background) -> None:
        result = place.mount()
        assert (result.code, result.out, result.err) == (0, "", "")
        (place.mnt / "vol").mkdir()
        assert (place.scope / "volumes/vol/_data").is_dir()
        assert tree_mounts(str(place.scope)) == [str(place.mnt)]

    def test_a_scope_that_is_made_is_announced(self, place: Background) -> None:
        (place.scope / "volumes").rmdir()
        place.scope.rmdir()
        refused = place.mount("--no-create-scope")
        assert refused.code == 9
        assert refused.err.startswith(f"volfs: there are no volumes in {place.scope}, and no scope")
        assert not place.scope.exists()
        result = place.mount()
        assert (result.code, result.out, result.err) == (0, "", f"made the scope {place.scope}\n")
        assert place.umount().code == 0
        assert re.fullmatch(SERVING, place.log.read_text()), "the log has nothing of it"

    def test_also_in_the_foreground(self, place: Background) -> None:
        (place.scope / "volumes").rmdir()
        with (
            ServiceManager(place.mnt.with_name("notify")) as manager,
            place.foreground(manager.environment) as process,
        ):
            assert manager.hears_ready(process)
            process.terminate()
            assert process.wait(20) == 0
            told = f"made the scope {place.scope}\n"
            assert re.fullmatch(f"{SERVING}{re.escape(told)}", process.log)

    def test_the_daemon_is_nobodys_child(self, place: Background) -> None:
        assert place.mount().code == 0
        pid = place.daemon()
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
        for fd in (1, 2):
            assert os.readlink(f"/proc/{pid}/fd/{fd}") == str(place.log)
        assert re.fullmatch(SERVING, place.log.read_text())
        assert stat.S_IMODE(place.log.stat().st_mode) & 0o137 == 0

    def test_umount_ends_it(self, place: Background) -> None:
        assert place.mount().code == 0
        result = program("umount", place.mnt)
        assert (result.code, result.out, result.err) == (0, "", "")
        assert not is_mounted(place.mnt)
        wait_for(place.ended, "the daemon's end")
        assert place.mount().code == 0, "and it can be mounted again"

    def test_sigterm_ends_it(self, place: Background) -> None:
        assert place.mount().code == 0
        os.kill(place.daemon(), signal.SIGTERM)
        wait_for(place.ended, "the daemon's end")
        assert not is_mounted(place.mnt)

    def test_relative_places(self, place: Background) -> None:
        done = subprocess.run(
            [*PROGRAM, "mount", "--log-file", "log", "scope", "mnt", *levels.mount_options()],
            cwd=place.mnt.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        assert done.returncode == 0
        assert tree_mounts(str(place.scope)) == [str(place.mnt)]
        assert place.log.exists()
        syscalls.umount2(os.fsencode(place.mnt))
        wait_for(lambda: not daemons_of("mnt", place.mnt.parent), "the daemon's end")

    def test_scope_by_environment_or_option(self, place: Background) -> None:
        log = ["--log-file", str(place.log), *levels.mount_options()]
        result = program("mount", place.mnt, *log, environment={"VOLFS_SCOPE": str(place.scope)})
        assert result.code == 0
        assert tree_mounts(str(place.scope)) == [str(place.mnt)]
        assert program("umount", place.mnt).code == 0
        wait_for(place.ended, "the daemon's end")
        assert program("mount", "--scope", place.scope, place.mnt, *log).code == 0
        assert tree_mounts(str(place.scope)) == [str(place.mnt)]

    def test_logs_what_it_is_told_to(self, place: Background) -> None:
        assert place.mount("--verbose").code == 0
        line = r"\d{4}-\d\d-\d\d [\d:,]+ INFO volfs\.\S+: .+"
        assert re.search(line, place.log.read_text())

    def test_options_reach_the_mount(self, place: Background) -> None:
        (place.scope / "volumes/vol/_data").mkdir(parents=True)
        result = place.mount("--ro", "--root-mode", "0711", "-o", "root-owner=5:6,noexec")
        assert result.code == 0
        status = place.mnt.stat()
        assert stat.S_IMODE(status.st_mode) == 0o711
        assert (status.st_uid, status.st_gid) == (5, 6)
        flags = os.statvfs(place.mnt).f_flag
        assert flags & os.ST_RDONLY
        assert flags & os.ST_NOEXEC
        assert flags & os.ST_NOSUID
        assert flags & os.ST_NODEV
        with pytest.raises(OSError, match="Read-only"):
            (place.mnt / "new").mkdir()

    def test_keep_removed(self, place: Background) -> None:
        assert place.mount("--keep-removed", "0").code == 0
        (place.mnt / "vol").mkdir()
        (place.mnt / "vol/file").touch()
        (place.mnt / "vol").rmdir()
        trash = place.scope / "trash"
        wait_for(lambda: not list(trash.iterdir()), "the trash to be emptied")


def daemons_of(mountpoint: str, cwd: Path) -> list[int]:
    """Processes of a mount that was named relative to ``cwd``."""

    def log(pid: int) -> str:
        try:
            return os.readlink(f"/proc/{pid}/fd/2")
        except OSError:
            return ""

    return [pid for pid in running(mountpoint) if log(pid) == str(cwd / "log")]


def is_dead(mountpoint: Path) -> bool:
    try:
        mountpoint.stat()
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


class TestRefusals:
    def refused(self, place: Background, result: Result, why: str, code: int = 10) -> None:
        assert result.code == code
        assert result.out == ""
        assert re.fullmatch(rf"volfs: .*{why}.*\n", result.err), result.err
        wait_for(place.ended, "the daemon's end")

    def test_no_mount_point(self, place: Background) -> None:
        place.mnt.rmdir()
        shutil.rmtree(place.scope)
        self.refused(place, place.mount(), "does not exist: create it")
        assert not place.scope.exists(), "nothing is made for a mount that cannot be"
        place.mnt.mkdir()

    def test_mount_point_is_a_file(self, place: Background) -> None:
        place.mnt.rmdir()
        place.mnt.touch()
        self.refused(place, place.mount(), "not a directory")
        place.mnt.unlink()
        place.mnt.mkdir()

    def test_mount_point_is_not_empty(self, place: Background) -> None:
        (place.mnt / "file").touch()
        self.refused(place, place.mount(), "not empty")

    def test_mounted_already(self, place: Background) -> None:
        assert place.mount().code == 0
        result = place.mount()
        assert result.code == 10
        assert "mount point already" in result.err
        assert len(tree_mounts(str(place.scope))) == 1

    def test_scope_inside_the_mount(self, place: Background) -> None:
        place.scope = place.mnt / "scope"
        self.refused(place, place.mount(), "inside the mount point")

    def test_scope_that_cannot_be(self, place: Background) -> None:
        shutil.rmtree(place.scope)
        place.scope.touch()
        self.refused(place, place.mount(), "scope", code=9)

    def test_log_that_cannot_be(self, place: Background) -> None:
        place.log.mkdir()
        self.refused(place, place.mount(), "cannot write the log .*--log-file")

    def test_log_that_is_a_link(self, place: Background) -> None:
        (other := place.log.parent / "other").touch()
        place.log.symlink_to(other)
        self.refused(place, place.mount(), "cannot write the log")

    def test_no_device(self, place: Background) -> None:
        """In a mount namespace that has nothing in /dev but null."""
        script = 'mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; exec "$@"'
        namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh"]
        words = ("mount", place.scope, place.mnt, "--log-file", place.log)
        result = program(*words, command=[*namespace, *PROGRAM])
        self.refused(place, result, "/dev/fuse is missing: .*modprobe fuse")
        result = program("doctor", command=[*namespace, *PROGRAM])
        assert result.code == 1
        assert re.search(r"!! /dev/fuse .*\n +fix: sudo modprobe fuse", result.out)

    def test_no_permission_to_mount(self, place: Background) -> None:
        command = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-all", *PROGRAM]
        words = ("mount", place.scope, place.mnt, "--log-file", place.log)
        result = program(*words, command=command)
        self.refused(place, result, "cannot mount")
        result = program("doctor", "--json", command=command)
        assert result.code == 1
        (found,) = (f for f in result.json["findings"] if f["name"] == "mounting")
        assert found["status"] == "missing"
        assert "SYS_ADMIN" in found["fix"]

    def test_dead_mount(self, place: Background) -> None:
        assert place.mount().code == 0
        os.kill(place.daemon(), signal.SIGKILL)
        wait_for(place.ended, "the daemon's end")
        wait_for(lambda: is_dead(place.mnt), "what the kernel knows of it to time out")
        result = place.mount()
        assert result.code == 10
        assert f"volfs umount {place.mnt}" in result.err
        assert program("umount", place.mnt).code == 0
        assert place.mount().code == 0

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            (["-o", "bogus"], "unknown mount option 'bogus' .*cache="),
            (["--cache", "sometimes"], "none of never, auto, always"),
            (["--bogus"], "--bogus"),
            (["third"], "a scope and a mount point"),
            (["--scope", "/x"], "either by --scope or"),
        ],
    )
    def test_wrong_usage(self, place: Background, words: list[str], why: str) -> None:
        self.refused(place, place.mount(*words), why, code=2)


class TestForeground:
    @pytest.mark.parametrize("abstract", [False, True])
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_tells_the_service_manager(
        self, place: Background, workspace: Path, abstract: bool, number: int
    ) -> None:
        address = f"@volfs-test-{os.getpid()}" if abstract else str(workspace / "notify")
        with (
            ServiceManager(address) as manager,
            place.foreground(manager.environment) as process,
        ):
            assert manager.told() == ["READY=1", f"STATUS=Serving {place.scope}"]
            os.listdir(place.mnt)
            process.send_signal(number)
            assert manager.told() == ["STOPPING=1"]
            assert process.wait(20) == 0
            assert re.fullmatch(SERVING, process.log)
        assert not is_mounted(place.mnt)

    def test_a_manager_that_is_gone(self, place: Background, workspace: Path) -> None:
        with place.foreground({"NOTIFY_SOCKET": str(workspace / "nobody")}) as process:
            assert re.fullmatch(SERVING, process.stderr.readline().decode())
            line = process.stderr.readline()
            assert line.startswith(b"WARNING volfs.cli.daemon: the service manager cannot be told")
            (place.mnt / "vol").mkdir()

    def test_says_why_it_ends(self, place: Background) -> None:
        result = program("mount", "-f", place.scope, place.mnt / "nowhere")
        assert result.code == 10
        assert re.fullmatch(r"volfs: mount point .*\n", result.err)


def test_another_user_in_the_background(place: Background) -> None:
    """Through fusermount3."""
    place.log.touch()
    for path in (place.scope, place.scope / "volumes", place.mnt, place.log):
        os.chown(path, NOBODY, NOBODY)
    user = User(NOBODY, place.mnt.parent)
    with shared(place.mnt.parent):
        words = ("mount", place.scope, place.mnt, "--log-file", place.log)
        result = program(*words, *levels.mount_options(), user=user)
        assert (result.code, result.err) == (0, "")
        script = f"mkdir '{place.mnt}/vol' && echo x >'{place.mnt}/vol/file'"
        subprocess.run(
            ["sh", "-ec", script], user=NOBODY, group=NOBODY, extra_groups=[], check=True
        )
        assert (place.scope / "volumes/vol/_data/file").stat().st_uid == NOBODY
        result = program("ls", "-q", "--scope", place.scope, user=user)
        assert result.out == "vol\n"
        result = program("doctor", user=user)
        assert "ok mounting     works, by fusermount3" in result.out, result
        result = program("umount", place.mnt, user=user)
        assert (result.code, result.err) == (0, "")
        wait_for(place.ended, "the daemon's end")
    assert re.fullmatch(SERVING, place.log.read_text())


def test_what_fusermount3_says(place: Background) -> None:
    """It cannot mount, as it gets no privileges."""
    for path in (place.scope, place.scope / "volumes", place.mnt):
        os.chown(path, NOBODY, NOBODY)
    user = [sys.executable, "-m", "tests.unprivileged", str(NOBODY), str(place.mnt.parent)]
    with shared(place.mnt.parent):
        for words in (("-f",), ("--log-file", str(place.scope / "log"))):
            result = program(
                *("mount", *words, place.scope, place.mnt, *levels.mount_options()),
                command=["setpriv", "--no-new-privs", *user],
            )
            assert result.code == 10
            why = "mount failed: Operation not permitted"
            assert result.err == f"volfs: cannot mount at {place.mnt}: {why}\n"
            assert not is_mounted(place.mnt)


class TestListing:
    """What `volfs mount` alone shows."""

    def test_the_trees_of_all_scopes(self, mount: MountFactory, workspace: Path) -> None:
        one, two = mount(), mount()
        (one.mnt / "web").mkdir()
        (bound := workspace / "bound").mkdir()
        subprocess.run(["mount", "--bind", one.mnt / "web", bound], check=True)
        try:
            # There can be trees of others on this machine.
            head, *rows = ours(volfs("mount"), workspace, head=1)
            assert head == "mountpoint\tscope"
            assert rows == [f"{tree.mnt}\t{tree.scope}" for tree in (one, two)]
            assert ours(volfs("mount", "-q"), workspace) == [str(one.mnt), str(two.mnt)]
            told = volfs("mount", "--json").json
            for tree in (one, two):
                assert {"mountpoint": str(tree.mnt), "scope": str(tree.scope)} in told
        finally:
            syscalls.umount2(os.fsencode(bound))

    def test_none(self) -> None:
        script = """
            findmnt -rno TARGET -t fuse.volfs | while read -r tree; do umount -l "$tree"; done
            exec "$@"
        """
        alone = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh"]
        command = [*alone, *PROGRAM, "mount"]
        told = Result(0, "mountpoint\tscope\n", "no trees are mounted\n")
        assert program(command=command) == told
        assert program("-q", command=command) == Result(0, "", "")
        assert program("--json", command=command).json == []

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            (["--ro"], "--ro is for mounting: name a mount point"),
            (["--scope", "/srv"], "--scope is for mounting"),
            (["-o", "ro"], "-o is for mounting"),
            (["-q", "/srv", "/mnt"], "--quiet and --json are for listing"),
        ],
    )
    def test_what_is_for_mounting_only(self, words: list[str], why: str) -> None:
        result = volfs("mount", *words)
        assert (result.code, result.out) == (2, "")
        assert why in result.err


def ours(result: Result, workspace: Path, head: int = 0) -> list[str]:
    """The lines about what is mounted in the workspace, and those at the head."""
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    return lines[:head] + [line for line in lines[head:] if line.startswith(f"{workspace}/")]
