"""doctor: what it finds on this machine, and what it says where something is missing."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.children import NOBODY
from tests.cli.running import elsewhere, process, program, volfs
from tests.conftest import MountFactory
from tests.interpreter import PROGRAM, User

EXPECTED = (
    *("python", "pyfuse3", "libfuse", "kernel", "/dev/fuse", "fusermount3", "mounting"),
    *("level", "allow-other", "open files", "scope", "file handles", "xattrs", "ACLs", "mount(8)"),
)


@pytest.fixture(autouse=True)
def plugin_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the plugin would be, whatever is served on this machine."""
    path = tmp_path / "volfs.sock"
    monkeypatch.setattr("volfs.cli.machine.default_socket", lambda: str(path))
    return path


def test_for_programs(tmp_path: Path) -> None:
    result = volfs("doctor", "--json", "--scope", tmp_path)
    found = result.json
    assert found.keys() == {"works", "findings"}
    assert [finding["name"] for finding in found["findings"]] == list(EXPECTED)
    for finding in found["findings"]:
        assert finding.keys() == {"name", "status", "detail", "fix"}
        assert finding["status"] in ("ok", "limited", "missing")
        assert finding["detail"]
        assert finding["fix"] == "" or finding["status"] != "ok"
        if finding["status"] == "missing":
            assert finding["fix"]
    works = all(finding["status"] != "missing" for finding in found["findings"])
    assert (found["works"], result.code) == (works, 0 if works else 1)


def test_for_people(tmp_path: Path) -> None:
    result = volfs("doctor", "--scope", tmp_path)
    lines = [line for line in result.out.splitlines() if not line.startswith("   ")]
    assert len(lines) == len(EXPECTED) + 1
    for line, name in zip(lines, EXPECTED, strict=False):
        assert re.match(rf"(ok|--|!!) {re.escape(name)} ", line)


@pytest.mark.skipif(os.getuid() != 0, reason="the test machine's root can mount")
def test_this_machine_works_and_nothing_is_left(tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    result = volfs("doctor", "--scope", tmp_path / "not/yet")
    assert result.code == 0, result.out
    assert "ok mounting     works, by mount(2)" in result.out
    assert "(not made yet)" in result.out
    assert not (tmp_path / "not").exists()
    assert "doctor" not in before + Path("/proc/self/mountinfo").read_text()


@pytest.mark.skipif(os.getuid() != 0, reason="mount namespaces need root")
@pytest.mark.parametrize(
    ("hide", "expected"),
    [
        ("/usr/bin/fusermount3", r"-- fusermount3  not installed.*\n +fix: .*install -y fuse3"),
        ("/dev/fuse", r"!! /dev/fuse .*\n +fix: "),
    ],
)
def test_what_is_missing(tmp_path: Path, hide: str, expected: str) -> None:
    # An empty file in its place is neither a program nor a device.
    (empty := tmp_path / "empty").touch()
    with process(*elsewhere(f"mount --bind '{empty}' '{hide}'")) as pid:
        there = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--wd={Path.cwd()}", "--"]
        result = program(*PROGRAM, "doctor", command=there)
    assert re.search(expected, result.out), result


@pytest.mark.skipif(os.getuid() != 0, reason="changing the user needs root")
def test_a_scope_out_of_reach(tmp_path: Path, workspace: Path) -> None:
    (closed := tmp_path / "closed").mkdir(mode=0o700)
    scope = closed / "below" / "scope"
    result = program("doctor", "--scope", scope, user=User(NOBODY, workspace))
    assert re.search(r"!! scope .*: no permission in .*\n +fix: ", result.out), result
    assert (result.code, result.err) == (1, "")


@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
def test_a_filesystem_that_offers_less(tmp_path: Path) -> None:
    (directory := tmp_path / "mnt").mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", directory], check=True)
    try:
        result = volfs("doctor", "--scope", directory)
        assert "-- ACLs         ramfs has none" in result.out
        assert result.code == 0
    finally:
        subprocess.run(["umount", directory], check=True)


def test_a_mounted_tree_says_its_level_here_and_in_its_log(mount: MountFactory) -> None:
    tree = mount(no_passthrough=True)
    level = "level tap (passthrough is switched off by no-passthrough)"
    assert f"ok tree         {tree.mnt}: {level}\n" in volfs("doctor", "--scope", tree.scope).out
    assert f"INFO volfs.level: serving at {tree.mnt}, {level}\n" in tree.log


def test_the_plugin(tmp_path: Path, plugin_socket: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(plugin_socket))
        listening.listen()
        result = volfs("doctor", "--scope", tmp_path)
        assert f"ok plugin       served at {plugin_socket}" in result.out
    result = volfs("doctor", "--scope", tmp_path)
    assert f"-- plugin       nobody answers at {plugin_socket}" in result.out
    assert result.code == volfs("doctor", "--scope", tmp_path / "other").code
