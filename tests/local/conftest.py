"""Scopes and drivers of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import open_descriptors
from tests.local.scopes import OpenDriver, age, hidden_entries
from volfs.local import LocalDriver

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
