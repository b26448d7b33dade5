"""The sessions with containers that README.md shows."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import docker as dockers
from tests.clients import podman as podmans
from tests.clients.plugin import SOCKET, plugin_directory
from tests.clients.test_compose import FILE
from tests.conftest import is_mounted, open_workspace, wait_for
from tests.readme import Session, blocks

pytestmark = pytest.mark.any_level


@pytest.fixture
def session(workspace: Path) -> Iterator[Session]:
    with plugin_directory():
        session = Session(workspace)
        try:
            yield session
        finally:
            if is_mounted(session.mnt):
                subprocess.run(["umount", "-l", session.mnt], check=False)
            wait_for(lambda: not is_mounted(session.mnt) and not SOCKET.exists(), "the end")


def test_the_sessions_with_docker_and_podman_run(session: Session, busybox_image: Path) -> None:
    with_docker, with_podman = blocks("With containers", "sh")
    mount, with_docker = with_docker.split("\n", 1)
    session.run(mount)
    with open_workspace() as base, dockers.serving(base, busybox_image) as dockerd:
        docker = dockerd.docker
        docker("tag", docker.image, "busybox")
        printed = session.run(
            with_docker.replace("docker run ", "docker run --network=none "),
            environment={"DOCKER_HOST": docker.address, "DOCKER_CONFIG": str(base / "client")},
        )
        assert printed.count("hello\n") == 2
        assert '"from": "db"' in printed
    config = blocks("With containers", "toml")
    assert config == [f'[engine.volume_plugins]\nvolfs = "{SOCKET}"\n']
    with podmans.storage(busybox_image, {"volfs": SOCKET}) as podman:
        printed = session.run(
            with_podman.replace("podman run ", "podman run --network=none ").replace(
                " busybox ", f" {podman.image} "
            ),
            before=f'podman() {{ command podman {shlex.join(podman.options)} "$@"; }}\n',
            environment=podman.environment,
        )
        assert printed.count("file\n") == 2


def test_the_compose_file_is_the_one_that_is_tested() -> None:
    assert blocks("With containers", "yaml") == [FILE]
