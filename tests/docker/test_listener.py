"""The plugin's socket: made, refused, replaced, removed."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.children import USER, run_as
from volfs.docker import listener as listener_module
from volfs.docker.listener import Listener
from volfs.errors import PluginError

pytestmark = pytest.mark.any_level


@pytest.fixture
def path(workspace: Path) -> Path:
    return workspace / "plugins/volfs.sock"


@contextmanager
def listening(path: Path) -> Iterator[Listener]:
    listener = Listener(str(path))
    try:
        yield listener
    finally:
        listener.remove()
        listener.close()


def dead_socket(path: Path) -> None:
    """What a plugin leaves behind that was killed."""
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


class TestMade:
    @pytest.mark.parametrize("mask", [0, 0o022, 0o077])
    def test_for_its_owner_alone_from_the_first(
        self, path: Path, mask: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also in the process of a tree, whose umask is 0."""
        modes = []
        bind = socket.socket.bind

        def bind_and_look(self: socket.socket, address: str) -> None:
            bind(self, address)
            modes.append(os.lstat(address).st_mode)

        monkeypatch.setattr(socket.socket, "bind", bind_and_look)
        with umask(mask), listening(path):
            assert modes == [stat.S_IFSOCK | 0o600]
            assert path.lstat().st_mode == stat.S_IFSOCK | 0o600
            connect(path)

    @pytest.mark.parametrize("mask", [0, 0o022, 0o077])
    def test_with_the_directories_above(self, workspace: Path, mask: int) -> None:
        with umask(mask), listening(workspace / "run/docker/plugins/volfs.sock"):
            for directory in ("run", "run/docker", "run/docker/plugins"):
                assert stat.S_IMODE((workspace / directory).stat().st_mode) == 0o755

    def test_in_a_directory_as_it_is(self, path: Path) -> None:
        path.parent.mkdir()
        path.parent.chmod(0o700)
        with listening(path):
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def test_many_can_wait_to_be_accepted(self, path: Path) -> None:
        clients = [socket.socket(socket.AF_UNIX) for _ in range(300)]
        with listening(path):
            for client in clients:
                client.setblocking(False)
                client.connect(str(path))
        for client in clients:
            client.close()


class TestTaken:
    def test_a_dead_one_is_replaced(self, path: Path) -> None:
        dead_socket(path)
        with pytest.raises(ConnectionRefusedError):
            connect(path)
        with listening(path):
            connect(path)

    def test_a_live_one_is_left(self, path: Path) -> None:
        with listening(path):
            with pytest.raises(PluginError, match=r"served at .* already: .*--socket"):
                Listener(str(path))
            connect(path)

    def test_a_live_one_that_is_busy_is_left(self, path: Path) -> None:
        path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as client:
            other.bind(str(path))
            other.listen(0)
            client.connect(str(path))
            with pytest.raises(PluginError, match="already"):
                Listener(str(path))

    def test_a_live_one_of_another_kind_is_left(self, path: Path) -> None:
        path.parent.mkdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(str(path))
            with pytest.raises(PluginError, match="already"):
                Listener(str(path))
            assert path.exists()

    @pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link", "fifo"])
    def test_what_is_no_socket_is_left(self, path: Path, kind: str) -> None:
        path.parent.mkdir()
        if kind == "file":
            path.write_text("precious")
        elif kind == "directory":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "link":
            dead_socket(path.with_name("other"))
            path.symlink_to(path.with_name("other"))
        else:
            path.symlink_to("/nowhere")
        before = path.lstat()
        with pytest.raises(PluginError, match=r"is no socket: remove it"):
            Listener(str(path))
        assert path.lstat() == before

    @pytest.mark.parametrize("stale", [False, True])
    def test_of_many_at_once_one_wins(self, path: Path, stale: bool) -> None:
        path.parent.mkdir()
        count = 8
        for _ in range(10):
            if stale:
                dead_socket(path)
            together = threading.Barrier(count)

            def attempt(together: threading.Barrier = together) -> Listener | str:
                together.wait()
                try:
                    return Listener(str(path))
                except PluginError as error:
                    return str(error)

            with ThreadPoolExecutor(count) as pool:
                results = [task.result() for task in [pool.submit(attempt) for _ in range(count)]]
            (winner,) = (result for result in results if isinstance(result, Listener))
            assert all("already" in result for result in results if isinstance(result, str))
            connect(path)
            winner.remove()
            winner.close()


class TestRefused:
    def test_a_path_that_is_too_long(self, workspace: Path) -> None:
        path = workspace / ("d" * 100) / "volfs.sock"
        with pytest.raises(PluginError, match="too long, at most 107 bytes"):
            Listener(str(path))
        assert os.listdir(workspace) == []

    def test_the_longest_path(self, workspace: Path) -> None:
        path = workspace / ("s" * (106 - len(str(workspace))))
        assert len(str(path)) == 107
        with listening(path):
            connect(path)

    def test_a_directory_that_is_a_file(self, workspace: Path) -> None:
        (workspace / "file").touch()
        with pytest.raises(PluginError, match="cannot make the plugin's socket"):
            Listener(str(workspace / "file/volfs.sock"))

    def test_without_permission(self, workspace: Path) -> None:
        workspace.chmod(0o755)

        def refused() -> str:
            with pytest.raises(PluginError) as caught:
                Listener(str(workspace / "volfs.sock"))
            return str(caught.value)

        assert "Permission denied" in run_as(refused, USER)


class TestRemoved:
    def test_at_the_end(self, path: Path) -> None:
        with listening(path):
            pass
        assert os.listdir(path.parent) == []

    def test_not_when_it_is_gone_already(self, path: Path) -> None:
        with listening(path):
            path.unlink()

    def test_not_when_another_has_taken_its_place(self, path: Path) -> None:
        with listening(path) as first:
            path.unlink()
            with listening(path):
                first.remove()
                connect(path)

    def test_those_connected_stay_so(self, path: Path) -> None:
        listener = Listener(str(path))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            listener.remove()
            server, _ = listener.socket.accept()
            with server:
                client.sendall(b"x")
                assert server.recv(1) == b"x"
        listener.close()


def test_default_is_where_dockerd_looks() -> None:
    assert listener_module.DEFAULT == "/run/docker/plugins/volfs.sock"
