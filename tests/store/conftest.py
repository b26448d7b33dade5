"""Stores on a scope."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import open_descriptors
from tests.local.conftest import driver, open_driver, quick_scope, scope
from tests.store.referring import OpenStore
from volfs.local import LocalDriver
from volfs.store import VolumeStore
from volfs.store.references import Look, References
from volfs.store.table import Origin

__all__ = ["driver", "open_driver", "open_store", "quick_scope", "scope"]


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
