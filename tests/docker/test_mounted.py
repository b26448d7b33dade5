"""``volfs mount --plugin``: the tree and the plugin from one process."""

from __future__ import annotations

import itertools
import os
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.children import run_as
from tests.conftest import (
    Mounted,
    MountFactory,
    few_descriptors,
    is_mounted,
    mounting,
    open_workspace,
    volfs,
    wait_for,
)
from tests.docker.conftest import Answer, answer_of, open_store
from volfs.linux import syscalls

pytestmark = [
    pytest.mark.any_level,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts as root"),
]


_numbers = itertools.count()


@pytest.fixture
def socket_path(workspace: Path) -> Path:
    return workspace / "plugins/volfs.sock"


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Mounted, Path]]:
    """A tree with its plugin, for the tests that only use it."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        path = workspace / "plugins/volfs.sock"
        yield mount(plugin=True, plugin_socket=str(path)), path


@pytest.fixture
def tree(shared: tuple[Mounted, Path]) -> Iterator[Mounted]:
    tree, _ = shared
    yield tree
    for volume in tree.mnt.iterdir():
        volfs(tree.scope, "rm", volume.name)


@pytest.fixture
def web() -> str:
    """The name of a volume that no test has used: a tree may show what was for a second."""
    return f"web{next(_numbers)}"


@pytest.fixture
def client(shared: tuple[Mounted, Path]) -> Iterator[Client]:
    _, path = shared
    with connected(path) as client:
        yield client


class Client:
    """Asks a plugin, one request after the other."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ask(self, path: str, **fields: object) -> Answer:
        return answer_of(self._http.post(f"http://plugin/VolumeDriver.{path}", json=fields))

    def done(self, path: str, **fields: object) -> dict[str, object]:
        answer = self.ask(path, **fields)
        assert answer.status == 200, answer.reply
        assert not answer.reply.get("Err"), answer.reply
        return answer.reply


@contextmanager
def connected(path: Path) -> Iterator[Client]:
    transport = httpx.HTTPTransport(uds=str(path), verify=False)
    with httpx.Client(transport=transport, timeout=30) as http:
        yield Client(http)


class TestPlace:
    def test_is_in_the_tree_and_works(self, tree: Mounted, client: Client, web: str) -> None:
        client.done("Create", Name=web, Opts={"uid": "1000", "gid": "1000"})
        place = client.done("Mount", Name=web, ID="one")["Mountpoint"]
        assert place == str(tree.mnt / web)

        def use() -> None:
            Path(str(place), "file").write_text("hello")

        run_as(use, 1000)
        assert (tree.data(web) / "file").read_text() == "hello"
        assert client.done("Path", Name=web) == {"Mountpoint": place}
        client.done("Unmount", Name=web, ID="one")

    def test_of_a_volume_that_uses_no_tree(self, tree: Mounted, client: Client, web: str) -> None:
        client.done("Create", Name=web, Opts={"path": "native"})
        assert client.done("Mount", Name=web, ID="one") == {"Mountpoint": str(tree.data(web))}
        client.done("Unmount", Name=web, ID="one")

    def test_owner_and_mode_are_as_asked(self, tree: Mounted, client: Client, web: str) -> None:
        """The tree's process does without CAP_FSETID, and acts with the umask of others."""
        client.done("Create", Name=web, Opts={"mode": "2777", "gid": "1234"})
        status = tree.data(web).stat()
        assert stat.S_IMODE(status.st_mode) == 0o2777
        assert status.st_gid == 1234


class TestOneStore:
    def test_volumes_of_the_tree_are_there_at_once(
        self, tree: Mounted, client: Client, web: str
    ) -> None:
        (tree.mnt / web).mkdir()
        assert "Volume" in client.done("Get", Name=web)
        client.done("Create", Name=web)
        client.done("Mount", Name=web, ID="one")
        with pytest.raises(OSError, match="busy"):
            (tree.mnt / web).rmdir()
        with pytest.raises(OSError, match="busy"):
            (tree.mnt / web).rename(tree.mnt / "other")
        client.done("Unmount", Name=web, ID="one")
        (tree.mnt / web).rmdir()
        assert client.done("List") == {"Volumes": []}

    def test_its_successor_is_what_is_mounted(
        self, tree: Mounted, client: Client, web: str
    ) -> None:
        """Though the kernel remembers another of that name, which somebody else removed."""
        client.done("Create", Name=web)
        first = (tree.mnt / web).stat().st_ino
        other = open_store(tree.scope)
        other.remove(web)
        other.create(web)
        other.close()
        place = client.done("Mount", Name=web, ID="one")["Mountpoint"]
        assert Path(str(place)).stat().st_ino == tree.data(web).stat().st_ino != first
        client.done("Unmount", Name=web, ID="one")

    def test_an_absence_that_the_kernel_remembers(
        self, tree: Mounted, client: Client, web: str
    ) -> None:
        assert not (tree.mnt / web).exists()
        volfs(tree.scope, "create", web)
        place = client.done("Mount", Name=web, ID="one")["Mountpoint"]
        assert Path(str(place)).is_dir()
        client.done("Unmount", Name=web, ID="one")

    def test_open_files_keep_a_volume(self, tree: Mounted, client: Client, web: str) -> None:
        client.done("Create", Name=web)
        with (tree.mnt / web / "file").open("w"):
            answer = client.ask("Remove", Name=web)
            assert f"open {web}/file by process {os.getpid()} " in answer.error
        client.done("Remove", Name=web)

    def test_many_files_closed_just_now_do_not(
        self, tree: Mounted, client: Client, web: str
    ) -> None:
        client.done("Create", Name=web)
        files = [(tree.mnt / f"{web}/{number}").open("w") for number in range(300)]
        for file in files:
            file.close()
        client.done("Remove", Name=web)

    def test_a_mount_elsewhere_keeps_a_volume(
        self, tree: Mounted, client: Client, web: str, workspace: Path
    ) -> None:
        client.done("Create", Name=web)
        (workspace / "target").mkdir()
        script = f"mount --bind {tree.mnt}/{web} {workspace}/target; echo; read x"
        namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script]
        with subprocess.Popen(
            namespace, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdin and holder.stdout
            holder.stdout.readline()
            error = client.ask("Remove", Name=web).error
            assert f"mounted at {workspace}/target by process {holder.pid} (sh)" in error
            holder.stdin.close()
        client.done("Remove", Name=web)

    def test_the_command_line_sees_what_containers_use(
        self, tree: Mounted, client: Client, web: str
    ) -> None:
        client.done("Create", Name=web, Opts={"label.team": "a"})
        client.done("Mount", Name=web, ID="one")
        assert '"one"' in volfs(tree.scope, "inspect", "--json", web)
        client.done("Unmount", Name=web, ID="one")
        client.done("Remove", Name=web)
        volfs(tree.scope, "restore", web)
        assert client.done("Mount", Name=web, ID="two")
        client.done("Unmount", Name=web, ID="two")


class TestLife:
    def test_references_outlive_the_process(
        self, mount: MountFactory, workspace: Path, socket_path: Path
    ) -> None:
        (scope := workspace / "scope").mkdir()
        first = mount(scope=scope, plugin=True, plugin_socket=str(socket_path))
        with connected(socket_path) as client:
            client.done("Create", Name="web")
            client.done("Mount", Name="web", ID="one")
        first.stop()
        assert not socket_path.exists()
        mount(scope=scope, plugin=True, plugin_socket=str(socket_path))
        with connected(socket_path) as client:
            assert "reference one" in client.ask("Remove", Name="web").error
            client.done("Mount", Name="web", ID="one")
            client.done("Unmount", Name="web", ID="one")
            client.done("Remove", Name="web")

    def test_ready_means_both_and_the_end_ends_both(
        self, mount: MountFactory, socket_path: Path
    ) -> None:
        """The fixture waits for READY and for nothing else."""
        tree = mount(plugin=True, plugin_socket=str(socket_path))
        assert is_mounted(tree.mnt)
        with connected(socket_path) as client, socket.socket(socket.AF_UNIX) as idle:
            idle.connect(str(socket_path))
            client.done("List")
            begin = time.monotonic()
            tree.stop()
            assert time.monotonic() - begin < 4, "idle connections keep it"
        assert not socket_path.exists()

    def test_unmounted_from_outside(self, mount: MountFactory, socket_path: Path) -> None:
        tree = mount(plugin=True, plugin_socket=str(socket_path))
        syscalls.umount2(os.fsencode(tree.mnt))
        assert tree.process.wait(20) == 0
        assert not socket_path.exists()

    def test_no_descriptors_are_left_of_connections(
        self, tree: Mounted, shared: tuple[Mounted, Path]
    ) -> None:
        def descriptors() -> int:
            return len(os.listdir(f"/proc/{tree.pid}/fd"))

        _, path = shared
        before = descriptors()
        for _ in range(30):
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(path))
                other.sendall(b"POST /VolumeDriver.List HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
                while other.recv(4096):
                    pass
        wait_for(lambda: descriptors() <= before, "the connections' end")

    @pytest.mark.allow_warnings
    def test_a_crowd_of_clients_and_a_tree_leave_each_other_descriptors(
        self, mount: MountFactory, socket_path: Path
    ) -> None:
        limit, most = 512, 16
        tree = mount(
            plugin=True,
            plugin_socket=str(socket_path),
            no_passthrough=True,
            prepare=few_descriptors(limit),
        )
        with ExitStack() as stack, connected(socket_path) as client:
            client.done("Create", Name="web")
            files = [tree.mnt / "web" / str(number) for number in range(limit * 2 // 3)]
            for path in files:
                os.mknod(path)
            for path in files[::2]:
                stack.enter_context(path.open())
            for path in files:
                path.stat()
            for _ in range(4 * most):
                silent = stack.enter_context(socket.socket(socket.AF_UNIX))
                silent.connect(str(socket_path))
            client.done("Mount", Name="web", ID="one")
            client.done("Unmount", Name="web", ID="one")
            with os.scandir(tree.mnt / "web") as listing:
                assert len(list(listing)) == len(files)
        (warning,) = [line for line in tree.log.splitlines() if line.startswith("WARNING")]
        assert f"{most} clients are connected to the plugin" in warning
