"""What the clients work on: a mounted volume, and an image that needs no network."""

from __future__ import annotations

import re
import shutil
import subprocess
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
def busybox() -> Path:
    """A busybox that runs where there is nothing else, not even a C library."""
    require("busybox", "ldd")
    busybox = Path(shutil.which("busybox") or "")
    linked = subprocess.run(["ldd", busybox], capture_output=True, text=True, check=False)
    if not re.search("not a dynamic executable|statically linked", linked.stdout + linked.stderr):
        pytest.skip("busybox is not linked statically: install Debian's busybox-static")
    return busybox


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory, busybox: Path) -> Path:
    """A root directory with busybox and its applets: all that a container needs here."""
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
