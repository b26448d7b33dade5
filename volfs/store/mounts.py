"""The mounts of all namespaces that concern a scope: those of its trees, and of or on its volumes.

There can be tens of thousands of mounts on a machine, with paths of any length: they are looked
at one by one, and what is kept is one entry for each that concerns the scope.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from volfs.linux.mountinfo import DELETED, Mount, Place, is_inside
from volfs.store.namespaces import Namespace, Namespaces


class TreeMount(NamedTuple):
    """A mount of a tree: the path in the tree that it shows, and its mount point seen from us."""

    device: str
    root: str
    point: str

    def within(self, path: str) -> str | None:
        """Return the path in the tree of a file that is seen at a path from us."""
        if not is_inside(path, self.point):
            return None
        return _join(self.root, path[len(self.point.rstrip("/")) :])


class _Shown(NamedTuple):
    """A mount on which something may be mounted that concerns us.

    ``skip`` is the length of its mount point, which the mount points on it begin with. Of a part
    of a tree ``root`` is no more than the volume: it can be of any length.
    """

    device: str
    root: str
    skip: int
    is_tree: bool

    def place_of(self, point: str) -> Place:
        return Place(
            self.device, _join(self.root.rstrip("/"), point[self.skip :]).rstrip("/") or "/"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """A mount that shows or covers something of a volume, and the directory it covers."""

    point: str
    space: Namespace
    attached: Place | None


@dataclass(slots=True)
class Mounts:
    """The mounts of all namespaces that show or cover something in a directory (``wanted``) or,
    if asked for, in a tree."""

    wanted: Place | None
    way: frozenset[Place]
    is_tree: Callable[[Mount, Namespace], bool]
    with_trees: bool
    by_volume: dict[str, list[Found]] = field(default_factory=dict)
    trees: dict[int, TreeMount] = field(default_factory=dict)
    _inside: list[tuple[str, int, Found]] = field(default_factory=list)

    def read(self, spaces: Namespaces) -> None:
        """Look at all namespaces."""
        spaces.begin()
        order = itertools.count()
        for space in spaces:
            shown: dict[int, _Shown] = {}
            found, late = self._look_at(space, spaces, shown)
            if late:  # something is mounted on what was told after it
                found, _ = self._look_at(space, spaces, shown)
            for place, in_tree, item in found:
                if in_tree:
                    self.by_volume.setdefault(volume_of(place.path), []).append(item)
                else:
                    self._inside.append((place.path.rstrip("/") + "/", next(order), item))
        self._inside.sort(key=lambda entry: entry[:2])

    def _look_at(
        self, space: Namespace, spaces: Namespaces, shown: dict[int, _Shown]
    ) -> tuple[list[tuple[Place, bool, Found]], bool]:
        found: list[tuple[Place, bool, Found]] = []
        told: set[int] = set()
        missed: set[int] = set()
        late = False
        for mount in spaces.mounts(space):
            told.add(mount.id)
            tree = self.with_trees and self.is_tree(mount, space)
            gone = mount.root.endswith(DELETED)
            if mount.id not in shown and not gone and (tree or self._leads_on(mount)):
                late = late or mount.id in missed
                skip = 0 if mount.point == "/" else len(mount.point)
                root = f"/{volume_of(mount.root)}" if tree else mount.root
                shown[mount.id] = _Shown(mount.device, root, skip, tree)
            if tree:
                self.trees[mount.id] = TreeMount(
                    mount.device, mount.root, _join(space.root, mount.point)
                )
            parent = shown.get(mount.parent) if mount.parent != mount.id else None
            if parent is None and mount.parent not in told:
                missed.add(mount.parent)
            attached = parent and parent.place_of(mount.point)
            item = Found(mount.point, space, attached)
            own = Place(mount.device, mount.root)
            for place, in_tree in ((own, tree), (attached, bool(parent and parent.is_tree))):
                if place and not place.path.endswith(DELETED) and self._concerns(place, in_tree):
                    found.append((place, in_tree, item))
        return found, late

    def _concerns(self, place: Place, in_tree: bool) -> bool:
        if in_tree:
            return volume_of(place.path) != ""
        wanted = self.wanted
        return (
            wanted is not None
            and place.device == wanted.device
            and is_inside(place.path, wanted.path)
        )

    def _leads_on(self, mount: Mount) -> bool:
        """Whether a directory can be seen in the mount on which a mount would concern us."""
        wanted, root = self.wanted, mount.root
        if (
            wanted is not None
            and wanted.device == mount.device
            and (is_inside(wanted.path, root) or is_inside(root, wanted.path))
        ):
            return True
        return any(
            place.device == mount.device and is_inside(place.path, root) for place in self.way
        )

    def inside(self, data: Place) -> Iterator[Found]:
        """Yield the mounts of, or on, something in a directory."""
        if self.wanted is None or data.device != self.wanted.device:
            return
        first = data.path.rstrip("/") + "/"
        start = bisect.bisect_left(self._inside, (first, -1), key=lambda entry: entry[:2])
        for path, _, item in itertools.islice(self._inside, start, None):
            if not path.startswith(first):
                return
            yield item


def volume_of(path: str) -> str:
    """Return the first component of a path inside a tree; empty for the tree's root."""
    return path.split("/", 2)[1]


def _join(directory: str, path: str) -> str:
    return directory.rstrip("/") + path or "/"
