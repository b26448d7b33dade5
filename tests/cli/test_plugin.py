"""The command plugin, and the option plugin of mount: the background, the foreground, refusals."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import levels
from tests.children import USER
from tests.cli.background import Background, ending
from tests.cli.running import SERVING, Result, program, running, volfs
from tests.conftest import MountFactory, is_mounted, wait_for
from tests.daemons import ServiceManager
from tests.interpreter import PROGRAM, ROOT, Piped, User
from volfs.linux import syscalls

pytestmark = [
    pytest.mark.any_level,
    pytest.mark.skipif(os.getuid() != 0, reason="volumes and trees are root's here"),
]


@dataclass
class Place(Background):
    """Places for a plugin whose daemon is in the background."""

    socket: Path

    def plugin(self, *words: str | Path) -> Result:
        own: tuple[str | Path, ...]
        own = ("--scope", self.scope, "--socket", self.socket, "--log-file", self.log)
        return program("plugin", *own, *words)

    def mount(self, *words: str | Path) -> Result:
        options: tuple[str | Path, ...] = ("--log-file", self.log, *levels.mount_options())
        return program("mount", *options, "--plugin", *words, self.scope, self.mnt)

    def foreground(self, environment: Mapping[str, str], *words: str) -> Piped:
        own = ("plugin", "-f", "--scope", self.scope, "--socket", self.socket)
        return Piped(*own, *words, environment=environment)

    def daemons(self) -> list[int]:
        return running("volfs", self.scope)


@pytest.fixture
def place(workspace: Path) -> Iterator[Place]:
    """What is mounted or runs there in the end is ended."""
    paths = (workspace / name for name in ("scope", "mnt", "log", "volfs.sock"))
    with ending(Place(*paths)) as place:
        (place.scope / "volumes").mkdir(parents=True)
        yield place


def ask(path: Path, request: str, **fields: object) -> dict[str, Any]:
    """What the plugin at a socket replies."""
    connection = http.client.HTTPConnection("plugin", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    with connection.sock:
        connection.sock.connect(str(path))
        connection.request("POST", f"/VolumeDriver.{request}", json.dumps(fields))
        reply = json.loads(connection.getresponse().read())
    assert isinstance(reply, dict)
    return reply


class TestBackground:
    def test_serves_when_the_command_returns(self, place: Place) -> None:
        result = place.plugin("--native")
        assert (result.code, result.out, result.err) == (0, "", "")
        assert ask(place.socket, "Create", Name="web") == {}
        data = place.scope / "volumes/web/_data"
        assert ask(place.socket, "Mount", Name="web", ID="1") == {"Mountpoint": str(data)}
        assert volfs("ls", "-q", "--scope", place.scope).out == "web\n"
        assert volfs("rm", "--scope", place.scope, "web").code == 6
        pid = place.daemon()
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        os.kill(pid, signal.SIGTERM)
        wait_for(place.ended, "the daemon's end")
        assert not place.socket.exists()
        assert place.log.read_text() == ""

    def test_relative_places(self, place: Place, workspace: Path) -> None:
        words = ("--scope", "scope", "--socket", "volfs.sock", "--log-file", "log", "--native")
        done = subprocess.run(
            [*PROGRAM, "plugin", *words],
            cwd=workspace,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        try:
            assert done.returncode == 0
            assert ask(place.socket, "List") == {"Volumes": []}
            assert place.log.exists()
        finally:
            (pid,) = (
                pid
                for pid in running("volfs.sock")
                if os.readlink(f"/proc/{pid}/fd/2") == str(place.log)
            )
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not place.socket.exists(), "the daemon's end")

    def test_a_tree_of_another_process(self, place: Place, mount: MountFactory) -> None:
        """It may come and go, and keeps what is open in it."""
        place.mnt = place.mnt.parent / "mnt0"
        place.mnt.parent.joinpath("mnt").rmdir()
        result = place.plugin("--mount", place.mnt)
        assert (result.code, result.out) == (0, "")
        assert result.err == (
            f"volfs: no tree of {place.scope} is mounted at {place.mnt}: containers get no volumes"
            f" until `volfs mount {place.scope} {place.mnt}` has mounted it\n"
        )
        assert ask(place.socket, "Create", Name="web") == {}
        early = ask(place.socket, "Mount", Name="web", ID="1")
        assert f"volfs mount {place.scope} {place.mnt}" in early["Err"]
        tree = mount(scope=place.scope)
        answer = ask(place.socket, "Mount", Name="web", ID="1")
        assert answer == {"Mountpoint": str(tree.mnt / "web")}
        assert ask(place.socket, "Unmount", Name="web", ID="1") == {}
        with (tree.mnt / "web/file").open("w"):
            error = ask(place.socket, "Remove", Name="web")["Err"]
            assert f"open {tree.mnt}/web/file by process {os.getpid()} " in error
        syscalls.mount(
            os.fsencode(place.scope), os.fsencode(tree.mnt), b"", 4096, b""
        )  # something else covers it (MS_BIND)
        try:
            covered = ask(place.socket, "Mount", Name="web", ID="1")
            assert "no tree of" in covered["Err"]
        finally:
            syscalls.umount2(os.fsencode(tree.mnt))
        os.kill(tree.pid, signal.SIGKILL)
        tree.process.wait()
        tree.stopped = True
        try:
            gone = ask(place.socket, "Mount", Name="web", ID="1")["Err"]
            assert f"`volfs umount {tree.mnt}`" in gone
        finally:
            syscalls.umount2(os.fsencode(tree.mnt), syscalls.MNT_DETACH)
        assert ask(place.socket, "Remove", Name="web") == {}

    def test_keeps_house_where_no_tree_does(self, place: Place) -> None:
        assert place.plugin("--native", "--keep-removed", "0").code == 0
        ask(place.socket, "Create", Name="web")
        assert ask(place.socket, "Remove", Name="web") == {}
        os.kill(place.daemon(), signal.SIGTERM)
        wait_for(place.ended, "the daemon's end")
        assert os.listdir(place.scope / "trash") != []
        assert place.plugin("--native", "--keep-removed", "0").code == 0
        wait_for(lambda: os.listdir(place.scope / "trash") == [], "the trash to be emptied")

    def test_leaves_the_house_to_the_tree(self, place: Place) -> None:
        (place.scope / "volumes/web/_data").mkdir(parents=True)
        assert volfs("rm", "--scope", place.scope, "web").code == 0
        assert place.plugin("--mount", place.mnt).code == 0
        assert ask(place.socket, "List") == {"Volumes": []}
        assert os.listdir(place.scope / "trash") != []


class TestForeground:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_tells_the_service_manager(
        self, place: Place, workspace: Path, number: signal.Signals
    ) -> None:
        with (
            ServiceManager(workspace / "notify") as manager,
            place.foreground(manager.environment, "--native") as process,
        ):
            assert manager.told() == ["READY=1", f"STATUS=Serving {place.scope}"]
            assert stat.S_IMODE(place.socket.lstat().st_mode) == 0o600
            assert ask(place.socket, "List") == {"Volumes": []}
            process.send_signal(number)
            assert manager.told() == ["STOPPING=1"]
            assert process.wait(20) == 0
            assert process.log == ""
        assert not place.socket.exists()

    def test_says_what_happens_when_asked(self, place: Place, workspace: Path) -> None:
        nobody = {"NOTIFY_SOCKET": str(workspace / "nobody")}
        with place.foreground(nobody, "--native", "-v") as process:
            wait_for(place.socket.exists, "the socket")
            process.terminate()
            assert process.wait(20) == 0
            log = process.log
        assert f"INFO volfs.docker.server: serving the plugin at {place.socket}\n" in log
        assert "ending upon SIGTERM" in log


class TestRefusals:
    def refused(self, result: Result, why: str, code: int = 11) -> None:
        assert result.code == code, result
        assert result.out == ""
        assert re.fullmatch(rf"volfs: .*{why}.*\n", result.err), result.err

    def test_another_plugin(self, place: Place) -> None:
        assert place.plugin("--native").code == 0
        self.refused(place.plugin("--native"), "served at .* already")
        self.refused(place.plugin("--native", "-f"), "served at .* already")
        assert ask(place.socket, "List") == {"Volumes": []}

    def test_no_socket(self, place: Place) -> None:
        place.socket.write_text("precious")
        self.refused(place.plugin("--native"), "is no socket")
        assert place.socket.read_text() == "precious"
        wait_for(place.ended, "the daemon's end")

    def test_too_long(self, place: Place) -> None:
        place.socket = place.socket.with_name("s" * 100)
        self.refused(place.plugin("--native"), "too long")

    def test_scope(self, place: Place) -> None:
        shutil.rmtree(place.scope)
        place.scope.touch()
        self.refused(place.plugin("--native"), "", code=9)
        assert not place.socket.exists()

    def test_nowhere_to_serve(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        user = User(USER, place.socket.parent)
        result = program("plugin", "--scope", place.scope, "--native", user=user)
        self.refused(result, "--socket")

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            ([], "--mount, or .* --native"),
            (["--mount", "/mnt", "--keep-removed", "1d"], "daemon of the tree"),
            (["--native", "--keep-removed", "x"], "no duration"),
            (["--native", "extra"], "extra"),
        ],
    )
    def test_wrong_usage(self, place: Place, words: list[str], why: str) -> None:
        self.refused(place.plugin(*words), why, code=2)


class TestMount:
    """`volfs mount --plugin`; what it serves is tried elsewhere."""

    def test_both_are_there_when_it_returns(self, place: Place) -> None:
        result = place.mount("-o", f"plugin-socket={place.socket}")
        assert (result.code, result.out, result.err) == (0, "", "")
        ask(place.socket, "Create", Name="web")
        answer = ask(place.socket, "Mount", Name="web", ID="1")
        assert answer == {"Mountpoint": str(place.mnt / "web")}
        assert program("umount", place.mnt).code == 0
        wait_for(place.ended, "the daemon's end")
        assert not place.socket.exists()
        assert re.fullmatch(SERVING, place.log.read_text())

    @pytest.mark.parametrize("level", ["plain", "tap", "passthrough"])
    def test_nothing_is_mounted_when_the_plugin_cannot_be(self, place: Place, level: str) -> None:
        place.socket.mkdir()
        words = {"plain": ["--no-tap"], "tap": ["--no-passthrough"]}.get(level, [])
        result = place.mount("--plugin-socket", place.socket, *words)
        assert result.code == 11
        assert re.fullmatch(r"volfs: .* is no socket: .*\n", result.err)
        assert not is_mounted(place.mnt)
        wait_for(place.ended, "the daemon's end")
        assert re.fullmatch(SERVING, place.log.read_text())

    def test_the_socket_without_the_plugin(self, place: Place) -> None:
        result = program("mount", "--plugin-socket", place.socket, place.scope, place.mnt)
        assert result.code == 2
        assert "plugin-socket" in result.err
        assert not is_mounted(place.mnt)
