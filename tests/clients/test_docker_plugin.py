"""dockerd with volumes of the plugin: their whole life by ``docker volume`` and ``docker run``."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.clients import docker as dockers
from tests.clients import plugin as plugins
from tests.clients.docker import Docker, Dockerd
from tests.clients.plugin import (
    DRIVER,
    SOCKET,
    STAY,
    Plugin,
    assert_busy,
    assert_copied_up,
    assert_held_by,
    assert_removed,
    holders,
    image_with_content,
    label,
    let_two_meet,
    mode,
    owner,
    plugin_directory,
    references,
    restore,
    run_in,
    start,
)
from tests.conftest import Mounted, MountFactory, open_workspace, volfs, wait_for

pytestmark = pytest.mark.any_level

STOCKED = "stocked:1"
"""An image with files at /data."""


@pytest.fixture(scope="module")
def plugin() -> Iterator[Plugin]:
    with plugin_directory(), plugins.serving(SOCKET) as plugin:
        yield plugin


@pytest.fixture(scope="module")
def dockerd(plugin: Plugin, busybox_image: Path, busybox_root: Path) -> Iterator[Dockerd]:
    # The plugin comes first: dockerd waits 15 s for one that is not there.
    with open_workspace() as base, dockers.serving(base / "d", busybox_image) as dockerd:
        archive = base / "stocked.tar"
        image_with_content(archive, busybox_root)
        dockerd.docker("import", archive, STOCKED)
        yield dockerd


@pytest.fixture(scope="module")
def tree(plugin: Plugin) -> Mounted:
    return plugin.tree


@pytest.fixture
def docker(dockerd: Dockerd) -> Iterator[Docker]:
    yield dockerd.docker
    dockerd.docker.remove_all()
    if names := dockerd.docker("volume", "ls", "--quiet").splitlines():
        dockerd.docker("volume", "rm", *names)


def create(docker: Docker, name: str, *options: str) -> None:
    """Make a volume by ``docker volume create``."""
    words = [word for option in options for word in ("--opt", option)]
    assert docker("volume", "create", "--driver", DRIVER, *words, name).strip() == name


def inspect(docker: Docker, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(docker("volume", "inspect", name))
    return found[0]


def listed(docker: Docker, *filters: str) -> list[str]:
    """The names of the plugin's volumes that dockerd lists."""
    words = [word for text in (f"driver={DRIVER}", *filters) for word in ("--filter", text)]
    return docker("volume", "ls", "--quiet", *words).split()


def test_create_list_inspect_remove_restore(docker: Docker, tree: Mounted) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    create(docker, "life", "uid=1000", "gid=1001", "mode=0750", "label.team=web")
    made = (tree.mnt / "life").stat()
    assert (made.st_uid, made.st_gid, mode(tree.mnt / "life")) == (1000, 1001, 0o750)
    assert label(tree, "life", "team") == "web"
    assert "life" in listed(docker)

    shown = inspect(docker, "life")
    assert shown["Driver"] == DRIVER and shown["Scope"] == "local"
    assert shown["Mountpoint"] == str(tree.mnt / "life")
    assert before <= datetime.fromisoformat(shown["CreatedAt"]) <= datetime.now(UTC)
    assert shown["Status"]["labels"] == {"team": "web"}
    assert shown["Status"]["options"] == {"uid": "1000", "gid": "1001", "mode": "750"}

    (tree.mnt / "life" / "file").write_text("precious")
    assert docker("volume", "rm", "life").strip() == "life"
    assert_removed(tree, "life")
    assert "life" not in listed(docker)
    assert "life" in volfs(tree.scope, "ls", "--removed")
    restore(tree, "life")
    assert run_in(docker, "life", "cat /data/file") == "precious"
    assert label(tree, "life", "team") == "web"


def test_refusals_say_what_to_do(docker: Docker, tree: Mounted) -> None:
    refused = docker("volume", "create", "--driver", DRIVER, "--opt", "color=red", "no", fails=True)
    for known in ("color", "uid", "gid", "mode", "from", "path", "label."):
        assert known in refused
    assert not (tree.mnt / "no").exists() and "no" not in listed(docker)

    assert "no such volume" in docker("volume", "rm", "nowhere", fails=True)
    # dockerd looks first, and asks for a volume only when there is none.
    (tree.mnt / "there").mkdir()
    create(docker, "there", "uid=1000")
    assert owner(tree.mnt / "there") == 0


def test_volume_as_a_copy_of_another(docker: Docker, tree: Mounted) -> None:
    create(docker, "origin", "uid=1000")
    (tree.mnt / "origin" / "file").write_text("one\n")
    os.chown(tree.mnt / "origin" / "file", 7, 8)
    (tree.mnt / "origin" / "two").hardlink_to(tree.mnt / "origin" / "file")
    create(docker, "copy", "from=origin", "label.of=origin")
    script = "cat /data/two; stat -c '%u:%g %h' /data/file; echo more >> /data/file"
    assert run_in(docker, "copy", script) == "one\n7:8 2\n"
    assert owner(tree.mnt / "copy") == 1000
    assert (tree.mnt / "origin" / "file").read_text() == "one\n"
    assert label(tree, "copy", "of") == "origin"
    refused = docker(
        *("volume", "create", "--driver", DRIVER, "--opt", "from=nowhere", "none"), fails=True
    )
    assert "nowhere" in refused and not (tree.mnt / "none").exists()


def test_volume_at_its_data_path(docker: Docker, tree: Mounted) -> None:
    """With path=native there is no FUSE between the container and its files."""
    create(docker, "straight", "path=native")
    assert inspect(docker, "straight")["Mountpoint"] == str(tree.data("straight"))
    container = start(docker, "straight", f"grep ' /data ' /proc/mounts > /data/mounts; {STAY}")
    wait_for(lambda: (tree.data("straight") / "mounts").exists(), "the container")
    wait_for(lambda: (tree.mnt / "straight" / "mounts").read_text(), "what it wrote")
    assert "fuse" not in (tree.mnt / "straight" / "mounts").read_text()
    assert_held_by(tree, "straight", container)
    assert_busy(tree, "straight", container)
    docker("rm", "--force", container)


def test_two_containers_at_once(docker: Docker, tree: Mounted) -> None:
    create(docker, "shared")
    let_two_meet(docker, tree, "shared")


def test_content_of_the_image_goes_into_an_empty_volume(docker: Docker, tree: Mounted) -> None:
    """And with it owner and mode of the image's directory, as into docker's own volumes."""
    arguments = ["run", "--rm", "--network=none", "--volume"]
    create(docker, "empty", "mode=0700")
    assert "from the image" in docker(*arguments, "empty:/data", STOCKED, "cat", "/data/link")
    assert_copied_up(tree.mnt / "empty")
    assert (owner(tree.mnt / "empty"), mode(tree.mnt / "empty")) == (1000, 0o750)

    create(docker, "full", "mode=0700")
    (tree.mnt / "full" / "mine").touch()
    assert docker(*arguments, "full:/data", STOCKED, "ls", "/data").split() == ["mine"]
    assert os.listdir(tree.data("full")) == ["mine"]

    create(docker, "unwanted", "mode=0700")
    assert docker(*arguments, "unwanted:/data:nocopy", STOCKED, "ls", "/data") == ""
    for name in ("full", "unwanted"):
        assert (owner(tree.mnt / name), mode(tree.mnt / name)) == (0, 0o700)
        assert holders(tree, name) == []


def test_what_mkdir_makes_docker_runs_and_the_reverse(docker: Docker, tree: Mounted) -> None:
    names = ["by-mkdir", "with space (copy 1)", "grün"]
    for name in names:
        (tree.mnt / name).mkdir()
    shown = docker("volume", "ls", "--quiet", "--filter", f"driver={DRIVER}").splitlines()
    assert set(names) <= set(shown)
    assert inspect(docker, names[1])["Mountpoint"] == str(tree.mnt / names[1])
    run_in(docker, "by-mkdir", "echo 1 > /data/file")
    for name in names[1:]:
        mounted = f"type=volume,source={name},target=/data"
        docker(
            *("run", "--rm", "--network=none", "--mount", mounted),
            *(docker.image, "sh", "-ec", "echo 1 > /data/file"),
        )
    create(docker, "by-docker")
    assert {*names, "by-docker"} <= set(os.listdir(tree.mnt))
    for name in names:
        assert (tree.mnt / name / "file").read_text() == "1\n"
        # Removed in the tree, it is gone for docker as well.
        (tree.mnt / name).rmdir()
    assert not set(names) & set(docker("volume", "ls", "--quiet").splitlines())


def test_run_makes_missing_volumes(docker: Docker, tree: Mounted) -> None:
    run_in(docker, "implicit", "touch /data/file", "--volume-driver", DRIVER)
    assert (tree.mnt / "implicit" / "file").exists()
    mounted = "type=volume,source=described,target=/new,"
    mounted += f"volume-driver={DRIVER},volume-opt=mode=0700,volume-opt=label.team=web"
    docker("run", "--rm", "--network=none", "--mount", mounted, docker.image, "touch", "/new/file")
    assert (tree.mnt / "described" / "file").exists()
    assert mode(tree.mnt / "described") == 0o700
    assert label(tree, "described", "team") == "web"

    # One without a name goes with its container, but not for good.
    before = set(os.listdir(tree.mnt))
    docker(
        *("run", "--name", "brief", "--network=none", "--volume-driver", DRIVER),
        *("--volume", "/data", docker.image, "touch", "/data/file"),
    )
    (name,) = set(os.listdir(tree.mnt)) - before
    docker("rm", "--volumes", "brief")
    assert_removed(tree, name)
    restore(tree, name)
    assert (tree.mnt / name / "file").exists()


def test_removal_in_use_is_refused_with_the_holder_named(docker: Docker, tree: Mounted) -> None:
    create(docker, "busy")
    container = start(docker, "busy", STAY)
    assert_held_by(tree, "busy", container)
    assert len(references(tree, "busy")) == 1
    assert container in docker("volume", "rm", "busy", fails=True)
    assert container in docker("volume", "rm", "--force", "busy", fails=True)
    assert_busy(tree, "busy", container)
    with pytest.raises(OSError) as refused:
        (tree.mnt / "busy").rename(tree.mnt / "idle")
    assert refused.value.errno == errno.EBUSY

    # Stopped it keeps docker from removing its volume, as with docker's own driver.
    docker("stop", "--time", "0", container)
    assert holders(tree, "busy") == []
    assert container in docker("volume", "rm", "busy", fails=True)
    docker("rm", container)

    # Of a container with a directory of the tree docker does not know that it holds a volume.
    (tree.mnt / "busy" / "below").mkdir()
    container = docker(
        *("run", "--detach", "--network=none", "--volume", f"{tree.mnt}/busy/below:/data"),
        *(docker.image, "sh", "-ec", STAY),
    ).strip()
    refusal = docker("volume", "rm", "busy", fails=True)
    assert "'busy' is in use" in refusal and container[:12] in refusal
    docker("rm", "--force", container)
    docker("volume", "rm", "busy")


def test_prune(docker: Docker, tree: Mounted) -> None:
    """docker prunes only volumes of its own driver; what nobody uses it can list."""
    create(docker, "unused", "label.keep=no")
    create(docker, "used")
    container = start(docker, "used", STAY)
    (tree.mnt / "unused" / "file").touch()
    docker("volume", "prune", "--force")
    assert {"unused", "used"} <= set(listed(docker))
    assert "unused" in listed(docker, "dangling=true")
    assert "used" not in listed(docker, "dangling=true")
    docker("volume", "rm", *listed(docker, "dangling=true", "name=unused"))
    assert_removed(tree, "unused")
    restore(tree, "unused")
    assert (tree.mnt / "unused" / "file").exists()

    assert "unused" in volfs(tree.scope, "prune", "--yes")
    assert_removed(tree, "unused")
    assert listed(docker) == ["used"]
    restore(tree, "unused")
    assert (tree.mnt / "unused" / "file").exists()
    assert_held_by(tree, "used", container)


def test_restarted_plugin_knows_who_uses_what(
    docker: Docker, plugin: Plugin, tree: Mounted
) -> None:
    create(docker, "kept")
    container = start(docker, "kept", STAY)
    before = references(tree, "kept")
    assert len(before) == 1
    plugin.stop()
    assert references(tree, "kept") == before
    assert_busy(tree, "kept", container)
    plugin.start()
    assert references(tree, "kept") == before
    assert container in docker("volume", "rm", "kept", fails=True)
    assert_busy(tree, "kept", container)
    second = start(docker, "kept", STAY)
    assert set(before) < set(references(tree, "kept"))
    # The end of the first reaches the plugin under the name by which it was told of its begin.
    docker("rm", "--force", container)
    assert_held_by(tree, "kept", second)
    assert len(references(tree, "kept")) == 1 and references(tree, "kept") != before
    docker("rm", "--force", second)
    assert holders(tree, "kept") == []


def test_restarted_dockerd_starts_its_containers_again(
    dockerd: Dockerd, docker: Docker, tree: Mounted
) -> None:
    (tree.mnt / "by-hand").mkdir()
    create(docker, "always")
    script = f"echo started >> /data/log; {STAY}"
    container = start(
        *(docker, "always", script, "--restart=always", "--stop-signal=KILL"),
        *("--volume", "by-hand:/more"),
    )
    log = tree.mnt / "always" / "log"
    wait_for(lambda: log.exists() and log.read_text() == "started\n", "the first start")
    dockerd.stop()
    for name in ("always", "by-hand"):
        assert holders(tree, name) == []
    dockerd.start()
    wait_for(lambda: log.read_text() == "started\n" * 2, "the second start")
    assert_held_by(tree, "always", container)
    assert len(references(tree, "always")) == len(references(tree, "by-hand")) == 1
    assert_busy(tree, "always", container)
    docker("rm", "--force", container)
    docker("volume", "rm", "always", "by-hand")
    assert not {"always", "by-hand"} & set(os.listdir(tree.mnt))


def test_one_process_for_tree_and_plugin(mount: MountFactory, docker: Docker) -> None:
    """volfs mount --plugin: restarted between the making of a volume and its use.

    The last test: from then on dockerd misses a plugin, and waits for it whenever it looks.
    """
    second = str(SOCKET.with_name("second.sock"))
    first = mount(plugin=True, plugin_socket=second)
    docker("volume", "create", "--driver", "second", "--opt", "uid=1000", "lasting")
    assert (first.mnt / "lasting").stat().st_uid == 1000
    (first.mnt / "lasting" / "file").write_text("as it was")
    first.stop()
    assert not Path(second).exists()

    again = mount(scope=first.scope, plugin=True, plugin_socket=second)
    assert inspect(docker, "lasting")["Mountpoint"] == str(again.mnt / "lasting")
    assert run_in(docker, "lasting", "cat /data/file; echo new > /data/file") == "as it was"
    assert (again.mnt / "lasting" / "file").read_text() == "new\n"
    container = start(docker, "lasting", STAY)
    assert_busy(again, "lasting", container)
    docker("rm", "--force", container)
    docker("volume", "rm", "lasting")
    assert os.listdir(again.mnt) == []
    assert_removed(again, "lasting")
