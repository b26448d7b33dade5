"""Who holds a volume: mounts in every mount namespace, and files open through any of its trees.

*Trees* are known by the device number of their superblock, never by what a mount calls itself.
They are those that a daemon has announced in the scope (see ``trees``), wherever they are mounted
and also while they are mounted nowhere. Besides, a mount that calls itself a tree of this scope
is one where the kernel says that root or the scope's owner mounted it: in a namespace of our own
user namespace nobody can make the option ``user_id`` say something else. So a tree counts whose
daemon could not announce it, or died.

*Mounts* are told by /proc/PID/mountinfo, of one process for each namespace. It is read line by
line, and only what concerns the scope is kept. In a namespace that a user made (one of another
user namespace than ours), a mount counts only if that user may enter the volume: for a bind mount
one needs no permission to what is mounted, and nobody shall pin what is none of his business.

*Open files* are told by the mount id of each descriptor and the device number of each mapping.
Mount ids are the machine's, so it does not matter in which namespace a file was opened. A file on
a mount that is in no table any more, as after a lazy unmount, is not to be seen in this way:
/proc tells neither its device nor, of a part of a tree, where in the tree it is. So each daemon
is asked, too, what is open in its tree. One that does not answer may have anything open: then the
volume is in use. A daemon knows its own tree by itself and looks only at others.

Everything is read from /proc and from daemons, and nothing of what /proc names is touched, so a
dead filesystem or a hung container cannot make the answer wait; a hung daemon does so once, for
some seconds. Only what this process may see is seen: root sees all of its own pid namespace,
others see their own processes. Daemons answer to root and to the scope's owner.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from volfs.holder import Holder
from volfs.linux.mountinfo import Mount, MountTable, Place, is_inside
from volfs.store.mounts import Found, Mounts, TreeMount, volume_of
from volfs.store.namespaces import (
    Namespace,
    Namespaces,
    command_of,
    container_of,
    groups_of,
    is_contained,
    mapped_paths,
    open_paths,
    user_of,
)
from volfs.store.trees import FSTYPE, OpenFile, Tree, says_to_be_tree, trees_of
from volfs.volume import Volume

_FIRST = {"pid": "pid:[4026531836]", "user": "user:[4026531837]"}
"""The machine's first namespaces (PROC_PID_INIT_INO, PROC_USER_INIT_INO in the kernel)."""

_USER_ID = re.compile(r"(?:^|,)user_id=(\d+)(?:,|$)", re.ASCII)
_UNLINKED = " (deleted)"
_MANY = 64
"""With more mounts of trees than this, each open file's mount is asked for, not only of those
below the mount points."""

_RELEASE_TIME = 0.03
_PATIENCE = 3
"""A file that no process shows to have open is taken to be in use when this many times this many
seconds brought no release: the kernel tells daemons late of what was closed."""


def mount_holders(volume: Volume, scope: str) -> list[Holder]:
    """Return the mounts that hold a volume of ``scope`` (a real path): see Scan."""
    return Scan(scope).mount_holders(volume)


def disk_holders(volume: Volume, scope: str) -> list[Holder]:
    """Return what is mounted on the volume's data directory itself: see Scan."""
    return Scan(scope).disk_holders(volume)


def open_holders(volume: Volume, scope: str) -> list[Holder]:
    """Return the processes with files of the volume open or mapped through a tree: see Scan."""
    return Scan(scope).open_holders(volume)


def open_elsewhere(volume: Volume, scope: str) -> list[Holder]:
    """The same, but for trees that this process serves itself."""
    return Scan(scope, own_trees=False).open_holders(volume)


def tree_mounts(scope: str) -> list[str]:
    """Return the mount points, in our own namespace, at which ``scope`` is served as a tree."""
    scan = Scan(scope)
    space = scan.namespaces.own
    return [
        mount.point
        for mount in scan.namespaces.mounts(space)
        if mount.root == "/" and scan.is_tree(mount, space)
    ]


def mounted_devices(scope: str) -> set[str]:
    """Return the device numbers of what is mounted in any namespace and calls itself a tree of
    ``scope`` (a real path). Other filesystems get the numbers of trees that are gone."""
    spaces = Namespaces()
    return {
        mount.device
        for space in spaces
        for mount in spaces.mounts(space)
        if says_to_be_tree(mount, scope)
    }


def mount_users(point: str) -> list[Holder]:
    """Return what keeps the mount at ``point``, in our own namespace, from being unmounted.

    That is files open or mapped in it, working and root directories, and mounts on top of it.
    """
    space = Namespaces().own
    table = MountTable.of_process()
    here = [mount for mount in table if mount.point == point]
    if not here:
        return []
    users = [Holder("mount", mount.point) for mount in table if mount.parent == here[-1].id]
    for pid in space.pids:
        paths = dict.fromkeys(
            path for path, _ in open_paths(pid, lambda path: is_inside(path, point))
        )
        paths |= dict.fromkeys(
            path for path, _ in mapped_paths(pid, {here[-1].device}) if is_inside(path, point)
        )
        for link, what in (("cwd", "working directory"), ("root", "root directory")):
            with suppress(OSError):
                path = os.readlink(f"/proc/{pid}/{link}")
                if is_inside(path, point):
                    paths[f"{path} ({what})"] = None
        users += [_opener(path, pid, space) for path in paths]
    return users


class Scan:
    """One look at all processes, from which any number of volumes can be answered.

    The mount namespaces are read on the first question about mounts, the open files on the
    first about those.
    """

    def __init__(self, scope: str, *, own_trees: bool = True) -> None:
        """``scope`` is a real path. Without ``own_trees`` files that are open in a tree which
        this process serves are left out."""
        self.scope = scope
        self._own_trees = own_trees
        self._namespaces: Namespaces | None = None
        self._own: MountTable | None = None
        self._trees: dict[str, Tree] | None = None
        self._masters: frozenset[int] | None = None
        self._mounts: Mounts | None = None
        self._outside: dict[Place, Mounts] = {}
        self._open: dict[str, list[tuple[str, Holder]]] | None = None
        self._answers: dict[str, list[Holder]] = {}
        self._silent: set[str] = set()

    @property
    def namespaces(self) -> Namespaces:
        """The mount namespaces, found when first asked for."""
        if self._namespaces is None:
            self._namespaces = Namespaces()
        return self._namespaces

    @property
    def _table(self) -> MountTable:
        if self._own is None:
            self._own = MountTable.of_process()
        return self._own

    # Trees

    def _announced(self) -> dict[str, Tree]:
        if self._trees is None:
            # Of two with one number the living one has it.
            trees = sorted(trees_of(self.scope), key=lambda tree: tree.pid is not None)
            self._trees = {tree.device: tree for tree in trees}
        return self._trees

    def is_tree(self, mount: Mount, space: Namespace) -> bool:
        """Tell whether a mount shows a tree of the scope, or a part of one: see the module."""
        if mount.fstype != FSTYPE:
            return False
        tree = self._announced().get(mount.device)
        if tree is not None and (tree.pid is not None or not space.trusted):
            return True
        # Once its superblock is gone, the number of a dead daemon's tree can be another's.
        return (
            space.trusted
            and (tree is not None or says_to_be_tree(mount, self.scope))
            and (user := _USER_ID.search(mount.options)) is not None
            and int(user[1]) in self._trusted_users()
        )

    def _trusted_users(self) -> frozenset[int]:
        if self._masters is None:
            users = {0}
            with suppress(OSError):
                users.add(os.stat(self.scope).st_uid)
            self._masters = frozenset(users)
        return self._masters

    # Mounts

    def sees_all(self) -> bool:
        """Tell whether this process can see the mounts of every container.

        It has to be in the machine's first pid and user namespace, with a /proc that shows all
        processes, and there may be none in a container that it is not allowed to look at.
        """
        hidepid = any(
            mount.point == "/proc" and "hidepid" in mount.options for mount in self._table
        )
        first = all(os.readlink(f"/proc/self/ns/{kind}") == id for kind, id in _FIRST.items())
        return first and not hidepid and not any(map(is_contained, self.namespaces.hidden))

    def mount_holders(self, volume: Volume) -> list[Holder]:
        """Return the mounts of something in the volume, and those on something in it.

        Counted are mounts whose root is the volume or below it, of a tree of this scope or of
        the data path, in any mount namespace, and mounts that cover a directory of the volume.
        Not counted: the tree's own mounts, those of users who may not enter the volume, and what
        leads to the scope itself or to the data (see ``disk_holders``), such as a disk that an
        administrator mounted there, along with its copies in other namespaces.
        """
        data = self._table.place_of(volume.path)
        way = self._way_to(volume.path)
        found = [*self._look().by_volume.get(volume.name, ())]
        if data is not None:
            found += self._around(data, way).inside(data)
        return [
            _mount_holder(item)
            for item in dict.fromkeys(found)
            if item.attached not in way and _may_hold(item.space, volume)
        ]

    def disk_holders(self, volume: Volume) -> list[Holder]:
        """Return the mounts on the volume's data directory, by which its data is reached.

        They are nobody's use of the volume, but keep its directory from being removed.
        """
        volumes = self._volumes()
        return [
            Holder("mount", mount.point)
            for mount in self._table.way_to(volume.path)
            if volumes is not None
            and (attached := self._table.attached_to(mount)) is not None
            and attached.device == volumes.device
            and attached.path != volumes.path
            and is_inside(attached.path, volumes.path)
        ]

    def _way_to(self, path: str) -> frozenset[Place]:
        table = self._table
        return frozenset(
            place for mount in table.way_to(path) if (place := table.attached_to(mount))
        )

    def _volumes(self) -> Place | None:
        return self._table.place_of(f"{self.scope}/volumes")

    def _look(self) -> Mounts:
        if self._mounts is None:
            way = self._way_to(f"{self.scope}/volumes")
            self._mounts = Mounts(self._volumes(), way, self.is_tree, with_trees=True)
            self._mounts.read(self.namespaces)
        return self._mounts

    def _around(self, data: Place, way: frozenset[Place]) -> Mounts:
        """Return the mounts that can concern a data directory, wherever that is."""
        volumes = self._look().wanted
        if volumes and data.device == volumes.device and is_inside(data.path, volumes.path):
            return self._look()
        if data not in self._outside:
            mounts = self._outside[data] = Mounts(data, way, self.is_tree, with_trees=False)
            mounts.read(self.namespaces)
        return self._outside[data]

    # Open files

    def open_holders(self, volume: Volume) -> list[Holder]:
        """Return the processes that have a file or directory of the volume open, or mapped,
        through a tree of this scope, once for each path.

        A current directory does not count: it can be removed like any other directory.
        """
        if volume.name not in self._answers:
            self._answers[volume.name] = self._have_open(volume)
        return self._answers[volume.name]

    def _have_open(self, volume: Volume) -> list[Holder]:
        trees = [*self._announced().values()]
        if not self._own_trees:
            others = [tree for tree in trees if not tree.is_own]
            if len(others) < len(trees) and not others and not self._strangers():
                return []
            trees = others
        if self._open is None:
            self._open = self._open_files()
        seen = self._open.get(volume.name, [])
        holders = [holder for _, holder in seen]
        known = frozenset(within for within, _ in seen)
        for tree in trees:
            if tree.pid is None:
                continue
            try:
                told = _unseen(tree, volume.name, known) if tree.file not in self._silent else None
            except (OSError, ValueError, TypeError, RecursionError):
                self._silent.add(tree.file)
                told = None
            if told is not None:
                holders += [
                    Holder("open", item.path, item.pid, item.command, uid=user_of(item.pid))
                    for item in told
                ]
            elif not holders:
                what = "(perhaps) in a tree whose daemon does not answer"
                holders.append(Holder("open", what, tree.pid, command_of(tree.pid)))
        return holders

    def _strangers(self) -> bool:
        """Whether there are trees in our namespace that nobody has announced."""
        return any(
            says_to_be_tree(mount, self.scope) and mount.device not in self._announced()
            for mount in self._table
        )

    def _open_files(self) -> dict[str, list[tuple[str, Holder]]]:
        """Return, by volume, what processes are seen to have open, and its path in the tree."""
        found: dict[str, list[tuple[str, Holder]]] = {}
        ignored = set()
        if not self._own_trees:
            ignored = {tree.device for tree in self._announced().values() if tree.is_own}
        mounts = {
            id: mount for id, mount in self._look().trees.items() if mount.device not in ignored
        }
        devices = {mount.device for mount in mounts.values()}
        if not mounts:
            return found
        points: dict[str, list[TreeMount]] = {}
        for mount in mounts.values():
            points.setdefault(mount.point, []).append(mount)
        prefixes = tuple(f"{point.rstrip('/')}/" for point in points)

        def is_candidate(path: str) -> bool:
            return len(prefixes) > _MANY or f"{path}/".startswith(prefixes)

        for space in self.namespaces:
            for pid in space.pids:
                seen = set()
                paths = [
                    (path, mounts[id].within(path))
                    for path, id in open_paths(pid, is_candidate)
                    if id in mounts
                ]
                paths += [(path, _within(path, points)) for path, _ in mapped_paths(pid, devices)]
                for path, within in paths:
                    name = volume_of(within) if within else ""
                    if within and name and path not in seen:
                        seen.add(path)
                        holder = _opener(path, pid, space)
                        known = within.removeprefix("/").removesuffix(_UNLINKED)
                        found.setdefault(name, []).append((known, holder))
        return found


def _unseen(tree: Tree, name: str, known: frozenset[str]) -> Sequence[OpenFile]:
    """Return what a tree's daemon has open of a volume, but for the paths that are known.

    Waits a moment for the release of what was closed. Raises OSError when it does not answer.
    """
    left: dict[int, OpenFile] | None = None
    patience = _PATIENCE
    while True:
        now = {item.number: item for item in tree.ask(name) if item.path not in known}
        if left is not None:
            now = {number: item for number, item in now.items() if number in left}
            patience = _PATIENCE if len(now) < len(left) else patience - 1
        left = now
        if not left or not patience:
            return [*left.values()]
        time.sleep(_RELEASE_TIME)


def _within(path: str, points: Mapping[str, Sequence[TreeMount]]) -> str | None:
    """Return the path in a tree of what is seen at a path, by the mount points above it."""
    above = path
    while above:
        for mount in points.get(above, ()):
            return mount.within(path)
        above = above.rpartition("/")[0]
    return None


def _mount_holder(found: Found) -> Holder:
    space = found.space
    if space.own:
        return Holder("mount", found.point)
    pid = space.living()
    return Holder(
        "mount", found.point, pid, command_of(pid), container_of(pid, space), user_of(pid)
    )


def _opener(path: str, pid: int, space: Namespace) -> Holder:
    return Holder("open", path, pid, command_of(pid), container_of(pid, space), user_of(pid))


def _may_hold(space: Namespace, volume: Volume) -> bool:
    """Tell whether mounts in a namespace count: see the module."""
    if space.guest is None:
        return True
    try:
        status = os.stat(volume.path)
        if space.guest == status.st_uid or status.st_mode & 0o001:
            return True
        if status.st_mode & 0o010 and (
            status.st_gid in groups_of(space.living())
            or "system.posix_acl_access" in os.listxattr(volume.path)
        ):
            return True
    except OSError:
        return True
    return space.maps(status.st_uid, status.st_gid)
