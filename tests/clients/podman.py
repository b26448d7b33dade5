"""podman as root, with storage of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.clients.containers import Engine
from tests.clients.programs import require, require_root, run
from tests.conftest import open_workspace

CONFIG = """
[containers]
# Raising limits needs CAP_SYS_RESOURCE, which a test machine may not have.
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]

[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
# In files of our own storage instead of shared memory that outlives the test.
lock_type = "file"
"""


class Podman(Engine):
    """A podman with private storage."""

    image = "localhost/busybox:1"

    def __call__(self, *words: str | os.PathLike[str], fails: bool = False) -> str:
        return run("podman", *self.options, *words, env=self.environment, fails=fails)

    @property
    def options(self) -> list[str]:
        """What makes podman use this storage, together with the environment."""
        return [
            *("--root", str(self.base / "root"), "--runroot", str(self.base / "run")),
            *("--tmpdir", str(self.base / "tmp"), "--storage-driver", "vfs"),
        ]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CONTAINERS_CONF": str(self.base / "containers.conf"),
            # Podman 5 else warns in each output on a host with version 1 of control groups.
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
        }

    def remove_all(self) -> None:
        self("rm", "--all", "--force", "--time", "0")


@contextmanager
def storage(image: Path, volume_plugins: Mapping[str, Path] | None = None) -> Iterator[Podman]:
    """A podman that has one image, and these volume plugins by name; removed afterwards."""
    require("podman", "runc", "conmon")
    require_root()
    plugins = "".join(f'{name} = "{socket}"\n' for name, socket in (volume_plugins or {}).items())
    with open_workspace() as base:  # podman wants a short path for its sockets
        (base / "containers.conf").write_text(f"{CONFIG}\n[engine.volume_plugins]\n{plugins}")
        podman = Podman(base)
        podman("import", image, podman.image)
        yield podman
