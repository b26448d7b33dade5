"""A file manager's window on a tree, driven by keys, and what is done with volumes in it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.children import USER
from tests.clients.desktop import Desktop, Window, open_desktop
from tests.clients.programs import require, run
from tests.conftest import Mounted, MountFactory, volfs

FILL = """
echo text > file; chmod 640 file
printf '#!/bin/sh\\n' > script; chmod 755 script
mkdir 'a directory'; head -c 300000 /dev/urandom > 'a directory/data'
ln -s file link
"""
"""A shell's commands that put some of everything that people have into a directory."""


@dataclass(frozen=True)
class FileManager:
    """A program, and the titles of its windows: regular expressions."""

    program: str
    folder: str
    """The window that shows a folder; ``{}`` stands for the folder's name."""
    new_folder: str
    rename: str


class TreeWindow:
    """A file manager that shows the root of a tree, in which one volume, ``first``, has data.

    Keys act on what is selected, and what is selected is always everything shown.
    """

    def __init__(self, manager: FileManager, desktop: Desktop, tree: Mounted) -> None:
        self.desktop = desktop
        self.tree = tree
        self._manager = manager
        self.window = self.await_folder(tree.mnt)

    def await_folder(self, folder: Path) -> Window:
        """Wait until keys go to a window that shows this folder."""
        title = self._manager.folder.format(re.escape(folder.name))
        return self.desktop.await_window(title)

    def await_shown(self, *paths: Path) -> None:
        """Wait until exactly these are shown, all in one folder, and leave them selected."""
        self.await_folder(paths[0].parent)

        def are_shown() -> bool:
            self.desktop.press("ctrl+a", "ctrl+c")
            return self.desktop.copied() == set(paths)

        self.desktop.wait_for(are_shown, f"these to be shown: {paths}")

    def await_volumes(self, *names: str) -> None:
        """Wait until exactly these volumes are shown; no others exist."""
        self.await_shown(*(self.tree.mnt / name for name in names))
        self.assert_volumes(*names)

    def restore(self, name: str) -> None:
        """Bring the one volume back, and wait until it is shown."""
        volfs(self.tree.scope, "restore", name)
        self.desktop.wait_for(lambda: os.listdir(self.tree.mnt) == [name], "the volume")
        # What the command line does is done behind the mount, where nobody is told of it.
        self.desktop.press("F5")
        self.await_volumes(name)

    def await_none(self) -> None:
        """Wait until no volume exists, and none is asked about any more."""
        self.desktop.wait_for(lambda: not os.listdir(self.tree.mnt), "no volume to exist")
        self.await_folder(self.tree.mnt)
        self.assert_volumes()

    def assert_volumes(self, *names: str) -> None:
        """Exactly these volumes exist, and nothing else lies where volumes are kept."""
        assert sorted(os.listdir(self.tree.mnt)) == sorted(names)
        assert sorted(os.listdir(self.tree.scope / "volumes")) == sorted(names)

    def new_folder(self, name: str) -> None:
        self.desktop.press("ctrl+shift+n")
        self._fill_in(self._manager.new_folder, name)

    def rename(self, name: str) -> None:
        """Rename the one selected volume."""
        self.desktop.press("F2")
        self._fill_in(self._manager.rename, name)

    def _fill_in(self, title: str, text: str) -> None:
        dialog = self.desktop.await_window(title)
        self.desktop.press("ctrl+a")
        self.desktop.type(text)
        self.desktop.picture(dialog.title)
        self.desktop.press("Return")
        self.await_folder(self.tree.mnt)


@contextmanager
def open_tree(
    manager: FileManager, mount: MountFactory, workspace: Path, name: str, *, gvfs: bool = False
) -> Iterator[TreeWindow]:
    """The window of a file manager of USER on a new tree in which everybody may make volumes.

    ``name`` begins the names of the pictures taken.
    """
    require(manager.program)
    tree = mount(root_mode="1777")
    run("mkdir", tree.mnt / "first", user=USER)
    run("sh", "-euc", FILL, cwd=tree.mnt / "first", user=USER)
    with open_desktop(workspace, name, gvfs=gvfs) as desktop:
        desktop.start(manager.program, tree.mnt)
        window = TreeWindow(manager, desktop, tree)
        window.await_volumes("first")
        desktop.picture("opened")
        yield window


def contents(directory: Path) -> dict[str, tuple[str, int, int, bytes]]:
    """All that is in a directory, and itself: type and mode, owner, group, data."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        status = path.lstat()
        data = b""
        if path.is_symlink():
            data = os.readlink(os.fsencode(path))
        elif path.is_file():
            data = path.read_bytes()
        name = str(path.relative_to(directory))
        found[name] = (stat.filemode(status.st_mode), status.st_uid, status.st_gid, data)
    return found
