"""Which volume a path names: people give paths in a tree, as a shell completes them.

A tree is one that ``usage`` takes for one, and so is the scope that it belongs to. What mounts
there are is read once. Nothing of a tree is touched: neither a daemon that does not answer nor a
link that somebody made in a volume has a say in what a path means.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from volfs.linux.mountinfo import DELETED, Mount, MountTable
from volfs.store.namespaces import Namespace, Namespaces
from volfs.store.trees import FSTYPE
from volfs.store.usage import Scan


@dataclass(frozen=True, slots=True)
class TreePath:
    """A path in a tree: ``scope`` is the tree's (a real path), ``inside`` the names on the way
    from the tree's root, ``root`` the path at which that is seen, if it is."""

    scope: str
    inside: tuple[str, ...]
    root: str | None


class MountedTrees:
    """The trees in our own mount namespace, of whatever scope."""

    def __init__(self) -> None:
        self._space: Namespace | None = None
        self._table = MountTable(())
        self._known: dict[int, bool] = {}
        # Most often there is none, and then it takes no time to tell.
        if f" {FSTYPE} ".encode() in Path("/proc/self/mountinfo").read_bytes():
            spaces = Namespaces()
            self._space = spaces.own
            self._table = MountTable(spaces.mounts(self._space))

    def roots(self) -> list[TreePath]:
        """Return the roots of all trees that are mounted, in the order of the mount table."""
        return [
            TreePath(mount.source, (), mount.point)
            for mount in self._table
            if mount.root == "/" and self._is_tree(mount)
        ]

    def here(self) -> TreePath | None:
        """Return where in a tree the working directory is, None when in none."""
        if self._space is None:
            return None
        try:
            return self.at(os.getcwd())
        except FileNotFoundError:
            return None  # it was removed

    def find(self, path: str) -> TreePath | None:
        """Return what a path means, as rmdir(2) would take it, None when it is in no tree.

        Links on the way to the tree are followed, those in it, and one at the end, are not. It
        need not exist. Raises OSError when the working directory was removed.
        """
        if self._space is None:
            return None
        *way, last = [name for name in path.split("/") if name not in ("", ".")] or ["."]
        place = "/" if path.startswith("/") else os.getcwd()
        for name in way:
            place = os.path.normpath(os.path.join(place, name))
            # A mount point is no link, and what is in a tree is looked at by nobody.
            if self.at(place) is None:
                place = os.path.realpath(place)
        return self.at(os.path.normpath(os.path.join(place, last)))

    def at(self, path: str) -> TreePath | None:
        """The same for an absolute real path."""
        way = self._table.way_to(path)
        for mount, covering in zip(reversed(way), [None, *reversed(way)], strict=False):
            if self._is_tree(mount):
                # What covers all of the tree has taken its place; a volume is one covered too.
                if covering is not None and covering.point == mount.point:
                    return None
                beyond = path[len(mount.point.rstrip("/")) :]
                inside = [name for name in f"{mount.root}/{beyond}".split("/") if name]
                root = mount.point if mount.root == "/" else None
                return TreePath(mount.source, tuple(inside), root)
        return None

    def _is_tree(self, mount: Mount) -> bool:
        if mount.fstype != FSTYPE or mount.root.endswith(DELETED) or self._space is None:
            return False
        if mount.id not in self._known:
            # Its source says which scope to ask for its trees, and proves nothing.
            scope = mount.source
            self._known[mount.id] = os.path.isabs(scope) and Scan(scope).is_tree(mount, self._space)
        return self._known[mount.id]
