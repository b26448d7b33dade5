"""Volumes in PCManFM, the file manager of LXDE."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.children import USER
from tests.clients.file_manager import FileManager, TreeWindow, contents, open_tree
from tests.clients.programs import run
from tests.conftest import MountFactory

pytestmark = pytest.mark.any_level

PCMANFM = FileManager(
    "pcmanfm", folder="{}", new_folder="Creating New Folder", rename="Rename File"
)


@pytest.fixture
def pcmanfm(
    mount: MountFactory, workspace: Path, request: pytest.FixtureRequest
) -> Iterator[TreeWindow]:
    """PCManFM on a tree with the volume ``first``."""
    # Asking for the mount has PCManFM ended before it is.
    with open_tree(PCMANFM, mount, workspace, f"pcmanfm-{request.function.__name__}") as window:
        yield window


def test_browsing(pcmanfm: TreeWindow) -> None:
    """What is there, what others make meanwhile, and what is inside."""
    mnt = pcmanfm.tree.mnt
    run("mkdir", mnt / "made meanwhile", user=USER)
    pcmanfm.await_volumes("first", "made meanwhile")
    pcmanfm.desktop.picture("two volumes")
    run("rmdir", mnt / "made meanwhile", user=USER)
    pcmanfm.await_volumes("first")
    pcmanfm.desktop.press("Home", "Return")
    names = ("a directory", "file", "link", "script")
    pcmanfm.await_shown(*(mnt / "first" / name for name in names))
    pcmanfm.desktop.picture("inside")
    pcmanfm.desktop.press("alt+Up")
    pcmanfm.await_volumes("first")


def test_new_folder_is_a_volume(pcmanfm: TreeWindow) -> None:
    pcmanfm.new_folder("my volume")
    pcmanfm.await_volumes("first", "my volume")
    pcmanfm.desktop.picture("made")
    assert contents(pcmanfm.tree.data("my volume")) == {".": ("drwxr-xr-x", USER, USER, b"")}


def test_renaming(pcmanfm: TreeWindow) -> None:
    before = contents(pcmanfm.tree.data("first"))
    pcmanfm.rename("a better name")
    pcmanfm.await_volumes("a better name")
    pcmanfm.desktop.picture("renamed")
    assert contents(pcmanfm.tree.data("a better name")) == before


def test_copy_and_paste(pcmanfm: TreeWindow) -> None:
    """PCManFM asks for the copy's name."""
    pcmanfm.desktop.press("ctrl+c", "ctrl+v")
    pcmanfm.desktop.await_window("Confirm File Replacing")
    pcmanfm.desktop.type("a copy")
    pcmanfm.desktop.picture("asks for a name")
    pcmanfm.desktop.press("alt+r")
    pcmanfm.await_volumes("first", "a copy")
    pcmanfm.desktop.picture("pasted")
    first = contents(pcmanfm.tree.data("first"))
    pcmanfm.desktop.wait_for(
        lambda: contents(pcmanfm.tree.data("a copy")) == first, "the copy to be complete"
    )


def test_deletion_is_undone_by_restore(pcmanfm: TreeWindow) -> None:
    """PCManFM cannot use its own trash, and offers to delete at once: that is volfs's trash."""
    before = contents(pcmanfm.tree.data("first"))
    pcmanfm.desktop.press("Delete")
    question = pcmanfm.desktop.await_window("Confirm")
    pcmanfm.desktop.picture("asks")
    pcmanfm.desktop.press("Return")
    pcmanfm.desktop.await_window("Confirm", other_than=question)
    pcmanfm.desktop.picture("offers to delete")
    pcmanfm.desktop.press("Return")
    pcmanfm.await_none()
    pcmanfm.desktop.picture("deleted")
    pcmanfm.restore("first")
    assert contents(pcmanfm.tree.data("first")) == before


def test_deletion_without_a_trash_is_undone_by_restore(pcmanfm: TreeWindow) -> None:
    """With Shift+Delete; PCManFM removes the folder first, and finds all done."""
    before = contents(pcmanfm.tree.data("first"))
    pcmanfm.desktop.press("shift+Delete")
    pcmanfm.desktop.await_window("Confirm")
    pcmanfm.desktop.picture("asks")
    pcmanfm.desktop.press("Return")
    pcmanfm.await_none()
    pcmanfm.restore("first")
    assert contents(pcmanfm.tree.data("first")) == before
