"""containerd by its own client ctr, on a private socket and without an image."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.containers import ANSWER_TWICE, converse, say_goodbye
from tests.clients.programs import DEADLINE, end, require, require_root, run
from tests.clients.volumes import VolumeDir
from tests.conftest import wait_for

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
    with (base / "log").open("w") as log:
        daemon = subprocess.Popen(
            ["containerd", "--config", base / "config.toml"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        wait_for(
            lambda: daemon.poll() is not None or "successfully booted" in _text(base / "log"),
            "containerd",
        )
        assert daemon.poll() is None, _text(base / "log")
        yield Containerd(base)
    finally:
        end(daemon, by=signal.SIGTERM)
        shutil.rmtree(base)


def _text(log: Path) -> str:
    return log.read_text(errors="replace")


def test_container_and_host_share_a_volume(
    volume: VolumeDir, containerd: Containerd, busybox_root: Path
) -> None:
    bind = f"type=bind,src={volume.path},dst=/data,options=rbind:rw"
    command = [*containerd.ctr, "run", "--rm", "--rootfs", "--mount", bind]
    container = subprocess.Popen(
        [*command, str(busybox_root), "volfs-test", "/bin/sh", "-ec", ANSWER_TWICE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        converse(volume)
        volume.assert_busy()
        say_goodbye(volume)
        output, _ = container.communicate(timeout=DEADLINE)
        assert container.returncode == 0, output
        volume.remove()
    finally:
        if container.poll() is None:
            run(*containerd.ctr, "task", "kill", "--signal", "SIGKILL", "volfs-test")
        end(container)
