"""A dockerd of our own on a private socket, and its client."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.clients.containers import Engine
from tests.clients.programs import daemon, require, require_root, run
from tests.conftest import wait_for


class Docker(Engine):
    """A client of the private daemon."""

    image = "busybox:1"

    @property
    def address(self) -> str:
        """Where the daemon listens, as ``DOCKER_HOST`` has it."""
        return f"unix://{self.base}/docker.sock"

    def __call__(self, *words: str | os.PathLike[str], fails: bool = False) -> str:
        environment = {"DOCKER_CONFIG": str(self.base / "client")}
        return run("docker", "--host", self.address, *words, env=environment, fails=fails)

    def remove_all(self) -> None:
        if containers := self("ps", "--all", "--quiet").split():
            self("rm", "--force", *containers)


class Dockerd:
    """A dockerd 20.10 or later that has no network and keeps all it has below ``base``."""

    def __init__(self, base: Path) -> None:
        self.docker = Docker(base)
        self._base = base
        self._running = ExitStack()

    def start(self) -> None:
        """Start it; returns when it answers."""
        base = self._base
        command: list[str | os.PathLike[str]] = [
            *("dockerd", "--host", self.docker.address),
            *("--data-root", base / "data", "--exec-root", base / "exec"),
            *("--pidfile", base / "pid", "--storage-driver=vfs", "--bridge=none"),
            *("--iptables=false", "--ip6tables=false", "--ip-forward=false"),
            *("--ip-masq=false", "--exec-opt", "native.cgroupdriver=cgroupfs"),
        ]
        # On SIGTERM dockerd ends the containerd it started as well.
        self._running.enter_context(daemon(base / "log", "API listen on", *command))

    def stop(self) -> None:
        """End it, and with it its containers."""
        self._running.close()

    @property
    def log(self) -> str:
        """What it has logged since it was started last."""
        return (self._base / "log").read_text(errors="replace")


@contextmanager
def serving(base: Path, image: Path) -> Iterator[Dockerd]:
    """A running dockerd that has one image; nothing of it is left afterwards."""
    require("dockerd", "docker", "containerd", "runc")
    require_root()
    base.mkdir(exist_ok=True)
    dockerd = Dockerd(base)
    try:
        dockerd.start()
        dockerd.docker("import", image, Docker.image)
        yield dockerd
    finally:
        try:
            dockerd.stop()
        finally:
            _end_leftovers(base)
            shutil.rmtree(base)


def _end_leftovers(base: Path) -> None:
    """No containerd and no shim outlives the daemon; one that does is ended, and fails the test."""
    try:
        wait_for(lambda: not _processes_below(base), f"the end of what serves {base}")
    except pytest.fail.Exception:
        for pid in _processes_below(base):
            os.kill(pid, signal.SIGKILL)
        raise


def _processes_below(base: Path) -> list[int]:
    """The processes that have a path below ``base`` among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if os.fsencode(base) + b"/" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
