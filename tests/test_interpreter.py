"""The processes that the tests fork are what the program is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import interpreter
from tests.children import USER, in_namespace, needs_root
from tests.conftest import Mounted, MountFactory

pytestmark = [pytest.mark.any_level, needs_root]

STATUS = ("Umask", "Uid", "Gid", "Groups", "CapPrm", "CapEff", "NoNewPrivs", "Seccomp")
SIGNALS = ("SigBlk", "SigIgn", "SigCgt")


def told(tree: Mounted) -> dict[str, object]:
    """All that a process has from who started it."""
    place = Path(f"/proc/{tree.pid}")
    fields = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    line = (place / "cmdline").read_bytes().rstrip(b"\0").decode()
    links = [os.readlink(fd) for fd in (place / "fd").iterdir()]
    return {
        **{name: fields[name] for name in (*STATUS, *SIGNALS)},
        "command line": line.replace(str(tree.scope), "SCOPE").replace(str(tree.mnt), "MNT"),
        "comm": (place / "comm").read_text(),
        "program": os.readlink(place / "exe"),
        "directory": os.readlink(place / "cwd"),
        "session": os.getsid(tree.pid),
        "limits": (place / "limits").read_text(),
        "namespaces": {ns.name: os.readlink(ns) for ns in (place / "ns").iterdir()},
        "standard input": os.readlink(place / "fd/0"),
        "descriptors": sorted(link.partition("[")[0] for link in links if str(tree.scope) in link)
        + sorted(link.partition("[")[0] for link in links if "[" in link),
        "number of descriptors": len(links),
    }


def test_a_forked_daemon_has_what_an_executed_one_has(mount: MountFactory) -> None:
    executed, forked = mount(execute=True), mount()
    expected, found = told(executed), told(forked)
    for one, tree in ((expected, executed), (found, forked)):
        one["descriptors"] = str(one["descriptors"]).replace(str(tree.scope), "SCOPE")
    assert found == expected


def test_so_has_one_of_another_user(mount: MountFactory) -> None:
    executed, forked = mount(user=USER, execute=True), mount(user=USER)
    differ = {"command line", "namespaces", "descriptors"}
    expected, found = (
        {name: value for name, value in told(tree).items() if name not in differ}
        for tree in (executed, forked)
    )
    assert found == expected


def test_its_environment_and_its_end_are_told(tmp_path: Path) -> None:
    scope = str(tmp_path / "scope")
    done = interpreter.run("create", "web", environment={"VOLFS_SCOPE": scope})
    assert (done.returncode, done.stdout, done.stderr) == (0, "web\n", f"made the scope {scope}\n")
    failed = interpreter.run("rm", "nope", environment={"VOLFS_SCOPE": scope})
    assert (failed.returncode, failed.stdout) == (4, "")
    assert failed.stderr == f"volfs: no volume 'nope' in {scope}\n"


def test_one_that_is_killed_says_so(mount: MountFactory) -> None:
    tree = mount()
    assert tree.process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        tree.process.wait(0)
    tree.process.kill()
    assert tree.process.wait(20) == -9
    assert tree.process.poll() == -9
    tree.stopped = True
    subprocess.run(["umount", "--lazy", tree.mnt], check=True)


def test_in_another_namespace_the_program_is_executed(tmp_path: Path) -> None:
    interpreter.run("--version")  # so that there is an interpreter, which is in ours

    def run() -> tuple[bool, int]:
        with (tmp_path / "out").open("wb") as out:
            process = interpreter.start("--version", stdout=out.fileno(), stderr=out.fileno())
        return isinstance(process, subprocess.Popen), process.wait(20)

    assert in_namespace(run) == (True, 0)
    assert (tmp_path / "out").read_text().startswith("volfs, version")
