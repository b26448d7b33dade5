"""The sessions with containers that README.md and the manual show."""

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
from tests.documents import PAGES, README, Session

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


MANUAL = PAGES["volfs.8"]


def test_the_sessions_with_docker_and_podman_run(session: Session, busybox_image: Path) -> None:
    (with_docker,) = README.blocks("With containers", "sh")
    mount, with_docker = with_docker.split("\n", 1)
    note, mount_again, more_with_docker = MANUAL.blocks("Docker", "sh")[0].split("\n", 2)
    assert mount.startswith(mount_again)
    assert note.startswith("#")
    session.run(mount)
    with open_workspace() as base, dockers.serving(base, busybox_image) as dockerd:
        docker = dockerd.docker
        docker("tag", docker.image, "busybox")
        for text, greetings in ((with_docker, 1), (more_with_docker, 2)):
            printed = session.run(
                text.replace("docker run ", "docker run --network=none "),
                environment={"DOCKER_HOST": docker.address, "DOCKER_CONFIG": str(base / "client")},
            )
            assert printed.count("hello\n") == greetings
            docker("volume", "rm", "db")
        assert '"from": "db"' in printed
    assert MANUAL.blocks("Podman", "toml") == [f'[engine.volume_plugins]\nvolfs = "{SOCKET}"\n']
    (with_podman,) = MANUAL.blocks("Podman", "sh")
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
    assert MANUAL.blocks("Compose", "yaml") == [FILE]
