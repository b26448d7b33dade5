"""Who holds a volume: mounts in every mount namespace, and files open through the tree.

Everything is read from /proc, and nothing of what it names is touched, so a dead filesystem
or a hung container cannot make the answer wait. Only what this process may see is seen: root
sees all of its own pid namespace, others see their own processes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from volfs.holder import Holder
from volfs.linux.mountinfo import DELETED, Mount, MountTable, Place, is_inside
from volfs.volume import Volume

FSTYPE = "fuse.volfs"
"""The filesystem type under which mountinfo shows a tree of volumes."""

_FIRST = {"pid": "pid:[4026531836]", "user": "user:[4026531837]"}
"""The machine's first namespaces (PROC_PID_INIT_INO, PROC_USER_INIT_INO in the kernel)."""

_CONTAINER_CGROUP = re.compile(r"(?<!conmon)[/-]([0-9a-f]{64})(?:\.scope)?(?=/|$)", re.MULTILINE)
_CONTAINER_FILES = re.compile(r"containers/([0-9a-f]{64})/")


def mount_holders(volume: Volume, scope: str) -> list[Holder]:
    """Return the mounts that hold a volume of ``scope`` (a real path): see Scan."""
    return Scan(scope).mount_holders(volume)


def open_holders(volume: Volume, scope: str) -> list[Holder]:
    """Return the processes with files of the volume open or mapped through a tree: see Scan."""
    return Scan(scope).open_holders(volume)


def tree_mounts(scope: str) -> list[str]:
    """Return the mount points, in our own namespace, at which ``scope`` is served as a tree."""
    return [mount.point for mount in MountTable.of_process() if _is_tree(mount, scope)]


def mount_users(point: str) -> list[Holder]:
    """Return what keeps the mount at ``point``, in our own namespace, from being unmounted.

    That is files open or mapped in it, working and root directories, and mounts on top of it.
    """
    space = next(_namespaces())
    here = [mount for mount in space.mounts if mount.point == point]
    if not here:
        return []
    users = [Holder("mount", mount.point) for mount in space.mounts if mount.parent == here[-1].id]
    for pid in space.pids:
        paths = dict.fromkeys(path for path, _ in _paths_of(pid, (point,)))
        for link, what in (("cwd", "working directory"), ("root", "root directory")):
            with suppress(OSError):
                path = os.readlink(f"/proc/{pid}/{link}")
                if is_inside(path, point):
                    paths[f"{path} ({what})"] = None
        users += [Holder("open", path, pid, _command(pid), _container(pid)) for path in paths]
    return users


def _is_ours(mount: Mount, scope: str) -> bool:
    return mount.fstype == FSTYPE and mount.source == scope


def _is_tree(mount: Mount, scope: str) -> bool:
    return _is_ours(mount, scope) and mount.root == "/"


@dataclass(frozen=True, slots=True)
class _Namespace:
    """A mount namespace as one of its processes sees it; ``root`` is that process's root."""

    pid: int
    pids: Sequence[int]
    root: str
    mounts: MountTable
    own: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """A mount of a namespace, and the directory it covers."""

    mount: Mount
    space: _Namespace
    attached: Place | None


class _MountIndex:
    """The mounts of all namespaces by what they show or cover.

    There are hundreds of them on a machine with containers: too many to go through for each of
    hundreds of volumes.
    """

    def __init__(self, namespaces: Sequence[_Namespace], scope: str) -> None:
        self._mounts: list[_Found] = []
        self._by_volume: dict[str, list[int]] = {}
        self._by_place: dict[Place, list[int]] = {}
        for space in namespaces:
            trees = {mount.device for mount in space.mounts if _is_ours(mount, scope)}
            for mount in space.mounts:
                attached = space.mounts.attached_to(mount)
                for place in (Place(mount.device, mount.root), attached):
                    if place is not None and not place.path.endswith(DELETED):
                        self._add(place, in_tree=place.device in trees)
                self._mounts.append(_Found(mount, space, attached))

    def _add(self, place: Place, *, in_tree: bool) -> None:
        number = len(self._mounts)
        if in_tree:
            self._by_volume.setdefault(_volume_of(place.path), []).append(number)
            return
        path = place.path
        while path != "/":
            self._by_place.setdefault(Place(place.device, path), []).append(number)
            path = path.rpartition("/")[0] or "/"
        self._by_place.setdefault(Place(place.device, "/"), []).append(number)

    def inside(self, volume: str, data: Place | None) -> list[_Found]:
        """Return the mounts of, or on, something in a volume of that name and data path."""
        numbers = {*self._by_volume.get(volume, ())}
        if data is not None:
            numbers.update(self._by_place.get(data, ()))
        return [self._mounts[number] for number in sorted(numbers)]


class Scan:
    """One look at all processes, from which any number of volumes can be answered.

    The mount namespaces are read on the first question about mounts, the open files on the
    first about those.
    """

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self._namespaces: list[_Namespace] | None = None
        self._hidden: list[int] = []
        self._mounts: _MountIndex | None = None
        self._open: list[tuple[str, Holder]] | None = None

    def sees_all(self) -> bool:
        """Tell whether no container's mounts can be hidden from this process.

        It has to be in the machine's first pid and user namespace, with a /proc that shows all
        processes, and there may be none in a container that it is not allowed to look at.
        """
        own = self._look()[0].mounts
        hidepid = any(mount.point == "/proc" and "hidepid" in mount.options for mount in own)
        first = all(os.readlink(f"/proc/self/ns/{kind}") == id for kind, id in _FIRST.items())
        return first and not hidepid and not any(_is_contained(pid) for pid in self._hidden)

    def mount_holders(self, volume: Volume) -> list[Holder]:
        """Return the mounts of something in the volume, and those on something in it.

        Counted are mounts whose root is the volume or below it, of a tree of this scope or of
        the data path, in any mount namespace, and mounts that cover a directory of the volume.
        Not counted: the tree's own mounts, and what leads to the scope itself, such as a disk
        an administrator mounted on a data path, along with its copies in other namespaces.
        """
        if self._mounts is None:
            self._mounts = _MountIndex(self._look(), self.scope)
        own = self._look()[0].mounts
        data = own.place_of(volume.path)
        way = {place for mount in own.way_to(volume.path) if (place := own.attached_to(mount))}
        return [
            _mount_holder(found.mount, found.space)
            for found in self._mounts.inside(volume.name, data)
            if found.attached not in way
        ]

    def open_holders(self, volume: Volume) -> list[Holder]:
        """Return the processes that have a file or directory of the volume open, or mapped,
        through a tree of this scope, once for each path.

        A current directory does not count: it can be removed like any other directory.
        """
        if self._open is None:
            self._open = list(self._open_files())
        return [holder for name, holder in self._open if name == volume.name]

    def _look(self) -> list[_Namespace]:
        if self._namespaces is None:
            self._namespaces = list(_namespaces(self._hidden))
        return self._namespaces

    def _open_files(self) -> Iterator[tuple[str, Holder]]:
        for space in self._look():
            ours = {mount.id: mount for mount in space.mounts if _is_ours(mount, self.scope)}
            if not ours:
                continue
            # Paths under /proc are relative to our root, mount points to the process's.
            points = {id: _join(space.root, mount.point) for id, mount in ours.items()}
            prefixes = tuple(points.values())
            for pid in space.pids:
                seen = set()
                for path, mount_id in _paths_of(pid, prefixes):
                    candidates = ours if mount_id is None else {mount_id}.intersection(ours)
                    for id in candidates:
                        if not is_inside(path, points[id]):
                            continue
                        within = _join(ours[id].root, path[len(points[id].rstrip("/")) :])
                        name = _volume_of(within)
                        if name and path not in seen:
                            seen.add(path)
                            yield name, Holder("open", path, pid, _command(pid), _container(pid))
                            break


def _volume_of(path: str) -> str:
    """Return the first component of a path inside a tree; empty for the tree's root."""
    return path.split("/", 2)[1]


def _join(directory: str, path: str) -> str:
    return directory.rstrip("/") + path or "/"


def _mount_holder(mount: Mount, space: _Namespace) -> Holder:
    if space.own:
        return Holder("mount", mount.point)
    # The one that was asked may have been short-lived, such as a command of a shell script.
    pid = next(filter(_lives, space.pids), space.pid)
    roots = (other.root for other in space.mounts)
    return Holder("mount", mount.point, pid, _command(pid), _container(pid, roots))


def _lives(pid: int) -> bool:
    try:
        os.readlink(f"/proc/{pid}/root")
    except OSError:
        return False  # of a zombie, too
    return True


def _namespaces(hidden: list[int] | None = None) -> Iterator[_Namespace]:
    """Yield our own mount namespace, then every other that a process we may look at lives in.

    The processes at which we may not are added to ``hidden``.
    """
    hidden = [] if hidden is None else hidden
    pids: dict[str, list[int]] = {}
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        try:
            pids.setdefault(os.readlink(f"/proc/{pid}/ns/mnt"), []).append(pid)
        except PermissionError:
            hidden.append(pid)
        except OSError:
            continue
    members = pids.pop(os.readlink("/proc/self/ns/mnt"), [os.getpid()])
    yield _Namespace(members[0], members, "/", MountTable.of_process(), own=True)
    for namespace, members in pids.items():
        for pid in members:
            try:
                mounts = MountTable.of_process(pid)
                root = os.readlink(f"/proc/{pid}/root")
                # Of a process that died meanwhile the file reads empty.
                if os.readlink(f"/proc/{pid}/ns/mnt") != namespace or not mounts:
                    continue
            except PermissionError:
                hidden.append(pid)
                continue
            except OSError:
                continue
            yield _Namespace(pid, members, root, mounts, own=False)
            break


def _paths_of(pid: int, prefixes: tuple[str, ...]) -> Iterator[tuple[str, int | None]]:
    """Yield the paths below ``prefixes`` that a process has open, with the mount's id, and
    those it has mapped, with None.

    The links under /proc are read and never followed: following asks the filesystem.
    """
    try:
        for entry in os.listdir(f"/proc/{pid}/fd"):
            try:
                path = os.readlink(f"/proc/{pid}/fd/{entry}")
                if any(is_inside(path, prefix) for prefix in prefixes):
                    yield path, _mount_id(pid, entry)
            except OSError:
                continue
        maps = Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return
    if not any(os.fsencode(prefix) in maps for prefix in prefixes):
        return
    for line in os.fsdecode(maps).split("\n"):
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and any(is_inside(fields[5], prefix) for prefix in prefixes):
            yield fields[5], None


def _mount_id(pid: int, fd: str) -> int | None:
    for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "mnt_id":
            return int(value)
    return None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def _is_contained(pid: int) -> bool:
    """Tell, of a process we may not look at, whether it seems to run in a container: it has
    a pid namespace of its own, or the control group of one."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        pids = next((line for line in status.splitlines() if line.startswith("NSpid:")), "")
        cgroup = Path(f"/proc/{pid}/cgroup").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
    return len(pids.split()) > 2 or container_in_cgroup(cgroup) is not None


def container_in_cgroup(text: str) -> str | None:
    """Return the container's id from the content of /proc/PID/cgroup, None where none is named.

    Understood are version 1 and 2, and what Docker, Podman, containerd and CRI-O write.
    """
    match = _CONTAINER_CGROUP.search(text)
    return match[1] if match else None


def _container(pid: int, roots: Iterator[str] | None = None) -> str | None:
    """Return the id of the container a process runs in, None where nothing tells.

    Told by, in this order: the control group (docker, libpod, cri-o and containerd name it by
    the 64 digits); the files Docker and Podman bind into a container (/etc/hosts and others,
    kept in a directory of that name); the arguments of its parent, containerd's shim.
    """
    # Of a process that ended a moment ago the mounts, read before, still tell.
    with suppress(OSError):
        if id := container_in_cgroup(Path(f"/proc/{pid}/cgroup").read_text()):
            return id
    try:
        for root in roots if roots is not None else (m.root for m in MountTable.of_process(pid)):
            if match := _CONTAINER_FILES.search(root):
                return match[1]
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        parent = int(stat.rpartition(")")[2].split()[1])
        if _command(parent).startswith("containerd-shim"):
            words = Path(f"/proc/{parent}/cmdline").read_text(errors="replace").split("\0")
            return words[words.index("-id") + 1]
    except (OSError, ValueError, IndexError):
        pass
    return None
