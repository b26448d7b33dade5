"""Volumes in Thunar, the file manager of Xfce."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.children import USER
from tests.clients.file_manager import FileManager, TreeWindow, contents, open_tree
from tests.clients.programs import run
from tests.conftest import MountFactory

pytestmark = pytest.mark.any_level

THUNAR = FileManager(
    "thunar", folder="{} - Thunar", new_folder="Create New Folder", rename='Rename ".*"'
)


@pytest.fixture
def thunar(
    mount: MountFactory, workspace: Path, request: pytest.FixtureRequest
) -> Iterator[TreeWindow]:
    """Thunar on a tree with the volume ``first``; without gvfs, unless the parameter says so."""
    gvfs = getattr(request, "param", False)
    name = f"thunar-{request.function.__name__}"
    # Asking for the mount has Thunar ended before it is.
    with open_tree(THUNAR, mount, workspace, name, gvfs=gvfs) as window:
        yield window


def test_browsing(thunar: TreeWindow) -> None:
    """What is there, what others make meanwhile, and what is inside."""
    mnt = thunar.tree.mnt
    run("mkdir", mnt / "made meanwhile", user=USER)
    thunar.await_volumes("first", "made meanwhile")
    thunar.desktop.picture("two volumes")
    run("rmdir", mnt / "made meanwhile", user=USER)
    thunar.await_volumes("first")
    thunar.desktop.press("Home", "Return")
    names = ("a directory", "file", "link", "script")
    thunar.await_shown(*(mnt / "first" / name for name in names))
    thunar.desktop.picture("inside")
    thunar.desktop.press("alt+Up")
    thunar.await_volumes("first")


def test_new_folder_is_a_volume(thunar: TreeWindow) -> None:
    thunar.new_folder("my volume")
    thunar.await_volumes("first", "my volume")
    thunar.desktop.picture("made")
    assert contents(thunar.tree.data("my volume")) == {".": ("drwxr-xr-x", USER, USER, b"")}


def test_renaming(thunar: TreeWindow) -> None:
    before = contents(thunar.tree.data("first"))
    thunar.rename("a better name")
    thunar.await_volumes("a better name")
    thunar.desktop.picture("renamed")
    assert contents(thunar.tree.data("a better name")) == before


def test_copy_and_paste(thunar: TreeWindow) -> None:
    thunar.desktop.press("ctrl+c", "ctrl+v")
    thunar.await_volumes("first", "first (copy 1)")
    thunar.desktop.picture("pasted")
    first = contents(thunar.tree.data("first"))
    thunar.desktop.wait_for(
        lambda: contents(thunar.tree.data("first (copy 1)")) == first, "the copy to be complete"
    )


@pytest.mark.parametrize("thunar", [True], indirect=True, ids=["gvfs"])
def test_deletion_is_undone_by_restore(thunar: TreeWindow) -> None:
    """Thunar cannot use its own trash, and offers to delete at once: that is volfs's trash."""
    before = contents(thunar.tree.data("first"))
    thunar.desktop.press("Delete")
    thunar.desktop.await_window("Attention")
    thunar.desktop.picture("offers to delete")
    thunar.desktop.press("alt+y")
    thunar.await_none()
    thunar.desktop.picture("deleted")
    thunar.restore("first")
    assert contents(thunar.tree.data("first")) == before


def test_deletion_file_by_file(thunar: TreeWindow) -> None:
    """With Shift+Delete, Thunar deletes what is inside first, as ``rm -r`` does.

    No file is left when it removes the volume, and none comes back with it.
    """
    thunar.desktop.press("shift+Delete")
    thunar.desktop.await_window("Attention")
    thunar.desktop.picture("asks")
    thunar.desktop.press("Return")
    thunar.await_none()
    thunar.restore("first")
    assert contents(thunar.tree.data("first")) == {".": ("drwxr-xr-x", USER, USER, b"")}
