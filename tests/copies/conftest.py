"""A tree to copy."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def source(workspace: Path) -> Path:
    path = workspace / "source"
    path.mkdir()
    return path
