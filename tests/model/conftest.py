"""Scopes and drivers for the tests of the model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import open_descriptors, open_workspace
from tests.model.referring import OpenStore
from tests.model.scopes import OpenDriver, age, hidden_entries
from tests.mount.filesystems import btrfs, xfs
from volfs.local.driver import LocalDriver
from volfs.store.references import Look, References
from volfs.store.store import VolumeStore
from volfs.store.table import Origin

MEMORY = Path("/dev/shm")


@pytest.fixture
def scope(workspace: Path) -> Path:
    """A place for a scope, which is not there yet, that every user can reach."""
    return workspace / "scope"


@pytest.fixture
def quick_scope() -> Iterator[Path]:
    """As ``scope``, in memory where there is such a place: for tests that sync very often."""
    directory = tempfile.mkdtemp(prefix="volfs-test-", dir=MEMORY if MEMORY.is_dir() else None)
    yield Path(directory, "scope")
    shutil.rmtree(directory)


@pytest.fixture
def open_driver(scope: Path) -> Iterator[OpenDriver]:
    """Open the scope. At the end nothing may be left of any work, and no descriptor."""
    before = open_descriptors()
    opened: list[LocalDriver] = []

    def open_it(*, keep_removed: float = 86400.0, keep_free: float = 0.0) -> LocalDriver:
        driver = LocalDriver(scope, keep_removed=keep_removed, keep_free=keep_free)
        opened.append(driver)
        return driver

    yield open_it
    if opened and scope.exists():
        age(scope)
        open_it().housekeep(lambda: False)
        assert hidden_entries(scope) == []
    for driver in opened:
        driver.close()
    assert open_descriptors() == before


@pytest.fixture
def driver(open_driver: OpenDriver) -> LocalDriver:
    """A driver of the scope that keeps what is removed, however full the disk is."""
    return open_driver()


@pytest.fixture
def open_store(scope: Path) -> Iterator[OpenStore]:
    """Open the scope as another process would. At the end no descriptor may be left."""
    before = open_descriptors()
    opened: list[VolumeStore] = []

    def open_it(
        *,
        grace: float = 60.0,
        origin: Origin | None = None,
        look: Callable[[str], Look] | None = None,
    ) -> VolumeStore:
        driver = LocalDriver(scope, keep_free=0)
        references = References(driver.scope, grace=grace, origin=origin, look=look)
        opened.append(VolumeStore([driver], references=references))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()
    assert open_descriptors() == before


@pytest.fixture(scope="module")
def filesystems() -> Iterator[Callable[[str], Path]]:
    """A directory of a filesystem of that kind: made once."""
    with ExitStack() as stack:
        workspace = stack.enter_context(open_workspace())
        found: dict[str, Path] = {"disk": workspace}

        def get(kind: str) -> Path:
            if kind not in found:
                make = {"xfs": xfs, "btrfs": btrfs}[kind]
                found[kind] = stack.enter_context(make(workspace / kind))
            return found[kind]

        yield get


@pytest.fixture
def source(workspace: Path) -> Path:
    path = workspace / "source"
    path.mkdir()
    return path
