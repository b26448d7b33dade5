"""What the clients work on: a mounted volume, and an image that needs no network."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.programs import require, run
from tests.clients.volumes import VolumeDir
from tests.conftest import Mounted


@pytest.fixture
def volume(tree: Mounted) -> VolumeDir:
    """A volume called ``vol``, made by mkdir."""
    return VolumeDir.make(tree, "vol")


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root directory with busybox and its applets: all that a container needs here."""
    require("busybox")
    busybox = Path(shutil.which("busybox") or "")
    linking = run("file", "-bL", busybox) if shutil.which("file") else "static"
    if "static" not in linking:
        pytest.skip("busybox is not the static one (Debian's busybox-static)")
    root = tmp_path_factory.mktemp("busybox") / "root"
    for directory in ("bin", "data", "dev", "etc", "proc", "sys", "tmp"):
        (root / directory).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    for applet in run(busybox, "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    return root


@pytest.fixture(scope="session")
def busybox_image(busybox_root: Path) -> Iterator[Path]:
    """The same root as a tar archive, for ``docker import`` and ``podman import``."""
    archive = busybox_root.with_name("busybox.tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(busybox_root, ".")
    yield archive
    archive.unlink()
