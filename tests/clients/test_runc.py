"""runc, the runtime under podman and dockerd, with a volume bound into the container."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.containers import ANSWER_TWICE, share_with_process
from tests.clients.programs import end, finish, require, require_root, run, spawn
from tests.clients.volumes import VolumeDir
from tests.conftest import Mounted

Start = Callable[[VolumeDir, str], "subprocess.Popen[str]"]


@pytest.fixture
def start(busybox_root: Path, tmp_path: Path, tree: Mounted) -> Iterator[Start]:
    """Runs a shell command in a container that has the volume at /data."""
    require("runc")
    require_root()
    state = tmp_path / "runc"
    running: dict[str, subprocess.Popen[str]] = {}

    def start(volume: VolumeDir, script: str) -> subprocess.Popen[str]:
        container = f"volfs-{tmp_path.name}-{len(running)}"
        bundle = tmp_path / container
        bundle.mkdir()
        run("runc", "spec", cwd=bundle)
        config: dict[str, Any] = json.loads((bundle / "config.json").read_text())
        config["root"] = {"path": str(busybox_root), "readonly": True}
        # Raising limits needs CAP_SYS_RESOURCE, which a test machine may not have.
        config["process"] |= {"terminal": False, "rlimits": [], "args": ["sh", "-ec", script]}
        config["mounts"].append(
            {
                "destination": "/data",
                "type": "bind",
                "source": str(volume.path),
                "options": ["rbind", "rw"],
            }
        )
        (bundle / "config.json").write_text(json.dumps(config))
        running[container] = spawn("runc", "--root", state, "run", "--bundle", bundle, container)
        return running[container]

    # Asking for the tree has the containers ended before it is.
    yield start
    for container, process in running.items():
        if process.poll() is None:
            run("runc", "--root", state, "delete", "--force", container)
        end(process)


def test_volume_in_a_container(volume: VolumeDir, start: Start) -> None:
    share_with_process(volume, start(volume, ANSWER_TWICE))


def test_container_sees_the_volume_as_it_is(volume: VolumeDir, start: Start) -> None:
    """Listing, ownership, modes, links and sizes inside equal those outside."""
    (volume.path / "file").write_text("x" * 5000)
    (volume.path / "file").chmod(0o640)
    (volume.path / "hard").hardlink_to(volume.path / "file")
    (volume.path / "soft").symlink_to("file")
    script = "cd /data && stat -c '%n %F %s %a %u:%g %h %i %Y' . * && readlink soft"
    output = finish(start(volume, script))
    assert output == run("sh", "-ec", script.replace("/data", str(volume.data)))
