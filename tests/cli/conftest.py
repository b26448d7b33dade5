"""A scope to run commands on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import volfs


@pytest.fixture
def scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scope that commands find by themselves."""
    path = tmp_path / "scope"
    monkeypatch.setenv("VOLFS_SCOPE", str(path))
    return path


@pytest.fixture
def web(scope: Path) -> Path:
    """The data path of a volume ``web`` with a file in it."""
    assert volfs("create", "web", "--label", "team=blue").code == 0
    data = scope / "volumes/web/_data"
    (data / "index.html").write_text("hello")
    return data
