"""The daemon is never a client of its own tree: none of its system calls goes there.

A thread of it that waited there could not be killed: /dev/fuse stays open as long as it waits for
the answer, which nobody gives.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import levels
from tests.cli.background import Background
from tests.cli.running import PROGRAM, process, program, running, shell
from tests.cli.test_plugin import ask
from tests.conftest import is_mounted
from tests.daemons import ServiceManager, foreground

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="these mount as root")


def own_calls(trace: str, target: Path) -> Iterator[tuple[str, str]]:
    """Thread and system call of those that the daemon itself made since it mounted."""
    lines = [line.partition(" ")[::2] for line in trace.splitlines()]
    daemon = lines[0][0]
    # Those are processes of their own, which do not keep /dev/fuse.
    others = {pid for pid, call in lines if " execve(" in f" {call}" and pid != daemon}
    mounted = False
    for pid, call in lines:
        call = call.strip()
        if mounted and pid not in others:
            yield pid, call
        mounted = mounted or bool(re.match(rf'mount\("[^"]*", "{target}".* = 0$', call))
    assert mounted, "the trace does not show how it mounted"


def test_no_call_goes_to_its_own_tree(place: Background, workspace: Path) -> None:
    trace, path = workspace / "trace", workspace / "socket"
    strace = ["strace", "-f", "-y", "-s", "200", "-o", str(trace), "-e", "trace=%file,%desc,execve"]
    words = ("mount", "-f", "--plugin", "--plugin-socket", path, place.scope, place.mnt)
    options = ("--keep-removed", "0", *levels.mount_options())
    with (
        ServiceManager(f"@volfs-test-{os.getpid()}") as manager,
        foreground(
            *words, *options, environment=manager.environment, command=[*strace, *PROGRAM]
        ) as tracer,
    ):
        assert manager.hears_ready(tracer)
        pid = next(pid for pid in running("mount", place.mnt) if pid != tracer.pid)
        try:
            use_the_tree(place.mnt)
            use_the_plugin(place, path)
            os.kill(pid, signal.SIGHUP)
            with process(*shell(":"), cwd=place.mnt / "kept"):
                os.kill(pid, signal.SIGTERM)
                assert tracer.wait(60) == 0
        finally:
            if tracer.poll() is None:
                os.kill(pid, signal.SIGKILL)
    assert not is_mounted(place.mnt)
    target = re.escape(str(place.mnt))
    # As an argument, or as what a descriptor stands for.
    own = re.compile(rf'(?<!\\)"{target}(?:/[^"]*)?"|<{target}(?:/[^>]*)?>')
    # The kernel asks a filesystem nothing to give such a descriptor, or to let it go.
    harmless = re.compile(rf'openat\(AT_FDCWD<[^>]*>, "{target}", O_RDONLY\|[^)]*O_PATH|close\(')
    calls = list(own_calls(trace.read_text(), place.mnt))
    assert len(calls) > 1000
    bad = [f"{pid} {call}" for pid, call in calls if own.search(call) and not harmless.match(call)]
    assert not bad, "\n".join(bad)


def use_the_tree(mnt: Path) -> None:
    (mnt / "one").mkdir()
    (mnt / "one/dir").mkdir()
    (mnt / "one/file").write_text("content")
    os.link(mnt / "one/file", mnt / "one/dir/link")
    os.setxattr(mnt / "one", "volfs.label.team", b"web")
    os.getxattr(mnt / "one", "volfs.users")
    os.getxattr(mnt, "volfs.stats")
    subprocess.run(["ls", "-lR", mnt], check=True, capture_output=True)
    os.statvfs(mnt / "one")
    (mnt / "one").rename(mnt / "two")
    with (mnt / "two/file").open(), pytest.raises(OSError, match="busy"):
        (mnt / "two").rmdir()
    (mnt / "two").rmdir()
    (mnt / "kept").mkdir()


def use_the_plugin(place: Background, path: Path) -> None:
    assert ask(path, "Create", Name="web") == {}
    for _ in range(2):
        mounted = ask(path, "Mount", Name="web", ID="1")
        assert mounted == {"Mountpoint": f"{place.mnt}/web"}
        (place.mnt / "web/file").write_text("content")
        assert ask(path, "Get", Name="web")["Volume"]["Mountpoint"] == f"{place.mnt}/web"
        assert ask(path, "Path", Name="web") == mounted
        assert len(ask(path, "List")["Volumes"]) == 2
        assert ask(path, "Unmount", Name="web", ID="1") == {}
        assert ask(path, "Remove", Name="web") == {}
        # Made again beside the tree, which has just shown the one before.
        assert program("create", "web", "--scope", place.scope).code == 0
        inode = (place.scope / "volumes/web/_data").stat().st_ino
        assert ask(path, "Mount", Name="web", ID="1") == mounted
        assert (place.mnt / "web").stat().st_ino == inode
        assert ask(path, "Unmount", Name="web", ID="1") == {}


def test_the_plugin_cannot_be_in_the_tree(place: Background) -> None:
    (place.mnt.with_name("link")).symlink_to(place.mnt)
    for socket in (place.mnt / "socket", place.mnt.with_name("link") / "socket"):
        result = place.mount("--plugin", "--plugin-socket", str(socket))
        assert result.code == 11
        assert "cannot be in the tree itself" in result.err
