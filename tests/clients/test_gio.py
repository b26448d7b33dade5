"""Volumes by ``gio``, the command line of the library that GTK's file managers work with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.children import USER
from tests.clients.file_manager import FILL, contents
from tests.clients.programs import require, require_root, run
from tests.conftest import MountFactory, mounting, open_workspace, volfs

pytestmark = pytest.mark.any_level


class Gio:
    """``gio`` as USER, in a tree with the volumes ``vol``, with some data, and ``other``."""

    def __init__(self, mount: MountFactory, directory: Path) -> None:
        require("gio")
        require_root()
        self.home = directory / "home"
        self.home.mkdir()
        os.chown(self.home, USER, USER)
        self.tree = mount(root_mode="1777")
        self.mnt = self.tree.mnt
        self("mkdir", "vol", "other")
        run("sh", "-euc", FILL, cwd=self.mnt / "vol", user=USER)

    def __call__(self, *arguments: str, fails: bool = False, stdin: str | None = None) -> str:
        """Run it in the root of the tree; return what it printed, both streams together."""
        environment = {"LC_ALL": "C.UTF-8", "GIO_USE_VFS": "local", "HOME": str(self.home)}
        return run(
            "gio",
            *arguments,
            fails=fails,
            stdin=stdin,
            cwd=self.mnt,
            env=environment,
            user=USER,
        )

    def everything(self) -> object:
        """All that is in the tree, all that is where volumes are kept, what was removed."""
        volumes = sorted(os.listdir(self.tree.scope / "volumes"))
        return contents(self.mnt), volumes, sorted(os.listdir(self.tree.scope / "trash"))


@pytest.fixture
def gio(mount: MountFactory, workspace: Path) -> Gio:
    return Gio(mount, workspace)


@pytest.fixture(scope="module")
def unchanging() -> Iterator[Gio]:
    """In a tree that no test changes, so that one does for many."""
    with open_workspace() as workspace, mounting(workspace) as mount:
        yield Gio(mount, workspace)


def test_volumes(gio: Gio) -> None:
    """What a user does with volumes: make, see, rename, fill, remove."""
    gio("mkdir", "my volume")
    assert sorted(gio("list").splitlines()) == ["my volume", "other", "vol"]
    assert contents(gio.tree.data("my volume")) == {".": ("drwxr-xr-x", USER, USER, b"")}
    gio("rename", "my volume", "your volume")
    gio("copy", "vol/file", "your volume")
    gio("move", "vol/a directory/data", "your volume")
    gio("save", "your volume/saved", stdin="some text")
    assert gio("cat", "your volume/saved") == "some text"
    assert sorted(os.listdir(gio.tree.data("your volume"))) == ["data", "file", "saved"]
    gio("mkdir", "--parent", "a new volume/a directory")
    gio("remove", "a new volume")
    assert sorted(gio("list", "--hidden").splitlines()) == ["other", "vol", "your volume"]


def test_what_it_shows(gio: Gio) -> None:
    shown = gio("info", "vol")
    assert "type: directory" in shown
    assert f"unix::uid: {USER}" in shown
    assert "access::can-rename: TRUE" in shown
    assert "access::can-delete: TRUE" in shown
    tree = gio("tree")
    assert all(f"-- {name}\n" in tree for name in ("other", "vol", "a directory", "data"))
    assert "filesystem::type: fuse" in gio("info", "--filesystem", "vol")


def test_removal_is_undone_by_restore(gio: Gio) -> None:
    before = contents(gio.tree.data("vol"))
    gio("remove", "vol")
    assert not gio.tree.data("vol").exists()
    volfs(gio.tree.scope, "restore", "vol")
    assert contents(gio.tree.data("vol")) == before


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("trash vol", "Unable to find or create trash directory"),
        ("trash vol/file", "Unable to find or create trash directory"),
        ("mkdir vol", "File exists"),
        ("mkdir .hidden", "Invalid filename"),
        (f"mkdir .Trash-{USER}", "Invalid filename"),
        ("mkdir --parent .Trash/files", "Invalid filename"),
        ("rename vol other", "filename already exists"),
        ("rename vol .vol", "Invalid filename"),
        ("copy vol new", "Can’t recursively copy directory"),
        ("move vol other", "Can’t recursively copy directory"),
        ("copy vol/file .", "Operation not permitted"),
        ("move vol/file .", "Operation not permitted"),
        ("save file", "Operation not permitted"),
        ("save .hidden", "Operation not permitted"),
        ("save .directory", "Operation not permitted"),
        ("save .xdg-volume-info", "Operation not permitted"),
        ("remove nothing", "No such file or directory"),
        ("info .Trash", "No such file or directory"),
        ("cat vol", "Is a directory"),
    ],
)
def test_refusals_leave_nothing_behind(unchanging: Gio, command: str, says: str) -> None:
    before = unchanging.everything()
    printed = unchanging(*command.split(), fails=True, stdin="text")
    assert says in printed
    assert len(printed.splitlines()) == 1
    assert unchanging.everything() == before


def test_volume_in_use_is_not_removed(unchanging: Gio) -> None:
    before = unchanging.everything()
    with (unchanging.mnt / "vol" / "file").open():
        assert "Device or resource busy" in unchanging("remove", "vol", fails=True)
    assert unchanging.everything() == before
