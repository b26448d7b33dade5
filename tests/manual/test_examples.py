"""The examples of volfs(8) run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.conftest import is_mounted, wait_for
from tests.documents import PAGES, Session


def test_in_a_tree_and_then_on_its_scope(workspace: Path) -> None:
    (in_tree,) = PAGES["volfs.8"].blocks("In a tree", "sh")
    (on_scope,) = PAGES["volfs.8"].blocks("On a scope", "sh")
    session = Session(workspace)
    try:
        printed = session.run(in_tree)
    finally:
        if is_mounted(session.mnt):
            subprocess.run(["umount", "-l", session.mnt], check=False)
    assert printed.count("hello\n") == 2
    assert "web" in printed
    wait_for(lambda: not is_mounted(session.mnt), "the end of the tree")
    printed = session.run(on_scope)
    assert sorted(os.listdir(session.scope / "volumes")) == ["shop", "shop-2", "site"]
    assert "removed shop-copy" in printed
    assert (session.scope / "volumes" / "shop" / "_data").stat().st_uid == 1000


def test_names_as_they_are_typed(workspace: Path) -> None:
    (block,) = PAGES["volfs.8"].blocks("NAMES", "sh")
    session = Session(workspace)
    mount = "volfs mount /srv/volumes /mnt/volumes\n"
    try:
        printed = session.run(f"{mount}{block}ls /mnt/volumes\n")
    finally:
        if is_mounted(session.mnt):
            subprocess.run(["umount", "-l", session.mnt], check=False)
    assert f"Path:    {session.scope}/volumes/web/_data\n" in printed
    assert printed.endswith("restored news\nnews\nweb\n")
    assert f"volfs restore --scope {session.scope} web-2 brings it back" in printed
