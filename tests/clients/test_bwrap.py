"""bubblewrap, the sandbox of Flatpak, with a volume bound into it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.containers import ANSWER_TWICE, share_with_process
from tests.clients.programs import end, finish, require, require_root, run, spawn
from tests.clients.volumes import VolumeDir
from tests.conftest import MountFactory, wait_for

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(busybox: Path, mount: MountFactory) -> Iterator[Start]:
    """Runs a shell command in a sandbox that has the volume at /data."""
    require("bwrap")
    running = []

    def start(
        volume: VolumeDir, script: str, *, bind: str = "--bind", user: int | None = None
    ) -> subprocess.Popen[str]:
        command = ["bwrap", "--die-with-parent", "--unshare-all", "--tmpfs", "/"]
        command += ["--ro-bind", str(busybox), "/bin/busybox"]
        command += ["--proc", "/proc", "--dev", "/dev", bind, str(volume.path), "/data"]
        process = spawn(*command, "/bin/busybox", "sh", "-ec", script, user=user)
        running.append(process)
        return process

    # Asking for the mount has the sandboxes ended before it is.
    yield start
    for process in running:
        end(process)


def test_volume_in_a_sandbox(volume: VolumeDir, start: Start) -> None:
    share_with_process(volume, start(volume, ANSWER_TWICE))


def test_read_only_sandbox_cannot_write(volume: VolumeDir, start: Start) -> None:
    (volume.path / "file").write_text("kept")
    sandbox = start(volume, "cat /data/file; ! echo x > /data/file", bind="--ro-bind")
    output = finish(sandbox)
    assert output.startswith("kept") and "Read-only file system" in output
    assert (volume.data / "file").read_text() == "kept"


def test_unprivileged_sandbox_in_a_user_namespace(volume: VolumeDir, start: Start) -> None:
    """A user without privileges binds a volume of their own; what it makes there is theirs."""
    require_root()
    volume.path.chmod(0o700)
    os.chown(volume.path, 1000, 1000)
    sandbox = start(volume, "id -u; echo mine > /data/file; cat /data/file", user=1000)
    output = finish(sandbox)
    assert output == "1000\nmine\n"
    made = (volume.data / "file").stat()
    assert (made.st_uid, made.st_gid) == (1000, 1000)


def test_unprivileged_user_serves_and_uses_a_tree(mount: MountFactory, start: Start) -> None:
    """Without any privilege: the daemon, the mount by fusermount3, and the sandbox."""
    require("fusermount3")
    require_root()
    tree = mount(user=1000)
    run("mkdir", tree.mnt / "vol", user=1000)
    volume = VolumeDir.at(tree, "vol")
    script = "echo mine > /data/file; until [ -e /data/bye ]; do sleep 0.05; done; rm /data/bye"
    sandbox = start(volume, script, user=1000)
    file = volume.data / "file"
    wait_for(lambda: file.exists() and file.read_text() == "mine\n", "the sandbox's file")
    assert "busy" in run("rmdir", volume.path, user=1000, fails=True)
    run("touch", volume.path / "bye", user=1000)
    finish(sandbox)
    assert os.listdir(volume.data) == ["file"]
    run("rmdir", volume.path, user=1000)
    assert not volume.data.exists()
