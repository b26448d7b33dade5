"""Who holds a volume, told from real mounts and real processes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.words.volumes import PlainVolume
from volfs.holder import Holder
from volfs.linux.mountinfo import MountTable, Place, parse
from volfs.store import Scan, mount_holders, open_holders, tree_mounts

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")


@pytest.fixture
def scope(tmp_path: Path) -> str:
    return str(tmp_path.resolve() / "scope")


@pytest.fixture
def volume(scope: str) -> PlainVolume:
    return make(scope, "vol")


def make(scope: str, name: str) -> PlainVolume:
    path = Path(scope, "volumes", name, "_data")
    path.mkdir(parents=True)
    return PlainVolume(name, str(path))


@contextmanager
def mounted(*words: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *words], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", words[-1]], check=True)


@contextmanager
def elsewhere(script: str) -> Iterator[subprocess.Popen[str]]:
    """Run shell commands in a mount namespace of their own, and keep it until the end."""
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", f"{script}; echo; cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    try:
        assert process.stdout.readline() == "\n", "the commands failed"
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@needs_root
class TestMounts:
    def test_nobody(self, volume: PlainVolume, scope: str) -> None:
        assert mount_holders(volume, scope) == []

    def test_bind_mount_of_the_data_path(
        self, volume: PlainVolume, scope: str, tmp_path: Path
    ) -> None:
        (target := tmp_path / "a b\\c").mkdir()
        with mounted("--bind", volume.path, target):
            assert mount_holders(volume, scope) == [Holder("mount", str(target))]
        assert mount_holders(volume, scope) == []

    def test_bind_mount_of_something_below(
        self, volume: PlainVolume, scope: str, tmp_path: Path
    ) -> None:
        (target := tmp_path / "target").touch()
        (source := Path(volume.path, "deep file")).touch()
        with mounted("--bind", source, target):
            assert [holder.detail for holder in mount_holders(volume, scope)] == [str(target)]

    def test_names_are_compared_by_component(
        self, volume: PlainVolume, scope: str, tmp_path: Path
    ) -> None:
        other = make(scope, "vol-evil")
        Path(volume.path + "2").mkdir()
        (target := tmp_path / "target").mkdir()
        with mounted("--bind", other.path, target):
            assert mount_holders(volume, scope) == []
            assert len(mount_holders(other, scope)) == 1
        with mounted("--bind", volume.path + "2", target):
            assert mount_holders(volume, scope) == []

    def test_removed_directory_holds_nothing(
        self, volume: PlainVolume, scope: str, tmp_path: Path
    ) -> None:
        (target := tmp_path / "target").mkdir()
        (source := Path(volume.path, "gone")).mkdir()
        with mounted("--bind", source, target):
            assert len(mount_holders(volume, scope)) == 1
            source.rmdir()
            assert mount_holders(volume, scope) == []

    def test_scope_reached_through_a_bind_mount(self, scope: str, tmp_path: Path) -> None:
        make(scope, "vol")
        (other := tmp_path / "other").mkdir()
        (target := tmp_path / "target").mkdir()
        with mounted("--bind", scope, other):
            reached = PlainVolume("vol", str(other / "volumes/vol/_data"))
            assert mount_holders(reached, str(other)) == []
            with mounted("--bind", reached.path, target):
                assert [h.detail for h in mount_holders(reached, str(other))] == [str(target)]

    def test_disk_mounted_on_the_data_path_is_the_way_and_no_holder(
        self, volume: PlainVolume, scope: str, tmp_path: Path
    ) -> None:
        (target := tmp_path / "target").mkdir()
        with mounted("-t", "tmpfs", "disk", volume.path):
            assert mount_holders(volume, scope) == []
            with elsewhere(":"):
                assert mount_holders(volume, scope) == [], "a copied namespace holds nothing"
            with elsewhere(f"mount --rbind / {target}"):
                assert mount_holders(volume, scope) == [], "the whole host shown in a container"
            with elsewhere(f"mount --bind {volume.path} {target}"):
                assert [h.detail for h in mount_holders(volume, scope)] == [str(target)]

    def test_part_of_a_disk_mounted_on_the_data_path(
        self, volume: PlainVolume, scope: str, tmp_path: Path
    ) -> None:
        (target := tmp_path / "target").mkdir()
        with mounted("-t", "tmpfs", "disk", volume.path):
            (part := Path(volume.path, "part")).mkdir()
            with mounted("--bind", part, target):
                assert [h.detail for h in mount_holders(volume, scope)] == [str(target)]

    def test_disk_mounted_inside(self, volume: PlainVolume, scope: str) -> None:
        (inside := Path(volume.path, "disk")).mkdir()
        with mounted("-t", "tmpfs", "disk", inside):
            assert [holder.detail for holder in mount_holders(volume, scope)] == [str(inside)]

    def test_mounted_on_what_was_mounted_later(
        self, volume: PlainVolume, scope: str, tmp_path: Path
    ) -> None:
        """The kernel tells mounts in the order in which they were made."""
        Path(volume.path, "sub").mkdir()
        (disk := tmp_path / "disk").mkdir()
        (target := tmp_path / "target").mkdir()
        script = (
            f"mount -t tmpfs disk {disk}; mount --bind {volume.path} {target};"
            f" mount --move {disk} {target}/sub"
        )
        with elsewhere(script):
            assert {holder.detail for holder in mount_holders(volume, scope)} == {
                str(target),
                f"{target}/sub",
            }

    def test_another_namespace(self, volume: PlainVolume, scope: str, tmp_path: Path) -> None:
        (target := tmp_path / "target").mkdir()
        with elsewhere(f"mount --bind {volume.path} {target}") as process:
            assert mount_holders(volume, scope) == [Holder("mount", str(target), process.pid, "sh")]
        assert mount_holders(volume, scope) == []

    def test_namespace_whose_first_process_is_gone(
        self, volume: PlainVolume, scope: str, tmp_path: Path
    ) -> None:
        (target := tmp_path / "target").mkdir()
        script = f"mount --bind {volume.path} {target}; cat <&0 & echo $!; exec sleep 0"
        process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "bash", "-ec", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin and process.stdout
        child = int(process.stdout.readline())
        deadline = time.monotonic() + 10
        # Not waited for: the namespace's first process stays as a zombie.
        while "Z" not in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            assert [holder.pid for holder in mount_holders(volume, scope)] == [child]
        finally:
            process.stdin.close()
            process.wait()
            process.stdout.close()

    def test_many_volumes_from_one_scan(self, scope: str, tmp_path: Path) -> None:
        volumes = [make(scope, f"v{number}") for number in range(3)]
        with ExitStack() as stack:
            for volume in volumes[1:]:
                (target := tmp_path / volume.name).mkdir()
                stack.enter_context(mounted("--bind", volume.path, target))
            scan = Scan(scope)
            assert [len(scan.mount_holders(volume)) for volume in volumes] == [0, 1, 1]

    @pytest.mark.alone
    def test_takes_no_time(self, volume: PlainVolume, scope: str) -> None:
        processes = [
            subprocess.Popen(["unshare", "--mount", "cat"], stdin=subprocess.PIPE)
            for _ in range(60)
        ]
        try:
            best = min(_time(lambda: mount_holders(volume, scope)) for _ in range(5))
        finally:
            for process in processes:
                assert process.stdin
                process.stdin.close()
                process.wait()
        assert best < 0.2, f"{best * 1000:.0f} ms"


def _time(call: object) -> float:
    assert callable(call)
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_files_open_behind_the_tree_are_not_the_trees(volume: PlainVolume, scope: str) -> None:
    with Path(volume.path, "file").open("w"):
        assert open_holders(volume, scope) == []


def test_no_tree(scope: str) -> None:
    assert tree_mounts(scope) == []


def test_container_is_told_from_its_control_group(tmp_path: Path) -> None:
    """The names the runtimes give, version 1 and version 2 of control groups."""
    from volfs.store.namespaces import container_in_cgroup

    id = "0123456789abcdef" * 4
    for path in (
        f"/docker/{id}",
        f"/system.slice/docker-{id}.scope",
        f"/libpod_parent/libpod-{id}",
        f"/machine.slice/libpod-{id}.scope/container",
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{id}.scope",
        f"/kubepods/besteffort/pod12-34/{id}",
        f"/kubepods.slice/kubepods-pod12_34.slice/cri-containerd-{id}.scope",
        f"/../crio-{id}.scope",
    ):
        assert container_in_cgroup(f"0::{path}\n") == id, path
        assert container_in_cgroup(f"9:name=systemd:/\n4:memory:{path}\n0::/\n") == id, path
    for path in ("/", f"/libpod-conmon-{id}.scope", f"/x/{id}0", f"/x{id}", "/user.slice"):
        assert container_in_cgroup(f"0::{path}\n") is None, path


@needs_root
def test_container_is_told_when_the_process_that_was_looked_at_has_ended(
    volume: PlainVolume, scope: str, tmp_path: Path
) -> None:
    id = "0123456789abcdef" * 4
    hosts = tmp_path / "containers" / id / "hosts"
    hosts.parent.mkdir(parents=True)
    hosts.touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "etc").touch()
    script = f"mount --bind {volume.path} {tmp_path}/data; mount --bind {hosts} {tmp_path}/etc"
    scan = Scan(scope)
    with elsewhere(script):
        (holder,) = scan.mount_holders(volume)
        assert (holder.detail, holder.container) == (f"{tmp_path}/data", id)
    (holder,) = scan.mount_holders(volume)
    assert (holder.detail, holder.container) == (f"{tmp_path}/data", id)


def test_holder_reads_as_a_line() -> None:
    assert str(Holder("mount", "/data", 12, "sleep", "0123456789abcdef")) == (
        "mounted at /data by process 12 (sleep) in container 0123456789ab"
    )
    assert str(Holder("reference", "web")) == "reference web"
    assert str(Holder("open", "/mnt/vol/f", 7, "tail")) == "open /mnt/vol/f by process 7 (tail)"


class TestMountinfo:
    def test_own_table(self) -> None:
        table = MountTable.of_process()
        assert len(table) > 1
        proc = next(mount for mount in table if mount.point == "/proc")
        assert proc.fstype == "proc"
        assert table.place_of("/proc/self") == Place(proc.device, "/self")

    def test_escapes_and_optional_fields(self) -> None:
        (mount,) = parse(
            b"36 35 98:0 /a\\040b\\134c /mnt\\011x ro shared:1 master:2"
            b" - ext\\0403 /dev/r\\043t rw,x\n"
        )
        assert (mount.root, mount.point, mount.source) == ("/a b\\c", "/mnt\tx", "/dev/r#t")
        assert (mount.id, mount.parent, mount.device, mount.options) == (36, 35, "98:0", "rw,x")

    def test_no_optional_fields_and_bytes_that_are_no_text(self) -> None:
        (mount,) = parse(b"36 35 98:0 / /mnt/\xff\x85 rw - ext4 /dev/sda rw\n")
        assert os.fsencode(mount.point) == b"/mnt/\xff\x85"

    def test_covered_mount_is_not_on_the_way(self) -> None:
        table = MountTable(
            parse(
                b"1 0 8:1 / / rw - ext4 a rw\n"
                b"2 1 8:2 / /srv/deep rw - ext4 b rw\n"
                b"3 1 8:3 /sub /srv rw - btrfs c rw\n"
                b"4 3 8:4 / /srv rw - ext4 d rw\n"
            )
        )
        assert [mount.id for mount in table.way_to("/srv/deep/x")] == [1, 3, 4]
        assert table.place_of("/srv/deep/x") == Place("8:4", "/deep/x")
        assert table.place_of("/srvx") == Place("8:1", "/srvx")

    def test_changed_root_that_is_no_mount_point(self) -> None:
        table = MountTable(parse(b"2 1 0:5 / /proc rw - proc proc rw\n"))
        assert table.way_to("/var") == []
        assert table.place_of("/var") is None
        assert table.place_of("/proc/1") == Place("0:5", "/1")
