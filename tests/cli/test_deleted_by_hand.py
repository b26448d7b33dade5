"""A volume that was deleted by hand while a runtime used it, and one that takes its name."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.running import PROGRAM, ROOT, names, volfs
from volfs.local import LocalDriver
from volfs.store import References, VolumeStore

pytestmark = pytest.mark.any_level


def import_a() -> int:
    packed = subprocess.run([*PROGRAM, "export", "web"], capture_output=True, cwd=ROOT, check=True)
    command = [*PROGRAM, "import", "a"]
    return subprocess.run(command, input=packed.stdout, cwd=ROOT, check=False).returncode


WAYS: dict[str, Callable[[], int]] = {
    "create": lambda: volfs("create", "a").code,
    "clone": lambda: volfs("clone", "web", "a").code,
    "import": import_a,
    "restore": lambda: volfs("restore", "a").code,
    "restore as": lambda: volfs("restore", "gone", "--as", "a").code,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_new_one_can_be_removed(web: Path, scope: Path, way: str) -> None:
    for name in ("a", "gone"):
        assert volfs("create", name).code == 0
        assert volfs("rm", name).code == 0
    assert volfs("create", "a").code == 0
    acquire(scope, "a", "a runtime")
    assert volfs("rm", "a").code == 6
    shutil.rmtree(scope / "volumes/a")
    assert WAYS[way]() == 0
    removed = volfs("rm", "a")
    assert (removed.code, removed.err) == (0, "")
    assert names() == ["web"]


def acquire(scope: Path, name: str, reference: str) -> None:
    driver = LocalDriver(scope)
    store = VolumeStore([driver], references=References(driver.scope))
    store.acquire(name, reference)
    store.close()
