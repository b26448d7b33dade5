"""Who uses a volume of a mounted tree: through it, beside it, from other namespaces."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.running import elsewhere, process, shell, volfs
from tests.conftest import Mounted, MountFactory
from volfs.holder import Holder
from volfs.local import LocalDriver
from volfs.store import Scan, mount_holders, mount_users, open_holders, tree_mounts
from volfs.volume import Volume

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="mount namespaces need root")


def umount(point: Path) -> None:
    subprocess.run(["umount", point], check=True)


@pytest.fixture
def volumes(tree: Mounted) -> Iterator[dict[str, Volume]]:
    """Two volumes as the driver has them; the first one's name starts with the other's."""
    for name in ("vol two", "vol"):
        (tree.mnt / name).mkdir()
        (tree.mnt / name / "file").write_text("some content")
    driver = LocalDriver(tree.scope)
    try:
        yield {volume.name: volume for volume in driver.list()}
    finally:
        driver.close()


def test_where_the_tree_is_mounted(tree: Mounted, mount: MountFactory) -> None:
    second = mount(scope=tree.scope)
    assert tree_mounts(str(tree.scope)) == [str(tree.mnt), str(second.mnt)]
    (tree.mnt / "vol").mkdir()
    (target := tree.mnt.parent / "target").mkdir()
    subprocess.run(["mount", "--bind", tree.mnt / "vol", target], check=True)
    try:
        assert tree_mounts(str(tree.scope)) == [str(tree.mnt), str(second.mnt)]
    finally:
        subprocess.run(["umount", target], check=True)


class TestMounts:
    def test_the_tree_itself_holds_nothing(self, tree: Mounted, volumes: dict[str, Volume]) -> None:
        (target := tree.mnt.parent / "target").mkdir()
        with process(*elsewhere(f"mount --bind '{tree.mnt}' '{target}'")):
            for volume in volumes.values():
                assert mount_holders(volume, str(tree.scope)) == []

    @pytest.mark.parametrize("below", ["", "/sub dir", "/file"])
    def test_bound_in_another_namespace(
        self, tree: Mounted, volumes: dict[str, Volume], below: str
    ) -> None:
        (tree.mnt / "vol two/sub dir").mkdir()
        target = tree.mnt.parent / "target"
        target.touch() if below == "/file" else target.mkdir()
        script = f"mount --bind '{tree.mnt}/vol two{below}' '{target}'"
        with process(*elsewhere(script)) as pid:
            scan = Scan(str(tree.scope))
            assert scan.mount_holders(volumes["vol two"]) == [
                Holder("mount", str(target), pid, "sh")
            ]
            assert scan.mount_holders(volumes["vol"]) == []
            with pytest.raises(OSError, match="busy"):
                (tree.mnt / "vol two").rmdir()
            assert volfs("rm", "--scope", tree.scope, "vol two").code == 6
        (tree.mnt / "vol two").rmdir()

    def test_something_mounted_in_it(self, tree: Mounted, volumes: dict[str, Volume]) -> None:
        (tree.mnt / "vol/disk").mkdir()
        with process(*elsewhere(f"mount -t tmpfs disk '{tree.mnt}/vol/disk'")) as pid:
            assert mount_holders(volumes["vol"], str(tree.scope)) == [
                Holder("mount", f"{tree.mnt}/vol/disk", pid, "sh")
            ]

    def test_of_a_file_that_is_gone(self, tree: Mounted, volumes: dict[str, Volume]) -> None:
        (target := tree.mnt.parent / "target").touch()
        with process(*elsewhere(f"mount --bind '{tree.mnt}/vol/file' '{target}'")):
            assert len(mount_holders(volumes["vol"], str(tree.scope))) == 1
            (tree.mnt / "vol/file").unlink()
            assert mount_holders(volumes["vol"], str(tree.scope)) == []


class TestOpen:
    def test_files_and_directories(self, tree: Mounted, volumes: dict[str, Volume]) -> None:
        scope = str(tree.scope)
        script = f"exec 3<'{tree.mnt}/vol two/file' 4<'{tree.mnt}/vol two'"
        with process(*shell(script)) as pid:
            assert sorted(open_holders(volumes["vol two"], scope), key=str) == [
                Holder("open", f"{tree.mnt}/vol two", pid, "sh"),
                Holder("open", f"{tree.mnt}/vol two/file", pid, "sh"),
            ]
            assert open_holders(volumes["vol"], scope) == []
            refused = volfs("rm", "--scope", scope, "vol two")
            assert refused.code == 6
            assert f"open {tree.mnt}/vol two/file by process {pid} (sh)" in refused.err
            found = volfs("inspect", "--json", "--scope", scope, "vol two").json[0]
            assert {holder["pid"] for holder in found["holders"]} == {pid}
        assert volfs("rm", "--scope", scope, "vol two").code == 0

    def test_an_unlinked_file(self, tree: Mounted, volumes: dict[str, Volume]) -> None:
        with process(*shell(f"exec 3<'{tree.mnt}/vol/file'")):
            (tree.mnt / "vol/file").unlink()
            assert len(open_holders(volumes["vol"], str(tree.scope))) == 1

    def test_through_a_bind_mount_in_another_namespace(
        self, tree: Mounted, volumes: dict[str, Volume]
    ) -> None:
        (target := tree.mnt.parent / "target").mkdir()
        script = f"mount --bind '{tree.mnt}/vol' '{target}'; exec 3<'{target}/file'"
        with process(*elsewhere(script)) as pid:
            assert open_holders(volumes["vol"], str(tree.scope)) == [
                Holder("open", f"{target}/file", pid, "sh")
            ]

    def test_from_a_changed_root(self, tree: Mounted, volumes: dict[str, Volume]) -> None:
        root = tree.mnt.parent / "root"
        with ExitStack() as stack:
            for directory in ("usr", "lib", "lib64", "bin", "tree"):
                (root / directory).mkdir(parents=True)
            for directory in ("usr", "lib", "lib64", "bin"):
                subprocess.run(["mount", "--bind", f"/{directory}", root / directory], check=True)
                stack.callback(umount, root / directory)
            script = (
                f"mount --bind '{tree.mnt}' '{root}/tree'\n"
                f"exec chroot '{root}' sh -ec 'exec 3</tree/vol/file; echo ready; read x || true'"
            )
            with process("unshare", "--mount", "--propagation", "private", "sh", "-ec", script):
                assert len(open_holders(volumes["vol"], str(tree.scope))) == 1
                assert open_holders(volumes["vol two"], str(tree.scope)) == []

    def test_a_mapping_without_a_descriptor(
        self, tree: Mounted, volumes: dict[str, Volume]
    ) -> None:
        with (tree.mnt / "vol two/file").open("r+b") as file:
            mapping = mmap.mmap(file.fileno(), 0)
        # Python keeps a duplicate of the descriptor for resizing; this closes it.
        number = next(
            int(fd)
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
            and os.readlink(f"/proc/self/fd/{fd}") == f"{tree.mnt}/vol two/file"
        )
        os.close(number)
        try:
            (holder,) = open_holders(volumes["vol two"], str(tree.scope))
            assert (holder.pid, holder.detail) == (os.getpid(), f"{tree.mnt}/vol two/file")
        finally:
            # The mapping would close that number again, perhaps somebody else's by then.
            os.dup2(os.open(os.devnull, os.O_RDONLY), number)
            mapping.close()

    def test_neither_a_working_directory_nor_the_data_path_counts(
        self, tree: Mounted, volumes: dict[str, Volume]
    ) -> None:
        script = f"exec 3<'{tree.data('vol')}/file'"
        with process(*shell(script), cwd=tree.mnt / "vol"):
            assert open_holders(volumes["vol"], str(tree.scope)) == []


class TestUsersOfAMount:
    def test_all_kinds(self, tree: Mounted, volumes: dict[str, Volume]) -> None:
        assert mount_users(str(tree.mnt)) == []
        (tree.mnt / "vol/disk").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "disk", tree.mnt / "vol/disk"], check=True)
        try:
            with (
                process(*shell(f"exec 3<'{tree.mnt}/vol/file'")) as one,
                process(*shell(":"), cwd=tree.mnt / "vol") as two,
            ):
                assert set(map(str, mount_users(str(tree.mnt)))) == {
                    f"mounted at {tree.mnt}/vol/disk",
                    f"open {tree.mnt}/vol/file by process {one} (sh)",
                    f"open {tree.mnt}/vol (working directory) by process {two} (sh)",
                }
        finally:
            subprocess.run(["umount", tree.mnt / "vol/disk"], check=True)

    def test_not_mounted(self, workspace: Path) -> None:
        assert mount_users(str(workspace)) == []


def test_a_hung_tree_makes_nobody_wait(tree: Mounted, volumes: dict[str, Volume]) -> None:
    """The daemon is stopped: whoever asked it anything would wait forever."""
    scope = str(tree.scope)
    script = (
        "import sys; from volfs.store.usage import *; from volfs.local import LocalDriver\n"
        "volume = LocalDriver(sys.argv[1]).get('vol')\n"
        "print(len(mount_holders(volume, sys.argv[1])), len(open_holders(volume, sys.argv[1])),"
        " len(tree_mounts(sys.argv[1])), len(mount_users(sys.argv[2])))"
    )
    with process(*shell(f"exec 3<'{tree.mnt}/vol/file'")):
        os.kill(tree.pid, 19)
        try:
            done = subprocess.run(
                [sys.executable, "-c", script, scope, tree.mnt],
                capture_output=True,
                text=True,
                timeout=20,
                cwd=Path(__file__).parent.parent.parent,
                check=False,
            )
        finally:
            os.kill(tree.pid, 18)
    assert (done.stdout, done.stderr) == ("0 1 1 1\n", "")
