"""containerd by its own client ctr, on a private socket and without an image."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.containers import ANSWER_TWICE, share_with_process
from tests.clients.programs import daemon, end, require, require_root, run, spawn
from tests.clients.volumes import VolumeDir

CONFIG = """
version = 2
root = "{base}/root"
state = "{base}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]

[grpc]
address = "{base}/sock"
"""


@dataclass(frozen=True)
class Containerd:
    """A client of the private daemon."""

    base: Path

    @property
    def ctr(self) -> tuple[str, ...]:
        return ("ctr", "--address", f"{self.base}/sock")


@pytest.fixture
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    require("containerd", "ctr", "runc")
    require_root()
    base = tmp_path_factory.mktemp("containerd")
    (base / "config.toml").write_text(CONFIG.format(base=base))
    command = ["containerd", "--config", str(base / "config.toml")]
    try:
        with daemon(base / "log", "successfully booted", *command):
            yield Containerd(base)
    finally:
        shutil.rmtree(base)


def test_container_and_host_share_a_volume(
    volume: VolumeDir, containerd: Containerd, busybox_root: Path
) -> None:
    bind = f"type=bind,src={volume.path},dst=/data,options=rbind:rw"
    command = [*containerd.ctr, "run", "--rm", "--rootfs", "--mount", bind]
    container = spawn(*command, busybox_root, "volfs-test", "/bin/sh", "-ec", ANSWER_TWICE)
    try:
        share_with_process(volume, container)
    finally:
        if container.poll() is None:
            run(*containerd.ctr, "task", "kill", "--signal", "SIGKILL", "volfs-test")
        end(container)
