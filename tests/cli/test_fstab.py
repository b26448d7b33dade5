"""mount(8) and /etc/fstab, with the helper where an administrator links it."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.running import HELPER, ROOT, Result, elsewhere, process, program, running
from tests.conftest import wait_for
from tests.documents import PAGES
from volfs.cli.options import OPTIONS
from volfs.linux.mountinfo import Mount, MountTable

PAGE = PAGES["mount.volfs.8"]


def helper(*words: str | Path) -> Result:
    return program(*words, command=HELPER)


class TestArguments:
    """What mount(8) passes: SPEC DIR [-sfnv] [-N namespace] [-o options] [-t type.subtype]."""

    def test_pretending(self, tmp_path: Path) -> None:
        words = (tmp_path / "scope", tmp_path, "-f", "-n", "-v", "-o", "rw,nofail", "-t", "volfs")
        assert helper(*words) == Result(0, "", "")
        assert not (tmp_path / "scope").exists()

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            (["/scope"], "needs a scope and a mount point"),
            (["/scope", "/mnt", "-o", "bogus"], "unknown mount option 'bogus'"),
            (["/scope", "/mnt", "-o", "remount,ro"], "mount it anew"),
            (["/scope", "/mnt", "-x"], "-x"),
            (["/scope", "/mnt", "-N", "1"], "another namespace"),
        ],
    )
    def test_wrong_usage(self, words: list[str], why: str) -> None:
        result = helper(*words)
        assert result.code == 1
        assert re.fullmatch(rf"mount\.volfs: .*{why}.*\n", result.err)

    def test_failure(self, tmp_path: Path) -> None:
        result = helper(tmp_path / "scope", tmp_path / "nowhere")
        assert result.code == 32
        assert "does not exist" in result.err

    def test_help_lists_all_options(self) -> None:
        result = helper("--help")
        assert result.code == 0
        for option in OPTIONS:
            assert f"\n  {option.name}" in result.out
        assert "fuse.volfs" in result.out
        assert "/sbin/mount.fuse.volfs" in result.out


@dataclass
class Namespace:
    """A mount namespace in which mount(8) finds what is linked in /sbin and /usr/local/bin."""

    pid: int
    sbin: Path
    bin: Path
    scope: Path
    mnt: Path

    def run(self, *words: str | Path) -> Result:
        there = ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", f"--wd={ROOT}", "--"]
        return program(*words, command=there)

    def link(self, directory: Path, name: str, module: str) -> None:
        """Put a program there, as the entry point that pip makes."""
        script = f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        path = directory / name
        path.write_text(f"{script}from {module} import main\nmain()\n")
        path.chmod(0o755)

    def mounted(self) -> Mount | None:
        mounts = MountTable.of_process(self.pid)
        return next((mount for mount in mounts if mount.point == str(self.mnt)), None)


@pytest.fixture
def namespace(workspace: Path) -> Iterator[Namespace]:
    if os.getuid() != 0:
        pytest.skip("mount namespaces need root")
    sbin, scope, mnt = workspace / "upper", workspace / "scope", workspace / "mnt"
    bin = workspace / "bin"
    for directory in (mnt, bin, workspace / "layers", scope / "volumes"):
        directory.mkdir(parents=True)
    # /sbin with a layer of our own above, and everything the daemon may write kept here.
    layers = workspace / "layers"
    script = f"""
        mount -t tmpfs layers '{layers}'
        mkdir '{layers}/upper' '{layers}/work'
        mount -t overlay -o 'lowerdir=/sbin,upperdir={layers}/upper,workdir={layers}/work' o /sbin
        mount --bind '{bin}' /usr/local/bin
        mount --bind '{workspace}' /var/log
    """
    with process(*elsewhere(script)) as pid:
        sbin = Path(f"/proc/{pid}/root/sbin")
        namespace = Namespace(pid, sbin, bin, scope, mnt)
        yield namespace
        if namespace.mounted():
            assert namespace.run("umount", mnt).code == 0
        wait_for(lambda: not running(scope), "the daemon's end")


MAIN, HELPER_MAIN = "volfs.cli", "volfs.cli.fstab"


class TestMount:
    @pytest.mark.parametrize("fstype", ["volfs", "fuse.volfs"])
    def test_by_type(self, namespace: Namespace, fstype: str) -> None:
        namespace.link(namespace.sbin, "mount.volfs", HELPER_MAIN)
        namespace.link(namespace.sbin, "mount.fuse.volfs", HELPER_MAIN)
        options = "ro,root-mode=0711,noatime,_netdev,x-systemd.automount"
        result = namespace.run("mount", "-t", fstype, namespace.scope, namespace.mnt, "-o", options)
        assert result == Result(0, "", "")
        mounted = namespace.mounted()
        assert mounted
        assert (mounted.fstype, mounted.source) == ("fuse.volfs", str(namespace.scope))
        flags = namespace.run("findmnt", "-no", "VFS-OPTIONS", namespace.mnt).out.strip()
        assert {"ro", "nosuid", "nodev"} <= set(flags.split(","))
        root = Path(f"/proc/{namespace.pid}/root/{namespace.mnt}")
        assert stat.S_IMODE(root.stat().st_mode) == 0o711

    def test_without_a_helper_by_mount_fuse(self, namespace: Namespace) -> None:
        """mount(8) runs /sbin/mount.fuse, and that runs volfs as if it knew no commands."""
        namespace.link(namespace.bin, "volfs", MAIN)
        result = namespace.run(
            "mount", "-t", "fuse.volfs", namespace.scope, namespace.mnt, "-o", "cache=never"
        )
        assert result == Result(0, "", "")
        flags = namespace.run("findmnt", "-no", "VFS-OPTIONS", namespace.mnt).out.strip()
        assert {"rw", "nosuid", "nodev"} <= set(flags.split(",")), "it was not asked for suid, dev"

    def test_suid_and_dev_can_be_asked_for(self, namespace: Namespace) -> None:
        namespace.link(namespace.sbin, "mount.volfs", HELPER_MAIN)
        words = ("-t", "volfs", namespace.scope, namespace.mnt, "-o", "suid=yes,dev=yes")
        assert namespace.run("mount", *words) == Result(0, "", "")
        flags = namespace.run("findmnt", "-no", "VFS-OPTIONS", namespace.mnt).out.strip()
        assert not {"nosuid", "nodev"} & set(flags.split(","))

    @pytest.mark.parametrize("fstype", ["volfs", "fuse.volfs"])
    def test_from_fstab(self, namespace: Namespace, fstype: str) -> None:
        namespace.link(namespace.sbin, "mount.volfs", HELPER_MAIN)
        namespace.link(namespace.sbin, "mount.fuse.volfs", HELPER_MAIN)
        fstab = namespace.mnt.parent / "fstab"
        line = f"{namespace.scope} {namespace.mnt} {fstype} cache=never,noauto,nofail 0 0\n"
        fstab.write_text(line)
        assert namespace.run("mount", "--fstab", fstab, namespace.mnt) == Result(0, "", "")
        assert namespace.mounted()
        assert namespace.run("umount", namespace.mnt) == Result(0, "", "")
        assert namespace.mounted() is None

    @pytest.mark.parametrize("exists", [False, True])
    def test_a_scope_whose_disk_is_absent(self, namespace: Namespace, exists: bool) -> None:
        namespace.link(namespace.sbin, "mount.volfs", HELPER_MAIN)
        (namespace.scope / "volumes").rmdir()
        if not exists:
            namespace.scope.rmdir()
        words: list[str | Path] = ["mount", "-t", "volfs", namespace.scope, namespace.mnt]
        result = namespace.run(*words)
        assert (result.code, result.out) == (32, "")
        assert result.err == (
            f"mount.volfs: there are no volumes in {namespace.scope}, and no scope is made here by"
            " itself: if its disk is not mounted, mount that first; if it is to be a new one, add"
            " the option create-scope\n"
        )
        assert not namespace.mounted()
        assert namespace.scope.exists() == exists
        assert not (namespace.scope / "volumes").exists()
        made = namespace.run(*words, "-o", "create-scope")
        assert made == Result(0, "", f"made the scope {namespace.scope}\n")
        assert namespace.mounted()

    def test_an_error_is_shown_once(self, namespace: Namespace) -> None:
        namespace.link(namespace.sbin, "mount.volfs", HELPER_MAIN)
        (namespace.mnt / "file").touch()
        result = namespace.run("mount", "-t", "volfs", namespace.scope, namespace.mnt)
        assert result.code == 32
        assert re.fullmatch(r"mount\.volfs: .*not empty.*\n", result.err)

    def test_doctor_sees_the_helpers(self, namespace: Namespace) -> None:
        doctor = (sys.executable, "-m", "volfs", "doctor", "--json")
        for linked in ((), ("mount.volfs",), ("mount.volfs", "mount.fuse.volfs")):
            for name in linked:
                namespace.link(namespace.sbin, name, HELPER_MAIN)
            findings = namespace.run(*doctor).json["findings"]
            (found,) = (f for f in findings if f["name"] == "mount(8)")
            assert (found["status"] == "ok") == (len(linked) == 2)


class TestManual:
    """What mount.volfs(8) shows, done as it is written there."""

    def test_linking_the_helper_and_mounting(self, namespace: Namespace) -> None:
        namespace.link(namespace.bin, "mount.volfs", HELPER_MAIN)
        namespace.link(namespace.bin, "volfs", MAIN)
        (namespace.scope / "volumes").rmdir()
        link, mount = PAGE.blocks("DESCRIPTION", "sh")
        script = (link + mount).replace("/srv/volumes", str(namespace.scope))
        result = namespace.run("sh", "-euc", script.replace("/mnt/volumes", str(namespace.mnt)))
        assert (result.code, result.err) == (0, f"made the scope {namespace.scope}\n")
        assert "fuse.volfs" in result.out
        assert {"mount.volfs", "mount.fuse.volfs"} <= set(os.listdir(namespace.sbin))
        assert namespace.mounted() is None

    def test_the_line_for_fstab(self, namespace: Namespace) -> None:
        namespace.link(namespace.sbin, "mount.volfs", HELPER_MAIN)
        (line,) = PAGE.blocks("FSTAB", "fstab")
        fstab = namespace.mnt.parent / "fstab"
        text = line.replace("/srv/volumes", str(namespace.scope))
        fstab.write_text(text.replace("/mnt/volumes", str(namespace.mnt)))
        assert namespace.run("mount", "--fstab", fstab, "--all") == Result(0, "", "")
        assert namespace.mounted()

    def test_the_options_of_the_helper(self) -> None:
        names = {name for term in PAGE.terms("Options of the helper") for name in term.split("**")}
        assert {f"-{letter}" for letter in "sfnvrwoth"} <= names
        assert {"--help", "--version"} <= names

    def test_the_exit_codes(self) -> None:
        assert PAGE.terms("EXIT STATUS") == ["**0**", "**1**", "**32**"]
