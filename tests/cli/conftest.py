"""A scope to run commands on, and places for a mount in the background."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.background import Background, ending
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


@pytest.fixture
def place(workspace: Path) -> Iterator[Background]:
    """An empty scope and mount point. What is mounted there in the end is unmounted."""
    with ending(Background(workspace / "scope", workspace / "mnt", workspace / "log")) as place:
        (place.scope / "volumes").mkdir(parents=True)
        yield place
