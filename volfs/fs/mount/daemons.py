"""Which process serves a tree, and who keeps a tree that was unmounted.

Both are told by the device number of the tree's superblock, from /proc alone: the tree itself is
not asked, which may hang, or belong to somebody else.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from volfs.holder import Holder
from volfs.linux.devices import device_of, pidfd_getfd, special_of
from volfs.linux.mountinfo import MountTable

_FUSE_DEVICE = "10:229"


def mark(device: str) -> int:
    """Mark this process as the daemon of the tree with that device number.

    Returns a descriptor; the mark lasts until it is closed, so not longer than the process.
    """
    return os.memfd_create(_name(device), os.MFD_CLOEXEC)


def _name(device: str) -> str:
    return f"volfs-tree-{device}"


class Daemons:
    """The processes that serve one tree; none where they cannot be seen from here.

    There is a second one for the moment in which one ends whose number was given again.
    """

    def __init__(self, device: str, owner: int) -> None:
        """``owner`` is the user id that the tree was mounted for: others cannot serve it."""
        self._found: dict[int, int] = {}
        for pid in _processes():
            with suppress(OSError):
                if os.stat(f"/proc/{pid}").st_uid in (0, owner) and _is_marked(pid, device):
                    fd = os.pidfd_open(pid)
                    if _is_marked(pid, device):  # the number may be another process's by now
                        self._found[pid] = fd
                    else:
                        os.close(fd)

    @property
    def pids(self) -> list[int]:
        return list(self._found)

    def are_connected(self) -> bool:
        """Whether one of them still has a connection to the kernel, so that the tree lives, and
        its device number is no other's. True as well where that cannot be told."""
        return any(_is_connected(pid, pidfd) for pid, pidfd in self._found.items())

    def wait(self, seconds: float) -> bool:
        """Wait until all of them have ended, and return whether they have."""
        for pid, fd in list(self._found.items()):
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(seconds * 1000):
                return False
            os.close(fd)
            del self._found[pid]
        return True

    def close(self) -> None:
        for fd in self._found.values():
            os.close(fd)
        self._found.clear()


def _is_connected(pid: int, pidfd: int) -> bool:
    try:
        for fd in sorted(map(int, os.listdir(f"/proc/{pid}/fd"))):
            if special_of(f"/proc/{pid}/fd/{fd}") == _FUSE_DEVICE:
                # For no longer than it takes: the connection lives as long as a descriptor of it.
                copy = pidfd_getfd(pidfd, fd)
                try:
                    poll = select.poll()
                    poll.register(copy, select.POLLIN)
                    return not any(events & select.POLLERR for _, events in poll.poll(0))
                finally:
                    os.close(copy)
    except FileNotFoundError:
        return False  # it is closing its descriptors
    except OSError:
        return True
    return False


def _is_marked(pid: int, device: str) -> bool:
    wanted = f"/memfd:{_name(device)} (deleted)"
    # The mark is among the first.
    for fd in sorted(map(int, os.listdir(f"/proc/{pid}/fd"))):
        with suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/fd/{fd}") == wanted:
                return True
    return False


def keepers(device: str) -> list[Holder]:
    """Return who keeps the tree with that device number: mounts of it in any namespace, and
    processes that have something of it open or mapped, or are in it.

    Of a tree that is mounted nowhere the paths begin at its root.
    """
    found: dict[Holder, None] = {}
    namespaces = set()
    own = os.readlink("/proc/self/ns/mnt")
    for pid in _processes():
        with suppress(OSError):
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in namespaces:
                for mount in MountTable.of_process(pid):
                    if mount.device == device:
                        by = (None, "") if namespace == own else (pid, _command(pid))
                        found[Holder("mount", mount.point, *by)] = None
                namespaces.add(namespace)
        with suppress(OSError):
            for path in _open_on(pid, device):
                found[Holder("open", path, pid, _command(pid))] = None
    return list(found)


def _open_on(pid: int, device: str) -> Iterator[str]:
    links = [(f"/proc/{pid}/{name}", f" ({what})") for name, what in _DIRECTORIES.items()]
    links += [(f"/proc/{pid}/fd/{fd}", "") for fd in os.listdir(f"/proc/{pid}/fd")]
    for link, what in links:
        with suppress(OSError):
            if device_of(link) == device:
                yield os.readlink(link) + what
    for line in Path(f"/proc/{pid}/maps").read_bytes().splitlines():
        fields = os.fsdecode(line).split(maxsplit=5)
        if len(fields) == 6:
            major, _, minor = fields[3].partition(":")
            if f"{int(major, 16)}:{int(minor, 16)}" == device:
                yield fields[5]


_DIRECTORIES = {"cwd": "working directory", "root": "root directory"}


def _processes() -> list[int]:
    return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""
