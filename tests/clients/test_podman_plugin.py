"""podman with volumes of the plugin, which it is told of in containers.conf."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.clients import plugin as plugins
from tests.clients import podman as podmans
from tests.clients.plugin import (
    DRIVER,
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
    references,
    restore,
    run_in,
    start,
)
from tests.clients.podman import Podman
from tests.conftest import Mounted, open_workspace, wait_for

pytestmark = pytest.mark.any_level

STOCKED = "localhost/stocked:1"
"""An image with files at /data."""


@pytest.fixture(scope="module")
def plugin() -> Iterator[Plugin]:
    with plugins.serving() as plugin:
        yield plugin


@pytest.fixture(scope="module")
def podman_storage(plugin: Plugin, busybox_image: Path, busybox_root: Path) -> Iterator[Podman]:
    with (
        open_workspace() as work,
        podmans.storage(busybox_image, {DRIVER: plugin.socket}) as podman,
    ):
        archive = work / "stocked.tar"
        image_with_content(archive, busybox_root)
        podman("import", archive, STOCKED)
        yield podman


@pytest.fixture(scope="module")
def tree(plugin: Plugin) -> Mounted:
    return plugin.tree


@pytest.fixture
def podman(podman_storage: Podman) -> Iterator[Podman]:
    yield podman_storage
    podman_storage.remove_all()
    podman_storage("volume", "rm", "--all")


def create(podman: Podman, name: str, *options: str) -> None:
    """Make a volume by ``podman volume create``."""
    words = [word for option in options for word in ("--opt", option)]
    assert podman("volume", "create", "--driver", DRIVER, *words, name).strip() == name


def listed(podman: Podman) -> list[str]:
    """The names of the plugin's volumes that podman lists."""
    return podman("volume", "ls", "--quiet", "--filter", f"driver={DRIVER}").split()


def test_create_list_inspect_remove_restore(podman: Podman, tree: Mounted) -> None:
    create(podman, "life", "uid=1000", "gid=1001", "mode=0750", "label.team=web")
    made = (tree.mnt / "life").stat()
    assert (made.st_uid, made.st_gid, mode(tree.mnt / "life")) == (1000, 1001, 0o750)
    assert label(tree, "life", "team") == "web"
    assert listed(podman) == ["life"]
    (shown,) = json.loads(podman("volume", "inspect", "life"))
    assert shown["Driver"] == DRIVER
    assert datetime.fromisoformat(shown["CreatedAt"][:19])
    run_in(podman, "life", "echo precious > /data/file")
    podman("volume", "rm", "life")
    assert_removed(tree, "life")
    assert listed(podman) == []
    restore(tree, "life")
    podman("volume", "reload")
    assert run_in(podman, "life", "cat /data/file") == "precious\n"


def test_refusals_say_what_to_do(podman: Podman, tree: Mounted) -> None:
    words = ("volume", "create", "--driver", DRIVER, "--opt")
    refused = podman(*words, "color=red", "no", fails=True)
    for known in ("color", "uid", "gid", "mode", "from", "path", "label."):
        assert known in refused
    assert not (tree.mnt / "no").exists() and listed(podman) == []
    # podman looks first, and asks for a volume only when there is none.
    (tree.mnt / "there").mkdir()
    create(podman, "there", "uid=1000")
    assert owner(tree.mnt / "there") == 0


def test_two_containers_at_once(podman: Podman, tree: Mounted) -> None:
    create(podman, "shared")
    let_two_meet(podman, tree, "shared")


def test_content_of_the_image_goes_into_an_empty_volume(podman: Podman, tree: Mounted) -> None:
    arguments = ["run", "--rm", "--network=none", "--volume"]
    create(podman, "empty", "mode=0700")
    assert "from the image" in podman(*arguments, "empty:/data", STOCKED, "cat", "/data/link")
    assert_copied_up(tree.mnt / "empty")
    # The volume itself stays as it is: podman does so only with its own.
    assert (owner(tree.mnt / "empty"), mode(tree.mnt / "empty")) == (0, 0o700)
    create(podman, "full")
    (tree.mnt / "full" / "mine").touch()
    assert podman(*arguments, "full:/data", STOCKED, "ls", "/data").split() == ["mine"]


def test_what_mkdir_makes_podman_runs_after_a_reload(podman: Podman, tree: Mounted) -> None:
    (tree.mnt / "by-hand").mkdir()
    (tree.mnt / "by-hand" / "file").write_text("from the tree")
    podman("volume", "reload")
    assert listed(podman) == ["by-hand"]
    assert run_in(podman, "by-hand", "cat /data/file; touch /data/new") == "from the tree"
    assert (tree.mnt / "by-hand" / "new").exists()
    (tree.mnt / "by-hand").rmdir()
    podman("volume", "reload")
    assert listed(podman) == []


def test_container_of_a_missing_volume_does_not_run(podman: Podman, tree: Mounted) -> None:
    """Not on a directory of podman's own either, where its data would be lost to the volume."""
    create(podman, "gone")
    (tree.mnt / "gone").rmdir()
    script = "touch /data/file; echo it runs"
    refused = podman(
        *("run", "--rm", "--network=none", "--volume", "gone:/data", podman.image),
        *("sh", "-ec", script),
        fails=True,
    )
    assert "gone" in refused and "it runs" not in refused
    assert "gone" not in os.listdir(tree.mnt)
    # The one that is missing keeps none of the others from being listed.
    create(podman, "other")
    assert "other" in listed(podman)
    podman("volume", "rm", "other")
    podman("volume", "reload")
    assert listed(podman) == []


def test_removal_in_use_is_refused_with_the_holder_named(podman: Podman, tree: Mounted) -> None:
    create(podman, "busy")
    container = start(podman, "busy", STAY)
    assert_held_by(tree, "busy", container)
    assert len(references(tree, "busy")) == 1
    assert container in podman("volume", "rm", "busy", fails=True)
    assert_busy(tree, "busy", container)
    podman("rm", "--force", "--time", "0", container)
    assert holders(tree, "busy") == []

    # Of a container with a directory of the tree podman does not know that it holds a volume.
    (tree.mnt / "busy" / "below").mkdir()
    container = podman(
        *("run", "--detach", "--network=none", "--volume", f"{tree.mnt}/busy/below:/data"),
        *(podman.image, "sh", "-ec", STAY),
    ).strip()
    refused = podman("volume", "rm", "busy", fails=True)
    assert "'busy' is in use" in refused and container[:12] in refused
    assert "busy" in listed(podman)
    podman("rm", "--force", "--time", "0", container)

    with (tree.mnt / "busy" / "file").open("w"):
        refused = podman("volume", "rm", "busy", fails=True)
        assert "'busy' is in use" in refused and f"process {os.getpid()} " in refused
    podman("volume", "rm", "busy")
    assert_removed(tree, "busy")


def test_prune(podman: Podman, tree: Mounted) -> None:
    create(podman, "unused")
    create(podman, "used")
    (tree.mnt / "unused" / "file").touch()
    container = start(podman, "used", STAY)
    assert podman("volume", "prune", "--force").split() == ["unused"]
    assert listed(podman) == ["used"]
    assert_removed(tree, "unused")
    restore(tree, "unused")
    assert (tree.mnt / "unused" / "file").exists()
    (tree.mnt / "unused").rmdir()
    assert_held_by(tree, "used", container)


def test_restarted_plugin_knows_who_uses_what(
    podman: Podman, plugin: Plugin, tree: Mounted
) -> None:
    create(podman, "kept")
    plugin.stop()
    plugin.start()
    container = start(podman, "kept", STAY)
    before = references(tree, "kept")
    assert len(before) == 1
    plugin.stop()
    assert_busy(tree, "kept", container)
    plugin.start()
    assert references(tree, "kept") == before
    assert_busy(tree, "kept", container)
    podman("rm", "--force", "--time", "0", container)
    wait_for(lambda: holders(tree, "kept") == [], "the release of the volume")
