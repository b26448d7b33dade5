"""podman bind-mounting volumes of the tree, as root, in storage of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.containers import say_goodbye, share_with_container
from tests.clients.podman import Podman, storage
from tests.clients.volumes import VolumeDir
from tests.conftest import Mounted, wait_for


@pytest.fixture(scope="session")
def podman_storage(busybox_image: Path) -> Iterator[Podman]:
    with storage(busybox_image) as podman:
        yield podman


@pytest.fixture
def podman(podman_storage: Podman, tree: Mounted) -> Iterator[Podman]:
    # Asking for the tree here has the containers ended before it is.
    yield podman_storage
    podman_storage.remove_all()


def test_container_and_host_share_a_volume(volume: VolumeDir, podman: Podman) -> None:
    share_with_container(volume, podman)


def test_two_containers_at_once(volume: VolumeDir, podman: Podman) -> None:
    """Both append to one file without losing a line of each other; each of them holds it."""
    script = """
        touch /data/ready-$NAME
        until [ -e /data/go ]; do sleep 0.05; done
        for i in $(seq 200); do echo $NAME $i >> /data/log; done
        until [ -e /data/bye ]; do sleep 0.05; done
    """
    names = ["one", "two"]
    containers = [podman.start(volume, script, "--env", f"NAME={name}") for name in names]
    wait_for(
        lambda: all((volume.path / f"ready-{name}").exists() for name in names), "both containers"
    )
    volume.assert_held_by(*containers)
    (volume.path / "go").touch()
    say_goodbye(volume)
    assert podman("wait", *containers).split() == ["0", "0"]
    lines = (volume.data / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{name} {i}" for name in names for i in range(1, 201))
    volume.remove()


def test_volume_is_busy_until_the_last_container_ends(volume: VolumeDir, podman: Podman) -> None:
    forever = "sleep 1000"
    first, second = podman.start(volume, forever), podman.start(volume, forever)
    volume.assert_held_by(first, second)
    podman("rm", "--force", "--time", "0", first)
    volume.assert_busy()
    volume.assert_held_by(second)
    podman("rm", "--force", "--time", "0", second)
    volume.remove()


def test_files_belong_to_the_user_of_the_container(volume: VolumeDir, podman: Podman) -> None:
    script = "id -u > /data/id; mkdir /data/directory; ln -s id /data/link; stat -c %u:%g /data/id"
    arguments = ["run", "--rm", "--network=none", "--user", "1000:1000"]
    arguments += ["--volume", f"{volume.path}:/data", podman.image, "sh", "-ec", script]
    assert "Permission denied" in podman(*arguments, fails=True)
    os.chown(volume.path, 1000, 1000)
    assert podman(*arguments).strip() == "1000:1000"
    for name in ("id", "directory", "link"):
        made = (volume.data / name).lstat()
        assert (made.st_uid, made.st_gid) == (1000, 1000)


def test_user_namespace_shifts_owners(volume: VolumeDir, podman: Podman) -> None:
    """Root of a container with its own user namespace is an ordinary user to the volume."""
    arguments = ["run", "--rm", "--network=none", "--uidmap", "0:100000:1000"]
    arguments += ["--gidmap", "0:100000:1000", "--volume", f"{volume.path}:/data", podman.image]
    script = ["sh", "-ec", "id -u; touch /data/file; stat -c %u:%g /data/file"]
    assert "Permission denied" in podman(*arguments, *script, fails=True)
    os.chown(volume.path, 100000, 100000)
    assert podman(*arguments, *script).split() == ["0", "0:0"]
    made = (volume.data / "file").stat()
    assert (made.st_uid, made.st_gid) == (100000, 100000)


def test_copy_into_and_out_of_a_running_container(
    volume: VolumeDir, podman: Podman, tmp_path: Path
) -> None:
    container = podman.start(volume, "sleep 1000")
    (tmp_path / "in").write_text("from the host")
    podman("cp", tmp_path / "in", f"{container}:/data/in")
    assert (volume.data / "in").read_text() == "from the host"
    (volume.path / "out").write_text("from the volume")
    podman("cp", f"{container}:/data/out", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "from the volume"


def test_container_that_manages_volumes(tree: Mounted, podman: Podman) -> None:
    """A container with the whole tree makes and removes volumes like anybody else, and does
    not keep others from removing them."""
    script = """
        mkdir /volumes/made /volumes/kept
        echo data > /volumes/made/file
        rmdir /volumes/made
        mkdir /volumes/.hidden && exit 1
        touch /volumes/file && exit 1
        echo data > /volumes/kept/file
        touch /volumes/kept/ready
        until [ ! -e /volumes/kept ]; do sleep 0.05; done
    """
    container = podman(
        *("run", "--detach", "--network=none", "--volume", f"{tree.mnt}:/volumes"),
        *(podman.image, "sh", "-uc", script),
    ).strip()
    kept = VolumeDir.at(tree, "kept")
    wait_for((kept.data / "ready").exists, "the container's volume")
    assert os.listdir(tree.mnt) == ["kept"]
    kept.assert_held_by()
    kept.remove()
    assert podman("wait", container).strip() == "0"
