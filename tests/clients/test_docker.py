"""dockerd bind-mounting volumes of the tree, a daemon of our own on a private socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.containers import share_with_container
from tests.clients.docker import Docker, serving
from tests.clients.volumes import VolumeDir
from tests.conftest import Mounted, wait_for


@pytest.fixture(scope="session")
def dockerd(tmp_path_factory: pytest.TempPathFactory, busybox_image: Path) -> Iterator[Docker]:
    """A running dockerd that has one image and no network."""
    with serving(tmp_path_factory.mktemp("docker"), busybox_image) as dockerd:
        yield dockerd.docker


@pytest.fixture
def docker(dockerd: Docker, tree: Mounted) -> Iterator[Docker]:
    # Asking for the tree here has the containers ended before it is.
    yield dockerd
    dockerd.remove_all()


def test_container_and_host_share_a_volume(volume: VolumeDir, docker: Docker) -> None:
    share_with_container(volume, docker)


def test_run_makes_a_missing_volume(tree: Mounted, docker: Docker) -> None:
    """dockerd makes the missing source of -v, and a directory in the tree is a volume."""
    new = VolumeDir.at(tree, "new")
    docker(
        "run",
        "--rm",
        "--network=none",
        "-v",
        f"{new.path}:/data",
        docker.image,
        "touch",
        "/data/file",
    )
    assert (new.data / "file").exists()
    assert os.listdir(tree.mnt) == ["new"]
    new.remove()


def test_name_that_cannot_be_a_volume(tree: Mounted, docker: Docker) -> None:
    """The refusal reaches the user, and no container runs on some other directory."""
    source = tree.mnt / ".hidden"
    printed = docker(
        *("run", "--rm", "--network=none", "-v", f"{source}:/data", docker.image, "true"),
        fails=True,
    )
    assert "invalid argument" in printed
    assert os.listdir(tree.mnt) == []


def test_restarted_container_finds_its_data(volume: VolumeDir, docker: Docker) -> None:
    script = "echo started >> /data/log; sleep 1000"
    container = docker.start(volume, script)
    wait_for((volume.path / "log").exists, "the first start")
    docker("restart", "--time", "0", container)
    wait_for(lambda: (volume.data / "log").read_text() == "started\n" * 2, "the second start")
    volume.assert_busy()
    docker("stop", "--time", "0", container)
    # Stopped it holds nothing, and dockerd makes the directory again when it starts.
    volume.remove()
    docker("start", container)
    log = volume.data / "log"
    wait_for(lambda: log.exists() and log.read_text() == "started\n", "the third start")


def test_copy_into_and_out_of_a_container(
    volume: VolumeDir, docker: Docker, tmp_path: Path
) -> None:
    container = docker.start(volume, "sleep 1000")
    source = tmp_path / "in"
    source.mkdir()
    (source / "file").write_text("from the host")
    (source / "link").symlink_to("file")
    docker("cp", source, f"{container}:/data/in")
    assert (volume.data / "in" / "file").read_text() == "from the host"
    assert (volume.data / "in" / "link").readlink() == Path("file")
    (volume.path / "out").write_text("from the volume")
    docker("cp", f"{container}:/data/out", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "from the volume"


def test_files_belong_to_the_user_of_the_container(volume: VolumeDir, docker: Docker) -> None:
    arguments = ["run", "--rm", "--network=none", "--user", "1000:1000"]
    arguments += ["-v", f"{volume.path}:/data", docker.image, "sh", "-ec"]
    script = "umask 027; echo mine > /data/file; mkdir /data/directory; stat -c %u:%g:%a /data/*"
    assert "Permission denied" in docker(*arguments, script, fails=True)
    os.chown(volume.path, 1000, 1000)
    assert docker(*arguments, script).split() == ["1000:1000:750", "1000:1000:640"]
    for name in ("file", "directory"):
        made = (volume.data / name).stat()
        assert (made.st_uid, made.st_gid) == (1000, 1000)


def test_volume_below_a_volume(volume: VolumeDir, docker: Docker) -> None:
    """A directory inside a volume can be bound as well, and holds the whole volume."""
    (volume.path / "below").mkdir()
    container = docker(
        *("run", "--detach", "--network=none", "-v", f"{volume.path}/below:/data", docker.image),
        *("sh", "-ec", "touch /data/file; sleep 1000"),
    ).strip()
    wait_for((volume.data / "below" / "file").exists, "the container's file")
    volume.assert_busy()
    docker("rm", "--force", container)
    volume.remove()
