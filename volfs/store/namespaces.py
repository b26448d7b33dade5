"""The mount namespaces of this machine, as far as a process may look at them; and processes.

Everything is read from /proc, and nothing of what it names is touched.
"""

from __future__ import annotations

import array
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from volfs.linux.mountinfo import Mount, mounts_of

_CONTAINER_CGROUP = re.compile(r"(?<!conmon)[/-]([0-9a-f]{64})(?:\.scope)?(?=/|$)", re.MULTILINE)
_CONTAINER_FILES = re.compile(r"containers/([0-9a-f]{64})/")
_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704  # ioctl_ns(2)

_GUEST_NAMESPACE = 1 << 18
_GUEST = 1 << 20
"""How much is read, in bytes, of the mounts of one namespace that a user made, and of all of one
user's. They can be so many and so deep that the kernel needs minutes to name them. Who has more
mounts than that harms nobody but himself: those made first are told first."""


@dataclass(slots=True)
class Namespace:
    """A mount namespace: ``pids`` live in it, ``own`` says that it is ours.

    ``trusted``: it belongs to our own user namespace, so whoever mounts in it is root here, or
    fusermount3(1), which says truly for whom. ``guest`` is the user who made the user namespace
    that it belongs to, None when that was root, or cannot be told.

    Set by reading its ``mounts``: ``pid`` is the process that was asked, ``root`` its root
    directory, ``container`` the id of the container that the mounts tell of.
    """

    pids: Sequence[int]
    own: bool
    trusted: bool = False
    guest: int | None = None
    pid: int = 0
    root: str = "/"
    container: str | None = None

    def living(self) -> int:
        """Return one of its processes, if possible one that has not ended meanwhile."""
        # The one that was asked may have been short-lived, such as a command of a shell script.
        return next(filter(_lives, self.pids), self.pid)

    def maps(self, uid: int, gid: int) -> bool:
        """Tell whether a user and group have an id in the user namespace of its processes, so
        that root in there has their rights."""
        try:
            return _is_mapped(self.pid, "uid", uid) and _is_mapped(self.pid, "gid", gid)
        except (OSError, ValueError):
            return True


class Namespaces:
    """The mount namespaces of the machine: our own, then each that some process lives in at
    which we may look. ``hidden`` are the processes at which we may not."""

    def __init__(self) -> None:
        self.hidden: list[int] = []
        self.all = list(self._find())
        self._allowance: dict[int, int] = {}

    def begin(self) -> None:
        """Begin to read the mounts once more."""
        self._allowance.clear()

    def __iter__(self) -> Iterator[Namespace]:
        return iter(self.all)

    @property
    def own(self) -> Namespace:
        """Our own."""
        return self.all[0]

    def _find(self) -> Iterator[Namespace]:
        pids: dict[str, list[int]] = {}
        for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
            try:
                pids.setdefault(os.readlink(f"/proc/{pid}/ns/mnt"), []).append(pid)
            except PermissionError:
                self.hidden.append(pid)
            except OSError:
                continue
        members = pids.pop(os.readlink("/proc/self/ns/mnt"), [])
        # Asked for its mounts is the first: the others may end, or have another root.
        own = os.getpid()
        yield Namespace([own, *(pid for pid in members if pid != own)], own=True)
        for others in pids.values():
            yield Namespace(others, own=False)

    def mounts(self, space: Namespace) -> Iterator[Mount]:
        """Yield the mounts of a namespace as one of its processes sees them.

        They are told one at a time, and never kept all at once. Nothing when all have ended.
        """
        for pid in space.pids:
            try:
                link = os.readlink(f"/proc/{pid}/ns/mnt")
                space.trusted, space.guest = _owner_of(pid)
                mounts = mounts_of(pid, self._limit(space.guest))
                first = next(mounts, None)
                root = "/" if space.own else os.readlink(f"/proc/{pid}/root")
                # Of a process that died meanwhile the file reads empty.
                if first is None or os.readlink(f"/proc/{pid}/ns/mnt") != link:
                    continue
            except PermissionError:
                self.hidden.append(pid)
                continue
            except OSError:
                continue
            space.pid, space.root = pid, root
            yield from self._noting(space, first, mounts)
            return

    def _limit(self, guest: int | None) -> int | None:
        if guest is None:
            return None
        return min(_GUEST_NAMESPACE, self._allowance.get(guest, _GUEST))

    def _noting(self, space: Namespace, first: Mount, others: Iterator[Mount]) -> Iterator[Mount]:
        read = 0
        mount: Mount | None = first
        while mount is not None:
            read += len(mount.root) + len(mount.point)
            if space.container is None and (match := _CONTAINER_FILES.search(mount.root)):
                space.container = match[1]
            yield mount
            mount = next(others, None)
        if space.guest is not None:
            self._allowance[space.guest] = self._allowance.get(space.guest, _GUEST) - read


def _owner_of(pid: int) -> tuple[bool, int | None]:
    """Tell of a process's mount namespace what Namespace says: ``trusted`` and ``guest``."""
    fds = []
    try:
        fds.append(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
        fds.append(fcntl.ioctl(fds[-1], _NS_GET_USERNS))
        ours = os.stat("/proc/self/ns/user")
        if os.path.samestat(os.fstat(fds[-1]), ours):
            return True, None
        # Of namespaces inside each other the outermost is made by somebody whom we know.
        while True:
            fds.append(fcntl.ioctl(fds[-1], _NS_GET_PARENT))
            if os.path.samestat(os.fstat(fds[-1]), ours):
                break
        uid = array.array("I", [0])
        fcntl.ioctl(fds[-2], _NS_GET_OWNER_UID, uid)
        return False, uid[0] or None
    except PermissionError:
        return False, None  # it belongs to one above ours
    finally:
        for fd in fds:
            os.close(fd)


def _is_mapped(pid: int, kind: str, id: int) -> bool:
    for line in Path(f"/proc/{pid}/{kind}_map").read_text().splitlines():
        _, first, count = map(int, line.split())
        if first <= id < first + count:
            return True
    return False


def _lives(pid: int) -> bool:
    try:
        os.readlink(f"/proc/{pid}/root")
    except OSError:
        return False  # of a zombie, too
    return True


# -- processes


def command_of(pid: int) -> str:
    """Return the name of the program that a process runs, empty if that cannot be told."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def user_of(pid: int) -> int | None:
    """Return the effective user of a process, None if that cannot be told."""
    ids = _status(pid, "Uid:")
    return int(ids[1]) if len(ids) > 1 else None


def groups_of(pid: int) -> frozenset[int]:
    """Return the groups of a process."""
    ids = [*_status(pid, "Gid:"), *_status(pid, "Groups:")]
    return frozenset(map(int, ids))


def _status(pid: int, key: str) -> list[str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return []
    return next((line.split()[1:] for line in lines if line.startswith(key)), [])


def is_contained(pid: int) -> bool:
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


def container_of(pid: int, space: Namespace) -> str | None:
    """Return the id of the container a process of a namespace runs in, None where nothing tells.

    Told by, in this order: the control group (docker, libpod, cri-o and containerd name it by
    the 64 digits); the files Docker and Podman bind into a container (/etc/hosts and others,
    kept in a directory of that name); the arguments of its parent, containerd's shim.
    """
    # Of a process that ended a moment ago the mounts, read before, still tell.
    with suppress(OSError):
        if id := container_in_cgroup(Path(f"/proc/{pid}/cgroup").read_text()):
            return id
    if space.container is not None:
        return space.container
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        parent = int(stat.rpartition(")")[2].split()[1])
        if command_of(parent).startswith("containerd-shim"):
            words = Path(f"/proc/{parent}/cmdline").read_text(errors="replace").split("\0")
            return words[words.index("-id") + 1]
    except (OSError, ValueError, IndexError):
        pass
    return None


def open_paths(pid: int, wanted: Callable[[str], bool]) -> Iterator[tuple[str, int]]:
    """Yield the paths that a process has open and that are ``wanted``, with their mount's id.

    The links under /proc are read and never followed: following asks the filesystem.
    """
    try:
        entries = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for entry in entries:
        try:
            path = os.readlink(f"/proc/{pid}/fd/{entry}")
            if path.startswith("/") and wanted(path):
                yield path, _mount_id(pid, entry)
        except OSError:
            continue


def mapped_paths(pid: int, devices: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the paths of what a process has mapped of filesystems, and their device number."""
    known = {_hexadecimal(device): device for device in devices}
    try:
        maps = Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return
    if not any(f" {device} ".encode() in maps for device in known):
        return
    for line in os.fsdecode(maps).split("\n"):
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[3] in known:
            yield fields[5], known[fields[3]]


def _hexadecimal(device: str) -> str:
    major, _, minor = device.partition(":")
    return f"{int(major):02x}:{int(minor):02x}"


def _mount_id(pid: int, fd: str) -> int:
    for line in Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "mnt_id":
            return int(value)
    return -1
