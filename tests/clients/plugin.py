"""The volume plugin as a process of its own beside a tree, and what any engine does with it."""

from __future__ import annotations

import json
import os
import socket as sockets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests import interpreter
from tests.clients.containers import Engine
from tests.clients.programs import run
from tests.conftest import Mounted, mounting, open_workspace, volfs, wait_for
from tests.daemons import DEADLINE
from tests.interpreter import Process
from tests.unprivileged import MS_BIND
from volfs.linux import syscalls

DRIVER = "volfs"
RUN_DOCKER = Path("/run/docker")
SOCKET = RUN_DOCKER / "plugins" / f"{DRIVER}.sock"
"""Where the plugin listens unless told otherwise, and where dockerd looks for it."""
VOLFS_IN_USE = 6
"""The exit code of volfs for what is refused because a volume is in use."""

STAY = "sleep 1000"

MEET = """
echo "from $NAME" > /data/.new-$NAME
mv /data/.new-$NAME /data/$NAME
until [ -e /data/one ] && [ -e /data/two ]; do sleep 0.05; done
cat /data/one /data/two > /data/seen-by-$NAME
until [ -e /data/bye ]; do sleep 0.05; done
"""
"""For the shells of two containers, NAME one and two: each says something, waits for the other's
word, writes down what it read, and stays until told to go."""


@contextmanager
def plugin_directory() -> Iterator[None]:
    """Have a /run/docker of our own, in which there is no plugin yet.

    This process has a mount namespace of its own (see tests.conftest), so nobody else sees it.
    """
    RUN_DOCKER.mkdir(mode=0o700, exist_ok=True)
    with open_workspace() as own:
        syscalls.mount(os.fsencode(own), os.fsencode(RUN_DOCKER), b"", MS_BIND, b"")
        try:
            yield
        finally:
            syscalls.umount2(os.fsencode(RUN_DOCKER), syscalls.MNT_DETACH)


@dataclass
class Plugin:
    """``volfs plugin`` for the volumes of a tree. Started and stopped as often as a test likes."""

    tree: Mounted
    socket: Path
    process: Process | None = field(default=None, init=False)

    @property
    def log_path(self) -> Path:
        return self.tree.log_path.with_name("log-plugin")

    def start(self) -> None:
        """Start it; returns when it listens."""
        with self.log_path.open("w") as log:
            self.process = interpreter.start(
                *("plugin", "--foreground", "--scope", self.tree.scope),
                *("--mount", self.tree.mnt, "--socket", self.socket),
                stdout=log.fileno(),
                stderr=log.fileno(),
            )
        process = self.process
        wait_for(lambda: process.poll() is not None or listens(self.socket), "the plugin")
        assert process.poll() is None, self.log_path.read_text()

    def stop(self) -> None:
        """End it, and check how it ended."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.terminate()
        try:
            code = process.wait(DEADLINE)
        finally:
            process.kill()
        log = self.log_path.read_text()
        assert code == 0, f"the plugin ended with {code}; its log:\n{log}"
        assert not self.socket.exists(), "the plugin has left its socket"
        bad = ("WARNING", "ERROR", "CRITICAL", "Traceback")
        assert not any(line.startswith(bad) for line in log.splitlines()), log


def listens(socket: Path) -> bool:
    """Whether somebody accepts connections at a socket."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as client:
        try:
            client.connect(str(socket))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


@contextmanager
def serving(socket: Path | None = None) -> Iterator[Plugin]:
    """A tree of a scope of its own, and a plugin beside it at ``socket`` (None: in the tree's
    workspace)."""
    with ExitStack() as stack:
        workspace = stack.enter_context(open_workspace())
        mount = stack.enter_context(mounting(workspace))
        plugin = Plugin(mount(), socket or workspace / "volfs.sock")
        try:
            plugin.start()
            yield plugin
        finally:
            plugin.stop()


def start(engine: Engine, volume: str, script: str, *options: str) -> str:
    """Start a container that has the volume of that name at /data; return its id."""
    return engine(
        *("run", "--detach", "--network=none", *options),
        *("--volume", f"{volume}:/data", engine.image, "sh", "-ec", script),
    ).strip()


def run_in(engine: Engine, volume: str, script: str, *options: str) -> str:
    """Run a script in a container that has the volume at /data; return what it printed."""
    return engine(
        *("run", "--rm", "--network=none", *options),
        *("--volume", f"{volume}:/data", engine.image, "sh", "-ec", script),
    )


def kill(engine: Engine, container: str) -> None:
    """End and remove a container at once."""
    engine("kill", container)
    engine("wait", container)
    engine("rm", container)


def let_two_meet(engine: Engine, tree: Mounted, name: str) -> None:
    """Two containers use a volume at once and see each other's writes, as the tree does."""
    volume = tree.mnt / name
    both = [start(engine, name, MEET, "--env", f"NAME={who}") for who in ("one", "two")]
    for who in ("one", "two"):
        seen = volume / f"seen-by-{who}"
        wait_for(partial(_says, seen, "from one\nfrom two\n"), f"what {who} read")
    assert_held_by(tree, name, *both)
    kill(engine, both[0])
    assert_held_by(tree, name, both[1])
    assert_busy(tree, name, both[1])
    (volume / "bye").touch()
    assert engine("wait", both[1]).strip() == "0"
    engine("rm", both[1])
    assert holders(tree, name) == []


def _says(file: Path, text: str) -> bool:
    return file.exists() and file.read_text() == text


def holders(tree: Mounted, name: str) -> list[dict[str, Any]]:
    """Who holds a volume, by the command line's account."""
    found: list[dict[str, Any]] = json.loads(volfs(tree.scope, "inspect", "--json", name))[0][
        "holders"
    ]
    return found


def references(tree: Mounted, name: str) -> list[str]:
    """The references that engines have to a volume."""
    return sorted(item["detail"] for item in holders(tree, name) if item["kind"] == "reference")


def assert_held_by(tree: Mounted, name: str, *containers: str) -> None:
    """These containers have a volume mounted at /data, and nobody else has it anywhere."""
    found = holders(tree, name)
    mounts = [item for item in found if item["kind"] != "reference"]
    assert {item["container"] for item in mounts} == set(containers), found
    assert all((item["kind"], item["detail"]) == ("mount", "/data") for item in mounts), found


def assert_busy(tree: Mounted, name: str, container: str) -> None:
    """Neither rmdir nor volfs removes a volume that a container holds, and volfs names it."""
    before = sorted(os.listdir(tree.data(name)))
    refused = subprocess.run(["rmdir", tree.mnt / name], capture_output=True, text=True)
    assert "Device or resource busy" in refused.stderr
    removal = interpreter.run("rm", "--scope", tree.scope, name)
    assert removal.returncode == VOLFS_IN_USE
    assert container[:12] in removal.stderr, removal.stderr
    assert sorted(os.listdir(tree.data(name))) == before


def assert_removed(tree: Mounted, name: str) -> None:
    """A volume is gone. The tree's daemon was not asked, so the kernel may remember it a moment."""
    assert not tree.data(name).exists()
    wait_for(lambda: not (tree.mnt / name).exists(), f"the end of {name}")


def restore(tree: Mounted, name: str) -> None:
    """Bring a removed volume back, and wait until the kernel does not remember its absence."""
    volfs(tree.scope, "restore", name)
    wait_for((tree.mnt / name).exists, f"the return of {name}")


def label(tree: Mounted, name: str, key: str) -> str:
    """A label of a volume, as the tree tells it."""
    return os.getxattr(tree.mnt / name, f"volfs.label.{key}").decode()


def image_with_content(archive: Path, root: Path) -> None:
    """Write an image like ``root``, with files at /data that belong to user 1000."""
    run("cp", "-a", f"{root}/.", archive.with_suffix(""))
    data = archive.with_suffix("") / "data"
    (data / "below").mkdir()
    (data / "below" / "file").write_text("from the image\n")
    (data / "link").symlink_to("below/file")
    for path in (data, data / "below", data / "below" / "file", data / "link"):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    data.chmod(0o750)
    run("tar", "-C", archive.with_suffix(""), "-cf", archive, ".")


def assert_copied_up(volume: Path) -> None:
    """What image_with_content put below /data is in the volume, whose it was."""
    assert (volume / "below" / "file").read_text() == "from the image\n"
    assert (volume / "link").readlink() == Path("below/file")
    assert all(owner(path) == 1000 for path in (volume / "below", volume / "link"))
    assert owner(volume / "below" / "file") == 1000


def owner(path: Path) -> int:
    """Whose a file is."""
    return path.lstat().st_uid


def mode(path: Path) -> int:
    """The permission bits of a file."""
    return path.stat().st_mode & 0o7777
