"""Docker Compose with a volume of the plugin in its file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import docker as dockers
from tests.clients.docker import Docker
from tests.clients.plugin import DRIVER, holders, label, mode, owner, plugin_directory, restore
from tests.clients.programs import require, run
from tests.conftest import Mounted, mounting, open_workspace, wait_for

pytestmark = pytest.mark.any_level

FILE = """\
services:
  counter:
    image: busybox:1
    network_mode: none
    command: sh -c 'echo started >> /counts/log; exec sleep 1000'
    volumes:
      - counts:/counts
volumes:
  counts:
    driver: volfs
    driver_opts:
      uid: "1000"
      mode: "0750"
      label.team: web
"""
"""A compose file as one writes it; volfs(8) shows the same."""

VOLUME = "demo_counts"
"""Compose puts the project's name before that of a volume."""


@pytest.fixture(scope="module")
def tree() -> Iterator[Mounted]:
    """Served by one process with the plugin, which listens where dockerd looks for it."""
    with plugin_directory(), open_workspace() as workspace, mounting(workspace) as mount:
        yield mount(plugin=True)


@pytest.fixture(scope="module")
def docker(tree: Mounted, busybox_image: Path) -> Iterator[Docker]:
    with open_workspace() as base, dockers.serving(base / "d", busybox_image) as dockerd:
        yield dockerd.docker
        dockerd.docker.remove_all()


def compose_command() -> list[str]:
    """Compose as a program (version 1, and Debian's version 2) or a plugin of the client."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    require("docker")
    known = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if known.returncode != 0:
        pytest.skip("not installed: docker-compose")
    return ["docker", "compose"]


class Compose:
    """Compose with a project called demo."""

    def __init__(self, docker: Docker, directory: Path) -> None:
        self._directory = directory
        self._environment = {
            "DOCKER_HOST": docker.address,
            "DOCKER_CONFIG": str(docker.base / "client"),
        }
        self._command = compose_command()
        (directory / "compose.yaml").write_text(FILE)

    def __call__(self, *words: str, fails: bool = False) -> str:
        return run(
            *(*self._command, "--project-name", "demo", *words),
            cwd=self._directory,
            env=self._environment,
            fails=fails,
        )


@pytest.fixture
def compose(docker: Docker, tmp_path: Path) -> Iterator[Compose]:
    compose = Compose(docker, tmp_path)
    yield compose
    compose("down", "--volumes", "--timeout", "0")


def test_up_down_and_up_again(compose: Compose, docker: Docker, tree: Mounted) -> None:
    log = tree.mnt / VOLUME / "log"
    compose("up", "--detach")
    wait_for(lambda: log.exists() and log.read_text() == "started\n", "the service")
    assert (owner(tree.mnt / VOLUME), mode(tree.mnt / VOLUME)) == (1000, 0o750)
    assert label(tree, VOLUME, "team") == "web"
    container = docker("ps", "--quiet", "--no-trunc").strip()
    assert container in {holder["container"] for holder in holders(tree, VOLUME)}
    assert container in docker("volume", "rm", VOLUME, fails=True)

    compose("down", "--timeout", "0")
    assert holders(tree, VOLUME) == []
    assert log.read_text() == "started\n", "the volume stays, and its data"
    compose("up", "--detach")
    wait_for(lambda: log.read_text() == "started\n" * 2, "the service again")
    compose("down", "--volumes", "--timeout", "0")
    assert os.listdir(tree.mnt) == []

    restore(tree, VOLUME)
    assert log.read_text() == "started\n" * 2
    # Docker knows the options of what it made itself, and Compose compares them with its file.
    options = ("--opt", "uid=1000", "--opt", "mode=0750", "--opt", "label.team=web")
    docker("volume", "create", "--driver", DRIVER, *options, VOLUME)
    compose("up", "--detach")
    wait_for(lambda: log.read_text() == "started\n" * 3, "the service with the old data")
