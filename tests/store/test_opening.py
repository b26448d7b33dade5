"""A scope opened with all that belongs to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import MountFactory
from volfs.errors import ScopeError, VolumeInUseError
from volfs.store import open_scope

pytestmark = [pytest.mark.any_level, pytest.mark.usefixtures("nothing_stays_open")]


def test_is_made_and_knows_its_references(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with open_scope(tmp_path / "link" / "scope") as opened:
        assert opened.path == str(tmp_path / "scope")
        opened.store.create("vol")
        opened.store.acquire("vol", "a runtime")
    with open_scope(tmp_path / "scope") as again:
        assert again.store.references("vol") == {"a runtime"}
        with pytest.raises(VolumeInUseError, match="a runtime"):
            again.store.remove("vol")


def test_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ScopeError), open_scope(tmp_path / "file"):
        pass


def test_keeps_removed_volumes_as_long_as_told(tmp_path: Path) -> None:
    with open_scope(tmp_path, keep_removed=0) as opened:
        opened.store.create("vol")
        opened.store.remove("vol")
        assert len(opened.store.removed()) == 1
        opened.store.housekeep(lambda: False)
        assert opened.store.removed() == []


@pytest.mark.parametrize(
    ("once", "open_files", "found"),
    [(False, True, [0, 1, 0]), (True, True, [0, 0, 0]), (False, False, [0, 1, 0])],
)
def test_looks_for_open_files_as_told(
    mount: MountFactory, once: bool, open_files: bool, found: list[int]
) -> None:
    """Those in trees of other processes always are: only of its own does a daemon know better."""
    tree = mount()
    (tree.mnt / "vol").mkdir()
    with open_scope(tree.scope, once=once, open_files=open_files) as opened:
        holders = [len(opened.store.holders("vol"))]
        fd = os.open(tree.mnt / "vol", os.O_RDONLY)
        holders.append(len(opened.store.holders("vol")))
        os.close(fd)
        holders.append(len(opened.store.holders("vol")))
    assert holders == found
